"""Kernels compiled on the CPU are kept for later processes, which compile nothing, and no file makes a result wrong."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("llvmlite")

from cupycorr._cpu import object_cache

# A process that prints how many kernels LLVM compiled, and a digest of the outputs and gradients.
PROGRAM = """
import hashlib
import numpy as np
import llvmlite.binding as llvm
import cupycorr

compiled = []
make = llvm.create_pass_builder
llvm.create_pass_builder = lambda *arguments: compiled.append(arguments) or make(*arguments)
x1, x2 = np.random.default_rng(0).standard_normal((2, 1, 5, 9, 40), dtype=np.float32)
parameters = dict(patch_size=3, variant="simd")
out = cupycorr.spatial_correlation_sample(x1, x2, **parameters)
arrays = out, *cupycorr.spatial_correlation_sample_vjp(out, x1, x2, **parameters)
print(len(compiled), hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest())
"""


def processes(folder, count=1):
    """Return the number of compiled kernels and the digest of the results of processes that run at once."""
    environment = {**os.environ, "CUPYCORR_CACHE_DIR": str(folder)}
    command = [sys.executable, "-c", PROGRAM]
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    printed = [each.communicate(timeout=300)[0].split() for each in running]
    assert [each.returncode for each in running] == [0] * count
    return [(int(compiled), digest) for compiled, digest in printed]


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """Return a cache folder that two processes filled at once, with the number of kernels and the digest of the results."""
    folder = tmp_path_factory.mktemp("cache")
    (compiled, digest), (others, same) = processes(folder, 2)
    kernels = len(list((folder / "objects").iterdir()))
    assert kernels > 1
    assert max(compiled, others) <= kernels <= compiled + others, "one process may read what the other has just kept"
    assert digest == same
    return folder, kernels, digest


def test_a_later_process_compiles_nothing(filled):
    folder, _, digest = filled
    assert processes(folder) == [(0, digest)]


DAMAGES = {
    "a changed byte": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "half of it": lambda content: content[: len(content) // 2],
    "nothing": lambda content: b"",
    "a digest without code": lambda content: content[:32],
    "another file": lambda content: b"not machine code" * 100,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_counts_as_none(monkeypatch, tmp_path, damage):
    monkeypatch.setenv("CUPYCORR_CACHE_DIR", str(tmp_path))
    object_cache.keep("key", b"code")
    assert object_cache.read("key") == b"code"
    (path,) = (tmp_path / "objects").iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert object_cache.read("key") is None
    object_cache.keep("key", b"code")
    assert object_cache.read("key") == b"code"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(monkeypatch, tmp_path):
    monkeypatch.setenv("CUPYCORR_CACHE_DIR", str(tmp_path))
    object_cache.keep("key", b"code")
    (path,) = (tmp_path / "objects").iterdir()
    path.unlink()
    os.mkfifo(path)
    assert object_cache.read("key") is None


def test_damaged_files_are_compiled_again(filled):
    folder, kernels, digest = filled
    for path in (folder / "objects").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    assert processes(folder) == [(kernels, digest)]
    assert processes(folder) == [(0, digest)]


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="the system has no permission bits")
@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_code_is_neither_read_nor_kept_where_others_can_write(monkeypatch, tmp_path, mode):
    monkeypatch.setenv("CUPYCORR_CACHE_DIR", str(tmp_path))
    object_cache.keep("key", b"code")
    (tmp_path / "objects").chmod(mode)
    assert object_cache.read("key") is None
    object_cache.keep("other", b"code")
    (tmp_path / "objects").chmod(0o700)
    assert object_cache.read("key") == b"code"
    assert object_cache.read("other") is None


def test_a_folder_that_cannot_be_made_does_no_harm(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CUPYCORR_CACHE_DIR", str(tmp_path / "file" / "below"))
    object_cache.keep("key", b"code")
    assert object_cache.read("key") is None


def test_without_a_home_folder_nothing_is_kept(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    for name in ("CUPYCORR_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    object_cache.keep("key", b"code")
    assert object_cache.read("key") is None


def test_kernels_run_where_nothing_can_be_kept(tmp_path, filled):
    (tmp_path / "file").write_text("")
    (found,) = processes(tmp_path / "file")
    assert found == filled[1:]


def test_other_text_is_another_key(monkeypatch, tmp_path):
    monkeypatch.setenv("CUPYCORR_CACHE_DIR", str(tmp_path))
    codes = {f"kernel {number}": bytes(np.full(9, number, np.uint8)) for number in range(3)}
    for key, code in codes.items():
        object_cache.keep(key, code)
    assert {key: object_cache.read(key) for key in codes} == codes
