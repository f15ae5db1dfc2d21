"""Large results are in memory that the system backs with huge pages."""

import mmap
import re
from pathlib import Path

import numpy as np
import pytest

from cupycorr._cpu import pages

SMAPS = Path("/proc/self/smaps")
pytestmark = pytest.mark.skipif(
    not hasattr(mmap, "MADV_HUGEPAGE") or not SMAPS.exists() or not Path("/sys/kernel/mm/transparent_hugepage").exists(),
    reason="this system has no huge pages that a program can ask for",
)


def flags(address):
    """Return the flags that the system shows of the mapping with an address."""
    inside = False
    for line in SMAPS.read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            begin, end = (int(each, 16) for each in bounds.groups())
            inside = begin <= address < end
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise AssertionError(f"no mapping has {address:#x}")


def mapping(size):
    """Return an array in a new mapping, of which the first page does not belong to the array."""
    memory = np.frombuffer(mmap.mmap(-1, size + mmap.PAGESIZE), np.uint8)
    return memory[100 : 100 + size]


@pytest.mark.parametrize(("size", "asked"), [(pages.LARGE, True), (pages.LARGE - 1, False)])
def test_huge_pages_are_asked_for_in_large_arrays(size, asked):
    array = mapping(size)
    pages.prefer_huge_pages(array)
    assert ("hg" in flags(array.ctypes.data + size // 2)) == asked
    assert "hg" not in flags(array.ctypes.data)  # this page has other bytes, too


def test_the_correlation_of_tensors_is_in_huge_pages():
    torch = pytest.importorskip("torch")
    from cupycorr.torch import spatial_correlation_sample

    x = torch.zeros(1, 2, 128, 128)
    out = spatial_correlation_sample(x, x, patch_size=31)
    assert "hg" in flags(out.data_ptr() + out.numel() * out.itemsize // 2)
