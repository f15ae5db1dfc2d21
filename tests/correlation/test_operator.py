"""Every CPU variant computes the oracle's output and gradients, and keeps the identities that follow from the formula."""

import contextlib

import cases
import numpy as np
import oracle
import pytest
from cases import CPU_VARIANTS, DTYPES, EVERY_VARIANT, NAMED
from hypothesis import example, given, settings
from hypothesis import strategies as st
from layouts import FOR_TENSORS, some

import cupycorr
from cupycorr import spatial_correlation_sample as correlate
from cupycorr import spatial_correlation_sample_vjp as correlate_vjp
from cupycorr._correlation.cpu import block_plan, planner
from cupycorr._correlation.cpu import forward as cpu_forward
from cupycorr._correlation.cpu import gradient as cpu_gradient
from cupycorr._cpu import workers

variants = pytest.mark.parametrize("variant", CPU_VARIANTS)
named = pytest.mark.parametrize("case", NAMED.values(), ids=NAMED.keys())


def check_against_oracle(case, variant):
    x1, x2, g = case.arrays()
    got = correlate(x1, x2, **case.parameters, variant=variant)
    assert got.dtype == x1.dtype
    assert got.flags.c_contiguous
    oracle.assert_close(got, oracle.forward(x1, x2, **case.parameters))
    gradients = correlate_vjp(g, x1, x2, **case.parameters, variant=variant)
    wanted = oracle.vjp(g, x1, x2, **case.parameters)
    for name, gradient, want in zip(("g1", "g2"), gradients, wanted, strict=True):
        assert gradient.dtype == x1.dtype
        assert gradient.flags.c_contiguous
        oracle.assert_close(gradient, want, name=name)


@contextlib.contextmanager
def budgets(packed, task):
    """Limit blocks and tasks to so many bytes."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(block_plan, "PACKED_BYTES", packed)
        patched.setattr(block_plan, "TASK_BYTES", task)
        patched.setattr(cpu_forward, "FEWEST_CHANNELS", 2)
        forget_plans()  # they were made with other limits
        yield
    forget_plans()


def forget_plans():
    planner.forward_plan.cache_clear()
    planner.gradient_plan.cache_clear()


@variants
@named
def test_named_cases_equal_the_oracle(case, variant):
    check_against_oracle(case, variant)


@variants
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_equals_the_oracle(dtype, variant):
    parameters = dict(kernel_size=2, patch_size=(3, 4), stride=(1, 2), padding=1, dilation_patch=2, scale=0.25)
    check_against_oracle(cases.same((2, 9, 11, 13), dtype, **parameters), variant)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["simd", "blas"])
@settings(max_examples=150)
@given(case=cases.problems(), packed=st.sampled_from([2**10, 2**24]), task=st.sampled_from([2**8, 2**12, 2**20]))
def test_drawn_problems_equal_the_oracle(case, variant, packed, task):
    with budgets(packed, task):
        check_against_oracle(case, variant)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["simd", "blas"])
@settings(max_examples=40)
@given(case=cases.wide_problems(), packed=st.sampled_from([2**14, 2**24]))
@example(case=cases.same((1, 300, 3, 130), patch_size=(3, 12)), packed=2**24)
@example(case=cases.same((1, 1, 130, 3), patch_size=(12, 1), kernel_size=(32, 1)), packed=2**14)
def test_wide_problems_equal_the_oracle_across_every_seam(case, variant, packed):
    with budgets(packed, block_plan.TASK_BYTES):
        check_against_oracle(case, variant)


SEAMS = {
    "displacements in a row": cases.same((1, 2, 6, 40), patch_size=(1, 40)),
    "displacements of strided queries": cases.same((1, 5, 6, 40), patch_size=(3, 24), stride=2, dilation_patch=3),
    "displacements of windows": cases.same((1, 1, 9, 40), kernel_size=3, patch_size=(3, 9)),
    "rows of strided windows": cases.same((1, 1, 31, 20), kernel_size=(4, 1), patch_size=(7, 3), stride=(2, 1)),
}


@pytest.mark.parametrize("variant", ["simd", "blas"])
@pytest.mark.parametrize("case", SEAMS.values(), ids=SEAMS.keys())
def test_the_smallest_tasks_equal_the_oracle(case, variant):
    with budgets(2**24, 2**8):
        check_against_oracle(case, variant)


@settings(max_examples=60)
@given(case=cases.problems(most=8))
def test_the_reference_equals_the_oracle_on_drawn_problems(case):
    check_against_oracle(case, "reference")


UNREAD = {
    "pixels between strides": cases.same((1, 2, 7, 9), stride=3),
    "a crop": cases.same((1, 2, 7, 9), kernel_size=2, patch_size=3, padding=-2),
    "displacements outside": cases.same((1, 2, 4, 5), patch_size=3, patch_offset=100),
    "no channels": cases.same((2, 0, 4, 5), patch_size=3),
    "an empty batch": cases.same((0, 2, 4, 5), patch_size=3),
}


@pytest.mark.covering(2)
@variants
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", UNREAD.values(), ids=UNREAD.keys())
def test_gradients_are_zero_where_nothing_is_read_whatever_was_in_their_memory(case, dtype, variant, monkeypatch):
    case = cases.Case(case.shape1, case.shape2, case.parameters, dtype)
    empty = np.empty
    monkeypatch.setattr(np, "empty", lambda *given, **named: _filled_with_nan(empty(*given, **named)))
    check_against_oracle(case, variant)


def _filled_with_nan(array):
    if array.dtype in DTYPES.values():
        array.fill(np.nan)
    return array


@variants
@settings(max_examples=60)
@given(case=cases.problems(dtypes=("float64",)))
def test_gradients_are_adjoint_to_the_forward_map(case, variant):
    x1, x2, g = case.arrays()
    out = correlate(x1, x2, **case.parameters, variant=variant)
    g1, g2 = correlate_vjp(g, x1, x2, **case.parameters, variant=variant)
    absolute = oracle.forward(abs(x1), abs(x2), **case.parameters)[1]
    tolerance = 1e-12 * np.vdot(abs(g), absolute) + 1e-300
    assert abs(np.vdot(g, out) - np.vdot(g1, x1)) <= tolerance
    assert abs(np.vdot(g, out) - np.vdot(g2, x2)) <= tolerance


@pytest.mark.covering(1)
@variants
@named
def test_the_same_inputs_give_the_same_bits(case, variant):
    x1, x2, g = case.arrays()
    runs = [
        (correlate(x1, x2, **case.parameters, variant=variant), *correlate_vjp(g, x1, x2, **case.parameters, variant=variant))
        for _ in range(3)
    ]
    for again in runs[1:]:
        for first, other in zip(runs[0], again, strict=True):
            assert first.tobytes() == other.tobytes()


LAYOUTS = FOR_TENSORS | some("columns reversed", "unaligned", "read-only")


@variants
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_strides_and_flags_do_not_change_the_result(layout, kernel_size, dtype, variant):
    parameters = dict(kernel_size=kernel_size, patch_size=5, stride=(1, 2), padding=1)
    x1, x2, g = cases.same((2, 6, 9, 17), dtype, **parameters).arrays()
    x1[:], x2[:], g[:] = x1[:1], x2[:1], g[:1]
    laid = [np.ascontiguousarray(x) for x in (x1, x2)]
    g_laid = layout(g.reshape(2, -1, *g.shape[3:])).reshape(g.shape)
    want = correlate(*laid, **parameters, variant=variant)
    assert np.array_equal(correlate(layout(x1), layout(x2), **parameters, variant=variant), want)
    for got, wanted in zip(
        correlate_vjp(g_laid, layout(x1), layout(x2), **parameters, variant=variant),
        correlate_vjp(g, *laid, **parameters, variant=variant),
        strict=True,
    ):
        assert np.array_equal(got, wanted)


@variants
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan], ids=["inf", "-inf", "nan"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_gradients_of_windows_of_halves_are_not_finite_where_the_definition_says(variant, value, dtype):
    parameters = dict(kernel_size=2, patch_size=3, stride=5, padding=1)
    x1, x2, g = cases.same((1, 2, 12, 40), dtype, **parameters).arrays()
    x1[0, 1, 5, 5] = x2[0, 1, 5, 9] = g[0, 1, 2, 1, -1] = value
    with np.errstate(invalid="ignore"):
        want = [triple[0] for triple in oracle.vjp(g, x1, x2, **parameters)]
    for name, w, o in zip(("g1", "g2"), want, correlate_vjp(g, x1, x2, **parameters, variant=variant), strict=True):
        o = o.astype(np.float64)
        assert np.array_equal(np.isnan(w), np.isnan(o)), name
        assert np.array_equal(w[np.isinf(w)], o[np.isinf(w)]), name
        assert np.array_equal(np.isfinite(w), np.isfinite(o)), name


@pytest.mark.covering(2)
@variants
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan], ids=["inf", "-inf", "nan"])
@pytest.mark.parametrize(
    "parameters",
    [
        dict(patch_size=5),
        pytest.param(dict(patch_size=5, dilation_patch=2, padding=1), marks=pytest.mark.slow),
        dict(kernel_size=3, patch_size=3, padding=2),
        pytest.param(dict(kernel_size=2, patch_size=3, stride=5, padding=1), marks=pytest.mark.slow),
        pytest.param(dict(patch_size=3, padding=-1, stride=2), marks=pytest.mark.slow),
    ],
    ids=["patch", "step", "window", "windows apart", "crop"],
)
@pytest.mark.parametrize("channels", [2, pytest.param(9, marks=pytest.mark.slow)])
def test_what_is_not_finite_stays_where_the_definition_puts_it(variant, value, parameters, channels):
    case = cases.same((1, channels, 12, 40), **parameters)
    x1, x2, g = case.arrays()
    x1[0, 1, 0, 3] = x1[0, 0, 6, 20] = x1[0, 1, 4, 0] = x2[0, 1, 11, 39] = x2[0, 1, 5, 33] = g[0, 1, 2, 1, -1] = g[
        0, 0, 0, 0, 0
    ] = value
    with np.errstate(invalid="ignore"):
        want = [oracle.forward(x1, x2, **parameters)[0], *(triple[0] for triple in oracle.vjp(g, x1, x2, **parameters))]
        got = [correlate(x1, x2, **parameters, variant=variant), *correlate_vjp(g, x1, x2, **parameters, variant=variant)]
    for name, w, o in zip(("output", "g1", "g2"), want, got, strict=True):
        assert np.array_equal(np.isfinite(w), np.isfinite(o)), name
        assert np.array_equal(np.isnan(w), np.isnan(o)), name
        assert np.array_equal(w[np.isinf(w)], o[np.isinf(w)]), name


@variants
def test_only_the_gradient_asked_for_is_computed(variant, monkeypatch):
    x1, x2, g = cases.same((1, 8, 9, 10), kernel_size=3, patch_size=3).arrays()
    both = correlate_vjp(g, x1, x2, kernel_size=3, patch_size=3, variant=variant)
    made = []
    monkeypatch.setattr(cpu_gradient, "_Gradient", lambda *args, real=cpu_gradient._Gradient: made.append(args) or real(*args))
    for needs in ((True, False), (False, True), (False, False)):
        made.clear()
        got = correlate_vjp(g, x1, x2, kernel_size=3, patch_size=3, variant=variant, needs=needs)
        assert [gradient is not None for gradient in got] == list(needs)
        assert all(one is None or np.array_equal(one, other) for one, other in zip(got, both, strict=True))
        assert variant == "reference" or len(made) == sum(needs)


@variants
def test_sums_of_halves_are_rounded_once_to_the_dtype_asked_for(variant):
    rng = np.random.default_rng(0)
    x1, x2 = rng.standard_normal((2, 1, 200, 6, 7)).astype(np.float16)
    wide = correlate(x1, x2, patch_size=3, dtype=np.float32, variant=variant)
    assert wide.dtype == np.float32
    oracle.assert_close(wide, oracle.forward(x1, x2, patch_size=3))
    assert np.array_equal(correlate(x1, x2, patch_size=3, variant=variant), wide.astype(np.float16))
    g = wide / 7
    for got, want in zip(
        correlate_vjp(g, x1, x2, patch_size=3, dtype=np.float32, variant=variant),
        oracle.vjp(g, x1, x2, patch_size=3),
        strict=True,
    ):
        oracle.assert_close(got, want, accumulator="float32")


@variants
def test_scale_is_applied_before_rounding_so_that_halves_do_not_overflow(variant):
    x = np.full((1, 64, 4, 4), 100, np.float16)
    assert np.isinf(correlate(x, x, variant=variant)).all()
    assert np.array_equal(correlate(x, x, scale=1 / 64, variant=variant), np.full((1, 1, 1, 4, 4), 1e4, np.float16))


@variants
def test_constant_data_keeps_the_error_bound_over_many_terms(variant):
    x = np.full((1, 20000, 1, 2), 0.1, np.float32)
    oracle.assert_close(correlate(x, x, variant=variant), oracle.forward(x, x))


OUTS = {
    "contiguous": lambda shape, dtype: np.empty(shape, dtype),
    "strided": lambda shape, dtype: np.empty((*shape[:-1], 2 * shape[-1]), dtype)[..., ::2],
    "transposed": lambda shape, dtype: np.empty(shape[::-1], dtype).T,
}


@pytest.mark.covering(2)
@variants
@pytest.mark.parametrize("make", OUTS.values(), ids=OUTS.keys())
@pytest.mark.parametrize("dtype", DTYPES)
def test_out_is_written_in_its_own_dtype_and_returned_itself(make, dtype, variant):
    case = cases.same((2, 5, 7, 8), kernel_size=2, patch_size=3)
    x1, x2, _ = case.arrays()
    out = make(case.out_shape(), DTYPES[dtype])
    assert correlate(x1, x2, **case.parameters, variant=variant, out=out) is out
    assert np.array_equal(out, correlate(x1, x2, **case.parameters, variant=variant).astype(DTYPES[dtype]))


@variants
def test_out_may_be_an_input(variant):
    x1, x2, _ = cases.same((3, 1, 8, 9)).arrays()
    want = correlate(x1, x2, variant=variant)
    shared = x2.copy()
    assert np.array_equal(correlate(x1, shared, variant=variant, out=shared[:, :, None].reshape(3, 1, 1, 8, 9)), want)
    assert np.array_equal(shared.reshape(want.shape), want)


@variants
def test_an_offset_reads_a_part_of_a_larger_search(variant):
    x1, x2, _ = cases.same((1, 6, 14, 15)).arrays()
    wide = correlate(x1, x2, patch_size=9, variant=variant)
    part = correlate(x1, x2, patch_size=3, patch_offset=(2, -3), variant=variant)
    assert np.array_equal(part, wide[:, 5:8, 0:3]) or np.allclose(part, wide[:, 5:8, 0:3], rtol=1e-6, atol=1e-5)


@variants
def test_exchanging_the_inputs_mirrors_the_displacements(variant):
    x1, x2, _ = cases.same((1, 6, 14, 15), "float64").arrays()
    there, back = correlate(x1, x2, patch_size=5, variant=variant), correlate(x2, x1, patch_size=5, variant=variant)
    # out12[dy, dx] at y equals out21[-dy, -dx] at y + dy.
    assert np.allclose(there[0, 4, 1, :-2, 1:], back[0, 0, 3, 2:, :-1], atol=1e-12)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("variant", ["simd", "blas"])
def test_any_number_of_threads_gives_the_oracle_result(threads, variant):
    with workers.team_of(threads):
        check_against_oracle(cases.same((2, 20, 9, 40), kernel_size=(1, 3), patch_size=(3, 5), padding=1), variant)


def test_default_arguments_are_in_the_order_third_party_code_relies_on():
    x1, x2, _ = cases.same((1, 3, 9, 10)).arrays()
    by_name = correlate(x1, x2, kernel_size=1, patch_size=9, stride=1, padding=0, dilation=1, dilation_patch=2)
    assert np.array_equal(correlate(x1, x2, 1, 9, 1, 0, 1, 2), by_name)


def test_numpy_integers_are_integers():
    x1, x2, _ = cases.same((1, 3, 9, 10)).arrays()
    got = correlate(x1, x2, patch_size=np.int64(3), stride=np.array([1, 2], np.uint8).tolist(), patch_offset=np.int32(0))
    assert np.array_equal(got, correlate(x1, x2, patch_size=3, stride=(1, 2)))


HUGE_STEPS = {
    "one pixel": dict(patch_size=3, dilation_patch=2**61),
    "windows side by side": dict(patch_size=3, kernel_size=8, stride=8, dilation_patch=2**63 - 1),
    "windows that overlap": dict(patch_size=3, kernel_size=8, stride=4, dilation_patch=2**63 - 1),
}


@variants
@pytest.mark.parametrize("parameters", HUGE_STEPS.values(), ids=HUGE_STEPS)
def test_displacements_beyond_64_bits_have_no_products(parameters, variant):
    check_against_oracle(cases.same((1, 2, 17, 20), **parameters), variant)


def test_explain_tells_what_runs_and_why_not_the_others():
    x = np.zeros((1, 64, 24, 32), np.float32)
    told = cupycorr.explain(x, x, patch_size=9, variant="blas")
    assert told.variant == "blas"
    assert set(told.reasons) == {*EVERY_VARIANT} - {"blas"}
    assert told.flops == 2 * 64 * 81 * 24 * 32
    assert told.bytes == 4 * (2 * 64 * 24 * 32 + 81 * 24 * 32)
    assert told.flops_inside == 2 * 64 * (24 * 9 - 20) * (32 * 9 - 20)
    assert told.bound > 0
    text = str(told)
    assert all(name in text for name in EVERY_VARIANT)


@pytest.mark.parametrize(("gradients", "sums", "gradient_bytes"), [(True, 2, 2), ((False, True), 1, 1)], ids=["both", "input2"])
def test_explain_counts_the_work_of_the_gradients(gradients, sums, gradient_bytes):
    x = np.zeros((1, 64, 24, 32), np.float32)
    told, forward = cupycorr.explain(x, x, patch_size=9, gradients=gradients), cupycorr.explain(x, x, patch_size=9)
    assert told.pass_name == "vjp"
    assert (told.flops, told.flops_inside) == (sums * forward.flops, sums * forward.flops_inside)
    assert told.bytes == forward.bytes + gradient_bytes * x.nbytes


def test_explain_measures_nothing_unless_asked_to(monkeypatch):
    measured = workers.MachineRates(1e12, 5e11, 1e10)
    workers.machine_rates.cache_clear()
    x = np.zeros((1, 64, 24, 32), np.float32)
    with monkeypatch.context() as patched:
        patched.setattr(workers.time, "perf_counter", lambda: pytest.fail("something was timed"))
        assert cupycorr.explain(x, x, patch_size=9).bound > 0
        assert "a typical processor" in str(cupycorr.explain(x, x, patch_size=9))
    monkeypatch.setattr(workers, "machine_rates", lambda: measured)
    told = cupycorr.explain(x, x, patch_size=9, measure=True)
    assert told.bound == max(told.bytes / measured.bandwidth, told.flops / measured.float32_rate)
    assert "on this machine" in str(told)


@pytest.mark.parametrize("gradients", ["yes", None, 1, (True,), (1, 0)], ids=str)
def test_explain_refuses_gradients_that_are_neither_a_bool_nor_a_pair(gradients):
    x = np.zeros((1, 4, 6, 7), np.float32)
    with pytest.raises(TypeError, match="gradients must be a bool or a pair of bools, got gradients="):
        cupycorr.explain(x, x, gradients=gradients)
