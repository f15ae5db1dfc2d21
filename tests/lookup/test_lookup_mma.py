"""lookup_mma.cu in the emulator: every tile computes the oracle's output, and multiplies and loads what windows need."""

from dataclasses import replace
from itertools import product

import lookup_cases
import lookup_oracle
import numpy as np
import pytest
from emulated import launched_by
from emulator import ORDERS, Emulator, require_compiler, run_sanitized
from fake_cupy import FACTS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layouts import FOR_KERNELS, channels_last, far_apart, one_element_beyond, rows
from lookup_cases import NAMED, Case, index
from lookup_emulated import inputs_of, lookup

from cupycorr._dispatch import FORWARD, VJP, Place, Request, choose
from cupycorr._gpu import call, plan, source
from cupycorr._lookup.gpu import lookup_mma, planner
from cupycorr._lookup.gpu.lookup_mma import DTYPES, GROUP, PAIR, TILES
from cupycorr._lookup.variants import OPERATOR

require_compiler()

H100 = replace(FACTS, compute_capability=(9, 0))
IDS = [f"{tile.groups} groups" for tile in TILES]
tiles = pytest.mark.parametrize("tile", TILES, ids=IDS)
orders = pytest.mark.parametrize("lay", [rows, channels_last], ids=["rows", "channels last"])

PYRAMID = Case((2, 48, 9, 11), [(2, 48, 9, 11), (2, 48, 4, 5)], (2, 2, 2, 9, 11), dict(patch_size=(3, 4), scale=-0.3), "float16")
DILATED = replace(PYRAMID, parameters=dict(patch_size=(3, 5), dilation_patch=(2, 3), order="dx"))
ONE_ROW = replace(PYRAMID, coords=(2, 1, 9, 11), parameters=dict(patch_size=(2, 12), level_step=(1, 2)))
NOISE = Case((1, 40, 16, 24), (1, 40, 16, 24), (1, 2, 16, 24), dict(patch_size=5), "float16", noise=4.0)
KINDS = {"pyramid": PYRAMID, "dilated": DILATED, "own rows": ONE_ROW, "noise": NOISE}
kinds = pytest.mark.parametrize("case", KINDS.values(), ids=KINDS.keys())


def run(monkeypatch, case, inputs, tile=None, emulator=None, out=None, device=H100):
    """Return the output by a tile, or by the one that the cost model chooses."""
    table = TILES if tile is None else (tile,)
    emulator = emulator or Emulator()
    with launched_by(monkeypatch, emulator, device, lookup_mma, TILES=table):
        return lookup(emulator, case, inputs, out=out, variant="mma")


def wanted(case, inputs):
    maps = [inputs[name] for name in case.problem().level_names]
    x2 = maps if isinstance(case.shapes2, list) else maps[0]
    return lookup_oracle.forward(inputs["input1"], x2, inputs["coords"], **case.parameters)


def assert_right(case, inputs, out):
    lookup_oracle.assert_close(out, wanted(case, inputs), "tf32" if case.dtype == "float32" else "float32")


def check(monkeypatch, case, lay=rows, tile=None, every_order=False):
    """Check that the output of a case is the oracle's, and has the same bits in every order of threads."""
    inputs = inputs_of(case, lay)
    results = [run(monkeypatch, case, inputs, tile, Emulator(order)) for order in (ORDERS if every_order else ORDERS[:1])]
    assert_right(case, inputs, results[0])
    assert len({out.tobytes() for out in results}) == 1, "the output depends on the order of threads"
    return results[0]


# The definition ---------------------------------------------------------------------------------------------------------------


@pytest.mark.covering(1)
@orders
@pytest.mark.parametrize("case", NAMED.values(), ids=NAMED.keys())
def test_named_lookups_equal_the_oracle(monkeypatch, case, lay):
    check(monkeypatch, case.of("float16"), lay)


@tiles
@kinds
def test_every_tile_equals_the_oracle_in_every_order_of_threads(monkeypatch, case, tile):
    check(monkeypatch, case, channels_last, tile, every_order=True)


WAYS = [*product((rows, channels_last), TILES)]  # taken in turn: each case and dtype runs in one of them


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "number"), [(dtype, number) for number, dtype in enumerate(DTYPES)])
@pytest.mark.parametrize("name", NAMED)
def test_results_do_not_depend_on_the_order_of_threads(monkeypatch, name, dtype, number):
    lay, tile = WAYS[([*NAMED].index(name) + number) % len(WAYS)]
    check(monkeypatch, NAMED[name].of(dtype), lay, tile, every_order=True)


@orders
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_equals_the_oracle(monkeypatch, dtype, lay):
    for channels in (35, 72):  # stages that end in the middle of 16 bytes, and at the end of them
        check(monkeypatch, Case((2, channels, 6, 9), [(2, channels, 6, 9), (2, channels, 3, 4)], (2, 2, 6, 9), {}, dtype), lay)


@pytest.mark.slow
@tiles
@pytest.mark.parametrize("lay", [*FOR_KERNELS.values(), one_element_beyond], ids=[*FOR_KERNELS, "one element beyond"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_memory_order_equals_the_oracle(monkeypatch, dtype, lay, tile):
    for channels in (35, 72):
        shapes = [(2, channels, 6, 9), (2, channels, 3, 4)]
        case = Case(shapes[0], shapes, (2, 2, 6, 9), dict(patch_size=(3, 4), dilation_patch=(1, 2), scale=0.25), dtype)
        check(monkeypatch, case, lay, tile)


def test_channels_last_that_no_vector_can_move_equal_the_oracle(monkeypatch):
    check(monkeypatch, PYRAMID, one_element_beyond_channels_last)


def one_element_beyond_channels_last(x):
    return one_element_beyond(np.ascontiguousarray(x.transpose(0, 2, 3, 1))).transpose(0, 3, 1, 2)


@pytest.mark.slow
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(case=lookup_cases.lookups(dtypes=DTYPES), lay=st.sampled_from(list(FOR_KERNELS.values())), tile=st.sampled_from(TILES))
def test_drawn_lookups_equal_the_oracle(monkeypatch, case, lay, tile):
    check(monkeypatch, case, lay, tile, every_order=True)


@pytest.mark.parametrize("patch_size", [21, (1, 200), (200, 1), (13, 12)])
def test_windows_of_more_pixels_than_a_block_has_dots_of_equal_the_oracle(monkeypatch, patch_size):
    case = Case((1, 8, 6, 9), [(1, 8, 6, 30), (1, 8, 30, 4)], (1, 2, 6, 9), dict(patch_size=patch_size, order="dx"), "float16")
    check(monkeypatch, case, channels_last)


def test_more_levels_than_a_launch_has_equal_the_oracle(monkeypatch):
    case = Case((1, 8, 8, 9), [(1, 8, 9 - level, 8) for level in range(6)], (1, 2, 8, 9), dict(patch_size=3), "float16")
    inputs = inputs_of(case)
    out = run(monkeypatch, case, inputs, emulator=(emulator := Emulator()))
    assert_right(case, inputs, out)
    assert len(emulator.accounts) == 2


def test_one_launch_serves_a_pyramid_of_four_levels(monkeypatch):
    run(monkeypatch, NAMED["RAFT"].of("float16"), inputs_of(NAMED["RAFT"].of("float16")), emulator=(emulator := Emulator()))
    assert len(emulator.accounts) == 1


@pytest.mark.parametrize("result", ["float16", "bfloat16", "float32", "float64"])
def test_a_result_of_another_dtype_is_rounded_once_from_the_sum(monkeypatch, result):
    case = replace(PYRAMID, coords=(2, 2, 9, 11))
    inputs = inputs_of(case)
    shape = case.problem().out_shape
    exact = run(monkeypatch, case, inputs, out=np.empty(shape, np.float32))
    out = run(monkeypatch, case, inputs, out=np.empty(shape, lookup_cases.DTYPES[result]))
    assert out.tobytes() == exact.astype(out.dtype).tobytes()


@pytest.mark.parametrize("coords_dtype", DTYPES)
def test_coordinates_of_another_dtype_are_widened(monkeypatch, coords_dtype):
    check(monkeypatch, replace(PYRAMID, coords_dtype=coords_dtype))


def test_out_may_have_any_strides(monkeypatch):
    inputs, shape = inputs_of(PYRAMID), PYRAMID.problem().out_shape
    want = run(monkeypatch, PYRAMID, inputs)
    for out in (np.empty((*shape[:-1], 2 * shape[-1]), np.float16)[..., ::2], np.empty(shape[::-1], np.float16).T):
        assert np.array_equal(run(monkeypatch, PYRAMID, inputs, out=out), want)


# Coordinates, features and indices that are out of the ordinary ----------------------------------------------------------------


@pytest.mark.covering(2)
@orders
@pytest.mark.parametrize("far", [1e30, -1e30, 3e38, -(2.0**31), 2.0**31, 2.0**63])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_window_wholly_outside_is_zero_and_costs_nothing(monkeypatch, axis, far, lay):
    case = Case((1, 16, 6, 7), [(1, 16, 6, 7), (1, 16, 3, 3)], (1, 2, 6, 7), dict(patch_size=3), "float16", noise=0.0)
    inputs = inputs_of(case, lay)
    run(monkeypatch, case, inputs, emulator=(near := Emulator()))
    inputs["coords"][0, axis, 2, 3] = far
    out = run(monkeypatch, case, inputs, emulator=(emulator := Emulator()))
    assert (out[..., 2, 3] == 0).all()
    assert emulator.account.multiply_adds <= near.account.multiply_adds
    assert_right(case, inputs, out)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_coordinate_that_is_not_finite_gives_nan_at_its_query_only(monkeypatch, axis, value):
    inputs = inputs_of(PYRAMID)
    clean = run(monkeypatch, PYRAMID, inputs)
    inputs["coords"][1, 0, axis, 4, 5] = value
    out = run(monkeypatch, PYRAMID, inputs)
    assert np.isnan(out[1, :, 0, ..., 4, 5]).all()
    out[1, :, 0, ..., 4, 5] = clean[1, :, 0, ..., 4, 5]
    assert out.tobytes() == clean.tobytes()


@pytest.mark.covering(2)
@orders
@kinds
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_features_that_are_not_finite_reach_the_windows_that_read_them_and_no_others(monkeypatch, case, value, lay):
    x1, x2, coords = case.arrays()
    maps = x2 if isinstance(x2, list) else [x2]
    x1[0, 1, 0, 3] = x1[-1, 0, 6, 8] = maps[0][0, 1, -1, -1] = maps[-1][-1, 0, 0, 0] = maps[0][0, 2, 4, 4] = value
    inputs = {"input1": lay(x1), **dict(zip(case.problem().level_names, map(lay, maps), strict=True)), "coords": coords}
    with np.errstate(invalid="ignore"):
        want = lookup_oracle.forward(x1, x2, coords, **case.parameters)[0]
    got = run(monkeypatch, case, inputs)
    assert not np.isfinite(want).all()
    assert np.array_equal(np.isfinite(got), np.isfinite(want))


@pytest.mark.parametrize("wrong", [-1, 3, 2**31 - 1, 2**32 + 1, -(2**63)])
@pytest.mark.parametrize("name", ["index1", "index2"])
def test_an_index_out_of_range_is_nan_in_its_entry_and_reads_nothing_outside(monkeypatch, name, wrong):
    indices = {"index1": index(0, 2, 1, 2), "index2": index(1, 0, 1, 2)}
    case = Case((3, 5, 6, 7), [(3, 5, 6, 7), (3, 5, 3, 3)], (4, 2, 6, 7), dict(patch_size=3, **indices), "float16")
    inputs = inputs_of(case)
    want = wanted(case, inputs)
    inputs[name] = indices[name].copy()
    inputs[name][1] = wrong
    out = run(monkeypatch, case, inputs)
    assert np.isnan(out[1]).all()
    lookup_oracle.assert_close(out[[0, 2, 3]], [part[[0, 2, 3]] for part in want], "float32")


def test_the_pixel_and_the_weights_are_those_of_the_rounded_product(monkeypatch):
    """A third is rounded up: of 3 times it, only the rounded product is the whole number 1, with no weight for pixel 2."""
    x1, x2 = np.ones((1, 1, 1, 1), np.float16), np.array([0, 1, 2.0**15], np.float16).reshape(1, 1, 1, 3)
    case = Case(x1.shape, [x2.shape] * 2, (1, 1, 1, 1), dict(patch_size=1, level_step=3), "float16")
    inputs = {"input1": x1, "input2[0]": x2, "input2[1]": x2, "coords": np.full((1, 1, 1, 1), 3, np.float32)}
    assert run(monkeypatch, case, inputs).ravel().tolist() == [0, 1]


FAR = {
    "a dilation beyond 32 bits": dict(patch_size=(2, 3), dilation_patch=(2**30, 2**29)),
    "a dilation of one displacement": dict(patch_size=1, dilation_patch=2**31),
    "a dilation near 32 bits": dict(patch_size=3, dilation_patch=2**27),
    "levels far apart": dict(patch_size=3, level_step=2**40),
}


@pytest.mark.parametrize("parameters", FAR.values(), ids=FAR)
def test_parameters_of_any_size_equal_the_oracle(monkeypatch, parameters):
    maps = [(1, 3, 5, 6), (1, 3, 2, 2)]
    check(monkeypatch, Case((1, 3, 5, 6), maps, (1, 2, 5, 6), parameters, "float16", strange=0.1))


# Sizes beyond those of a test -------------------------------------------------------------------------------------------------


@kinds
def test_a_grid_smaller_than_the_work_loops_over_the_rest(monkeypatch, case):
    monkeypatch.setattr(plan, "LARGEST_GRID", 3)
    check(monkeypatch, case, channels_last, every_order=True)


@orders
@kinds
def test_integers_of_64_bits_give_the_same_bits(monkeypatch, case, lay):
    inputs = inputs_of(replace(case, strange=0.05), lay)
    narrow = run(monkeypatch, case, inputs)
    monkeypatch.setattr(call, "SAFE_INDEX", 0)
    assert run(monkeypatch, case, inputs).tobytes() == narrow.tobytes()


@pytest.mark.parametrize("axis", range(4), ids=["batch", "channels", "rows", "columns"])
@pytest.mark.parametrize("name", ["input1", "input2"])
def test_features_more_than_2_to_the_31_apart_are_reached(monkeypatch, name, axis):
    case = Case((2, 2, 2, 2), (2, 2, 2, 2), (2, 2, 2, 2), dict(patch_size=2), "float16")
    inputs = inputs_of(case)
    inputs[name] = far_apart(inputs[name], axis)
    assert_right(case, inputs, run(monkeypatch, case, inputs))


@pytest.mark.parametrize("dtype", DTYPES)
def test_constant_data_keeps_the_error_bound_over_more_channels_than_one_chain_has(monkeypatch, dtype):
    channels = 9000
    case = Case((1, channels, 1, 1), (1, channels, 1, 2), (1, 2, 1, 1), dict(patch_size=1), dtype)
    x1, x2 = (np.full((1, channels, 1, n), 0.1, lookup_cases.DTYPES[dtype]) for n in (1, 2))
    inputs = {"input1": x1, "input2": x2, "coords": np.full((1, 2, 1, 1), 0.3, np.float32)}
    assert_right(case, inputs, run(monkeypatch, case, inputs))


# What is computed and loaded ---------------------------------------------------------------------------------------------------


class Counted:
    """The groups of pixels that the windows of each tile of queries need, by loops over the pixels of a single map."""

    def __init__(self, case):
        _, x2, coords = case.arrays()
        size = x2.shape[2:]
        patch = case.problem().parameters.patch_size
        lows = np.floor(coords[0, ::-1]).astype(int) - np.reshape([(each - 1) // 2 for each in patch], (2, 1, 1))
        self.products, self.pixels = 0, 0  # of groups and pairs of rows; loaded, without the queries
        for top, left in product(range(0, coords.shape[2], 8), range(0, coords.shape[3], 8)):
            windows = [self._window(lows[:, i, j], patch, size) for i in range(top, top + 8) for j in range(left, left + 8)]
            self._count(windows)

    @staticmethod
    def _window(low, patch, size):
        ranges = [range(max(at, 0), min(at + count + 1, limit)) for at, count, limit in zip(low, patch, size, strict=True)]
        return set(product(*ranges))

    def _count(self, windows):
        union = set().union(*windows)
        if not union:
            return
        box = [(min(each), max(each) + 1) for each in zip(*union, strict=True)]
        pixels = list(product(*(range(*each) for each in box)))
        for begin in range(0, len(pixels), GROUP):
            group = set(pixels[begin : begin + GROUP])
            needing = sum(any(group & window for window in windows[pair : pair + PAIR]) for pair in range(0, 64, PAIR))
            self.products += needing
            self.pixels += len(group) * bool(needing)


SHAPE = (1, 32, 16, 24)
FLOWS = {
    "no flow": (Case(SHAPE, SHAPE, (1, 2, 16, 24), {}, "float16", noise=0.0), 0.5),
    "noise": (Case(SHAPE, SHAPE, (1, 2, 16, 24), dict(patch_size=5), "float16", noise=4.0), 0.1),
    "far apart": (Case(SHAPE, (1, 32, 90, 80), (1, 2, 16, 24), dict(patch_size=3), "float16", noise=40.0), 0.01),
}


@tiles
@pytest.mark.parametrize(("case", "share"), FLOWS.values(), ids=FLOWS)
def test_only_the_groups_of_pixels_that_a_pair_of_rows_needs_are_multiplied_and_loaded(monkeypatch, case, share, tile):
    inputs = inputs_of(case, channels_last)
    run(monkeypatch, case, inputs, tile, emulator := Emulator())
    counted, (height, width) = Counted(case), case.problem().parameters.patch_size
    channels, queries = case.shape1[1], 16 * 24
    of_blending = queries * width * (2 * height + 1)
    assert emulator.account.multiply_adds == counted.products * GROUP * PAIR * channels + of_blending
    passes = (emulator.account.global_load_bytes - queries * 8 - counted.pixels * channels * 2) / (64 * channels * 2)
    assert passes == int(passes) >= queries // 64
    if case.noise == 0 and tile is TILES[0]:
        assert passes == queries // 64
    assert queries * (height + 1) * (width + 1) / (counted.products * GROUP * PAIR) > share


def lines(*words):
    """Return the places of the kernel that have some words."""
    text = (source.folder() / "lookup/lookup_mma.cu").read_text("utf-8").splitlines()
    return {f"lookup_mma.cu:{number}" for number, line in enumerate(text, 1) if any(each in line for each in words)}


@pytest.mark.slow
@tiles
@orders
@pytest.mark.parametrize("dtype", DTYPES)
def test_stages_fragments_and_dots_have_no_bank_conflicts(monkeypatch, dtype, lay, tile):
    case = Case((1, 32, 8, 8), (1, 32, 40, 40), (1, 2, 8, 8), {}, dtype, noise=0.0)
    run(monkeypatch, case, inputs_of(case, lay), tile, emulator := Emulator(traced=True))
    passes = {"load_matrices<4, false>": 4, "query.x.weights[1], load_shared(at + 1)": 1, "copy_async<sizeof(Words16)>": 4}
    for words, most in passes.items():
        found = [each for each in emulator.traffic if each.kind.startswith("shared") and set(each.lines) & lines(words)]
        assert found or (words.startswith("copy") and lay is rows)
        assert all(each.transactions <= most * each.requests for each in found), words


# Plans ------------------------------------------------------------------------------------------------------------------------


def request_of(case, pass_name=FORWARD, precision="highest"):
    problem = case.problem()
    return Request(pass_name, problem, case.dtype, case.dtype, (), problem.needs_of_inputs((True,) * 3), precision).dense()


def on(capability, **changed):
    return Place("cupy", replace(FACTS, compute_capability=capability, **changed))


REASONS = {
    "float64": ("float64", "high", (9, 0), "float64 has no tensor-core product here"),
    "float32": ("float32", "highest", (9, 0), "precision is 'highest', tensor cores multiply float32 as TF32"),
    "Volta": ("float16", "highest", (7, 0), "compute capability 7.0 has no tensor cores for float16"),
    "bfloat16 on Turing": ("bfloat16", "highest", (7, 5), "compute capability 7.5 has no tensor cores for bfloat16"),
    "TF32 on Turing": ("float32", "high", (7, 5), "compute capability 7.5 has no tensor cores for float32"),
}


@pytest.mark.parametrize("pass_name", [FORWARD, VJP])
@pytest.mark.parametrize(("dtype", "precision", "capability", "reason"), REASONS.values(), ids=REASONS)
def test_tensor_cores_are_refused_with_the_reason(dtype, precision, capability, reason, pass_name):
    with pytest.raises(NotImplementedError, match=reason):
        choose(OPERATOR, request_of(PYRAMID.of(dtype), pass_name, precision), on(capability), "mma")


def test_a_device_with_too_little_shared_memory_is_refused_with_the_bytes():
    with pytest.raises(NotImplementedError, match=r"needs \d+ bytes of shared memory, the device has 30000"):
        choose(OPERATOR, request_of(PYRAMID), on((9, 0), shared_memory=30000), "mma")


RUN = {
    "float16": ("float16", "highest", (8, 0)),
    "bfloat16": ("bfloat16", "highest", (8, 9)),
    "float16 on Turing": ("float16", "highest", (7, 5)),
    "high": ("float32", "high", (8, 0)),
    "medium": ("float32", "medium", (12, 0)),
}


@pytest.mark.parametrize(("dtype", "precision", "capability"), RUN.values(), ids=RUN)
def test_tensor_cores_compute_the_output_and_hand_the_gradients_on(dtype, precision, capability):
    of_case = PYRAMID.of(dtype)
    chosen = choose(OPERATOR, request_of(of_case, FORWARD, precision), on(capability), "mma")
    assert (chosen.variant, chosen.plan.algorithm, chosen.plan.workspace) == ("mma", "mma", 0)
    assert [each.kernel.entry for each in chosen.plan.calls] == ["lookup_mma"]
    gradients = choose(OPERATOR, request_of(of_case, VJP, precision), on(capability), "mma")
    assert "lookup_mma" not in {each.kernel.entry for each in gradients.plan.calls}


SHARED = {"Turing": ((7, 5), 64), "Ampere": ((8, 0), 163), "Ada": ((8, 9), 99), "Hopper": ((9, 0), 227)}


@pytest.mark.parametrize(("capability", "kibibytes"), SHARED.values(), ids=SHARED)
@pytest.mark.parametrize("parameters", [{}, dict(patch_size=21), dict(dilation_patch=2), dict(patch_size=(1, 9))], ids=str)
def test_a_tile_fits_into_the_shared_memory_of_every_device(capability, kibibytes, parameters):
    where = on(capability, shared_memory=kibibytes * 1024)
    chosen = choose(OPERATOR, request_of(replace(PYRAMID, parameters=parameters)), where, "mma")
    assert all(each.shared <= where.device.shared_memory for each in chosen.plan.calls)


def test_every_call_is_of_a_listed_build():
    listed = {kernel for _, kernel in planner.builds()}
    for case, dtype in product(KINDS.values(), DTYPES):
        found = choose(OPERATOR, request_of(case.of(dtype), precision="high"), on((9, 0)), "mma")
        assert {each.kernel for each in found.plan.calls} <= listed


def test_builds_for_a_device_are_those_that_its_tensor_cores_can_run():
    inputs = {
        capability: {dict(kernel.macros)["INPUT"] for name, kernel in planner.builds(on(capability).device) if "mma" in name}
        for capability in ((7, 0), (7, 5), (8, 0))
    }
    assert inputs == {(7, 0): set(), (7, 5): {"half"}, (8, 0): {"half", "bfloat16", "float"}}


@pytest.mark.parametrize("lay", ["rows", "channels last"])
def test_raft_at_sintel_size_in_16_bits_goes_to_tensor_cores(lay):
    levels = [(1, 256, 55 >> level, 128 >> level) for level in range(4)]
    asked = request_of(Case(levels[0], levels, (1, 2, 55, 128), {}, "bfloat16"))
    asked = asked.dense(*[lay] * 5, *["rows"] * (len(asked.problem.inputs) - 5))
    assert choose(OPERATOR, asked, on((9, 0), multiprocessors=132)).variant == "mma"


@pytest.mark.sanitizer
def test_the_kernel_runs_clean_under_address_and_undefined_behaviour_sanitizers():
    done = run_sanitized(__file__, "-k", "every_tile_equals or out_of_range or any_size")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
