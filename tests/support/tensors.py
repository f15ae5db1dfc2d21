"""Arrays as tensors and back, bfloat16 included."""

import ml_dtypes
import numpy as np
import torch


def tensor(array, device="cpu"):
    """An array of any dtype of ours as a tensor of its own."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16).to(device)
    return torch.from_numpy(array.copy()).to(device)


def array(value):
    """A tensor's values as an array."""
    value = value.detach().cpu()
    return value.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if value.dtype == torch.bfloat16 else value.numpy()
