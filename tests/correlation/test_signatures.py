"""The scalars that plans pass to a kernel are the parameters of its entry point: names, order and types."""

import re

import numpy as np
import pytest
from entry_points import assert_has_parameters
from kernel_files import kernel_files

from cupycorr._correlation.gpu import box, direct, forward_mma, forward_tiled, gradient_mma, gradient_tiled, planner
from cupycorr._dtypes import LONGEST_CHAIN
from cupycorr._gpu import source, sum_parts
from cupycorr._gpu.call import Pointer, Signature

SIGNATURES = {
    signature.name: signature
    for signature in (
        sum_parts.SIGNATURE,
        box.SIGNATURE,
        direct.FORWARD,
        direct.GRADIENT,
        forward_tiled.SIGNATURE,
        forward_mma.SIGNATURE,
        gradient_tiled.SIGNATURE,
        gradient_mma.SIGNATURE,
    )
}
TWO = Signature("folder/two", ("from",), {"count": "Index", "scale": "Sum"})


def test_every_kernel_file_has_a_signature():
    assert {f"{name}.cu" for name in SIGNATURES} == set(kernel_files())


@pytest.mark.parametrize("signature", SIGNATURES.values(), ids=SIGNATURES)
def test_names_order_and_types_are_those_of_the_entry_point(signature):
    assert_has_parameters(signature)


def test_every_build_is_of_a_kernel_with_a_signature():
    assert {kernel.file for _, kernel in planner.builds()} == {f"{name}.cu" for name in SIGNATURES}


def call(largest=0, **scalars):
    given = dict(accumulator=np.dtype("float64"), blocks=1, largest=largest)
    return TWO.call(macros={"TO": "half"}, pointers={"from": Pointer("x")}, scalars=scalars, **given)


@pytest.mark.parametrize(
    ("count", "largest", "index"),
    [(1, 0, np.int32), (2**30, 0, np.int64), (-(2**30), 0, np.int64), (1, 2**30 - 1, np.int32), (1, 2**30, np.int64)],
)
def test_an_index_has_32_bits_where_every_number_fits(count, largest, index):
    made = call(largest, count=count, scale=0.5)
    assert made.kernel.file == "folder/two.cu"
    assert made.kernel.entry == "two"
    assert made.kernel.macros == (("TO", "half"), ("INDEX", "int" if index is np.int32 else "long long"))
    assert [(type(scalar), scalar) for scalar in made.scalars] == [(index, count), (np.float64, 0.5)]


@pytest.mark.parametrize("scalars", [dict(count=1), dict(count=1, scale=1, more=1), dict(counts=1, scale=1)])
def test_missing_or_unexpected_scalars_are_refused(scalars):
    with pytest.raises(TypeError, match="folder/two has other parameters"):
        call(**scalars)


def test_kernels_that_sum_one_by_one_fold_as_often_as_the_table_of_chains_says():
    fold = re.search(r"constexpr int FOLD = (\d+);", source.text("correlation/forward_direct.cu"))[1]
    assert int(fold) == LONGEST_CHAIN.cuda_direct
