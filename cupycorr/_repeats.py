"""Repeated calls on a GPU: a look-up from the raw arguments of a call to the plan that it ran, bound to its device.

Models make the same call again and again. The first one checks its arguments, makes a request and chooses a plan. A later one
with the same arguments, on arrays of the same shapes, strides and dtypes, finds that plan here, and neither checks nor plans. The
key of a call holds everything that the way from its arguments to its plan depends on, and no array. Every call looks at the
addresses, the current device, the stream and its capture. This module must not depend on any operator.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from . import _tuning
from ._arguments import types_of
from ._arrays import may_share_memory
from ._dispatch import Choice, New, Operator, Variant
from ._gpu import plan as gpu
from ._gpu.device import import_cupy

LIMIT = 1024  # calls; one more, and all are forgotten, which costs each of them one call that plans again

Key = tuple[Any, ...]


class Repeat(NamedTuple):
    """A call that was made before, without its arrays.

    Attributes
    ----------
    plan
        Its plan.
    results
        The arrays that it allocates, None for a gradient that is not needed.
    variants
        The operator's table of variants at that time.
    """

    plan: gpu.Plan
    results: tuple[New | None, ...]
    variants: tuple[Variant, ...]

    def run(self, arrays: Sequence[Any], out: Any = None) -> list[Any]:
        """Run on CuPy arrays, on their device and CuPy's current stream of it, and return the results; one may be ``out``."""
        cupy = import_cupy()
        if cupy.cuda.runtime.getDevice() != self.plan.device:
            with cupy.cuda.Device(self.plan.device):
                return self.run(arrays, out)
        results = [out] if out is not None else [new and cupy.empty(new.shape, new.dtype) for new in self.results]
        addresses = [x.data.ptr for x in arrays] + [x.data.ptr for x in results if x is not None]
        gpu.run(self.plan, addresses, gpu.allocate_from_cupy)
        return results


# The look-up ------------------------------------------------------------------------------------------------------------------

Found = tuple[Key | None, Repeat | None]
NOTHING: Found = (None, None)

_calls: dict[Key, Repeat] = {}


def on_cupy(
    operator: Operator,
    pass_name: str,
    arrays: tuple[Any, ...],
    values: tuple[Any, ...],
    dtype: Any,
    *,
    out: Any = None,
    needs: Any = (),
) -> Found:
    """Look up a call on CuPy arrays.

    Parameters
    ----------
    operator, pass_name
        The operator and its pass.
    arrays
        The arrays in the order of a request's layouts, as the caller has passed them: they may be anything.
    values
        The other arguments, as they were passed.
    dtype, out, needs
        The dtype of the result, the array for it, and the gradients that are needed, as they were passed.

    Returns
    -------
    key
        The key to `keep` the call by. None if it has none: an argument is no CuPy array or of a type that is seldom passed, or
        ``out`` overlaps an input.
    repeat
        The call that was kept by that key; None if there is none.
    """
    every = arrays if out is None else (*arrays, out)
    cupy = sys.modules.get("cupy")
    for x in every:
        if cupy is None or type(x) is not cupy.ndarray:
            return NOTHING
    if out is not None and may_share_memory(out, *arrays):
        return NOTHING
    if dtype is not None and not isinstance(dtype, (str, type, np.dtype)):
        return NOTHING
    values = (*values, *needs) if type(needs) is tuple else (*values, needs)
    types = types_of(values)
    if types is None:
        return NOTHING
    kinds = tuple([(x.shape, x.strides, x.dtype, x.data.device_id) for x in every])
    return look_up(operator, pass_name, kinds, (values, types, dtype))


def look_up(operator: Operator, pass_name: str, kinds: tuple[Any, ...], values: tuple[Any, ...]) -> Found:
    """Look up a call as `on_cupy` does, for arrays of any library.

    Parameters
    ----------
    operator, pass_name
        The operator and its pass.
    kinds
        Everything about each array that a plan depends on, and no array.
    values
        The other arguments. Those that are equal must mean the same.
    """
    key = operator, pass_name, kinds, values, _tuning.state()
    found = _calls.get(key)
    return key, found if found is not None and found.variants is operator.variants else None


def keep(key: Key | None, choice: Choice, results: tuple[New | None, ...]) -> None:
    """Keep a call that has been made, with the results that it allocates.

    It is not kept where it has no key or its plan launches no kernels, and while its choice is not settled.
    """
    if key is None or not choice.settled or not isinstance(choice.plan, gpu.Plan):
        return
    if len(_calls) >= LIMIT:
        forget()
    _calls[key] = Repeat(choice.plan, results, key[0].variants)


def forget() -> None:
    """Forget all calls."""
    _calls.clear()
