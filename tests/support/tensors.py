"""Conversions of NumPy arrays to tensors and back, with bfloat16."""

import ml_dtypes
import numpy as np
import torch


def tensor(array, device="cpu"):
    """Return a copy of an array of any dtype as a tensor."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16).to(device)
    return torch.from_numpy(array.copy()).to(device)


def array(value):
    """Return the values of a tensor as an array."""
    value = value.detach().cpu()
    return value.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if value.dtype == torch.bfloat16 else value.numpy()
