"""The scalars that plans pass to the lookup's kernels are the parameters of their entry points, and constants agree."""

import re

import pytest
from entry_points import assert_has_parameters, without_comments
from kernel_files import kernel_files

from cupycorr._dtypes import LONGEST_CHAIN
from cupycorr._gpu import call, sum_parts
from cupycorr._lookup.gpu import (
    levels,
    lookup_boxes,
    lookup_direct,
    lookup_gradient1,
    lookup_gradient2,
    lookup_gradient_coords,
    lookup_mma,
    lookup_tiled,
    planner,
)

MODULES = (
    lookup_boxes,
    lookup_direct,
    lookup_gradient1,
    lookup_gradient2,
    lookup_gradient_coords,
    lookup_mma,
    lookup_tiled,
)
SIGNATURES = {module.SIGNATURE.name: module.SIGNATURE for module in MODULES}

CONSTANTS = {
    ("lookup_direct", "TAPS"): lookup_direct.TAPS,
    ("lookup_boxes", "QUERY_TILE"): lookup_boxes.QUERY_TILE,
    ("lookup_boxes", "BOX"): lookup_boxes.BOX,
    ("lookup_gradient2", "TARGET_TILE"): lookup_gradient2.TARGET_TILE,
    ("lookup_mma", "LEVELS"): levels.LEVELS,
    ("lookup_mma", "LONGEST_CHAIN"): LONGEST_CHAIN.tensor_cores,
    ("lookup_tiled", "LEVELS"): levels.LEVELS,
    ("lookup_tiled", "RUN"): lookup_tiled.RUN,
    ("lookup_tiled", "THREADS"): call.THREADS,
    ("lookup_tiled", "UNION"): lookup_tiled.UNION,
    ("lookup_tiled", "STRIP"): lookup_tiled.STRIP,
    ("lookup_tiled", "PLANES"): lookup_tiled.PLANES,
    ("lookup_tiled", "STAGES"): lookup_tiled.STAGES,
}


def test_every_kernel_file_has_a_signature():
    assert {f"{name}.cu" for name in SIGNATURES} == set(kernel_files(folders=("lookup",)))


@pytest.mark.parametrize("signature", SIGNATURES.values(), ids=SIGNATURES)
def test_names_order_and_types_are_those_of_the_entry_point(signature):
    assert_has_parameters(signature)


def test_every_build_is_of_a_kernel_with_a_signature():
    names = {*SIGNATURES, sum_parts.SIGNATURE.name}
    assert {kernel.file for _, kernel in planner.builds()} == {f"{name}.cu" for name in names}


@pytest.mark.parametrize(("place", "value"), CONSTANTS.items(), ids=[name for _, name in CONSTANTS])
def test_constants_of_planners_are_those_of_the_kernels(place, value):
    file, name = place
    found = re.search(rf"constexpr int {name} = (\d+);", without_comments(f"lookup/{file}.cu"))
    assert int(found[1]) == value


def test_the_channels_of_a_block_are_those_of_its_threads():
    numbers = dict(re.findall(r"constexpr int (\w+) = (\d+);", without_comments("lookup/lookup_gradient2.cu")))
    groups = int(numbers["THREADS"]) // int(numbers["TARGET_TILE"]) ** 2
    assert groups * int(numbers["THREAD_CHANNELS"]) == lookup_gradient2.CHANNELS


def test_groups_and_pairs_of_the_tensor_cores_are_those_of_the_kernel():
    numbers = re.search(r"constexpr int GROUP = (\d+), PAIR = (\d+);", without_comments("lookup/lookup_mma.cu"))
    assert tuple(map(int, numbers.groups())) == (lookup_mma.GROUP, lookup_mma.PAIR)
