"""The geometry, arithmetic, traffic and workspace of problems, for integer and for symbolic sizes."""

from dataclasses import FrozenInstanceError, dataclass, replace

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import axes

from cupycorr._correlation.problem import lattice_inside, parameters, problem


def plain(shape, shape2=None, **given_parameters):
    return problem(parameters(**given_parameters), shape, shape if shape2 is None else shape2)


# Numbers worked out by hand ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Known:
    """A problem and its numbers in float32, worked out by hand."""

    shape1: tuple
    shape2: tuple
    given: dict
    out_shape: tuple
    flops: int
    flops_inside: int
    bytes: int
    workspace: int


KNOWN = {
    "FlowNetC": Known(
        (4, 256, 48, 64),
        (4, 256, 48, 64),
        dict(patch_size=21, dilation_patch=2),
        (4, 21, 21, 48, 64),
        2 * 4 * 256 * 441 * 3072,
        # Displacement 2 r loses 2 |r| of the rows (columns): 21 * 48 - 4 * 55 and 21 * 64 - 4 * 55 remain.
        2 * 4 * 256 * 788 * 1124,
        4 * (2 * 4 * 256 * 3072 + 4 * 441 * 3072),
        0,
    ),
    "the extension's own default": Known(
        (16, 64, 100, 100),
        (16, 64, 100, 100),
        dict(kernel_size=3, patch_size=3, stride=2, padding=1, dilation=2, dilation_patch=2),
        # (100 + 2 - 2 * 2 - 1) // 2 + 1 = 49 positions: first -1, 1, 3, ..., 95, and taps 0, 2 and 4 further.
        (16, 3, 3, 49, 49),
        2 * 16 * 64 * 9 * 9 * 49**2,
        # Taps stand at odd positions up to 99. At displacement -2: 47, 48 and 49 of the 49 lie inside; at 0: 48, 49, 49;
        # at 2: 48, 49 and 48.
        2 * 16 * 64 * (144 + 146 + 145) ** 2,
        4 * (2 * 16 * 64 * 10000 + 16 * 9 * 49**2),
        4 * 16 * 9 * 101**2,
    ),
    "stereo, one side": Known(
        (1, 32, 5, 100),
        (1, 32, 5, 100),
        dict(patch_size=(1, 64), patch_offset=(0, -32)),
        (1, 1, 64, 5, 100),
        2 * 32 * 64 * 500,
        # Displacements -63 .. 0: each step away from 0 loses a column.
        2 * 32 * 5 * (6400 - 2016),
        4 * (2 * 32 * 500 + 64 * 500),
        0,
    ),
    "a template inside a larger image": Known(
        (1, 3, 5, 6),
        (1, 3, 20, 30),
        dict(kernel_size=(5, 6), patch_size=(16, 25), patch_offset=(7, 12)),
        # Displacements 0 .. 15 and 0 .. 24: the template never leaves the image.
        (1, 16, 25, 1, 1),
        2 * 3 * 30 * 400,
        2 * 3 * 30 * 400,
        4 * (3 * 30 + 3 * 600 + 400),
        4 * 400 * 30,
    ),
    "even patch, cropped": Known(
        (2, 1, 8, 9),
        (2, 1, 8, 9),
        dict(patch_size=(2, 4), padding=(-2, -4), dilation_patch=(3, 2)),
        # Rows 2 .. 5 at displacements 0 and 3, column 4 at -2, 0, 2 and 4.
        (2, 2, 4, 4, 1),
        2 * 2 * 8 * 4,
        2 * 2 * (4 + 3) * (1 + 1 + 1 + 1),
        4 * (2 * 2 * 72 + 2 * 8 * 4),
        0,
    ),
    "a search wholly outside": Known(
        (1, 2, 3, 3), (1, 2, 3, 3), dict(patch_offset=(0, 3)), (1, 1, 1, 3, 3), 2 * 2 * 9, 0, 4 * (2 * 2 * 9 + 9), 0
    ),
    "empty batch": Known((0, 2, 3, 3), (0, 2, 3, 3), dict(), (0, 1, 1, 3, 3), 0, 0, 0, 0),
    "no channels": Known((1, 0, 3, 3), (1, 0, 3, 3), dict(), (1, 1, 1, 3, 3), 0, 0, 4 * 9, 0),
}


@pytest.mark.parametrize("known", KNOWN.values(), ids=KNOWN.keys())
def test_a_problem_has_the_numbers_that_were_worked_out_by_hand(known):
    asked = plain(known.shape1, known.shape2, **known.given)
    assert (asked.shape1, asked.shape2) == (known.shape1, known.shape2)
    assert asked.out_shape == known.out_shape
    assert asked.outputs == np.prod(known.out_shape)
    assert asked.flops == known.flops
    assert asked.flops_inside() == known.flops_inside
    assert asked.bytes(4, 4) == known.bytes
    assert asked.workspace(4) == known.workspace


def test_bytes_count_input_and_output_elements_apart():
    asked = plain((1, 3, 4, 5), (1, 3, 6, 7), patch_offset=0, patch_size=2)
    assert asked.bytes(2, 8) == 2 * 3 * (20 + 42) + 8 * 4 * 20


def test_displacements_are_in_pixels_and_even_patches_lean_to_the_positive_side():
    asked = plain((1, 1, 9, 9), patch_size=(4, 5), dilation_patch=(3, 2), patch_offset=(10, -1))
    assert list(asked.vertical.displacements) == [7, 10, 13, 16]
    assert list(asked.horizontal.displacements) == [-5, -3, -1, 1, 3]
    assert (asked.vertical.radius, asked.horizontal.radius) == (1, 2)


# Against the definition ----------------------------------------------------------------------------------------------


@given(axis=axes())
def test_taps_inside_are_those_that_the_formula_visits(axis):
    sizes = axis.size1, axis.size2
    met = list(oracle.pairs(*sizes, axis.kernel, axis.patch, axis.stride, axis.padding, axis.dilation, axis.step, axis.offset))
    taps = {(m, y + axis.padding - i * axis.stride) for i, m, y, _ in met}
    assert axis.taps_inside() == (len(taps), len(met))
    assert axis.out == oracle.output_size(axis.size1, axis.kernel, axis.stride, axis.padding, axis.dilation)
    assert {axis.displacements[m] for _, m, _, _ in met} == {y2 - y for _, _, y, y2 in met}


@given(vertical=axes(), horizontal=axes(), batch=st.integers(0, 3), channels=st.integers(0, 5))
def test_flops_inside_are_two_for_each_product_inside_both_images(vertical, horizontal, batch, channels):
    both = vertical, horizontal
    names = dict(kernel_size="kernel", patch_size="patch", stride="stride", padding="padding", dilation="dilation")
    names |= dict(dilation_patch="step", patch_offset="offset")
    given_parameters = {name: tuple(getattr(axis, field) for axis in both) for name, field in names.items()}
    shapes = [(batch, channels, *(getattr(axis, size) for axis in both)) for size in ("size1", "size2")]
    asked = plain(*shapes, **given_parameters)
    places = [oracle.output_size(a.size1, a.kernel, 1, a.padding, a.dilation) for a in both]
    assert [asked.vertical, asked.horizontal] == [replace(a, stride=min(a.stride, n)) for a, n in zip(both, places, strict=True)]
    counts = [
        sum(1 for _ in oracle.pairs(a.size1, a.size2, a.kernel, a.patch, a.stride, a.padding, a.dilation, a.step, a.offset))
        for a in both
    ]
    assert asked.flops_inside() == 2 * batch * channels * counts[0] * counts[1]
    assert asked.flops_inside() <= asked.flops


@given(
    first=st.integers(-20, 20),
    stride=st.integers(1, 6),
    count=st.integers(0, 12),
    low=st.integers(-9, 9),
    size=st.integers(-3, 20),
)
def test_a_lattice_inside_a_range_has_the_positions_in_the_range(first, stride, count, low, size):
    begin, end = lattice_inside(first, stride, count, low, low + size)
    assert 0 <= begin <= end <= count
    assert list(range(begin, end)) == [i for i in range(count) if low <= first + stride * i < low + size]


# The noun itself -----------------------------------------------------------------------------------------------------


def test_equal_requests_are_equal_however_they_are_written():
    written = parameters(3, [9, 9], (1, 1), 0, 1, 2, patch_offset=0, scale=1)
    again = parameters(
        np.int64(3), (np.int8(9), 9), np.uint16(1), (0, np.int32(0)), 1, np.array(2), patch_offset=(0, 0), scale=1.0
    )
    assert written == again
    assert hash(written) == hash(again)
    values = [part for pair in (again.kernel_size, again.patch_size, again.padding, again.dilation_patch) for part in pair]
    assert {type(value) for value in values} == {int}
    assert type(again.scale) is float
    shape = (1, 2, 30, 30)
    assert len({problem(written, shape, shape): 1, problem(again, shape, shape): 2}) == 1


def test_an_offset_of_zero_is_not_the_same_request_as_no_offset():
    assert parameters(patch_offset=0) != parameters()


def test_checked_parameters_cannot_be_changed():
    asked = plain((1, 2, 8, 9), patch_size=3)
    for thing, name in ((asked, "batch"), (asked.parameters, "stride"), (asked.vertical, "size1")):
        with pytest.raises(FrozenInstanceError):
            setattr(thing, name, 5)


# Symbolic sizes ------------------------------------------------------------------------------------------------------


class Size:
    """An integer that supports sums, differences, products, floor division and comparisons, and nothing else.

    Arithmetic returns a `Size`, so that a plain number in a result shows where it was lost. It has no hash, is no
    index and cannot become an int.
    """

    __hash__ = None

    def __init__(self, value):
        self.value = value.value if isinstance(value, Size) else value

    def _with(self, other, operate):
        return Size(operate(self.value, other.value if isinstance(other, Size) else other))

    def __add__(self, other):
        return self._with(other, lambda a, b: a + b)

    def __sub__(self, other):
        return self._with(other, lambda a, b: a - b)

    def __mul__(self, other):
        return self._with(other, lambda a, b: a * b)

    def __floordiv__(self, other):
        return self._with(other, lambda a, b: a // b)

    def __rsub__(self, other):
        return Size(other) - self

    __radd__, __rmul__ = __add__, __mul__

    def __lt__(self, other):
        return self.value < Size(other).value

    def __eq__(self, other):
        return self.value == Size(other).value

    def __ne__(self, other):
        return self.value != Size(other).value


SYMBOLIC = {
    "plain": ((2, 16, 30, 40), (2, 16, 30, 40), dict(patch_size=9)),
    "window": ((2, 16, 30, 40), (2, 16, 30, 40), dict(kernel_size=3, patch_size=5, stride=2, padding=1, dilation=2)),
    "offset": ((2, 16, 30, 40), (2, 16, 50, 60), dict(patch_size=(1, 8), patch_offset=(0, -4), dilation_patch=3)),
}
symbolic = pytest.mark.parametrize(("shape1", "shape2", "given_parameters"), SYMBOLIC.values(), ids=SYMBOLIC.keys())


@symbolic
def test_sizes_pass_through_arithmetic_without_becoming_integers(shape1, shape2, given_parameters):
    asked = plain(tuple(map(Size, shape1)), tuple(map(Size, shape2)), **given_parameters)
    numbers = plain(shape1, shape2, **given_parameters)
    for index, (size, number) in enumerate(zip(asked.out_shape, numbers.out_shape, strict=True)):
        assert isinstance(size, int if index in (1, 2) else Size), index
        assert size == number
    wanted = [numbers.outputs, numbers.flops, numbers.bytes(4, 2), numbers.workspace(4)]
    for size, number in zip([asked.outputs, asked.flops, asked.bytes(4, 2), asked.workspace(4)], wanted, strict=True):
        assert isinstance(size, Size) or number == 0
        assert size == number


@symbolic
def test_torch_sizes_stay_symbolic(shape1, shape2, given_parameters):
    torch = pytest.importorskip("torch")
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

    environment = ShapeEnv()
    context = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC] * 4)
    mode = FakeTensorMode(shape_env=environment)
    fakes = [mode.from_tensor(torch.empty(shape), symbolic_context=context) for shape in (shape1, shape2)]
    asked = plain(*(tuple(fake.shape) for fake in fakes), **given_parameters)
    numbers = plain(shape1, shape2, **given_parameters)
    batch, _, _, out_h, out_w = asked.out_shape
    sizes = [batch, out_h, out_w, asked.outputs, asked.flops, asked.bytes(4, 4), asked.workspace(4)]
    wanted = [*(numbers.out_shape[axis] for axis in (0, 3, 4)), numbers.outputs, numbers.flops, numbers.bytes(4, 4)]
    wanted.append(numbers.workspace(4))
    for size, number in zip(sizes, wanted, strict=True):
        if number:
            assert isinstance(size, torch.SymInt)
            assert size.node.expr.free_symbols
            assert size.node.hint == number
    # Checks may ask whether sizes agree or are large enough; they must not have fixed any to its number.
    for fake in fakes:
        assert all(isinstance(size, torch.SymInt) and size.node.expr.free_symbols for size in fake.shape)
        assert all(size.node.maybe_as_int() is None for size in fake.shape)


def test_a_stride_beyond_the_image_is_one_output_and_no_more_work():
    shape = (1, 2, 6, 9)
    far = problem(parameters(kernel_size=3, padding=1, stride=10**12), shape, shape)
    assert far.out_shape == (1, 1, 1, 1, 1)
    assert (far.vertical.stride, far.horizontal.stride) == (6, 9)  # the number of places of a window of 3 with a frame of 1
