"""The gradients of a block's maps, computed once for all lookups of a backward pass, on the CPU.

A network looks up nearly the same windows again and again. For twelve lookups that converge, the gradients of the maps were
measured to take a third of the time if they are computed at once, because the windows of a pixel are joined. So a lookup's
backward computes the gradient of its coordinates only. It passes its coordinates and its cotangent on to the maps, as the
gradient of a token: a tensor that was made of the maps, whose own backward runs when autograd has added up the gradients of all
lookups.

These "gradients" are tensors of a subclass, whose sum is a list. They are part of the backward pass as any other gradient is, so
that it does not matter which lookups the pass contains, in which thread it runs, or whether it ends with an error. Where values
are not at hand, in a graph or under a transform, and where derivatives of higher order are wanted, a lookup's backward computes
the gradients of the maps itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_map_only

from .._arguments import Pair
from .._dispatch import VJP
from .._lookup.cpu import simd_gradients
from .._lookup.problem import Problem
from . import _tensors
from ._kept import Windows
from ._lookup import Arguments, Settings, gradients
from ._maps import UNIT, Maps, needs_gradient, threads, why_no_values

# Bytes of the cotangents of lookups that are held back, at most: so many, or so many times those of the maps. Beyond, their
# gradients are computed.
MOST_HELD, MOST_HELD_OF_MAPS = 2**24, 3

Gradients = tuple[torch.Tensor, ...]


class DeferredMaps:
    """Maps whose gradients are computed once for all lookups of a backward pass."""

    def __init__(self, maps: Maps, keeps_windows: bool) -> None:
        """Defer the gradients of maps. With ``keeps_windows``, outputs are computed from kept windows where that is possible."""
        self.maps = maps
        with torch.no_grad():  # outputs may come from kept windows, because their gradients do not
            self.keeps_windows = keeps_windows and Windows.why_not(maps) is None
        self._source = Windows(maps, is_optional=True) if self.keeps_windows else maps
        self._state = _state(maps)
        self._work = _Work(maps.problem(), _settings(maps), tuple(each.requires_grad for each in maps.tensors))
        with torch.enable_grad():  # also for a copy that is made without
            self._token: torch.Tensor = _Token.apply(self._work, *maps.tensors)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, which makes a token of its maps."""
        return {"maps": self.maps, "keeps_windows": self.keeps_windows}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @staticmethod
    def why_not(maps: Maps) -> str | None:
        """Return why the gradients of maps cannot be deferred, or None."""
        if maps.fmap1.device.type != "cpu":
            return "the maps are not on the CPU"
        if not needs_gradient(maps.tensors):
            return "no gradient is needed"
        reason = why_no_values(maps.tensors)
        if reason is not None:
            return reason
        algorithm = maps.algorithm_on_cpu(VJP)
        return None if algorithm == "simd" else f"gradients of such maps are computed by {algorithm}"

    def lookup(self, coords: torch.Tensor, step: Pair = UNIT) -> torch.Tensor:
        """Return what `Maps.lookup` returns."""
        usual = step == UNIT and coords.device.type == "cpu" and coords.dtype == self.maps.dtype
        if not usual or not torch.is_grad_enabled() or why_no_values((coords,)) is not None:
            return self.maps.lookup(coords, step)
        if _state(self.maps) != self._state:  # the token belongs to what the maps were
            return self.maps.lookup(coords, step)
        arguments = self._work, self._source, self._token, coords, *self.maps.tensors
        out: torch.Tensor = _Lookup.apply(*arguments)  # type: ignore[no-untyped-call]
        return out

    @property
    def nbytes(self) -> int:
        """The bytes of the maps, and of kept windows."""
        return self._source.nbytes


def _state(maps: Maps) -> list[tuple[int, bool]]:
    """Return what changes when a map is written to, or begins to need a gradient."""
    return [(each._version, each.requires_grad) for each in maps.tensors]


def _settings(maps: Maps) -> Settings:
    return Settings(maps.patch_size, UNIT, maps.level_step, maps.order, maps.scale, maps.dtype)


class _Held(NamedTuple):
    """A lookup of which the gradients of the maps are still to be computed.

    ``versions`` are those of the maps and of the cotangent when it was held back: in the meantime, code of the user may run.
    """

    coords: torch.Tensor
    cotangent: torch.Tensor
    versions: list[int]


class _Work(NamedTuple):
    """The problem and the settings of each lookup, and whether the gradient of each map is needed."""

    problem: Problem
    settings: Settings
    needs: tuple[bool, ...]

    def gradients(self, maps: Sequence[torch.Tensor], lookups: Sequence[_Held]) -> Gradients:
        """Return the gradients of the maps from some lookups; an empty tensor in place of each that is not needed."""
        for each in lookups:
            if each.versions != _versions(maps, each.cotangent):
                changed = "a feature map, or the gradient of a CorrBlock's result, was modified by an inplace operation"
                raise RuntimeError(f"{changed} before the gradients of the feature maps were computed in the same backward pass")
        found = _tensors.new_gradients_of_maps(maps, self.needs)
        names = "gradient1", *self.problem.gradient2_names
        tensors = dict(zip(("input1", *self.problem.level_names), maps, strict=True))
        tensors |= {name: each for name, each, needed in zip(names, found, self.needs, strict=True) if needed}
        arrays = {name: _tensors.array(each) for name, each in tensors.items()}
        coords, cotangents = ([_tensors.array(each) for each in column] for column in list(zip(*lookups, strict=True))[:2])
        with threads():
            simd_gradients.compute_together(self.problem, arrays, coords, cotangents, self.needs)
        return found

    def most_held(self, maps: Sequence[torch.Tensor]) -> int:
        """Return the most bytes of cotangents that are held back."""
        return max(MOST_HELD, MOST_HELD_OF_MAPS * sum(each.numel() * each.element_size() for each in maps))


def _versions(maps: Sequence[torch.Tensor], cotangent: torch.Tensor) -> list[int]:
    return [each._version for each in (*maps, cotangent)]


class _Token(torch.autograd.Function):
    """The token of some maps: a number, whose gradients are `_Pending`."""

    @staticmethod
    def forward(ctx: Any, work: _Work, fmap1: torch.Tensor, *pyramid: torch.Tensor) -> torch.Tensor:
        ctx.needs = work.needs
        ctx.set_materialize_grads(False)
        return fmap1.new_zeros(())

    @staticmethod
    def backward(ctx: Any, pending: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        if pending is None:  # each lookup computed the gradients of the maps itself
            return None, *(None for _ in ctx.needs)
        if not isinstance(pending, _Pending):
            raise RuntimeError(f"the gradients of a CorrBlock's lookups were replaced by {type(pending)}")
        pairs = zip(pending.gradients(), ctx.needs, strict=True)
        return None, *(gradient if needed else None for gradient, needed in pairs)


class _Lookup(torch.autograd.Function):
    """A lookup whose backward leaves the gradients of the maps to those of the token, where it can."""

    @staticmethod
    def forward(ctx: Any, work: _Work, source: Maps | Windows, token: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        coords, *_ = tensors
        ctx.work = work
        ctx.save_for_backward(*tensors)
        return source.lookup(coords)

    @staticmethod
    def backward(ctx: Any, cotangent: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (coords, *maps), work = ctx.saved_tensors, ctx.work
        needs_coords, *needs = ctx.needs_input_grad[3:]
        defers = not torch.is_grad_enabled() and why_no_values((cotangent,)) is None
        wanted = *((False,) * len(needs) if defers else needs), needs_coords
        found: list[torch.Tensor | None] = [None] * len(wanted)
        if any(wanted):
            fmap1, *pyramid = maps
            found = gradients(cotangent, fmap1, pyramid, coords, wanted, Arguments(None, None, True, work.settings))
        *of_maps, of_coords = found
        token = None
        if defers:
            # An optimiser that runs within the backward pass may write to the coordinates.
            token = _Pending.made(work, maps, [_Held(coords.clone(), cotangent, _versions(maps, cotangent))])
        return None, None, token, of_coords, *of_maps


class _Pending(torch.Tensor):
    """The lookups of a backward pass whose gradients of the maps are still to be computed, as the gradient of a token.

    Autograd adds them up: the sum is the list of all of them. Where they would hold too much memory, gradients of the maps take
    their place.
    """

    work: _Work
    maps: Sequence[torch.Tensor]
    lookups: list[_Held]
    computed: Gradients | None

    @classmethod
    def made(cls, work: _Work, maps: Sequence[torch.Tensor], lookups: list[_Held], computed: Gradients | None = None) -> _Pending:
        """Return the gradient of a token."""
        made = maps[0].new_zeros(()).as_subclass(cls)
        made.work, made.maps, made.lookups, made.computed = work, maps, lookups, computed
        return made

    @classmethod
    def __torch_dispatch__(cls, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Add two of them; for any other operator, such as a check for NaN, each is zero."""
        if operator is torch.ops.aten.add.Tensor and all(isinstance(each, cls) for each in args):
            return cls._sum(*args)
        plain, named = tree_map_only(cls, lambda each: torch.zeros((), dtype=each.dtype), (args, kwargs or {}))
        return operator(*plain, **named)

    @classmethod
    def _sum(cls, first: _Pending, second: _Pending) -> _Pending:
        work, maps = first.work, first.maps
        found = cls.made(work, maps, first.lookups + second.lookups, _added(first.computed, second.computed))
        storages = {each.cotangent.untyped_storage().data_ptr(): each.cotangent.untyped_storage() for each in found.lookups}
        if sum(each.nbytes() for each in storages.values()) > work.most_held(maps):
            return cls.made(work, maps, [], found.gradients())
        return found

    def gradients(self) -> Gradients:
        """Return the gradients of the maps; an empty tensor in place of each that is not needed."""
        computed = self.work.gradients(self.maps, self.lookups) if self.lookups else None
        found = _added(self.computed, computed)
        assert found is not None  # there is no gradient without a lookup
        return found


def _added(first: Gradients | None, second: Gradients | None) -> Gradients | None:
    """Add the second gradients to the first, which nothing else refers to, if both are there; return the sums."""
    if first is None or second is None:
        return second if first is None else first
    return tuple(one.add_(other) for one, other in zip(first, second, strict=True))
