"""The levels of input2 that one launch computes, as the kernels that include ``levels.cuh`` see them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..._gpu.call import IMAGE_AXES, NOWHERE, Array, Pointer, strides
from .operands import AXES, COORDS, Operands

LEVELS = 4  # as in levels.cuh

POINTERS = tuple(f"input2_{n}" for n in range(LEVELS))

_SIZES = ("size_y", "size_x")
_FACTORS = ("factor_y", "factor_x")

# Scalars of each level, and of all of them: what `COORDS` and `AXES` have beside the former.
OF_EACH_LEVEL = {
    name: c_type
    for n, pointer in enumerate(POINTERS)
    for name, c_type in {
        **strides(pointer, IMAGE_AXES, "Index"),
        **dict.fromkeys((f"{size}_{n}" for size in _SIZES), "Index"),
        **dict.fromkeys((f"{factor}_{n}" for factor in _FACTORS), "Sum"),
    }.items()
}
COORDS_OF_LEVELS = {name: c_type for name, c_type in COORDS.items() if name not in _FACTORS}
AXES_OF_LEVELS = {name: c_type for name, c_type in AXES.items() if name not in _SIZES}


def groups(operands: Operands) -> Iterator[range]:
    """Yield the levels of each launch."""
    levels = operands.problem.levels
    for begin in range(0, levels, LEVELS):
        yield range(begin, min(begin + LEVELS, levels))


def pointers(operands: Operands, levels: range) -> dict[str, Pointer]:
    """Return the addresses of the maps of some levels; those of levels that are not there are null."""
    found = [operands.level2(level)[1] for level in levels]
    return dict(zip(POINTERS, found + [NOWHERE] * (LEVELS - len(found)), strict=True))


def scalars(operands: Operands, levels: range) -> dict[str, float]:
    """Return the arguments of `OF_EACH_LEVEL`, and those of all levels; 0 for levels that are not there."""
    arguments: dict[str, float] = dict.fromkeys(OF_EACH_LEVEL, 0)
    of_all = operands.scalars(levels[0])
    for n, level in enumerate(levels):
        of_level = operands.scalars(level)
        arguments.update(strides(POINTERS[n], IMAGE_AXES, operands.level2(level)[0].strides))
        arguments.update({f"{name}_{n}": of_level[name] for name in (*_SIZES, *_FACTORS)})
    return {**arguments, **{name: value for name, value in of_all.items() if name not in (*_SIZES, *_FACTORS)}}


def volumes(operands: Operands, levels: range) -> tuple[Array, int]:
    """Return the output (E, K, PH, PW, H, W) of the first of some levels, and the stride from one level to the next."""
    whole, _ = operands.arrays["out"]
    return operands.volume("out", levels[0]), whole.strides[1] if operands.problem.operands.pyramid else 0


def extent(operands: Operands, levels: range) -> int:
    """Return a bound on the offsets that a launch computes for some levels."""
    (out, _), stride = volumes(operands, levels)
    layouts = [operands.level2(level)[0] for level in levels]
    whole = replace(out, shape=(len(levels), *out.shape), strides=(stride, *out.strides))
    return max(operands.largest(level, operands.input1[0], *layouts, whole) for level in levels)
