"""Every kernel computes the oracle's output and gradients: through the plans of the GPU path, in the emulator."""

import cases
import numpy as np
import oracle
import pytest
from cases import DTYPES, GPU_VARIANTS, NAMED
from emulated import BUSY, IDLE, accumulator, asked, correlate, correlate_vjp, in_every_order, launched_by
from emulator import Emulator, require_compiler, run_sanitized
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layouts import FOR_KERNELS, channels_last, far_apart, rows

from cupycorr._correlation.gpu import axes
from cupycorr._gpu import call, plan

require_compiler()

devices = pytest.mark.parametrize("device", [BUSY, IDLE], ids=["busy", "idle"])
named = pytest.mark.parametrize("case", NAMED.values(), ids=NAMED.keys())


@pytest.fixture(params=GPU_VARIANTS)
def route(request):
    return request.param


def check(monkeypatch, case, route, device=BUSY, lay=rows, every_order=False, **changed):
    """Check that output and gradients of a case are the oracle's and that every element is written.

    In every order of threads the results must have the same bits.
    """
    x1, x2, g = case.arrays()
    x1, x2 = lay(x1), lay(x2)

    def run(emulator):
        with launched_by(monkeypatch, emulator, device, **changed):
            out = correlate(emulator, route, x1, x2, **case.parameters)
            return (out, *correlate_vjp(emulator, route, g, x1, x2, **case.parameters))

    out, *gradients = in_every_order(run) if every_order else run(Emulator())
    wanted = oracle.forward(x1, x2, **case.parameters), *oracle.vjp(g, x1, x2, **case.parameters)
    for name, result, want in zip(("output", "g1", "g2"), (out, *gradients), wanted, strict=True):
        oracle.assert_close(result, want, accumulator(route, x1.dtype), name)


@pytest.mark.covering(2)
@devices
@named
def test_named_cases_equal_the_oracle(monkeypatch, case, route, device):
    check(monkeypatch, case, route, device)


@pytest.mark.slow
@devices
@named
def test_results_do_not_depend_on_the_order_of_threads(monkeypatch, case, route, device):
    check(monkeypatch, case, route, device, every_order=True)


@pytest.mark.slow
@pytest.mark.parametrize("lay", FOR_KERNELS.values(), ids=FOR_KERNELS.keys())
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_and_memory_order_equals_the_oracle(monkeypatch, route, dtype, lay):
    parameters = dict(kernel_size=(2, 3), patch_size=(3, 4), stride=(1, 2), padding=1, dilation_patch=2, scale=0.25)
    for channels in (35, 64):  # runs of channels that end in the middle of 16 bytes, and at the end of them
        check(monkeypatch, cases.same((2, channels, 6, 9), dtype, **parameters), route, IDLE, lay, every_order=True)


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(case=cases.problems(most=9), lay=st.sampled_from(list(FOR_KERNELS.values())), device=st.sampled_from([BUSY, IDLE]))
def test_drawn_problems_equal_the_oracle(monkeypatch, route, case, lay, device):
    check(monkeypatch, case, route, device, lay, every_order=True)


@pytest.mark.slow
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(case=cases.wide_problems(), device=st.sampled_from([BUSY, IDLE]))
def test_wide_problems_equal_the_oracle_across_every_seam(monkeypatch, route, case, device):
    check(monkeypatch, case, route, device, every_order=True)


# What a call may ask beside the inputs' own type ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("result", DTYPES)
def test_a_result_of_another_dtype_is_rounded_once_from_the_sum(monkeypatch, route, dtype, result):
    # Sums of whole numbers are exact in any order, so that they are the same by every plan, but do not fit into 16 bits.
    arrays = cases.same((2, 20, 5, 7), dtype, kernel_size=2, patch_size=3).arrays()
    x1, x2, g = (np.round(32 * x.astype(np.float32)).astype(x.dtype) for x in arrays)
    parameters = dict(kernel_size=2, patch_size=3)
    g = g.astype(DTYPES[result])
    sums = "float64" if dtype == "float64" else "float32"
    with launched_by(monkeypatch, emulator := Emulator()):
        out = correlate(emulator, route, x1, x2, dtype=DTYPES[result], **parameters)
        exact = correlate(emulator, route, x1, x2, dtype=np.dtype(sums), **parameters)
        gradients = correlate_vjp(emulator, route, g, x1, x2, **parameters)
    assert out.tobytes() == exact.astype(out.dtype).tobytes()
    for name, gradient, want in zip(("g1", "g2"), gradients, oracle.vjp(g, x1, x2, **parameters), strict=True):
        oracle.assert_close(gradient, want, accumulator(route, dtype) or sums, name)


@pytest.mark.parametrize("route", [route for route in GPU_VARIANTS if route != "mma"])  # which rounds such numbers beforehand
@pytest.mark.parametrize(
    ("dtype", "result"),
    [("float32", "float16"), ("float32", "bfloat16"), ("float64", "float16"), ("float64", "bfloat16"), ("float64", "float32")],
)
def test_a_sum_halfway_between_two_numbers_goes_to_the_even_one_and_its_neighbours_to_the_nearer(
    monkeypatch, route, dtype, result
):
    numbers = np.ones(8, DTYPES[result])
    bits = numbers.view(f"u{numbers.itemsize}")
    bits += np.arange(8).astype(bits.dtype) - bits.dtype.type(3)  # below, at and above 1, where the spacing changes
    lower, upper = numbers.astype(dtype), (bits + bits.dtype.type(1)).view(numbers.dtype).astype(dtype)
    halfway = (lower + upper) / 2
    sums = np.concatenate([halfway, np.nextafter(halfway, lower), np.nextafter(halfway, upper)])
    want = np.concatenate([np.where(bits % 2 == 0, lower, upper), lower, upper])
    x = np.concatenate([sums, -sums]).reshape(1, 1, 1, -1)
    with launched_by(monkeypatch, emulator := Emulator()):
        out = correlate(emulator, route, x, np.ones_like(x), dtype=numbers.dtype)
    assert np.array_equal(out.ravel().astype(dtype), np.concatenate([want, -want]))


@pytest.mark.covering(2)
@pytest.mark.parametrize("result", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_stays_nan_in_every_dtype(monkeypatch, route, dtype, result):
    x = np.full((1, 1, 2, 3), -1, f"i{DTYPES[dtype].itemsize}").view(DTYPES[dtype])  # the one whose bits are all set
    with launched_by(monkeypatch, emulator := Emulator()):
        out = correlate(emulator, route, x, x, dtype=DTYPES[result])
    assert np.isnan(out.astype(np.float64)).all()


OUTS = {
    "every other column": lambda shape: np.empty((*shape[:-1], 2 * shape[-1]), np.float32)[..., ::2],
    "transposed": lambda shape: np.empty(shape[::-1], np.float32).T,
    "reversed": lambda shape: np.empty(shape, np.float32)[::-1, :, ::-1, :, ::-1],
}


@pytest.mark.parametrize("make", OUTS.values(), ids=OUTS.keys())
def test_out_and_cotangent_may_have_any_strides(monkeypatch, route, make):
    case = cases.same((2, 5, 7, 8), kernel_size=2, patch_size=3)
    x1, x2, g = case.arrays()
    with launched_by(monkeypatch, emulator := Emulator()):
        out = correlate(emulator, route, x1, x2, out=make(case.out_shape()), **case.parameters)
        want = correlate(emulator, route, x1, x2, **case.parameters)
        laid = make(case.out_shape())
        laid[:] = g
        gradients = correlate_vjp(emulator, route, laid, x1, x2, **case.parameters)
        wanted = correlate_vjp(emulator, route, g, x1, x2, **case.parameters)
    assert np.array_equal(out, want)
    assert all(map(np.array_equal, gradients, wanted))


@pytest.mark.parametrize("needs", [(True, False), (False, True), (False, False)])
def test_only_the_gradient_asked_for_is_computed(monkeypatch, route, needs):
    case = cases.same((1, 8, 9, 10), kernel_size=2, patch_size=3)
    x1, x2, g = case.arrays()
    with launched_by(monkeypatch, emulator := Emulator()):
        both = correlate_vjp(emulator, route, g, x1, x2, **case.parameters)
        launches = len(emulator.accounts)
        got = correlate_vjp(emulator, route, g, x1, x2, needs=needs, **case.parameters)
    assert [gradient is not None for gradient in got] == list(needs)
    assert all(one is None or np.array_equal(one, other) for one, other in zip(got, both, strict=True))
    spreading = 0 if route == "direct" else 2  # the cotangent over the windows, along each axis
    assert launches - spreading in ((2,) if route == "direct" else (1, 2))  # tiles make both gradients in one launch
    assert len(emulator.accounts) - launches == (spreading + 1 if any(needs) else 0)


# Sizes beyond those of a test -------------------------------------------------------------------------------------------------

WINDOWED = cases.same((3, 9, 11, 13), kernel_size=(2, 3), patch_size=(3, 4), stride=(2, 1), padding=1, dilation=2, scale=-0.3)


@pytest.mark.covering(2)
@pytest.mark.parametrize("case", [WINDOWED, NAMED["pwcnet-like"]], ids=["windows", "pwcnet-like"])
@devices
def test_a_grid_smaller_than_the_work_loops_over_the_rest(monkeypatch, route, device, case):
    monkeypatch.setattr(plan, "LARGEST_GRID", 3)
    check(monkeypatch, case, route, device)


@pytest.mark.parametrize("workspace", [1, 5000, 20000, 100000])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_volumes_cut_to_fit_the_workspace_give_the_same_sums(monkeypatch, workspace, dtype):
    case = cases.Case(WINDOWED.shape1, WINDOWED.shape2, WINDOWED.parameters, dtype)
    check(monkeypatch, case, "box", WORKSPACE_BYTES=workspace)


def test_the_workspace_keeps_to_its_bound_whatever_the_problem(monkeypatch):
    with launched_by(monkeypatch, emulator := Emulator(), WORKSPACE_BYTES=30000):
        x1, x2, _ = WINDOWED.arrays()
        run = []
        monkeypatch.setattr("emulated.run", lambda emulator, plan, reads, writes: run.append(plan.workspace))
        correlate(emulator, "box", x1, x2, **WINDOWED.parameters)
    assert 0 < run[0] <= 30000


@pytest.mark.slow
@devices
@pytest.mark.parametrize("lay", [rows, channels_last], ids=["rows", "channels last"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_integers_of_64_bits_give_the_same_result(monkeypatch, route, device, dtype, lay):
    monkeypatch.setattr(call, "SAFE_INDEX", 0)
    case = cases.Case(WINDOWED.shape1, WINDOWED.shape2, WINDOWED.parameters, dtype)
    check(monkeypatch, case, route, device, lay, every_order=True)


@pytest.mark.parametrize("axis", [0, 1, 2, 3], ids=["batch", "channels", "rows", "columns"])
def test_elements_more_than_2_to_the_31_apart_are_reached(monkeypatch, route, axis):
    parameters = dict(kernel_size=2, patch_size=2)
    x1, x2, g = cases.same((2, 2, 2, 2), "float16", **parameters).arrays()
    apart = far_apart(x1, axis)
    with launched_by(monkeypatch, emulator := Emulator()):
        out = correlate(emulator, route, apart, x2, **parameters)
        _, g2 = correlate_vjp(emulator, route, g, apart, x2, needs=(False, True), **parameters)
    oracle.assert_close(out, oracle.forward(x1, x2, **parameters))
    oracle.assert_close(g2, oracle.vjp(g, x1, x2, **parameters)[1], name="g2")


@pytest.mark.parametrize("axis", range(5), ids=["batch", "patch rows", "patch columns", "rows", "columns"])
def test_cotangents_more_than_2_to_the_31_apart_are_reached(monkeypatch, route, axis):
    case = cases.same((2, 2, 3, 3), "float16", kernel_size=2, patch_size=2)
    x1, x2, g = case.arrays()
    with launched_by(monkeypatch, emulator := Emulator()):
        gradients = correlate_vjp(emulator, route, far_apart(g, axis), x1, x2, **case.parameters)
    for name, gradient, want in zip(("g1", "g2"), gradients, oracle.vjp(g, x1, x2, **case.parameters), strict=True):
        oracle.assert_close(gradient, want, name=name)


FAR = {
    "an offset beyond everything": dict(patch_size=3, patch_offset=(10**12, -(10**15))),
    "a step beyond everything": dict(patch_size=3, dilation_patch=10**12),
    "a step beyond everything, displaced": dict(patch_size=(4, 3), dilation_patch=(10**12, 3), patch_offset=(10**12 - 1, 2)),
    "a dilation of one tap": dict(patch_size=3, dilation=10**18),
    "a stride of one output": dict(patch_size=3, kernel_size=2, stride=10**18),
    "a padding with a stride": dict(patch_size=2, padding=10**6, stride=10**6 + 3, kernel_size=2),
    "rows beyond 32 bits": dict(patch_size=2, padding=(2**33, 1), stride=(2**31, 1), kernel_size=2),
    "columns beyond 32 bits": dict(patch_size=2, padding=(1, 2**33), stride=(1, 2**31), kernel_size=2),
    "a coprime stride and step": dict(patch_size=2, padding=2**14, stride=2**14 + 1, dilation_patch=2**14),
    "a stride far beyond the images": dict(padding=2**26, stride=2**27 + 2),
}


@pytest.mark.parametrize("name", FAR)
def test_parameters_of_any_size_equal_the_oracle(monkeypatch, name):
    check(monkeypatch, cases.same((1, 3, 5, 6), **FAR[name]), "direct")


tiles = pytest.mark.parametrize(("tiles", "dtype"), [("tiled", "float32"), ("mma", "float32"), ("mma", "float16")])


@tiles
@pytest.mark.parametrize("name", [name for name, parameters in FAR.items() if "kernel_size" not in parameters])
def test_tiles_take_parameters_of_any_size_or_leave_them_to_the_direct_kernels(monkeypatch, name, tiles, dtype):
    check(monkeypatch, cases.same((1, 3, 5, 6), dtype, **FAR[name]), tiles)


@tiles
def test_tiles_take_columns_of_any_size_apart_or_leave_them_to_the_direct_kernels(monkeypatch, tiles, dtype):
    def spread(x):
        wide = np.zeros((*x.shape[:3], x.shape[3] << 12), x.dtype)
        wide[..., :: 1 << 12] = x
        return wide[..., :: 1 << 12]

    case = cases.same((1, 3, 5, 6), dtype, patch_size=2, padding=2**20, stride=2**20 + 1, dilation_patch=4)
    check(monkeypatch, case, tiles, lay=spread)


def test_positions_beyond_64_bits_have_a_reason():
    x = np.zeros((1, 1, 5, 6), np.float32)
    assert axes.out_of_reach(asked(x, x, patch_size=3, padding=2**33, stride=2**31 - 1)) is None
    assert "64-bit" in axes.out_of_reach(asked(x, x, padding=2**62, stride=2**61))


# Numbers ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@devices
@pytest.mark.parametrize(
    ("shape1", "shape2", "parameters"),
    [
        ((1, 20000, 1, 2), (1, 20000, 1, 2), {}),
        ((1, 1, 60, 61), (1, 1, 60, 61), dict(kernel_size=60)),
        ((1, 1, 1, 20000), (1, 1, 1, 20000), dict(kernel_size=(1, 20000))),
        ((1, 1, 1, 1), (1, 1, 1, 20000), dict(patch_size=(1, 20000), patch_offset=(0, 9999))),
        ((1, 1, 1, 1), (1, 1, 1, 2000), dict(patch_size=(1, 2000), patch_offset=(0, 999))),
    ],
    ids=["channels", "taps", "taps of a row", "displacements", "fewer displacements"],
)
def test_constant_data_keeps_the_error_bound_over_many_terms(monkeypatch, route, device, shape1, shape2, parameters):
    if shape2[3] == 20000 and "patch_size" in parameters and route != "direct":
        pytest.skip("tiles that meet nothing take the emulator a minute; with fewer displacements they are parted, too")
    x1, x2 = np.full(shape1, 0.1, np.float32), np.full(shape2, 0.1, np.float32)
    with launched_by(monkeypatch, emulator := Emulator(), device):
        out = correlate(emulator, route, x1, x2, **parameters)
        g = np.full(out.shape, 0.1, np.float32)
        gradients = correlate_vjp(emulator, route, g, x1, x2, **parameters)
    wanted = oracle.forward(x1, x2, **parameters), *oracle.vjp(g, x1, x2, **parameters)
    for name, result, want in zip(("output", "g1", "g2"), (out, *gradients), wanted, strict=True):
        oracle.assert_close(result, want, accumulator(route, x1.dtype), name)


def test_a_pixel_read_by_many_outputs_sums_their_cotangents_within_the_bound(monkeypatch, route):
    outputs = 2048
    x = np.ones((1, 1, 1, 2 * outputs - 1), np.float32)  # its middle pixel lies in every window
    value = np.float32(1 + 0.49 / 2**13)  # a plain sum beyond 1024 loses nearly half a unit of its last place each time
    g = np.full((1, 1, 1, 1, outputs), value)
    with launched_by(monkeypatch, emulator := Emulator()):
        gradients = correlate_vjp(emulator, route, g, x, x, kernel_size=(1, outputs))
    want = np.array(outputs * np.float64(value))
    for name, gradient in zip(("g1", "g2"), gradients, strict=True):
        oracle.assert_close(gradient[0, 0, 0, outputs - 1], (want, want, np.array(outputs)), name=name)


@pytest.mark.covering(2)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan], ids=["inf", "-inf", "nan"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_stays_where_the_definition_puts_it(monkeypatch, route, value, dtype):
    parameters = dict(kernel_size=2, patch_size=3, padding=1)
    x1, x2, g = cases.same((1, 9, 7, 8), dtype, **parameters).arrays()
    x1[0, 1, 0, 3] = x2[0, 8, 6, 7] = g[0, 1, 2, 1, -1] = value
    with np.errstate(invalid="ignore"):
        want = [oracle.forward(x1, x2, **parameters)[0], *(triple[0] for triple in oracle.vjp(g, x1, x2, **parameters))]
    with launched_by(monkeypatch, emulator := Emulator()):
        got = [correlate(emulator, route, x1, x2, **parameters), *correlate_vjp(emulator, route, g, x1, x2, **parameters)]
    for name, w, o in zip(("output", "g1", "g2"), want, got, strict=True):
        assert np.array_equal(np.isfinite(w), np.isfinite(o.astype(np.float64))), name


def test_scale_is_applied_before_rounding_so_that_halves_do_not_overflow(monkeypatch, route):
    x = np.full((1, 64, 4, 4), 100, np.float16)
    with launched_by(monkeypatch, emulator := Emulator()):
        assert np.isinf(correlate(emulator, route, x, x)).all()
        got = correlate(emulator, route, x, x, scale=1 / 64)
    assert np.array_equal(got, np.full((1, 1, 1, 4, 4), 1e4, np.float16))


def test_gradients_are_scaled_before_rounding_so_that_halves_do_not_overflow(monkeypatch, route):
    x = np.full((1, 1, 1, 80), 100, np.float16)
    g = np.full((1, 1, 21, 1, 80), 100, np.float16)
    with launched_by(monkeypatch, emulator := Emulator()):
        gradients = correlate_vjp(emulator, route, g, x, x, patch_size=(1, 21), scale=1 / 64)
    for gradient in gradients:
        assert gradient[0, 0, 0, 40] == np.float16(21 * 1e4 / 64)


@devices
def test_outputs_that_fill_their_blocks_equal_the_oracle(monkeypatch, route, device):
    check(monkeypatch, cases.same((2, 16, 16, 16)), route, device)


# Accesses ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_neighbouring_channels_are_loaded_16_bytes_at_a_time(monkeypatch, dtype):
    x1, x2, g = cases.same((1, 64, 5, 6), dtype).arrays()
    x1, x2 = channels_last(x1), channels_last(x2)
    with launched_by(monkeypatch, emulator := Emulator()):
        correlate(emulator, "direct", x1, x2)
        assert emulator.account.global_load_bytes == 16 * emulator.account.global_loads
        correlate_vjp(emulator, "direct", g, x1, x2, needs=(True, False))
    runs = 5 * 6 * 64 * x1.itemsize // 16
    assert emulator.account.global_loads == 2 * runs  # a run of the other input and the cotangent, for each run
    assert emulator.account.global_load_bytes == runs * (16 + x1.itemsize)


def test_sums_along_y_move_16_bytes_at_a_time(monkeypatch):
    x1, x2, _ = cases.same((1, 2, 9, 32)).arrays()
    with launched_by(monkeypatch, emulator := Emulator()):
        correlate(emulator, "box", x1, x2, kernel_size=(3, 1))
    _, along_y, _ = emulator.accounts
    assert along_y.global_load_bytes == 16 * along_y.global_loads
    assert along_y.global_store_bytes == 16 * along_y.global_stores


# Beneath the accesses ---------------------------------------------------------------------------------------------------------


@pytest.mark.sanitizer
def test_the_kernels_run_clean_under_address_and_undefined_behaviour_sanitizers():
    # Those of tensor cores have runs of their own, beside the tests of their tiles.
    layouts_and_types = "(memory_order and float16) or (another_dtype and direct and float16) or (64_bits and float64)"
    done = run_sanitized(__file__, "-k", f"((named_cases and idle) or {layouts_and_types} or any_size) and not mma")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
