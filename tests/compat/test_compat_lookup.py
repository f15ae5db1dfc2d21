"""The adapters of compiled lookups compute the formulas of the modules that they replace, with the modules' shapes and results.

The formulas are written point by point in differentiable torch and float64, without the package: features or scores are read at
the four pixels around each point, and are 0 outside.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from cupycorr.compat import alt_cuda_corr, corr_sampler, cuda_corr, droid_backends, local_corr  # noqa: E402

# The formulas -----------------------------------------------------------------------------------------------------------------


def value_at(image, x, y):
    """The value of an image (H, W, ...) at a point between pixels."""
    x0, y0 = int(torch.floor(x)), int(torch.floor(y))
    total = 0 * image.sum((0, 1))
    for row, weight_y in ((y0, 1 - (y - y0)), (y0 + 1, y - y0)):
        for column, weight_x in ((x0, 1 - (x - x0)), (x0 + 1, x - x0)):
            if 0 <= row < image.shape[0] and 0 <= column < image.shape[1]:
                total = total + weight_y * weight_x * image[row, column]
    return total


def every(*sizes):
    """Return all indices of an array of these sizes, in order."""
    return [tuple(map(int, index)) for index in torch.ones(sizes).nonzero()]


def stacked(values, *shape):
    return torch.stack(values).reshape(shape)


def columns_of(radius):
    """Return (dx, dy) of all displacements, dx-major."""
    return [(dx, dy) for dx in range(-radius, radius + 1) for dy in range(-radius, radius + 1)]


def raft(fmap1, fmap2, coords, radius):
    batch, lookups, height, width, _ = coords.shape
    windows = columns_of(radius)
    values = [
        fmap1[b, i, j] @ value_at(fmap2[b], coords[b, n, i, j, 0] + dx, coords[b, n, i, j, 1] + dy)
        for b, n, (dx, dy), (i, j) in (
            (b, n, each, at) for b, n in every(batch, lookups) for each in windows for at in every(height, width)
        )
    ]
    return stacked(values, batch, lookups, len(windows), height, width)


def raft_stereo(volume, coords, radius):
    batch, height, width, _ = volume.shape
    zero = torch.zeros((), dtype=volume.dtype)
    values = [
        value_at(volume[b, i, j][None], coords[b, 0, i, j] + d, zero)
        for b in range(batch)
        for d in range(-radius, radius + 1)
        for i, j in every(height, width)
    ]
    return stacked(values, batch, 2 * radius + 1, height, width)


def edges(fmap1, fmap2, coords, ii, jj, radius):
    batch, count, _, height, width = coords.shape
    values = [
        fmap1[b, ii[e], :, i, j]
        @ value_at(fmap2[b, jj[e]].movedim(0, -1), coords[b, e, 0, i, j] + dx, coords[b, e, 1, i, j] + dy)
        for b, e in every(batch, count)
        for dx, dy in columns_of(radius)
        for i, j in every(height, width)
    ]
    return stacked(values, batch, count, 2 * radius + 1, 2 * radius + 1, height, width)


def droid(fmap1, fmap2, coords, ii, jj, radius):
    """DROID-SLAM divides each map by 4."""
    return edges(fmap1 / 4, fmap2 / 4, coords, ii, jj, radius)


def droid_volume(volume, coords, radius):
    count, height, width, _, _ = volume.shape
    values = [
        value_at(volume[n, i, j], coords[n, 0, i, j] + dx, coords[n, 1, i, j] + dy)
        for n in range(count)
        for dx, dy in columns_of(radius)
        for i, j in every(height, width)
    ]
    return stacked(values, count, 2 * radius + 1, 2 * radius + 1, height, width)


def patches(net, coords, radius):
    batch, channels, height, width = net.shape
    size, zero = 2 * radius + 2, 0 * net.sum()
    values = []
    for b, m in every(batch, coords.shape[1]):
        x, y = (int(torch.floor(each)) - radius for each in coords[b, m])
        values += [
            net[b, c, y + u, x + v] if 0 <= y + u < height and 0 <= x + v < width else zero
            for c, u, v in every(channels, size, size)
        ]
    return stacked(values, batch, coords.shape[1], channels, size, size)


def roma(im_A, im_B, warp):
    """The bilinear mode with points in pixels: the centre of the first pixel is at (0.5, 0.5)."""
    batch, pixels, count, _ = warp.shape
    values = [
        im_A[b, p] @ value_at(im_B[b], warp[b, p, n, 0] - 0.5, warp[b, p, n, 1] - 0.5) for b, p, n in every(batch, pixels, count)
    ]
    return stacked(values, batch, pixels, count)


# Drawn arguments --------------------------------------------------------------------------------------------------------------


class Draw:
    """Tensors in float64 whose sizes and values come from a seed; coordinates reach over every border, and none is whole."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)
        self.size = tuple(int(each) for each in torch.randint(2, 5, (2,), generator=self.generator))
        self.size2 = tuple(int(each) for each in torch.randint(1, 6, (2,), generator=self.generator))

    def normal(self, *shape):
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def points(self, axis, *shape, far=2):
        """Return x and y, on a given axis, from ``far`` pixels before a map of size2 to ``far`` pixels beyond it."""
        unit = torch.rand((*shape, 2), generator=self.generator, dtype=torch.float64)
        far_away = torch.tensor([size + 2 * far for size in self.size2[::-1]])
        return (unit * far_away - far).movedim(-1, axis)

    def indices(self, count, below):
        return torch.randint(0, below, (count,), generator=self.generator)


def for_raft(seed):
    d = Draw(seed)
    batch, channels, lookups = 1 + seed % 2, 1 + seed % 3, 1 + seed % 2
    return (d.normal(batch, *d.size, channels), d.normal(batch, *d.size2, channels), d.points(-1, batch, lookups, *d.size))


def for_stereo(seed):
    d = Draw(seed)
    channels = 1 + seed % 2  # some callers pass y too
    volume = d.normal(1 + seed % 3, *d.size, d.size2[1])
    return volume, d.points(1, len(volume), *d.size)[:, :channels]


def for_edges(seed):
    d = Draw(seed)
    batch, frames, channels, count = 1 + seed % 2, 2, 1 + seed % 3, 4
    maps = d.normal(batch, 3, channels, *d.size), d.normal(batch, frames, channels, *d.size2)
    return *maps, d.points(2, batch, count, *d.size), d.indices(count, 3), d.indices(count, frames)


def for_volume(seed):
    d = Draw(seed)
    volume = d.normal(1 + seed % 3, *d.size, *d.size2)
    return volume, d.points(1, len(volume), *d.size)


def for_patches(seed):
    d = Draw(seed)
    net = d.normal(1 + seed % 2, 1 + seed % 3, *d.size2)
    return net, d.points(-1, len(net), 3)


def for_roma(seed):
    d = Draw(seed)
    batch, channels = 1 + seed % 2, 1 + seed % 3
    pixels = d.size2[0] * d.size2[1] if seed % 3 else 5  # as many as im_B has, or not
    return d.normal(batch, pixels, channels), d.normal(batch, *d.size2, channels), d.points(-1, batch, pixels, 3)


# Name -> forward, formula, drawn tensors, and the tensors that the output is differentiable in.
FORWARDS = {
    "alt_cuda_corr": (alt_cuda_corr.forward, raft, for_raft, (0, 1, 2)),
    "corr_sampler": (corr_sampler.forward, raft_stereo, for_stereo, (0, 1)),
    "cuda_corr": (cuda_corr.forward, edges, for_edges, (0, 1, 2)),
    "cuda_corr, patchify": (cuda_corr.patchify_forward, patches, for_patches, (0,)),
    "droid_backends, altcorr": (droid_backends.altcorr_forward, droid, for_edges, (0, 1, 2)),
    "droid_backends, altcorr before indices": (droid_backends.altcorr_forward, raft, for_raft, (0, 1, 2)),
    "droid_backends, corr_index": (droid_backends.corr_index_forward, droid_volume, for_volume, (0, 1)),
}
# The backward function of each, the position of the cotangent among its arguments, and the tensors that it has gradients of.
BACKWARDS = {
    "alt_cuda_corr": (alt_cuda_corr.backward, 3, (0, 1, 2)),
    "corr_sampler": (corr_sampler.backward, 2, (0,)),
    "cuda_corr": (cuda_corr.backward, 5, (0, 1)),
    "cuda_corr, patchify": (cuda_corr.patchify_backward, 2, (0,)),
    "droid_backends, altcorr": (droid_backends.altcorr_backward, 3, (0, 1)),
    "droid_backends, altcorr before indices": (droid_backends.altcorr_backward, 3, (0, 1, 2)),
    "droid_backends, corr_index": (droid_backends.corr_index_backward, 2, (0,)),
}
forwards = pytest.mark.parametrize(("forward", "formula", "tensors", "numbers"), FORWARDS.values(), ids=FORWARDS)
names = pytest.mark.parametrize("name", FORWARDS)
drawn = given(st.integers(0, 10_000), st.integers(0, 2))


def leaves_of(tensors, numbers):
    return [each.detach().clone().requires_grad_(number in numbers) for number, each in enumerate(tensors)]


def cotangent_of(out):
    return torch.randn(out.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(out.dtype)


def gradients(out, leaves, numbers):
    """Return the gradients of some leaves for a cotangent that varies, 0 where all points are outside."""
    return torch.autograd.grad(out, [leaves[number] for number in numbers], cotangent_of(out), materialize_grads=True)


def assert_close(got, want, name="output", tolerance=1e-12):
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance, msg=lambda text: f"{name}: {text}")


@forwards
def test_a_forward_function_and_its_graph_are_the_neighbours_formula(forward, formula, tensors, numbers):
    @settings(max_examples=4)
    @drawn
    def check(seed, radius):
        leaves, others = (leaves_of(tensors(seed), numbers) for _ in range(2))
        (got,), want = forward(*leaves, radius), formula(*others, radius)
        assert_close(got, want)
        for number, mine, theirs in zip(numbers, gradients(got, leaves, numbers), gradients(want, others, numbers), strict=True):
            assert_close(mine, theirs, f"gradient of argument {number}")

    check()


@names
def test_a_backward_function_returns_the_gradients_of_the_formula(name):
    _, formula, tensors, _ = FORWARDS[name]
    backward, place, numbers = BACKWARDS[name]

    @settings(max_examples=4)
    @drawn
    def check(seed, radius):
        arguments = list(tensors(seed))
        others = leaves_of(arguments, numbers)
        want = formula(*others, radius)
        arguments.insert(place, cotangent_of(want))
        got = backward(*arguments, radius)
        assert type(got) is list
        assert not any(each.requires_grad for each in got)
        for number, mine, theirs in zip(numbers, got, gradients(want, others, numbers), strict=True):
            assert_close(mine, theirs, f"gradient of argument {number}")

    check()


class PythonHalf(torch.autograd.Function):
    """Call a compiled module as the neighbours' Python code does."""

    @staticmethod
    def forward(ctx, name, radius, *tensors):
        ctx.name, ctx.radius = name, radius
        ctx.save_for_backward(*tensors)
        (out,) = FORWARDS[name][0](*tensors, radius)
        assert not out.requires_grad
        return out

    @staticmethod
    def backward(ctx, cotangent):
        backward, place, numbers = BACKWARDS[ctx.name]
        arguments = list(ctx.saved_tensors)
        arguments.insert(place, cotangent.contiguous())
        found = dict(zip(numbers, backward(*arguments, ctx.radius), strict=True))
        return None, None, *(found.get(number) for number in range(len(ctx.saved_tensors)))


@names
def test_the_neighbours_autograd_functions_train_with_it(name):
    _, formula, tensors, _ = FORWARDS[name]
    numbers = BACKWARDS[name][2]
    leaves, others = (leaves_of(tensors(5), numbers) for _ in range(2))
    got, want = PythonHalf.apply(name, 1, *leaves), formula(*others, 1)
    assert_close(got, want)
    for number, mine, theirs in zip(numbers, gradients(got, leaves, numbers), gradients(want, others, numbers), strict=True):
        assert_close(mine, theirs, f"gradient of argument {number}")


@pytest.mark.parametrize("name", ["alt_cuda_corr", "corr_sampler", "cuda_corr", "droid_backends, corr_index"])
def test_the_neighbours_autograd_functions_are_twice_differentiable_with_it(name):
    """A penalty on a gradient trains; the originals' backward functions silently record nothing."""
    _, formula, tensors, _ = FORWARDS[name]
    numbers = BACKWARDS[name][2]
    leaves, others = (leaves_of(tensors(5), numbers) for _ in range(2))
    found = []
    for out, each in ((PythonHalf.apply(name, 1, *leaves), leaves), (formula(*others, 1), others)):
        differentiated = [each[number] for number in numbers]
        cotangent = cotangent_of(out).requires_grad_()
        first = torch.autograd.grad(out, differentiated, cotangent, create_graph=True)
        penalty = sum((gradient**2).sum() for gradient in first)
        found.append(torch.autograd.grad(penalty, [*differentiated, cotangent], materialize_grads=True))
    for number, mine, theirs in zip((*numbers, "cotangent"), *found, strict=True):
        assert_close(mine, theirs, f"second gradient of argument {number}")


@names
def test_each_call_returns_a_list_of_its_own(name):
    forward, _, tensors, _ = FORWARDS[name]
    arguments = tensors(3)
    first, second = forward(*arguments, 1), forward(*arguments, 1)
    assert type(first) is list
    assert len(first) == 1
    kept = second[0].clone()
    first[0].zero_()
    first[0] = None
    assert torch.equal(second[0], kept)


def test_roma_reads_its_bilinear_points_around_half_pixels():
    @settings(max_examples=6)
    @given(st.integers(0, 10_000))
    def check(seed):
        leaves, others = (leaves_of(for_roma(seed), (0, 1, 2)) for _ in range(2))
        got, want = local_corr.local_corr(*leaves, "bilinear"), roma(*others)
        assert_close(got, want)
        for number, mine, theirs in zip(
            range(3), gradients(got, leaves, range(3)), gradients(want, others, range(3)), strict=True
        ):
            assert_close(mine, theirs, f"gradient of argument {number}")

    check()


def test_romas_normalized_points_are_those_of_grid_sample():
    """They are from -1 to 1 between the outer edges of the map."""
    im_A, im_B, _ = leaves_of(for_roma(4), (0, 1))
    warp = torch.rand((*im_A.shape[:2], 6, 2), dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2.6 - 1.3
    leaves = im_A, im_B, warp.requires_grad_()
    sampled = torch.nn.functional.grid_sample(im_B.movedim(-1, 1), warp, align_corners=False)  # (B, C, HW, N)
    want = torch.einsum("bpc,bcpn->bpn", im_A, sampled)
    got = local_corr.local_corr(*leaves, mode="bilinear", normalized_coords=True)
    assert_close(got, want)
    for mine, theirs in zip(gradients(got, leaves, range(3)), gradients(want, leaves, range(3)), strict=True):
        assert_close(mine, theirs, "gradient")


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32, torch.float64], ids=str)
def test_romas_nearest_point_is_the_pixel_that_it_is_in(dtype):
    im_A, im_B, points = for_roma(2)
    height, width = im_B.shape[1:3]
    warp = points.to(dtype)
    want = torch.zeros(points.shape[:3], dtype=torch.float64)
    for b, p, n in every(*want.shape):
        x, y = (int(torch.floor(each.double())) for each in warp[b, p, n])
        if 0 <= x < width and 0 <= y < height:
            want[b, p, n] = im_A[b, p] @ im_B[b, y, x]
    assert want.count_nonzero() > 3
    assert_close(local_corr.local_corr(im_A, im_B, warp), want)
    normalized = (2 * warp.double() / torch.tensor([width, height]) - 1) if dtype is torch.float64 else None
    if normalized is not None:
        assert_close(local_corr.local_corr(im_A, im_B, normalized, "nearest", True), want)


# One value each, worked out by hand -------------------------------------------------------------------------------------------


def one_hot(*shape, at, value):
    tensor = torch.zeros(shape)
    tensor[at] = value
    return tensor


def test_displacements_come_dx_first_and_sums_are_not_divided():
    """A pixel one column right of the coordinate, in its row, is displacement (dx, dy) = (1, 0) of radius 1."""
    channels = torch.tensor([1.0, 1, 0, 0])
    first, second = 2 * channels.expand(1, 3, 4, 4), one_hot(1, 3, 4, 4, at=(0, 1, 2), value=5 * channels)
    (out,) = alt_cuda_corr.forward(first, second, torch.ones(1, 1, 3, 4, 2), 1)
    assert out[0, 0, :, 0, 0].tolist() == [0, 0, 0, 0, 0, 0, 0, 20, 0]
    nchw = first.movedim(-1, 1)[:, None], second.movedim(-1, 1)[:, None]
    zero = torch.zeros(1, dtype=torch.int64)
    (out,) = cuda_corr.forward(*nchw, torch.ones(1, 1, 2, 3, 4), zero, zero, 1)
    assert out[0, 0, :, :, 0, 0].tolist() == [[0, 0, 0], [0, 0, 0], [0, 20, 0]]
    (out,) = droid_backends.altcorr_forward(*nchw, torch.ones(1, 1, 2, 3, 4), zero, zero, 1)
    assert out[0, 0, :, :, 0, 0].tolist() == [[0, 0, 0], [0, 0, 0], [0, 20 / 16, 0]]
    volume = one_hot(1, 1, 1, 3, 4, at=(0, 0, 0, 1, 2), value=7.0)
    (out,) = droid_backends.corr_index_forward(volume, torch.ones(1, 2, 1, 1), 1)
    assert out[0, :, :, 0, 0].tolist() == [[0, 0, 0], [0, 0, 0], [0, 7, 0]]


def test_the_stereo_sampler_interpolates_along_the_row_and_has_zeros_outside():
    volume = torch.tensor([1.0, 2.0, 4.0, 8.0]).reshape(1, 1, 1, 4)
    (out,) = corr_sampler.forward(volume, torch.tensor([2.5, 99.0]).reshape(1, 2, 1, 1), 2)
    assert out.flatten().tolist() == [1.5, 3, 6, 4, 0]


def test_patches_are_copies_also_of_what_is_not_finite():
    net = torch.tensor([[1.0, float("inf")], [float("nan"), -0.0]]).expand(1, 3, 2, 2)
    (out,) = cuda_corr.patchify_forward(net, torch.tensor([[[0.75, 0.25], [1.0, 1.0], [-9.0, 1e30], [float("nan"), 0.0]]]), 0)
    assert out[0, 0, 2].numpy().tobytes() == net[0, 2].numpy().tobytes()
    assert out[0, 1, 0].tolist() == [[0, 0], [0, 0]]
    assert not out[0, 2:].any()


INTEGERS = {
    torch.int64: [2**63 - 1, -(2**53) - 1, 2**24 + 1, 3],
    torch.int32: [2**31 - 1, -(2**24) - 1, 2**24 + 1, 3],
    torch.uint8: [255, 254, 1, 0],
    torch.bool: [True, False, True, True],
}


@pytest.mark.parametrize(("dtype", "values"), INTEGERS.items(), ids=map(str, INTEGERS))
def test_patches_are_copies_of_integers(dtype, values):
    net = torch.tensor(values, dtype=dtype).reshape(1, 1, 2, 2)
    (out,) = cuda_corr.patchify_forward(net, torch.tensor([[[0.0, 0.0], [1.0, 0.0]]]), 0)
    assert out.dtype == dtype
    assert out[0, :, 0].flatten(1).tolist() == [values, [values[1], 0, values[3], 0]]


# Types and layouts of tensors ---------------------------------------------------------------------------------------------------


def of_dtype(tensors, dtype):
    """Return features in a dtype and coordinates, which come last, in float32, as the neighbours take them."""
    floating = [number for number, each in enumerate(tensors) if each.is_floating_point()]
    kinds = {number: torch.float32 if number == floating[-1] else dtype for number in floating}
    return [each.to(kinds.get(number, each.dtype)) for number, each in enumerate(tensors)]


@names
@pytest.mark.parametrize(("dtype", "unit"), [(torch.float16, 2.0**-11), (torch.bfloat16, 2.0**-8)], ids=["float16", "bfloat16"])
def test_halves_are_summed_in_float32_and_rounded_once(name, dtype, unit):
    forward, formula, tensors, _ = FORWARDS[name]
    backward, place, numbers = BACKWARDS[name]
    halves = of_dtype(tensors(8), dtype)
    exact = leaves_of([each.double() if each.is_floating_point() else each for each in halves], numbers)
    (got,), want = forward(*halves, 1), formula(*exact, 1)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, rtol=1.01 * unit, atol=1e-5)
    cotangent = cotangent_of(want).to(dtype)
    wanted = torch.autograd.grad(want, [exact[number] for number in numbers], cotangent.double())
    arguments = [*halves[:place], cotangent, *halves[place:]]
    for number, mine, theirs in zip(numbers, backward(*arguments, 1), wanted, strict=True):
        assert mine.dtype == halves[number].dtype
        torch.testing.assert_close(mine.double(), theirs, rtol=1.01 * unit, atol=1e-5)


@names
def test_a_cotangent_in_float32_is_rounded_to_the_features_dtype(name):
    forward, _, tensors, _ = FORWARDS[name]
    backward, place, _ = BACKWARDS[name]
    halves = of_dtype(tensors(8), torch.float16)
    cotangent = cotangent_of(forward(*halves, 1)[0])
    backs = [backward(*halves[:place], each, *halves[place:], 1) for each in (cotangent.float(), cotangent)]
    for mine, theirs in zip(*backs, strict=True):
        assert torch.equal(mine, theirs)


def test_a_sum_over_many_patches_does_not_stall_in_float16():
    """A sum of ones in float16 is stuck at 2048."""
    net, coords = torch.zeros(1, 2, 5, 5, dtype=torch.float16), torch.full((1, 4096, 2), 2.0)
    (gradient,) = cuda_corr.patchify_backward(net, coords, torch.ones(1, 4096, 2, 2, 2, dtype=torch.float16), 0)
    assert gradient[0, 1].tolist() == [[4096 if i in (2, 3) and j in (2, 3) else 0 for j in range(5)] for i in range(5)]


@names
def test_tensors_need_not_be_contiguous(name):
    forward, _, tensors, _ = FORWARDS[name]
    backward, place, _ = BACKWARDS[name]
    plain = tensors(11)
    strided = [torch.stack((each, each), -1)[..., 0] for each in plain]
    assert not any(each.is_contiguous() for each in strided)
    (got,), (want,) = forward(*strided, 1), forward(*plain, 1)
    assert torch.equal(got, want)
    assert got.is_contiguous() or "altcorr" in name or name == "cuda_corr"
    cotangent = cotangent_of(want)
    backs = [
        backward(*arguments[:place], each, *arguments[place:], 1)
        for arguments, each in ((strided, torch.stack((cotangent, cotangent), -1)[..., 0]), (plain, cotangent))
    ]
    for mine, theirs in zip(*backs, strict=True):
        assert torch.equal(mine, theirs)


@names
def test_autocast_changes_nothing(name):
    forward, _, tensors, _ = FORWARDS[name]
    backward, place, _ = BACKWARDS[name]
    arguments = of_dtype(tensors(13), torch.float32)
    (want,) = forward(*arguments, 1)
    given = [*arguments[:place], cotangent_of(want), *arguments[place:]]
    with torch.autocast("cpu", torch.bfloat16):
        (got,), found = forward(*arguments, 1), backward(*given, 1)
    assert torch.equal(got, want)
    for mine, theirs in zip(found, backward(*given, 1), strict=True):
        assert torch.equal(mine, theirs)


def test_romas_result_has_the_features_dtype_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert local_corr.local_corr(*of_dtype(for_roma(1), torch.float32), "bilinear").dtype == torch.float32
    assert local_corr.local_corr(*of_dtype(for_roma(1), torch.float16), "bilinear").dtype == torch.float16


@names
def test_gradients_have_the_same_bits_every_time_and_for_any_number_of_threads(name):
    """Many windows overlap, so that a sum in another order would be rounded otherwise."""
    _, _, tensors, _ = FORWARDS[name]
    backward, place, _ = BACKWARDS[name]
    arguments = [each.float() if each.is_floating_point() else each for each in tensors(21)]
    if name == "cuda_corr, patchify":
        arguments = [torch.zeros(1, 8, 9, 9), torch.full((1, 4000, 2), 4.0)]
    (out,) = FORWARDS[name][0](*arguments, 1)
    arguments.insert(place, cotangent_of(out))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 4, 2, 4):
            torch.set_num_threads(threads)
            found.append(backward(*arguments, 1))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(mine, theirs) for again in found[1:] for mine, theirs in zip(again, found[0], strict=True))


@pytest.mark.gpu
@names
def test_a_gpu_gives_what_the_cpu_gives(name):
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    forward, _, tensors, numbers = FORWARDS[name]
    arguments = [each.float() if each.is_floating_point() else each for each in tensors(8)]
    leaves, others = leaves_of([each.cuda() for each in arguments], numbers), leaves_of(arguments, numbers)
    (got,), (want,) = forward(*leaves, 2), forward(*others, 2)
    assert got.is_cuda
    assert_close(got.cpu(), want, tolerance=1e-5)
    cotangent = cotangent_of(want)
    mine, theirs = (
        torch.autograd.grad(out, [each[number] for number in numbers], cotangent.to(out.device))
        for out, each in ((got, leaves), (want, others))
    )
    for number, one, other in zip(numbers, mine, theirs, strict=True):
        assert_close(one.cpu(), other, f"gradient of argument {number}", 1e-4)


# The real package -------------------------------------------------------------------------------------------------------------


def test_the_real_local_corr_gives_the_same():
    package = pytest.importorskip("local_corr", exc_type=ImportError)
    for seed in range(9):
        im_A, im_B, warp = (each.float() for each in for_roma(seed))
        size = torch.tensor(im_B.shape[2:0:-1])
        for mode, points in (("bilinear", warp), ("nearest", warp.remainder(size - 1e-3))):
            for arguments in ((points, mode), (2 * points / size - 1, mode, True)):
                leaves, others = (leaves_of((im_A, im_B), (0,)) for _ in range(2))
                got, want = local_corr.local_corr(*leaves, *arguments), package.local_corr(*others, *arguments)
                assert_close(got, want, tolerance=1e-5)
                assert_close(gradients(got, leaves, (0,)), gradients(want, others, (0,)), "gradient", tolerance=1e-5)


# Compiled and exported ----------------------------------------------------------------------------------------------------------

ONE_CALL = {
    **{name: lambda *tensors, forward=row[0]: forward(*tensors, 1)[0] for name, row in FORWARDS.items()},
    "local_corr": lambda *tensors: local_corr.local_corr(*tensors, "bilinear", True),
}
TENSORS = {**{name: row[2] for name, row in FORWARDS.items()}, "local_corr": for_roma}


QUICK = "alt_cuda_corr", "local_corr"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow, id=name) for name in ONE_CALL]
)
def test_adapters_compile_in_one_graph(name):
    call, numbers = ONE_CALL[name], FORWARDS[name][3] if name in FORWARDS else (0, 1, 2)
    leaves = leaves_of([each.float() if each.is_floating_point() else each for each in TENSORS[name](9)], numbers)
    got, want = torch.compile(call, fullgraph=True, backend="aot_eager")(*leaves), call(*leaves)
    assert_close(got, want, tolerance=1e-6)
    for mine, theirs in zip(gradients(got, leaves, numbers), gradients(want, leaves, numbers), strict=True):
        assert_close(mine, theirs, "gradient", tolerance=1e-5)


# What is not there, and what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ba", "frame_distance", "projmap", "depth_filter", "iproj"])
def test_what_droid_backends_has_besides_correlation_is_an_attribute_error_with_the_reason(name):
    with pytest.raises(AttributeError, match=rf"no '{name}', only the correlation functions .*: for the others, build"):
        getattr(droid_backends, name)
    assert not hasattr(droid_backends, name)


def f32(*shape):
    return torch.zeros(shape)


MAPS = f32(1, 3, 4, 2), f32(1, 5, 6, 2)
COORDS = f32(1, 1, 3, 4, 2)
PATCHES = f32(1, 2, 4, 3, 3), f32(1, 5, 4, 6, 7), f32(1, 8, 2, 3, 3)
EDGES = torch.zeros(8, dtype=torch.int64)
FAR = torch.tensor([0, 1, 0, 1, 2, 0, 0, 0])  # there are patches 0 and 1
REFUSED = {
    "alt_cuda_corr, an array": (lambda: alt_cuda_corr.forward(MAPS[0].numpy(), MAPS[1], COORDS, 1), TypeError, "fmap1 must be a"),
    "alt_cuda_corr, channels first": (
        lambda: alt_cuda_corr.forward(*(each.movedim(-1, 1) for each in MAPS), COORDS, 1),
        ValueError,
        r"fmap2 must have the shape \(B, H2, W2, C\) = \(1, H2, W2, 4\), got fmap2.shape=\(1, 2, 5, 6\)",
    ),
    "alt_cuda_corr, coords without N": (
        lambda: alt_cuda_corr.forward(*MAPS, COORDS[:, 0], 1),
        ValueError,
        r"coords must have the shape \(B, N, H, W, 2\) = \(1, N, 3, 4, 2\), got coords.shape=\(1, 3, 4, 2\)",
    ),
    "alt_cuda_corr, one coordinate": (lambda: alt_cuda_corr.forward(*MAPS, COORDS[..., :1], 1), ValueError, "coords must have"),
    "alt_cuda_corr, three axes": (lambda: alt_cuda_corr.forward(f32(3, 4, 2), MAPS[1], COORDS, 1), ValueError, "fmap1 must have"),
    "alt_cuda_corr, integers": (lambda: alt_cuda_corr.forward(MAPS[0].int(), MAPS[1].int(), COORDS, 1), TypeError, "input1"),
    "alt_cuda_corr, two dtypes": (lambda: alt_cuda_corr.forward(MAPS[0], MAPS[1].double(), COORDS, 1), TypeError, "input"),
    "alt_cuda_corr, radius": (lambda: alt_cuda_corr.forward(*MAPS, COORDS, -1), ValueError, "radius must be at least 0, got"),
    "alt_cuda_corr, half a radius": (lambda: alt_cuda_corr.forward(*MAPS, COORDS, 1.5), TypeError, "radius must be an int, got"),
    "alt_cuda_corr, no radius": (lambda: alt_cuda_corr.forward(*MAPS, COORDS, None), TypeError, "radius must be an int, got"),
    "alt_cuda_corr, a cotangent": (
        lambda: alt_cuda_corr.backward(*MAPS, COORDS, f32(1, 1, 8, 3, 4), 1),
        ValueError,
        r"corr_grad must have the shape \(B, N, 9, H, W\) = \(1, 1, 9, 3, 4\)",
    ),
    "corr_sampler, four axes of pairs": (lambda: corr_sampler.forward(f32(1, 2, 3, 4, 5), COORDS, 1), ValueError, "volume must"),
    "corr_sampler, coords of another size": (
        lambda: corr_sampler.forward(f32(1, 3, 4, 9), f32(1, 1, 3, 5), 1),
        ValueError,
        r"coords must have the shape \(B, D, H, W1\) = \(1, D, 3, 4\), got coords.shape=\(1, 1, 3, 5\)",
    ),
    "corr_sampler, no coordinate": (lambda: corr_sampler.forward(f32(1, 3, 4, 9), f32(1, 0, 3, 4), 1), ValueError, "coords"),
    "corr_sampler, a cotangent": (
        lambda: corr_sampler.backward(f32(1, 3, 4, 9), f32(1, 1, 3, 4), f32(1, 1, 3, 4), 1),
        ValueError,
        "corr_grad must have",
    ),
    "cuda_corr, too few indices": (
        lambda: cuda_corr.forward(*PATCHES, EDGES[:7], EDGES, 1),
        ValueError,
        r"ii must have the shape \(E,\) = \(8,\), got ii.shape=\(7,\)",
    ),
    "cuda_corr, two kinds of channels": (
        lambda: cuda_corr.forward(PATCHES[0][:, :, :3], *PATCHES[1:], EDGES, EDGES, 1),
        ValueError,
        r"fmap2 must have the shape \(B, N2, C, H2, W2\) = \(1, N2, 3, H2, W2\)",
    ),
    "cuda_corr, no batch": (
        lambda: cuda_corr.forward(*(each[:0] for each in PATCHES), EDGES, EDGES, 1),
        ValueError,
        "batch size of at least 1",
    ),
    "cuda_corr, an index out of range": (lambda: cuda_corr.forward(*PATCHES, FAR, EDGES, 1), IndexError, "2"),
    "cuda_corr, an index of the next image": (
        lambda: cuda_corr.forward(*(torch.cat((each, each)) for each in PATCHES), FAR, EDGES, 1),
        IndexError,
        "2",
    ),
    "cuda_corr, indices of floats": (lambda: cuda_corr.forward(*PATCHES, EDGES.float(), EDGES, 1), TypeError, "index1"),
    "cuda_corr, points of three numbers": (
        lambda: cuda_corr.patchify_forward(f32(1, 2, 3, 4), f32(1, 5, 3), 1),
        ValueError,
        "coords must have the shape",
    ),
    "cuda_corr, a gradient of integers": (
        lambda: cuda_corr.patchify_backward(f32(1, 2, 3, 4).long(), f32(1, 5, 2), f32(1, 5, 2, 4, 4), 1),
        TypeError,
        "net must be of a floating dtype to have a gradient, got net.dtype=torch.int64",
    ),
    "cuda_corr, a cotangent of patches": (
        lambda: cuda_corr.patchify_backward(f32(1, 2, 3, 4), f32(1, 5, 2), f32(1, 5, 2, 3, 3), 1),
        ValueError,
        r"gradient must have the shape \(B, M, C, 4, 4\)",
    ),
    "droid_backends, five arguments": (
        lambda: droid_backends.altcorr_forward(*PATCHES, EDGES, 1),
        TypeError,
        "altcorr_forward must be called with 6 arguments, or with 4 without ii and jj, got 5",
    ),
    "droid_backends, backward with the cotangent after the indices": (
        lambda: droid_backends.altcorr_backward(*PATCHES, EDGES, EDGES, f32(1, 8, 3, 3, 3, 3), 1),
        ValueError,
        "corr_grad must have the shape",
    ),
    "droid_backends, a volume of a batch": (
        lambda: droid_backends.corr_index_forward(f32(1, 2, 3, 4), f32(1, 2, 2, 3), 1),
        ValueError,
        "volume must have the shape",
    ),
    "local_corr, mode": (
        lambda: local_corr.local_corr(f32(1, 6, 4), f32(1, 2, 3, 4), f32(1, 6, 5, 2), "bicubic"),
        ValueError,
        "mode must be 'nearest' or 'bilinear', got mode='bicubic'",
    ),
    "local_corr, other pixels": (
        lambda: local_corr.local_corr(f32(1, 6, 4), f32(1, 2, 3, 4), f32(1, 5, 5, 2)),
        ValueError,
        r"warp must have the shape \(B, HW, N, 2\) = \(1, 6, N, 2\), got warp.shape=\(1, 5, 5, 2\)",
    ),
}


@pytest.mark.parametrize(("call", "error", "text"), REFUSED.values(), ids=REFUSED)
def test_wrong_arguments_are_refused_with_the_neighbours_name(call, error, text):
    with pytest.raises(error, match=text):
        call()
