"""The lookup in torch, beside the operator: its formula by torch's own operations, and the suite's cases as tensors."""

from itertools import product

import lookup_oracle
import torch
from oracle import pair
from tensors import array, tensor

from cupycorr.torch import correlation_lookup


def written_out(
    input1, input2, coords, patch_size=9, *, dilation_patch=1, level_step=2, index1=None, index2=None, order="dy", scale=1.0
):
    """Return the lookup by indexing with whole numbers, one displacement and corner at a time; torch differentiates it."""
    pyramid, five = isinstance(input2, (list, tuple)), coords.dim() == 5
    coords = coords if five else coords.unsqueeze(1)
    input1 = input1 if index1 is None else input1[index1.long()]
    patch, step, level_steps = pair(patch_size), pair(dilation_patch), pair(level_step)
    outputs = []
    for level, image in enumerate(input2 if pyramid else [input2]):
        image = image if index2 is None else image[index2.long()]
        x0, wx = _along(coords[:, :, 0], level_steps[1] ** -level)
        if coords.shape[2] == 2:
            y0, wy = _along(coords[:, :, 1], level_steps[0] ** -level)
        else:
            y0, wy = torch.arange(x0.shape[2])[:, None].expand(x0.shape), [1]
        planes = [
            sum(
                wy[a] * wx[b] * _dots(input1, image, y0 + a + _displacement(step[0], patch[0], m), x0 + b + dx)
                for a, b in product(range(len(wy)), range(2))
            )
            for m in range(patch[0])
            for dx in (_displacement(step[1], patch[1], n) for n in range(patch[1]))
        ]
        outputs.append(torch.stack(planes, 2).unflatten(2, patch))
    out = scale * torch.stack(outputs, 1)  # (E, L, K, PH, PW, H, W)
    out = out if order == "dy" else out.transpose(3, 4)
    out = out if five else out.squeeze(2)
    return out if pyramid else out.squeeze(1)


def _displacement(step, patch, number):
    return step * (number - (patch - 1) // 2)


def _along(coordinate, factor):
    """Return the floor, as whole numbers, and both weights."""
    scaled = coordinate * factor
    low = scaled.floor().detach()
    return low.long(), [1 - (scaled - low), scaled - low]


def _dots(input1, image, rows, columns):
    """Return the dots (E, K, H, W) of pixels with those of an image at these positions, 0 outside."""
    height, width = image.shape[2:]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    place = torch.where(inside, rows * width + columns, 0).flatten(1)
    entries, channels = image.shape[:2]
    features = image.flatten(2).gather(2, place[:, None].expand(entries, channels, -1))
    features = features.unflatten(2, inside.shape[1:])  # (E, C, K, H, W)
    return torch.where(inside, (input1[:, :, None] * features).sum(1), 0)


def tensors_of(case, device="cpu"):
    """Return input1, the levels of input2, coords and the parameters of a case as tensors."""
    x1, x2, coords = case.arrays()
    maps = [tensor(each, device) for each in (x2 if isinstance(x2, list) else [x2])]
    parameters = {name: tensor(value, device) if name.startswith("index") else value for name, value in case.parameters.items()}
    return tensor(x1, device), maps, tensor(coords, device), parameters


def joined(case, maps):
    """Return the maps as the argument input2 of a case."""
    return maps if isinstance(case.shapes2, list) else maps[0]


def answer(case, device="cpu", layout=lambda x: x, **more):
    """Return the output and the gradients of a case, by their names, as arrays; maps were laid out by ``layout``."""
    x1, maps, coords, parameters = tensors_of(case, device)
    inputs = [x.detach().requires_grad_() for x in (layout(x1), *map(layout, maps), coords)]
    out = correlation_lookup(inputs[0], joined(case, inputs[1:-1]), inputs[-1], **parameters, **more)
    assert out.is_contiguous()
    assert (out.dtype, out.device) == (x1.dtype, x1.device)
    gradients = torch.autograd.grad(out, inputs, tensor(case.cotangent(), device))
    assert [g.dtype for g in gradients] == [x.dtype for x in inputs]
    assert all(g.is_contiguous() for g in gradients)
    return dict(zip(names(case), map(array, (out, *gradients)), strict=True))


def names(case):
    """Return the names of the output and of the gradients."""
    return [
        "output",
        "gradient of input1",
        *(f"gradient of level {level}" for level in range(len(case.levels))),
        "gradient of coords",
    ]


def check(case, got):
    """Check what `answer` returned against the oracle."""
    arrays = case.arrays()
    first, second, third = lookup_oracle.vjp(case.cotangent(), *arrays, **case.parameters)
    levels = second if isinstance(case.shapes2, list) else [second]
    wanted = [lookup_oracle.forward(*arrays, **case.parameters), first, *levels, third]
    for (name, result), triple in zip(got.items(), wanted, strict=True):
        accumulator = arrays[0].dtype if name == "gradient of coords" else None
        lookup_oracle.assert_close(result, triple, accumulator, name)
