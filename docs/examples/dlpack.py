"""Pass the memory of another library to cupycorr through DLPack, and the results back, without a copy.

The library is torch here, which enlarges a frame. NumPy sees the memory of both frames (on a GPU, CuPy does), cupycorr finds the
displacements, and torch undoes them. Where the memory is on a GPU, arrays of libraries such as JAX can be passed to cupycorr as
they are, and the results are arrays of CuPy. Only tensors of torch are refused, because they have functions of their own, with
gradients, in cupycorr.torch.

    pip install "cupycorr[demo,cpu,torch]"
    python dlpack.py
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from skimage import data
from torch.nn.functional import grid_sample

import cupycorr

if torch.cuda.is_available():
    import cupy as xp
else:
    xp = np


def sampled(frame, x, y):
    """Return the values of a frame at the places (x, y), by torch's bilinear interpolation."""
    height, width = frame.shape
    grid = torch.stack((2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1), dim=-1)
    return grid_sample(frame[None, None], grid[None], padding_mode="border", align_corners=True)[0, 0]


# Enlarge the frame by 5 % about its centre. A point there moves by 5 % of its distance from the centre.
device = "cuda" if torch.cuda.is_available() else "cpu"
frame1 = torch.tensor(data.gravel()[:151, :221], dtype=torch.float64, device=device)
offsets = (torch.arange(size, dtype=torch.float64, device=device) - (size - 1) / 2 for size in frame1.shape)
y, x = torch.meshgrid(*offsets, indexing="ij")
frame2 = sampled(frame1, x / 1.05 + 110, y / 1.05 + 75)

view1, view2 = xp.from_dlpack(frame1), xp.from_dlpack(frame2)
field = cupycorr.match(view1, view2, window=15, search=((-5, 5), (-7, 7)))
dx, dy = torch.from_dlpack(field.dx), torch.from_dlpack(field.dy)
same = [torch.from_dlpack(array).data_ptr() == tensor.data_ptr() for array, tensor in ((view1, frame1), (field.dx, dx))]

inside = np.s_[7:-7, 7:-7]  # the centres of windows that are in the frame
undone = sampled(frame2, x[inside] + 110 + dx, y[inside] + 75 + dy)
error = torch.hypot(dx - 0.05 * x[inside], dy - 0.05 * y[inside]).median()
before, after = abs(frame2 - frame1)[inside], abs(undone - frame1[inside])
print(f"{xp.__name__}: the memory is {'the same' if all(same) else 'another'}, median error {error:.3f} px")
print(f"median difference of the frames {before.median():.1f} grey levels, with the motion undone {after.median():.1f}")

figure, panels = plt.subplots(1, 3, figsize=(10, 2.4), dpi=80, layout="constrained", sharex=True, sharey=True)
titles = "displacement (px)", "difference (grey levels)", "motion undone (grey levels)"
for panel, title, values, most in zip(panels, titles, (torch.hypot(dx, dy), before, after), (6, 100, 100), strict=True):
    image = panel.imshow(values.cpu(), vmin=0, vmax=most, extent=(7, 214, 144, 7))
    panel.set_title(title, fontsize="medium")
    figure.colorbar(image, ax=panel, shrink=0.9)
figure.supxlabel("x (px)", fontsize="medium")
figure.supylabel("y (px)", fontsize="medium")
figure.savefig("dlpack.png")
