"""`cupycorr.dask.match` equals `cupycorr.match` of the whole frames, is lazy, and refuses at once what it cannot compute."""

import dataclasses
import pickle

import dask
import dask.array as da
import match_oracle
import numpy as np
import pytest
from match_cases import VARIANTS, assert_same, dots, noise, some_slow

import cupycorr
import cupycorr.dask
from cupycorr._motion import costs

SHAPE = (130, 170)
FRAME1 = noise(SHAPE, 1)
FRAME2 = np.roll(FRAME1, (2, -3), (0, 1))
FRAME2[40:52] = noise((12, 170), 2)  # windows without a good match
GRIDS = {"unlike": ((40, 50), (33, 71)), "strips": ((20, 170), (130, 9)), "one chunk": ((130, 170), (130, 170))}
RANDOM = np.random.default_rng(3)

CALLS = {
    "grid": {"step": 2},
    "steps": {"step": (3, 5), "window": (8, 9), "search": ((-3, 5), (2, 6)), "subpixel": "parabola"},
    "consistency": {"step": 3, "consistency": True, "search": ((2, 5), (-4, -1)), "subpixel": False},
    "offset": {"step": 4, "offset": (2, -3)},
    "offsets": {"step": 3, "offset": tuple(RANDOM.integers(-6, 6, (2, 40, 54))), "consistency": True},
    "points": {"points": RANDOM.uniform(-5, 175, (60, 2)), "consistency": True},
    "sorted points": {"points": [(20, 20), (20, 30), (20, 90), (100, 20)], "offset": (1, -2)},
}


def chunked(array, chunks, **options):
    """Return a Dask array of these chunks; those of colour are not divided along the colours."""
    return da.from_array(array, chunks=(*chunks, *array.shape[2:]), **options)


def computed(lazy):
    """Return the match of NumPy arrays, after checking that what was lazy has the shapes and dtypes that were promised."""
    (found,) = dask.compute(lazy, scheduler="sync")
    for field in dataclasses.fields(found):
        promised, values = getattr(lazy, field.name), getattr(found, field.name)
        assert (promised is None) == (values is None)
        if promised is not None:
            assert isinstance(promised, da.Array)
            assert type(values) is np.ndarray
            assert (promised.shape, promised.dtype) == (values.shape, values.dtype)
    return found


def in_chunks(frame1, frame2, grids="unlike", **options):
    """Return the match of frames that are divided into chunks."""
    masks = {name: chunked(options.pop(name), (31, 60)) for name in ("mask1", "mask2") if name in options}
    chunks1, chunks2 = GRIDS[grids]
    return computed(cupycorr.dask.match(chunked(frame1, chunks1), chunked(frame2, chunks2), **masks, **options))


# Equal to the whole -----------------------------------------------------------------------------------------------------------


@pytest.mark.covering(2)
@pytest.mark.parametrize("variant", some_slow(["auto", *VARIANTS], ["auto", "fft", "simd"]))
@pytest.mark.parametrize("grids", GRIDS)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64"])
def test_chunks_give_the_answers_of_the_whole(dtype, call, grids, variant):
    frames = [frame.astype(dtype) * np.dtype(dtype).type(3) for frame in (FRAME1, FRAME2)]
    options = {"variant": variant, **CALLS[call]}
    exact = dtype.startswith("uint")
    try:
        want = cupycorr.match(*frames, **options)
    except NotImplementedError as reason:
        pytest.skip(str(reason))
    assert_same(in_chunks(*frames, grids, **options), want, atol=0 if exact else 1e-9)


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_masks_of_any_chunks_give_the_answers_of_the_whole(dtype):
    masks = {"mask1": ~dots(SHAPE, 20, 1), "mask2": np.ones(SHAPE, bool)}
    masks["mask2"][30:60, 90:] = False
    frames = [frame.astype(dtype) for frame in (FRAME1, FRAME2)]
    want = cupycorr.match(*frames, step=3, **masks)
    assert np.isnan(want.dx).any()
    assert (want.count < 121).any()
    assert_same(in_chunks(*frames, step=3, **masks), want, atol=0 if dtype == "uint16" else 1e-9)


@pytest.mark.parametrize("dtype", ["uint8", "float64"])
def test_colour_in_chunks_of_any_shape_gives_the_answers_of_the_whole(dtype):
    frame1 = noise((90, 110, 3), 5).astype(dtype)
    frame2 = np.roll(frame1, (-1, 2), (0, 1))
    want = cupycorr.match(frame1, frame2, step=4)
    for colours in (3, 2, 1):
        lazy = [da.from_array(frame, chunks=(40, 50, colours)) for frame in (frame1, frame2)]
        assert_same(computed(cupycorr.dask.match(*lazy, step=4)), want, atol=1e-9)


def test_levels_that_differ_from_chunk_to_chunk_do_not_matter():
    ramp = np.add.outer(np.arange(130.0) * 50, np.arange(170.0) * 20)
    frames = [FRAME1 + ramp, FRAME2 + ramp + 1e5]
    assert_same(in_chunks(*frames, step=3), cupycorr.match(*frames, step=3), atol=1e-9)


def test_missing_pixels_of_floating_frames_are_missing_in_chunks():
    frames = [np.where(dots(SHAPE, 300, seed), np.nan, frame) for seed, frame in ((1, FRAME1), (2, FRAME2))]
    assert_same(in_chunks(*frames, step=3), cupycorr.match(*frames, step=3), atol=1e-9)


@pytest.mark.parametrize("shape", [(150, 140), (100, 200)], ids=str)
def test_frames_may_differ_in_size(shape):
    frame2 = np.resize(FRAME2, shape)
    assert_same(in_chunks(FRAME1, frame2, step=2), cupycorr.match(FRAME1, frame2, step=2))


@pytest.mark.parametrize("call", ["grid", "offsets"])
def test_chunks_give_the_definition(call):
    frame1, frame2 = FRAME1[:70, :60], FRAME2[:70, :60]
    options = {"step": 4, "search": ((-2, 3), (-4, 1))}
    if call == "offsets":
        options["offset"] = tuple(RANDOM.integers(-3, 3, (2, 15, 13)))
    lazy = cupycorr.dask.match(da.from_array(frame1, chunks=25), da.from_array(frame2, chunks=30), **options)
    assert lazy.dx.npartitions > 2
    match_oracle.assert_answer(computed(lazy), match_oracle.answer(frame1, frame2, **options))


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_a_stack_is_matched_frame_by_frame(dtype):
    stack = np.stack([np.roll(FRAME1, (t, -t), (0, 1)) for t in range(5)]).astype(dtype)
    lazy = da.from_array(stack, chunks=(2, 60, 80))
    mask = da.from_array(~dots((4, *SHAPE), 40), chunks=(3, 50, 50))
    found = computed(cupycorr.dask.match(lazy[:-1], lazy[1:], step=4, mask1=mask, consistency=True))
    assert found.dx.shape == (4, 30, 40)
    for time in range(4):
        want = cupycorr.match(stack[time], stack[time + 1], step=4, mask1=mask[time].compute(), consistency=True)
        changes = {field.name: getattr(found, field.name)[time] for field in dataclasses.fields(found) if field.name not in "xy"}
        assert_same(dataclasses.replace(found, **changes), want, atol=0 if dtype == "uint8" else 1e-9)


def test_a_stack_of_colour_has_four_axes():
    stack = noise((2, 60, 50, 3), 7)
    lazy = da.from_array(stack, chunks=(1, 30, 30, 3))
    found = computed(cupycorr.dask.match(lazy, lazy[::-1], step=5))
    np.testing.assert_allclose(found.score[0], cupycorr.match(stack[0], stack[1], step=5).score, rtol=1e-9)


# Routes and tasks -------------------------------------------------------------------------------------------------------------


def test_the_way_is_chosen_once_for_the_whole(monkeypatch):
    chosen = []
    cheapest = costs.cheapest

    def noted(request, variant):
        chosen.append(request.windows.count)
        return cheapest(request, variant)

    monkeypatch.setattr(costs, "cheapest", noted)
    lazy = cupycorr.dask.match(chunked(FRAME1, (40, 50)), chunked(FRAME2, (40, 50)), step=2)
    computed(lazy)
    assert chosen == [lazy.dx.size]


def test_each_chunk_is_computed_once_for_all_fields():
    lazy = cupycorr.dask.match(chunked(FRAME1, (40, 50)), chunked(FRAME2, (40, 50)), step=2, consistency=True)
    started = []
    with dask.callbacks.Callback(pretask=lambda key, *_: started.append(key)):
        dask.compute(lazy, scheduler="sync")
    matches = [key for key in started if str(key[0]).startswith("match-")]
    assert len(matches) == len(set(matches)) == lazy.dx.npartitions > 4


def test_tasks_carry_the_offsets_of_their_own_windows_only():
    starts = np.random.default_rng(0).integers(-3, 3, (2, 120, 160))
    lazy = cupycorr.dask.match(chunked(FRAME1, (20, 20)), chunked(FRAME2, (20, 20)), offset=tuple(starts))
    (layer,) = [layer for name, layer in lazy.dx.dask.layers.items() if name.startswith("match-")]
    assert len(layer) > 30
    sent = sum(len(pickle.dumps(task)) for task in layer.values())
    assert sent < 5 * starts.nbytes  # the windows' places in both frames, and a little for each task


def test_chunks_smaller_than_the_halo_are_joined():
    lazy = cupycorr.dask.match(chunked(FRAME1, (1, 170)), chunked(FRAME2, (130, 1)), window=11, search=((-4, 4), (-4, 4)))
    assert min(lazy.dx.chunks[0]) >= 19
    assert lazy.dx.numblocks == (6, 1)


def test_equal_calls_have_equal_names_and_different_calls_different_ones():
    frames = [chunked(frame, (40, 50)) for frame in (FRAME1, FRAME2)]
    calls = [
        {},
        {"step": 2},
        {"window": 9},
        {"search": ((-4, 4), (-4, 3))},
        {"subpixel": False},
        {"variant": "fft"},
        {"offset": (0, 1)},
    ]
    names = [cupycorr.dask.match(*frames, **options).dx.name for options in calls]
    assert names == [cupycorr.dask.match(*frames, **options).dx.name for options in calls]
    assert len(set(names)) == len(names)
    masked = cupycorr.dask.match(*frames, mask1=da.ones(SHAPE, dtype=bool))
    assert masked.dx.name not in names
    assert cupycorr.dask.match(*frames, mask2=da.ones(SHAPE, dtype=bool)).dx.name != masked.dx.name


def test_no_points_have_an_empty_field():
    found = in_chunks(FRAME1, FRAME2, points=np.zeros((0, 2)))
    assert found.dx.shape == found.y.shape == (0,)


# Results from fields ----------------------------------------------------------------------------------------------------------


def test_flow_valid_and_the_median_residual_are_those_of_the_whole():
    options = {"step": 2, "consistency": True}
    want = cupycorr.match(FRAME1, FRAME2, **options)
    lazy = cupycorr.dask.match(chunked(FRAME1, (40, 50)), chunked(FRAME2, (40, 50)), **options)
    np.testing.assert_array_equal(lazy.flow.compute(scheduler="sync"), want.flow)
    tests = {"min_score": 0.5, "min_peak_ratio": 1.2, "min_count": 40, "consistency": 1, "max_median_residual": 2}
    calls = [{}, {"allow_edge": True}, *({name: value} for name, value in tests.items()), tests]
    masks = [lazy.valid(**each) for each in calls]
    assert all(isinstance(each, da.Array) for each in masks)
    for valid, each in zip(dask.compute(*masks, scheduler="sync"), calls, strict=True):
        np.testing.assert_array_equal(valid, want.valid(**each))
    assert want.valid(**tests).any()
    for radius in (1, 3):
        residual = cupycorr.median_residual(lazy.dy, lazy.dx, radius, 0.2)
        expected = cupycorr.median_residual(want.dy, want.dx, radius, 0.2)
        np.testing.assert_array_equal(residual.compute(scheduler="sync"), expected)


def test_the_median_residual_of_a_stack_is_that_of_each_field():
    dy, dx = np.random.default_rng(1).standard_normal((2, 3, 20, 30))
    dx[1, 3:6, 4:7] = np.nan
    want = np.stack([cupycorr.median_residual(*each, 2) for each in zip(dy, dx, strict=True)])
    np.testing.assert_array_equal(cupycorr.median_residual(dy, dx, 2), want)
    lazy = [da.from_array(each, chunks=(2, 7, 11)) for each in (dy, dx)]
    np.testing.assert_array_equal(cupycorr.median_residual(*lazy, 2).compute(scheduler="sync"), want)


# Refusals ---------------------------------------------------------------------------------------------------------------------

FRAME = da.zeros((60, 70), dtype="uint8", chunks=30)
MASKED = da.ma.masked_equal(FRAME, 1)
REFUSED = {
    "NumPy frame": ({"frame1": np.zeros((60, 70))}, TypeError, "frame1 must be a Dask array, got numpy.ndarray"),
    "NumPy mask": ({"mask2": np.ones((60, 70), bool)}, TypeError, "mask2 must be a Dask array"),
    "masked chunks": ({"frame2": MASKED}, TypeError, r"dask.array.ma.filled\(frame2.astype\(float\), numpy.nan\)"),
    "unknown chunks": ({"frame1": FRAME[FRAME[:, 0] > 0]}, ValueError, "known length"),
    "complex": ({"frame1": FRAME.astype(complex)}, TypeError, "integer or floating dtype"),
    "one axis": ({"frame1": FRAME[0]}, ValueError, r"\(T, H, W\)"),
    "five axes": ({"frame1": FRAME[None, None, None]}, ValueError, r"\(T, H, W\)"),
    "four channels": ({"frame1": da.zeros((2, 60, 70, 4))}, ValueError, r"\(T, H, W, 3\)"),
    "one stack": ({"frame1": FRAME[None]}, ValueError, "the same number of frames"),
    "two lengths": ({"frame1": da.zeros((2, 60, 70)), "frame2": da.zeros((3, 60, 70))}, ValueError, "the same number of frames"),
    "no frames": ({"frame1": da.zeros((0, 60, 70)), "frame2": da.zeros((0, 60, 70))}, ValueError, "the same number of frames"),
    "one in colour": ({"frame1": da.zeros((60, 70, 3))}, ValueError, "both be colour"),
    "no pixels": ({"frame2": da.zeros((60, 0))}, ValueError, "must have pixels"),
    "search=None": ({"search": None}, ValueError, "all of frame2"),
    "Dask points": ({"points": da.zeros((3, 2))}, TypeError, r"points must be in memory.*\.compute\(\)"),
    "Dask offset": ({"offset": (da.zeros((50, 60)), 0)}, TypeError, "offset must be in memory"),
    "points of a stack": ({"frame1": FRAME[None], "frame2": FRAME[None], "points": [(9, 9)]}, ValueError, "those of one frame"),
    "mask of ints": ({"mask1": FRAME}, TypeError, "array of bools"),
    "mask of another size": ({"mask1": da.ones((60, 71), dtype=bool)}, ValueError, "height and width of frame1"),
    "window": ({"window": 61}, ValueError, "window must fit into frame1"),
    "search": ({"search": ((4, -4), (0, 0))}, ValueError, "low to high"),
    "variant": ({"variant": "magic"}, ValueError, "variant must be one of"),
    "consistency": ({"consistency": 1}, TypeError, "consistency must be a bool"),
}


@pytest.mark.parametrize(("changes", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_computed_is_refused_at_once_in_words(changes, error, message):
    with pytest.raises(error, match=message):
        cupycorr.dask.match(**{"frame1": FRAME, "frame2": FRAME, **changes})


def test_query_planning_is_refused_in_words():
    with dask.config.set({"array.query-planning": True}), pytest.raises(NotImplementedError, match="query-planning must be off"):
        cupycorr.dask.match(FRAME, FRAME)


def test_functions_of_arrays_name_the_function_for_dask_arrays():
    for call in (cupycorr.match, cupycorr.spatial_correlation_sample):
        with pytest.raises(TypeError, match=r"got a Dask array: cupycorr\.dask\.match"):
            call(FRAME, FRAME)


def test_chunks_of_another_kind_than_promised_are_refused_in_words():
    wrong = FRAME.map_blocks(lambda block: block.tolist(), dtype="uint8", meta=np.zeros((0, 0), np.uint8))
    with pytest.raises(TypeError, match=r"a chunk must be a NumPy or CuPy array, got builtins\.list"):
        cupycorr.dask.match(wrong, FRAME).dx.compute(scheduler="sync")
