"""Bad input is refused before anything is computed, with the argument and the value in the message."""

import pytest
import result_refusals
from lookup_cases import CPU_VARIANTS
from lookup_refusals import EVERYWHERE, OUT, ones, valid
from result_refusals import bad_cotangents, bad_outputs

from cupycorr import _dispatch, correlation_lookup, correlation_lookup_vjp, explain_lookup


@pytest.fixture(autouse=True)
def nothing_may_run(monkeypatch):
    monkeypatch.setattr(_dispatch, "choose", lambda *_: pytest.fail("a variant was chosen"))


def refused(function, error, says, arguments):
    result_refusals.refused(function, error, says, {**valid(), **arguments})


FUNCTIONS = {
    "forward": correlation_lookup,
    "vjp": lambda **arguments: correlation_lookup_vjp(ones(OUT), **arguments),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize(("error", "says", "arguments"), EVERYWHERE.values(), ids=EVERYWHERE)
def test_bad_input_is_refused(monkeypatch, function, error, says, arguments):
    if "variant" in arguments:
        monkeypatch.undo()  # the choice refuses it
    refused(function, error, says, arguments)


@pytest.mark.parametrize(("error", "says", "arguments"), EVERYWHERE.values(), ids=EVERYWHERE)
def test_explain_lookup_refuses_the_same(error, says, arguments):
    refused(explain_lookup, error, says, arguments)


OUTPUTS, COTANGENTS = bad_outputs(OUT), bad_cotangents(OUT)


@pytest.mark.parametrize(("error", "says", "arguments"), OUTPUTS.values(), ids=OUTPUTS)
def test_a_bad_array_for_the_output_is_refused(error, says, arguments):
    refused(correlation_lookup, error, says, arguments)


@pytest.mark.parametrize(("error", "says", "cotangent", "arguments"), COTANGENTS.values(), ids=COTANGENTS)
def test_a_bad_cotangent_is_refused(error, says, cotangent, arguments):
    refused(lambda **given: correlation_lookup_vjp(cotangent, **given), error, says, arguments)


@pytest.mark.parametrize("needs", [True, (True, True), (1, 0, 1), "yes", None, [True] * 4], ids=repr)
def test_needs_must_be_three_bools(needs):
    says = f"needs must be a triple of bools, got needs={needs!r}"
    refused(lambda **given: correlation_lookup_vjp(ones(OUT), **given), TypeError, says, dict(needs=needs))


@pytest.mark.parametrize("gradients", [(True, True), 1, "yes"], ids=repr)
def test_gradients_to_explain_must_be_a_bool_or_three(gradients):
    says = f"gradients must be a bool or a triple of bools, got gradients={gradients!r}"
    refused(explain_lookup, TypeError, says, dict(gradients=gradients))


@pytest.mark.parametrize("variant", CPU_VARIANTS)
def test_a_variant_of_the_cpu_refuses_cupy_arrays(monkeypatch, variant):
    monkeypatch.undo()
    request = _dispatch.Request("forward", None, "float32", "float32")
    from cupycorr._lookup.variants import OPERATOR

    (row,) = OPERATOR.named(variant)
    assert row.why_not_at(_dispatch.Place("cupy", None), request) == "input is a CuPy array, needs a NumPy array"
