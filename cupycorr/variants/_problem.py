"""The problem that a registered variant is given: the request of a call as plain numbers, pairs and names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .._arguments import Pair, Shape
from .._dispatch import FORWARD, Request, array_names
from .._dtypes import element_type_called
from .._gpu.device import Device


@dataclass(frozen=True, slots=True)
class Problem:
    """The problem that a registered variant computes. Pairs are ``(vertical, horizontal)``.

    Channels are in one group, and displacements ascend: a call with several groups is one in which each group is a sample, and a
    patch whose displacements descend is an ascending one with its output in reverse.

    Attributes
    ----------
    pass_name : str
        ``"forward"`` or ``"vjp"`` (the gradients).
    dtype, result_dtype : str
        The dtype of the inputs, and that of the output and the cotangent.
    precision : str
        ``"high"`` where float32 products may be rounded to TF32, otherwise ``"highest"``.
    needs : (bool, bool)
        Which gradients are needed.
    batch, channels : int
        B and C.
    size1, size2, out_size : (int, int)
        The height and the width of ``input1``, of ``input2`` and of the output.
    kernel_size, patch_size, stride, padding, dilation, dilation_patch : (int, int)
        The parameters of `cupycorr.spatial_correlation_sample`.
    displacements : (range, range)
        The displacements along y and along x, in pixels, in the order of the patch's indices.
    scale : float
        The factor of every sum.
    strides : mapping of str to tuple of int
        On a GPU the strides of each array of the pass in elements, by name; empty on the CPU.
    device : Device or None
        On a GPU the facts about the device, among them ``name``, ``compute_capability``, ``multiprocessors`` and
        ``shared_memory`` (bytes); None on the CPU, and where any device is meant.

    See Also
    --------
    register : The functions that are given a problem.

    Examples
    --------
    >>> import numpy as np
    >>> import cupycorr
    >>> def why_not(problem):
    ...     return f"search {problem.displacements} in {problem.size2}"
    >>> cupycorr.variants.register("refusing", forward=lambda problem, x1, x2, out: None, why_not=why_not)
    >>> x = np.zeros((1, 3, 4, 5), np.float32)
    >>> cupycorr.explain(x, x, patch_size=(1, 4), dilation_patch=2).reasons["refusing"]
    'search (range(0, 2, 2), range(-2, 6, 2)) in (4, 5)'
    >>> cupycorr.variants.unregister("refusing")
    """

    pass_name: str
    dtype: str
    result_dtype: str
    precision: str
    needs: tuple[bool, bool]
    batch: int
    channels: int
    size1: Pair
    size2: Pair
    out_size: Pair
    kernel_size: Pair
    patch_size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    dilation_patch: Pair
    displacements: tuple[range, range]
    scale: float
    strides: Mapping[str, tuple[int, ...]] = field(default_factory=dict, hash=False)
    device: Device | None = None

    @property
    def first_displacement(self) -> Pair:
        """The first displacement along y and along x."""
        vertical, horizontal = self.displacements
        return vertical[0], horizontal[0]

    @property
    def shape1(self) -> Shape:
        """The shape ``(B, C, H, W)`` of ``input1``."""
        return (self.batch, self.channels, *self.size1)

    @property
    def shape2(self) -> Shape:
        """The shape ``(B, C, H2, W2)`` of ``input2``."""
        return (self.batch, self.channels, *self.size2)

    @property
    def out_shape(self) -> Shape:
        """The shape ``(B, PH, PW, oH, oW)`` of the output."""
        return (self.batch, *self.patch_size, *self.out_size)

    @property
    def c_type(self) -> str:
        """The element type of the inputs in ``common/numeric.cuh``: ``half``, ``bfloat16``, ``float`` or ``double``."""
        return element_type_called("dtype", self.dtype).c_type

    @property
    def result_c_type(self) -> str:
        """The element type of the output and of the cotangent."""
        return element_type_called("dtype", self.result_dtype).c_type


def problem_of(request: Request, device: Device | None) -> Problem:
    """Return the problem of a request that has one group and ascending displacements."""
    geometry = request.problem
    parameters, axes = geometry.parameters, (geometry.vertical, geometry.horizontal)
    names = array_names(request.pass_name, geometry.inputs)
    layouts = zip(names, request.layouts, strict=True) if request.layouts else ()
    return Problem(
        pass_name=request.pass_name,
        dtype=request.dtype,
        result_dtype=request.result_dtype,
        precision=request.precision,
        needs=(True, True) if request.pass_name == FORWARD else (request.needs[0], request.needs[1]),
        batch=geometry.batch,
        channels=geometry.channels,
        size1=geometry.size1,
        size2=geometry.size2,
        out_size=(axes[0].out, axes[1].out),
        kernel_size=parameters.kernel_size,
        patch_size=parameters.patch_size,
        stride=parameters.stride,
        padding=parameters.padding,
        dilation=parameters.dilation,
        dilation_patch=parameters.dilation_patch,
        displacements=(axes[0].displacements, axes[1].displacements),
        scale=parameters.scale,
        strides={name: layout.strides for name, layout in layouts if layout is not None},
        device=device,
    )
