"""The parameters of the lookup have one table, and its requests tell the dispatch everything that a plan needs."""

import inspect

import numpy as np
import pytest
from lookup_cases import NAMED

import cupycorr
from cupycorr._dispatch import FORWARD, VJP, Request, array_names
from cupycorr._lookup.problem import PARAMETERS, Axis, parameters
from cupycorr._lookup.variants import OPERATOR

DEFAULTS = {parameter.name: parameter.default for parameter in PARAMETERS}
SIGNATURES = {
    "forward": cupycorr.correlation_lookup,
    "vjp": cupycorr.correlation_lookup_vjp,
    "explain": cupycorr.explain_lookup,
    "checks": parameters,
}


@pytest.mark.parametrize("function", SIGNATURES.values(), ids=SIGNATURES)
def test_signatures_have_the_names_and_defaults_of_the_table(function):
    found = {name: each.default for name, each in inspect.signature(function).parameters.items() if name in DEFAULTS}
    assert list(found.items()) == list(DEFAULTS.items())


@pytest.mark.parametrize("parameter", PARAMETERS, ids=[parameter.name for parameter in PARAMETERS])
def test_the_smallest_legal_value_is_that_of_the_table(parameter):
    parameters(**{parameter.name: parameter.minimum})
    with pytest.raises(ValueError, match=f"{parameter.name} must be at least {parameter.minimum}"):
        parameters(**{parameter.name: parameter.minimum - 1})


@pytest.mark.parametrize("corners", [1, 2])
@pytest.mark.parametrize("step", [1, 2, 5])
@pytest.mark.parametrize("patch", [1, 2, 5, 8])
def test_taps_are_the_distinct_positions_of_all_corners_in_ascending_order(patch, step, corners):
    axis = Axis(patch, step, corners)
    displacements = [step * (n - (patch - 1) // 2) for n in range(patch)]
    want = sorted({displacement + corner for displacement in displacements for corner in range(corners)})
    assert [axis.offset(tap) for tap in range(axis.taps)] == want
    assert (axis.first, axis.last) == (want[0], want[-1])
    for corner in range(corners):
        assert [want[tap] for tap in range(axis.taps)[axis.corner(corner)]] == [each + corner for each in displacements]


def request(name, pass_name, needs=(True, True, True)):
    problem = NAMED[name].problem()
    return Request(pass_name, problem, "float32", "float32", (), problem.needs_of_inputs(needs))


def test_a_request_describes_every_array_of_a_pyramid_with_indices():
    dense = request("edges of patches", VJP, (True, False, True)).dense()
    names = array_names(VJP, dense.problem.inputs)
    inputs = ("input1", "input2[0]", "input2[1]", "coords", "index1", "index2")
    assert names == ("cotangent", *inputs, "gradient1", "gradient2[0]", "gradient2[1]", "gradient_coords")
    found = {name: layout and (layout.shape, layout.dtype) for name, layout in zip(names, dense.layouts, strict=True)}
    coords = ((7, 2, 3, 3), "float32")
    assert found == {
        "cotangent": ((7, 2, 7, 7, 3, 3), "float32"),
        "input1": ((4, 16, 3, 3), "float32"),
        "input2[0]": ((3, 16, 12, 14), "float32"),
        "input2[1]": ((3, 16, 3, 3), "float32"),
        "coords": coords,
        "index1": ((7,), "int64"),
        "index2": ((7,), "int32"),
        "gradient1": ((4, 16, 3, 3), "float32"),
        "gradient2[0]": None,
        "gradient2[1]": None,
        "gradient_coords": coords,
    }
    assert dense.inputs == dense.layouts[1:7]
    assert [layout.itemsize for layout in dense.inputs] == [4, 4, 4, 4, 8, 4]


def test_a_single_map_is_called_input2():
    names = array_names(FORWARD, NAMED["a single map"].problem().inputs)
    assert names == ("input1", "input2", "coords", "out")


@pytest.mark.parametrize("name", NAMED)
def test_typical_values_are_near_the_maps_and_in_range(name):
    asked = request(name, FORWARD)
    problem, given = asked.problem, asked.problem.operands
    coords = OPERATOR.typical_values(asked, "coords")
    assert coords.shape == given.coords
    assert coords.dtype.name == given.coords_dtype
    assert np.isfinite(coords.astype(float)).all()
    assert OPERATOR.typical_values(asked, "input1") is None
    for name, index, batch in (("index1", given.index1, problem.batch1), ("index2", given.index2, problem.batch2)):
        values = OPERATOR.typical_values(asked, name)
        assert (values is None) == (index is None)
        if index is not None:
            assert (values.shape, values.dtype.name) == index
            assert ((values >= 0) & (values < batch)).all()


def test_explain_lookup_counts_the_work_and_names_the_variants():
    x1, x2, coords = NAMED["RAFT"].arrays()
    told = cupycorr.explain_lookup(x1, x2, coords)
    dots, outputs = 4 * 10 * 10 * 11 * 18, 4 * 9 * 9 * 11 * 18
    assert told.flops == 2 * 40 * dots + 8 * outputs
    assert told.flops_inside is None
    assert told.bytes == 4 * (x1.size + sum(each.size for each in x2) + coords.size + outputs)
    assert {told.variant, *told.reasons} == {row.name for row in OPERATOR.variants}
    assert "inside" not in str(told)
    assert "(1, 40, 5, 9)" in str(told)
    one = cupycorr.explain_lookup(x1, x2, coords, gradients=(True, False, False))
    two = cupycorr.explain_lookup(x1, x2, coords, gradients=True)
    assert (one.pass_name, one.flops, two.flops) == ("vjp", told.flops, 2 * told.flops)


def test_the_fastest_variant_is_not_the_definition():
    x1, x2, coords = NAMED["RAFT"].arrays()
    assert cupycorr.explain_lookup(x1, x2, coords).variant != "reference"
