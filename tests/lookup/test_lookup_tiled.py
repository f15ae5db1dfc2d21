"""lookup_tiled.cu computes the oracle's output whatever the flow, and loads a pixel once for all queries of a tile that read it.

The other kernels are in test_kernels_emulated.py.
"""

from dataclasses import dataclass, replace
from itertools import product
from types import SimpleNamespace

import lookup_cases
import lookup_oracle
import numpy as np
import pytest
from cases import DTYPES
from emulated import BUSY, launched_by
from emulator import ORDERS, Emulator, require_compiler, run_sanitized
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from layouts import FOR_KERNELS, channels_last, far_apart, rows
from lookup_cases import NAMED, Case, index
from lookup_emulated import inputs_of, lookup
from tilings import H200

from cupycorr._dispatch import FORWARD, VJP, Request
from cupycorr._gpu import call, plan, source
from cupycorr._lookup.gpu import lookup_tiled, planner
from cupycorr._lookup.problem import Operands, parameters, problem
from cupycorr._lookup.variants import OPERATOR, VARIANTS

require_compiler()

orders = pytest.mark.parametrize("lay", [rows, channels_last], ids=["rows", "channels last"])

PYRAMID = Case((2, 20, 9, 11), [(2, 20, 9, 11), (2, 20, 4, 5)], (2, 2, 2, 9, 11), dict(patch_size=(3, 4), scale=-0.3))
DILATED = replace(PYRAMID, parameters=dict(patch_size=(3, 5), dilation_patch=(2, 3), order="dx"))
ONE_ROW = replace(PYRAMID, coords=(2, 1, 9, 11), parameters=dict(patch_size=(2, 12), level_step=(1, 2)))
OF_EACH_KIND = {"pyramid": PYRAMID, "dilated": DILATED, "own rows": ONE_ROW}
of_each_kind = pytest.mark.parametrize("case", OF_EACH_KIND.values(), ids=OF_EACH_KIND.keys())


def why_not(case, device=H200):
    return lookup_tiled.why_not(case.problem(), case.dtype, device)


def run(monkeypatch, case, inputs, emulator=None, **options):
    """Return the output."""
    emulator = emulator or Emulator()
    with launched_by(monkeypatch, emulator, BUSY, planner):
        return lookup(emulator, case, inputs, variant="tiled", **options)


def wanted(case, inputs):
    """Return the oracle's triple for the coordinates among the inputs."""
    x1, x2, _ = case.arrays()
    return lookup_oracle.forward(x1, x2, inputs["coords"], **case.parameters)


def assert_right(case, out, want):
    lookup_oracle.assert_close(out, want, "float64" if case.dtype == "float64" else "float32", "output")


def check(monkeypatch, case, lay=rows, every_order=False, coords=None):
    """Check that the output is the oracle's, and has the same bits in every order of threads."""
    inputs = inputs_of(case, lay)
    if coords is not None:
        inputs["coords"] = coords
    first, *others = [run(monkeypatch, case, inputs, Emulator(order)) for order in (ORDERS if every_order else ORDERS[:1])]
    assert all(other.tobytes() == first.tobytes() for other in others), "the output depends on the order of threads"
    assert_right(case, first, wanted(case, inputs))
    return first


# Flows ------------------------------------------------------------------------------------------------------------------------

GRID = np.stack(np.meshgrid(np.arange(15.0), np.arange(10.0)))


def smooth():
    x, y = GRID
    return GRID + 6 * np.stack([np.cos(y / 9), np.sin(x / 13)])


def with_edges():
    """Return a flow of two objects that move apart."""
    return GRID + np.where(GRID.sum(0) > 12, 9.5, -4.25)


def noisy(pixels):
    return GRID + pixels * np.random.default_rng(3).standard_normal(GRID.shape)


def far_and_near():
    """Return coordinates that are anywhere, and some of which are not numbers or nowhere near the map."""
    rng = np.random.default_rng(4)
    coords = rng.uniform(-40, 60, GRID.shape)
    return np.where(rng.random(GRID.shape) < 0.1, rng.choice(lookup_cases.STRANGE, GRID.shape), coords)


FLOWS = {
    "zero": GRID,
    "smooth": smooth(),
    "with edges": with_edges(),
    "4 px of noise": noisy(4),
    "anywhere": far_and_near(),
}
flows = pytest.mark.parametrize("flow", FLOWS.values(), ids=FLOWS)


def of_flow(channels, dtype="float32", **parameters):
    maps = [(1, channels, *size) for size in ((10, 15), (5, 7), (1, 1))]
    return Case(maps[0], maps, (1, 2, 10, 15), parameters, dtype)


@flows
@orders
def test_every_flow_equals_the_oracle_in_every_order_of_threads(monkeypatch, flow, lay):
    check(monkeypatch, of_flow(19, patch_size=(7, 9)), lay, True, flow[None].astype(np.float32))


@pytest.mark.slow
@flows
@orders
@pytest.mark.parametrize("order", ["dy", "dx"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_every_flow_equals_the_oracle_in_every_dtype(monkeypatch, flow, lay, dtype, order):
    case = of_flow(35, dtype, patch_size=(5, 4), order=order, scale=0.25)
    check(monkeypatch, case, lay, True, flow[None].astype("float64" if dtype == "float64" else "float32"))


# Cases ------------------------------------------------------------------------------------------------------------------------

SUPPORTED = {name: case for name, case in NAMED.items() if why_not(case) is None}


@pytest.mark.parametrize("case", SUPPORTED.values(), ids=SUPPORTED.keys())
def test_named_lookups_equal_the_oracle(monkeypatch, case):
    check(monkeypatch, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", SUPPORTED.values(), ids=SUPPORTED.keys())
@orders
def test_results_do_not_depend_on_the_order_of_threads(monkeypatch, case, lay):
    check(monkeypatch, case, lay, every_order=True)


@pytest.mark.slow
@pytest.mark.parametrize("lay", FOR_KERNELS.values(), ids=FOR_KERNELS.keys())
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_and_memory_order_equals_the_oracle(monkeypatch, dtype, lay):
    for channels in (35, 72):  # runs of channels that end in the middle of 16 bytes, and at the end of them
        shapes = [(2, channels, 6, 9), (2, channels, 3, 4)]
        case = Case(shapes[0], shapes, (2, 2, 6, 9), dict(patch_size=(3, 4), dilation_patch=(1, 2), scale=0.25), dtype)
        check(monkeypatch, case, lay, every_order=channels == 35)


@pytest.mark.slow
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(case=lookup_cases.lookups(), lay=st.sampled_from(list(FOR_KERNELS.values())))
def test_drawn_lookups_equal_the_oracle(monkeypatch, case, lay):
    assume(why_not(case) is None)
    check(monkeypatch, case, lay, every_order=True)


@pytest.mark.parametrize(("levels", "launches"), [(4, 1), (5, 2), (9, 3)])
def test_four_levels_take_one_launch(monkeypatch, levels, launches):
    shapes = [(1, 5, 6, 7), (1, 5, 3, 3), *[(1, 5, 2, 2)] * (levels - 2)]
    case = Case(shapes[0], shapes, (1, 2, 2, 6, 7), dict(patch_size=3))
    inputs = inputs_of(case)
    assert_right(case, run(monkeypatch, case, inputs, emulator := Emulator()), wanted(case, inputs))
    assert len(emulator.accounts) == launches


@of_each_kind
@orders
def test_a_grid_smaller_than_the_work_loops_over_the_rest(monkeypatch, case, lay):
    monkeypatch.setattr(plan, "LARGEST_GRID", 3)
    check(monkeypatch, case, lay, every_order=True)


@of_each_kind
@orders
def test_integers_of_64_bits_give_the_same_bits(monkeypatch, case, lay):
    case = replace(case, strange=0.05)
    inputs = inputs_of(case, lay)
    narrow = run(monkeypatch, case, inputs)
    monkeypatch.setattr(call, "SAFE_INDEX", 0)
    assert run(monkeypatch, case, inputs).tobytes() == narrow.tobytes()


@pytest.mark.parametrize("axis", [0, 1, 2, 3], ids=["batch", "channels", "rows", "columns"])
@pytest.mark.parametrize("name", ["input1", "input2"])
def test_features_more_than_2_to_the_31_apart_are_reached(monkeypatch, name, axis):
    case = Case((2, 2, 2, 2), (2, 2, 2, 2), (2, 2, 2, 2), dict(patch_size=2), "float16")
    inputs = inputs_of(case)
    inputs[name] = far_apart(inputs[name], axis)
    assert_right(case, run(monkeypatch, case, inputs), wanted(case, inputs))


def test_offsets_of_channels_that_are_not_there_have_enough_bits(monkeypatch):
    """A stage has eight channels, which are 2^31 elements apart, and two of them are there. The sanitizers see an overflow."""
    case = Case((1, 2, 1, 1), (1, 2, 1, 1), (1, 2, 1, 1), dict(patch_size=1), "float16")
    inputs = inputs_of(case)
    features = np.empty(2**28 + 1, np.float16)  # of which two elements are touched
    features[0], features[-1] = inputs["input2"].ravel()
    inputs["input2"] = features[:: 2**28].reshape(1, 2, 1, 1)
    assert_right(case, run(monkeypatch, case, inputs), wanted(case, inputs))


@pytest.mark.slow
def test_a_window_outside_a_map_of_2_to_the_32_columns_is_zero(monkeypatch):
    """Its distance from the others is 0 in 32 bits."""
    x1, shape2 = np.ones((1, 2, 1, 2), np.float32), (1, 2, 1, 2**32)
    coords = np.array([[[[0, 1e30]], [[0, 0]]]], np.float32)
    wide = problem(parameters(patch_size=1), Operands(x1.shape, (shape2,), False, coords.shape, "float32"))
    inputs = {"input1": x1, "input2": np.broadcast_to(np.float32(1), shape2), "coords": coords}
    assert run(monkeypatch, SimpleNamespace(problem=lambda: wide), inputs).ravel().tolist() == [2, 0]


OTHER_RESULTS = [("float16", "float32"), ("float32", "bfloat16"), ("float64", "float16")]


@pytest.mark.parametrize(
    ("dtype", "result"),
    [pytest.param(*pair, marks=() if pair in OTHER_RESULTS else pytest.mark.slow) for pair in product(DTYPES, DTYPES)],
)
def test_a_result_of_another_dtype_is_rounded_once_from_the_sum(monkeypatch, dtype, result):
    case = Case((2, 9, 5, 6), [(2, 9, 5, 6), (2, 9, 2, 3)], (2, 2, 5, 6), dict(patch_size=(3, 2), scale=-0.3), dtype)
    inputs, sums = inputs_of(case), "float64" if dtype == "float64" else "float32"
    exact = run(monkeypatch, case, inputs, dtype=np.dtype(sums))
    assert_right(case, exact, wanted(case, inputs))
    assert run(monkeypatch, case, inputs, dtype=DTYPES[result]).tobytes() == exact.astype(DTYPES[result]).tobytes()


@pytest.mark.parametrize("order", ["dy", "dx"])
def test_out_may_have_any_strides(monkeypatch, order):
    case = replace(PYRAMID, parameters={**PYRAMID.parameters, "order": order})
    inputs, shape = inputs_of(case), case.problem().out_shape
    want = run(monkeypatch, case, inputs)
    for out in (
        np.empty((*shape[:-1], 2 * shape[-1]), np.float32)[..., ::2],
        np.empty(shape[::-1], np.float32).T,
        np.empty(shape, np.float32)[::-1, ::-1, :, ::-1, :, :, ::-1],
    ):
        assert np.array_equal(run(monkeypatch, case, inputs, out=out), want)


@pytest.mark.parametrize("name", ["index1", "index2"])
@pytest.mark.parametrize("wrong", [-1, 3, 2**32 + 1])
def test_an_index_out_of_range_is_nan_in_its_entry_and_reads_nothing(monkeypatch, name, wrong):
    indices = {"index1": index(0, 2, 1, 2), "index2": index(1, 0, 1, 2)}
    case = Case((3, 5, 6, 7), [(3, 5, 6, 7), (3, 5, 3, 3)], (4, 2, 6, 7), dict(patch_size=3, **indices))
    inputs = inputs_of(case)
    want = wanted(case, inputs)
    inputs[name] = indices[name].copy()
    inputs[name][1] = wrong
    out = run(monkeypatch, case, inputs)
    assert np.isnan(out[1]).all()
    assert_right(case, out[[0, 2, 3]], [part[[0, 2, 3]] for part in want])


@pytest.mark.covering(2)
@of_each_kind
@orders
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_features_that_are_not_finite_stay_where_the_definition_puts_them(monkeypatch, case, value, lay):
    x1, maps, coords = case.arrays()
    x1[0, 1, 0, 3] = x1[1, 0, 6, 8] = maps[0][0, 1, -1, -1] = maps[1][1, 0, 0, 0] = value
    with np.errstate(invalid="ignore"):
        want, *_ = lookup_oracle.forward(x1, maps, coords, **case.parameters)
    names = dict(zip(case.problem().level_names, map(lay, maps), strict=True))
    out = run(monkeypatch, case, {"input1": lay(x1), **names, "coords": coords})
    assert np.array_equal(np.isfinite(out), np.isfinite(want))


def test_the_pixel_and_the_weights_are_those_of_the_rounded_product(monkeypatch):
    """A third is rounded up: of 3 times it, only the rounded product is the whole number 1, with no weight for pixel 2."""
    x1, x2 = np.ones((1, 1, 1, 1), np.float32), np.array([0, 1, 2.0**30], np.float32).reshape(1, 1, 1, 3)
    case = Case(x1.shape, [x2.shape] * 2, (1, 1, 1, 1), dict(patch_size=1, level_step=3))
    inputs = {"input1": x1, "input2[0]": x2, "input2[1]": x2, "coords": np.full((1, 1, 1, 1), 3, np.float32)}
    assert run(monkeypatch, case, inputs).ravel().tolist() == [0, 1]


@pytest.mark.slow
@orders
@pytest.mark.parametrize("coordinate", [0.3, 1e3], ids=["in tiles", "outside"])
def test_constant_data_keeps_the_error_bound_over_many_channels(monkeypatch, lay, coordinate):
    case = Case((1, 20000, 1, 2), (1, 20000, 1, 2), (1, 2, 1, 2), dict(patch_size=1))
    x1 = np.full((1, 20000, 1, 2), 0.1, np.float32)
    coords = np.full((1, 2, 1, 2), coordinate, np.float32)
    want = lookup_oracle.forward(x1, x1, coords, **case.parameters)
    assert_right(case, run(monkeypatch, case, {"input1": lay(x1), "input2": lay(x1), "coords": coords}), want)


# What is loaded ---------------------------------------------------------------------------------------------------------------

CHANNELS, PATCH = 40, 9
TAPS = PATCH + 1
THREADS = 256  # each takes a strip at a time
RUN, STRIP = 4, 13
GRID_OF_TILE = np.stack(np.meshgrid(np.arange(8.0), np.arange(8.0)))
COLUMN, ROW = GRID_OF_TILE  # of each query of a tile
LEFT, UPPER = COLUMN < 4, ROW < 4


def moved(*moves):
    """Return the coordinates of a tile where the queries of some places are moved along x and along y."""
    return GRID_OF_TILE + sum(where * np.stack(np.broadcast_arrays(x, y, COLUMN)[:2]) for where, x, y in moves)


@dataclass(frozen=True)
class Part:
    """A part of a tile: the rows and columns of the box of its windows, its queries, and the strips that its runs have."""

    rows: int
    columns: int
    queries: int
    strips: int

    @property
    def loaded(self):
        """The pixels that are loaded of both images."""
        return -(-self.strips // THREADS) * (self.rows * self.columns + self.queries)


HALF, QUARTER = Part(13, 17, 32, 80), Part(13, 13, 16, 40)  # where queries are a pixel apart
TILES = {
    "whole": (GRID_OF_TILE, [Part(17, 17, 64, 160)]),
    "as large as a box may be": (moved((~UPPER, 0, 5), (~LEFT, 5, 0)), [Part(22, 22, 64, 160)]),
    "upper and lower half": (moved((~UPPER, 0, 6)), [HALF, HALF]),
    "left and right half": (moved((~LEFT, 6, 0)), [Part(17, 13, 32, 80)] * 2),
    "quarters": (moved((~LEFT, 10, 0), (~UPPER, 0, 10), (~UPPER & LEFT, 30, 0)), [QUARTER] * 4),
    "a half and quarters": (moved((~UPPER, 0, 10), (~UPPER & ~LEFT, 10, 0)), [HALF, QUARTER, QUARTER]),
    "a half, a quarter, and a quarter of which each query is by itself": (
        moved((~UPPER, 0, 20), (UPPER & ~LEFT, 11 * (COLUMN - 3), 0)),
        [HALF, QUARTER],
    ),
    "whole, beside queries that look outside": (
        moved((ROW == 3, 0, 30 * (COLUMN == 3)), (ROW == 3, -1000 * (COLUMN == 3), 0)),
        [Part(17, 17, 64, 160)],
    ),
    "each query by itself": (7 * GRID_OF_TILE, []),
    "runs with many rows": (np.stack([COLUMN, COLUMN % 4 * 4]), [Part(22, 17, 64, 16 * 22)]),
    "runs with two strips in a row": (np.stack([COLUMN % 4 * 4, ROW]), [Part(17, 22, 64, 16 * 20)]),
    "nothing inside": (GRID_OF_TILE - 1000, []),
}
tiles = pytest.mark.parametrize(("coords", "parts"), TILES.values(), ids=TILES)


def of_tile(coords, lay=rows):
    """Return the case of one tile of queries in a map that windows are wholly inside or wholly outside, and its inputs."""
    case = Case((1, CHANNELS, 8, 8), (1, CHANNELS, 80, 100), (1, 2, 8, 8), dict(patch_size=PATCH))
    return case, {**inputs_of(case, lay), "coords": (coords[None] + 4.25).astype(np.float32)}


def by_themselves(coords, parts):
    """Return the number of queries inside that are in no part."""
    return 64 - sum(part.queries for part in parts) if coords.min() >= 0 else 0


@tiles
@orders
def test_a_pixel_is_loaded_once_for_all_queries_of_a_part(monkeypatch, coords, parts, lay):
    """A part with more strips than a block has threads loads its box again for the others."""
    case, inputs = of_tile(coords, lay)
    assert_right(case, run(monkeypatch, case, inputs, emulator := Emulator()), wanted(case, inputs))
    pixels = sum(part.loaded for part in parts) + by_themselves(coords, parts) * TAPS * (1 + TAPS)
    assert emulator.account.global_load_bytes == 4 * (CHANNELS * pixels + coords.size)


@tiles
def test_products_are_those_of_strips(monkeypatch, coords, parts):
    case, inputs = of_tile(coords)
    run(monkeypatch, case, inputs, emulator := Emulator())
    dots = sum(part.strips for part in parts) * RUN * STRIP + by_themselves(coords, parts) * TAPS * TAPS
    blends = 3 * 64 * PATCH * PATCH
    assert emulator.account.multiply_adds == CHANNELS * dots + blends


SECTOR = 32
LINES = (source.folder() / "lookup/lookup_tiled.cu").read_text().splitlines()


def lines_with(text):
    """Return the lines of the kernel that have a text, as traffic names them."""
    return {f"lookup_tiled.cu:{number}" for number, line in enumerate(LINES, 1) if text in line}


@orders
def test_the_main_loop_reads_shared_memory_without_bank_conflicts_and_whole_sectors_are_moved(monkeypatch, lay):
    case, inputs = of_tile(GRID_OF_TILE, lay)
    run(monkeypatch, case, inputs, emulator := Emulator(traced=True))
    of_pixels, of_queries = lines_with("load_shared_vectors(pixels"), lines_with("load_shared_vectors(run")
    main_loop = [each for each in emulator.traffic if each.kind == "shared load" and set(each.lines) & (of_pixels | of_queries)]
    assert len(main_loop) == 2
    for each in main_loop:
        assert each.bytes == 16 * each.accesses
        assert each.transactions == 4 * each.requests, "a quarter of a warp at a time, each in one pass over the banks"
    moved = [each for each in emulator.traffic if each.kind.startswith("global")]
    assert SECTOR * sum(each.transactions for each in moved) <= 1.5 * sum(each.bytes for each in moved)


# What is refused, and what is chosen ------------------------------------------------------------------------------------------


def test_windows_that_no_tile_holds_have_a_reason():
    shape = (1, 8, 16, 16)
    wide, tall = (Case(shape, shape, (1, 2, 16, 16), parameters) for parameters in (dict(patch_size=22), dict(dilation_patch=3)))
    assert why_not(wide) == "windows of 23 x 23 pixels do not fit into a rectangle of 22 x 22 pixels"
    assert why_not(tall).startswith("windows of 26 x 26 pixels")
    assert why_not(replace(wide, parameters=dict(patch_size=21, dilation_patch=1))) is None
    small = replace(H200, shared_memory=99 * 1024)
    assert why_not(replace(wide, parameters=dict(patch_size=9)), small) is None
    assert why_not(replace(wide, parameters=dict(patch_size=21)), small).endswith("bytes of shared memory, a block has 101376")
    assert why_not(replace(wide, parameters=dict(patch_size=21)), None) is None


def test_the_patch_of_raft_is_for_every_device():
    case = Case((1, 8, 16, 16), (1, 8, 16, 16), (1, 2, 16, 16), dict(patch_size=9))
    for dtype in ("float16", "bfloat16", "float32"):
        assert why_not(case.of(dtype), replace(H200, shared_memory=64 * 1024)) is None


def requested(case, pass_name=FORWARD):
    problem, dtype = case.problem(), case.dtype
    return Request(pass_name, problem, dtype, dtype, (), problem.needs_of_inputs(lookup_cases.ALL)).dense()


def seconds(case):
    return {row.name: row.plan(requested(case), H200).seconds for row in VARIANTS if row.kind == "cupy"}


def test_gradients_are_those_of_direct():
    made = {row.name: row.plan(requested(PYRAMID, VJP), H200) for row in VARIANTS if row.name in ("tiled", "direct")}
    assert made["tiled"] == made["direct"]
    (tiled,) = OPERATOR.named("tiled")
    assert tiled.why_not(requested(replace(PYRAMID, parameters=dict(patch_size=40)), VJP), H200) is None


def test_tiles_are_expected_to_be_faster_for_raft_and_slower_for_few_queries_of_an_image():
    shapes = [(1, 256, 55 >> level, 128 >> level) for level in range(4)]
    raft = Case(shapes[0], shapes, (1, 2, 55, 128))
    found = seconds(raft)
    assert found["tiled"] < found["direct"] / 2
    pixels = Case((64, 128, 1, 1), (64, 128, 30, 40), (64, 2, 1, 1), dict(patch_size=3))
    found = seconds(pixels)
    assert found["direct"] < found["tiled"]


# Beneath the accesses ---------------------------------------------------------------------------------------------------------


@pytest.mark.sanitizer
def test_the_kernel_runs_clean_under_address_and_undefined_behaviour_sanitizers():
    done = run_sanitized(__file__, "-k", "whole or itself or many_rows or enough_bits or not_finite")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
