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


DENSE = torch.rand(1, 2, 3, 4)
# Each: makes the tensor, and what the error says of an argument of that name.
NOT_DENSE = {
    "sparse": (lambda: DENSE.to_sparse(), "got {}.layout=torch.sparse_coo: pass {}.to_dense()"),
    "sparse rows": (lambda: DENSE[0, 0].to_sparse_csr(), "got {}.layout=torch.sparse_csr: pass {}.to_dense()"),
    "mkldnn": (lambda: DENSE.to_mkldnn(), "got {}.layout=torch._mkldnn: pass {}.to_dense()"),
    "quantized": (lambda: torch.quantize_per_tensor(DENSE, 0.1, 0, torch.quint8), "got {}.dtype=quint8: pass {}.dequantize()"),
    "nested": (lambda: torch.nested.nested_tensor([DENSE[0], DENSE[0]]), "{} must be a dense tensor, got a nested one"),
    "jagged": (
        lambda: torch.nested.nested_tensor([DENSE[0], DENSE[0]], layout=torch.jagged),
        "{} must be a dense tensor, got a nested one",
    ),
}
