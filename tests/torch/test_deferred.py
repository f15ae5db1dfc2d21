"""Gradients of a block's maps that are computed once for all lookups of a backward pass: any pass gives the right ones."""

import gc
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from lookup_in_torch import written_out
from torch.utils.checkpoint import checkpoint

from cupycorr._cpu import llvm
from cupycorr._lookup.cpu import simd_gradients
from cupycorr.torch import CorrBlock, CorrBlock1D, _deferred

pytestmark = pytest.mark.skipif(llvm.why_not() is not None, reason=str(llvm.why_not()))

NUMBERS = dict(num_levels=2, radius=2)


@pytest.fixture
def passes(monkeypatch):
    """Collect the number of lookups of each computation of the gradients of maps."""
    found, original = [], simd_gradients.compute_together

    def noted(problem, arrays, coords, *rest):
        found.append(len(coords))
        original(problem, arrays, coords, *rest)

    monkeypatch.setattr(simd_gradients, "compute_together", noted)
    return found


def draw(batch=2, channels=16, height=9, width=13, lookups=3):
    generator = torch.Generator().manual_seed(5)
    maps = [torch.randn((batch, channels, height, width), generator=generator, dtype=torch.float64) for _ in range(2)]
    coords = [11 * torch.rand((batch, 2, height, width), generator=generator, dtype=torch.float64) for _ in range(lookups)]
    return [each.requires_grad_() for each in maps], [each.requires_grad_() for each in coords]


def block(fmap1, fmap2):
    made = CorrBlock(fmap1, fmap2, **NUMBERS, keep="maps")
    assert isinstance(made._kept, _deferred.DeferredMaps)
    return made


def lookup(fmap1, fmap2, coords):
    """Return what a block returns, by torch's own operators."""
    levels = [fmap2, torch.nn.functional.avg_pool2d(fmap2, 2)]
    size = 2 * NUMBERS["radius"] + 1
    return written_out(fmap1, levels, coords, (size, size), order="dx", scale=fmap1.shape[1] ** -0.5).flatten(1, 3)


def weighted(values):
    """Return a number with a different derivative for each value."""
    weights = torch.linspace(-1, 1, values.numel(), dtype=values.dtype).reshape(values.shape)
    return (weights * values).sum() + (values**2).sum() / 7


def both(coords, f):
    """Return the results of ``f`` for a block and for the formula, of inputs of their own."""
    maps, _ = draw()
    return f(block(*maps), maps, coords), f(lambda each: lookup(*maps, each), maps, coords)


def test_a_pass_computes_the_gradients_of_all_lookups_at_once(passes):
    _, coords = draw()

    def f(looked_up, maps, coords):
        return torch.autograd.grad(sum(weighted(looked_up(each)) for each in coords), (*maps, *coords))

    torch.testing.assert_close(*both(coords, f))
    assert passes == [3]


def test_passes_over_some_lookups_have_the_gradients_of_those(passes):
    _, coords = draw()

    def f(looked_up, maps, coords):
        losses = [weighted(looked_up(each)) for each in coords]
        groups = [losses[:2], losses[2:], [losses[0], losses[2]], losses]
        return [torch.autograd.grad(sum(group), maps, retain_graph=True) for group in groups]

    torch.testing.assert_close(*both(coords, f))
    assert passes == [2, 1, 2, 3]


def test_a_result_that_is_used_twice_and_one_that_is_not_used(passes):
    _, coords = draw()

    def f(looked_up, maps, coords):
        first, _, third = (looked_up(each) for each in coords)
        return torch.autograd.grad(weighted(first) + weighted(third * first), maps)

    torch.testing.assert_close(*both(coords, f))
    assert passes == [2]


def test_a_pass_for_each_lookup_adds_to_the_gradients_of_leaves():
    maps, coords = draw()
    wanted_maps, _ = draw()
    made = block(*maps)
    loss = torch.zeros(())
    for each in coords:
        loss = weighted(made(each.detach()))
        loss.backward(retain_graph=True)
        weighted(lookup(*wanted_maps, each.detach())).backward()
    torch.testing.assert_close([each.grad for each in maps], [each.grad for each in wanted_maps])


def test_gradients_of_coordinates_alone_compute_none_of_the_maps_and_keep_nothing(passes):
    _, coords = draw()
    held = []

    def f(looked_up, maps, coords):
        out = looked_up(coords[0])
        cotangent = torch.ones_like(out)
        held.append(weakref.ref(cotangent))
        return torch.autograd.grad(out, coords[0], cotangent, retain_graph=True)

    torch.testing.assert_close(*both(coords, f))
    gc.collect()
    assert passes == []
    assert [each() for each in held] == [None, None]


def test_maps_of_which_only_one_needs_a_gradient(passes):
    for needs in ((True, False), (False, True)):
        maps, coords = draw()
        for each, needed in zip(maps, needs, strict=True):
            each.requires_grad_(needed)
        (leaf,) = (each for each in maps if each.requires_grad)
        got = torch.autograd.grad(sum(weighted(block(*maps)(each)) for each in coords), leaf)
        want = torch.autograd.grad(sum(weighted(lookup(*maps, each)) for each in coords), leaf)
        torch.testing.assert_close(got, want)
    assert passes == [1] * 6  # each lookup has a block of its own here


def test_two_blocks_in_one_pass_do_not_mix(passes):
    maps, coords = draw()
    others = [each.detach().flip(0).requires_grad_() for each in maps]
    blocks = block(*maps), block(*others)
    loss = sum(weighted(each(coords[0])) * weight for weight, each in enumerate(blocks, 1))
    want = sum(weighted(lookup(*each, coords[0])) * weight for weight, each in enumerate((maps, others), 1))
    torch.testing.assert_close(torch.autograd.grad(loss, (*maps, *others)), torch.autograd.grad(want, (*maps, *others)))
    assert passes == [1, 1]


def test_cotangents_are_not_held_back_beyond_the_bound(passes, monkeypatch):
    monkeypatch.setattr(_deferred, "MOST_HELD", 1)
    monkeypatch.setattr(_deferred, "MOST_HELD_OF_MAPS", 0)
    maps, coords = draw(lookups=4)
    got = torch.autograd.grad(sum(weighted(made(each)) for made in (block(*maps),) for each in coords), maps)
    want = torch.autograd.grad(sum(weighted(lookup(*maps, each)) for each in coords), maps)
    torch.testing.assert_close(got, want)
    assert passes == [2, 1, 1]  # two are too many already


def test_derivatives_of_gradients_are_right():
    maps, coords = draw(1, 2, 3, 4, 2)
    inputs = (*maps, *(each.detach() * 0.3 + 0.1 for each in coords))
    inputs = [each.detach().requires_grad_() for each in inputs]

    def f(fmap1, fmap2, *coords):
        made = block(fmap1, fmap2)
        return sum(made(each) for each in coords)

    assert torch.autograd.gradcheck(f, inputs)
    assert torch.autograd.gradgradcheck(f, inputs, fast_mode=True)


def test_transforms_of_a_block_compute_the_gradients_of_each_lookup(passes):
    maps, coords = draw()
    made = block(*maps)
    got = torch.func.grad(lambda each: weighted(made(each)))(coords[0].detach())
    torch.testing.assert_close(got, torch.func.grad(lambda each: weighted(lookup(*maps, each)))(coords[0].detach()))

    def loss(fmap1, fmap2):
        return weighted(CorrBlock(fmap1, fmap2, **NUMBERS, keep="maps")(coords[0].detach()))

    def wanted(fmap1, fmap2):
        return weighted(lookup(fmap1, fmap2, coords[0].detach()))

    values = [each.detach() for each in maps]
    torch.testing.assert_close(torch.func.grad(loss, (0, 1))(*values), torch.func.grad(wanted, (0, 1))(*values))
    assert passes == []


def test_batches_of_cotangents_are_refused():
    """Autograd batches them by a mechanism that no operator outside torch can take part in."""
    maps, coords = draw()
    out = block(*maps)(coords[0].detach())
    with pytest.raises(RuntimeError):
        torch.autograd.grad(out, maps, torch.ones((2, *out.shape), dtype=out.dtype), is_grads_batched=True)


def test_a_pass_that_failed_leaves_nothing_to_the_next(passes):
    maps, coords = draw()
    made = block(*maps)
    outs = [made(each.detach()) for each in coords]
    broken = outs[0].clone()
    broken.register_hook(lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        torch.autograd.grad(sum(map(weighted, [broken, *outs[1:]])), maps, retain_graph=True)
    got = torch.autograd.grad(weighted(outs[0]), maps)
    torch.testing.assert_close(got, torch.autograd.grad(weighted(lookup(*maps, coords[0].detach())), maps))
    assert passes == [1]


def test_passes_in_several_threads_do_not_mix():
    maps, coords = draw()
    made = block(*maps)
    losses = [weighted(made(each.detach())) for each in coords]
    want = [torch.autograd.grad(each, maps, retain_graph=True) for each in losses]
    with ThreadPoolExecutor(3) as pool:
        for _ in range(10):
            got = list(pool.map(lambda each: torch.autograd.grad(each, maps, retain_graph=True), losses))
            assert all(torch.equal(*each) for pair in zip(got, want, strict=True) for each in zip(*pair, strict=True))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_of_lookups_and_of_the_block(reentrant):
    _, coords = draw()

    def f(looked_up, maps, coords):
        losses = [weighted(checkpoint(looked_up, each, use_reentrant=False)) for each in coords]
        return torch.autograd.grad(sum(losses), maps)

    torch.testing.assert_close(*both(coords, f))

    def whole(fmap1, fmap2, *coords):
        made = block(fmap1, fmap2) if fmap1.requires_grad and torch.is_grad_enabled() else CorrBlock(fmap1, fmap2, **NUMBERS)
        return sum(weighted(made(each)) for each in coords)

    maps, _ = draw()
    checkpoint(whole, *maps, *coords, use_reentrant=reentrant).backward()
    want = torch.autograd.grad(sum(weighted(lookup(*maps, each)) for each in coords), maps)
    torch.testing.assert_close([each.grad for each in maps], list(want))


def test_anomaly_detection_sees_numbers():
    _, coords = draw()

    def f(looked_up, maps, coords):
        with torch.autograd.detect_anomaly(check_nan=True):
            return torch.autograd.grad(sum(weighted(looked_up(each)) for each in coords), maps)

    with pytest.warns(UserWarning, match="Anomaly Detection"):
        torch.testing.assert_close(*both(coords, f))


def test_windows_are_kept_for_outputs_unless_maps_alone_were_asked_for():
    maps, coords = draw()
    free, alone = CorrBlock(*maps, **NUMBERS), block(*maps)
    assert free.keep == alone.keep == "maps"
    assert alone.kept_bytes == sum(each.numel() * each.element_size() for each in (alone.fmap1, *alone.pyramid))
    assert free.kept_bytes > alone.kept_bytes
    assert "keeps      maps and windows" in free.explain()
    assert "not kept   windows: a gradient is needed" in alone.explain()
    outs = [[made(each) for each in coords] for made in (free, alone)]
    assert all(torch.equal(*pair) for pair in zip(*outs, strict=True))
    first, second = (torch.autograd.grad(sum(map(weighted, each)), maps) for each in outs)
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_the_same_pass_has_the_same_bits():
    maps, coords = draw()
    made = block(*maps)
    loss = sum(weighted(made(each)) for each in coords)
    first, second = (torch.autograd.grad(loss, (*maps, *coords), retain_graph=True) for _ in range(2))
    assert all(torch.equal(*each) for each in zip(first, second, strict=True))


def test_a_compiled_function_calls_a_block_that_was_made_before():
    maps, coords = draw()
    made = block(*maps)
    torch._dynamo.reset()
    out = torch.compile(lambda each: made(each), backend="aot_eager")(coords[0])
    want = lookup(*maps, coords[0])
    torch.testing.assert_close(out, want)
    torch.testing.assert_close(torch.autograd.grad(weighted(out), maps), torch.autograd.grad(weighted(want), maps))


def test_maps_are_freed_without_the_garbage_collector_and_with_a_result_that_lives():
    maps, coords = draw()
    gc.disable()
    try:
        made = block(*maps)
        stored = weakref.ref(made.pyramid[1])
        out = made(coords[0])
        weighted(out).backward()
        del made
        assert stored() is None
    finally:
        gc.enable()
    assert out.requires_grad


def test_a_pickled_block_has_gradients_of_its_own():
    maps, coords = draw()
    copied = pickle.loads(pickle.dumps(block(*maps)))
    weighted(copied(coords[0].detach())).backward()
    leaves = [each.detach().requires_grad_() for each in (copied.fmap1, copied.pyramid[0])]
    want = torch.autograd.grad(weighted(lookup(*leaves, coords[0].detach())), leaves[0])
    torch.testing.assert_close(copied.fmap1.grad, *want)


def test_a_result_may_be_changed_in_place():
    _, coords = draw()

    def f(looked_up, maps, coords):
        out = looked_up(coords[0])
        out.mul_(3)
        out[:, 0] = 0
        return torch.autograd.grad(weighted(out), maps)

    torch.testing.assert_close(*both(coords, f))


def channels_last(image):
    return image.movedim(1, -1).contiguous().movedim(-1, 1)


def test_maps_that_are_written_to_before_a_lookup_have_the_gradients_of_what_they_became():
    (first, second), coords = draw()
    written = channels_last(first * 1)
    made = CorrBlock(written, channels_last(second), num_levels=1, radius=2, keep="maps")
    written.mul_(3)
    got = torch.autograd.grad(weighted(made(coords[0])), (first, second))

    def wanted():
        out = written_out(3 * first, [second], coords[0], (5, 5), order="dx", scale=first.shape[1] ** -0.5)
        return torch.autograd.grad(weighted(out.flatten(1, 3)), (first, second))

    torch.testing.assert_close(got, wanted())


def test_coordinates_that_an_optimiser_within_the_pass_writes_to():
    maps, coords = draw()
    leaf = coords[0].detach().clone().requires_grad_()

    def step(parameter):
        with torch.no_grad():
            parameter.add_(5)

    leaf.register_post_accumulate_grad_hook(step)
    made = block(*maps)
    weighted(made(leaf)).backward()
    want = torch.autograd.grad(weighted(lookup(*maps, coords[0].detach())), maps)
    torch.testing.assert_close([each.grad for each in maps], list(want))


@pytest.mark.parametrize("which", ["cotangent", "map"])
def test_what_is_still_needed_must_not_be_written_to_within_the_pass(which):
    maps, coords = draw()
    made = block(*maps)
    out = made(coords[0])
    cotangent = torch.ones_like(out)
    written = cotangent if which == "cotangent" else made.fmap1.detach()

    def write(_):
        written.zero_()

    coords[0].register_hook(write)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward(cotangent)


def test_cotangents_that_share_memory_are_counted_once(passes, monkeypatch):
    maps, coords = draw(lookups=6)
    monkeypatch.setattr(_deferred, "MOST_HELD", 6 * 2 * 50 * 9 * 13 * 8)  # the bytes of six results
    monkeypatch.setattr(_deferred, "MOST_HELD_OF_MAPS", 0)
    made = block(*maps)
    torch.autograd.grad(weighted(torch.stack([made(each) for each in coords])), maps)
    assert passes == [6]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_maps_of_every_dtype_and_of_rows(dtype, passes):
    generator = torch.Generator().manual_seed(2)
    maps = [torch.randn((1, 24, 6, 21), generator=generator).to(dtype).requires_grad_() for _ in range(2)]
    coords = [20 * torch.rand((1, 1, 6, 21), generator=generator) for _ in range(2)]
    made = CorrBlock1D(*maps, num_levels=2, radius=3, keep="maps")
    got = torch.autograd.grad(sum(weighted(made(each)) for each in coords), maps)
    wide = [each.detach().double().requires_grad_() for each in maps]
    wanted = CorrBlock1D(*wide, num_levels=2, radius=3, keep="volume")
    want = torch.autograd.grad(sum(weighted(wanted(each.double())) for each in coords), wide)
    for one, other in zip(got, want, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(
            one.double(), other, rtol=torch.finfo(dtype).eps * 4, atol=float(other.detach().abs().max()) * 1e-5
        )
    assert passes == [2]
