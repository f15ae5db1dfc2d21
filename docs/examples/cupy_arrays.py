"""Find how a picture moves that is turned by 3 degrees: with CuPy on a GPU, with NumPy elsewhere. torch is not needed.

Only the line that begins with ``xp =`` chooses between the two. Arrays of CuPy stay on their GPU, and so do the results.

    pip install "cupycorr[demo]"   # for a GPU "cupycorr[demo,cuda12]" or "cupycorr[demo,cuda13]"
    python cupy_arrays.py
"""

import matplotlib.pyplot as plt
import numpy as np
from skimage import data, transform

import cupycorr

try:
    import cupy
except ImportError:
    cupy = None

xp = cupy if cupy is not None and cupy.is_available() else np


def features(frame):
    """Return the 9 x 9 pixels around each pixel as channels with mean 0 and length 1: (1, 81, H, W)."""
    windows = xp.lib.stride_tricks.sliding_window_view(frame, (9, 9))
    channels = windows.reshape(*windows.shape[:2], 81).transpose(2, 0, 1)
    channels = channels - channels.mean(axis=0)
    return (channels / xp.linalg.norm(channels, axis=0))[None]


frame = data.gravel()[:121, :177].astype(np.float32)
turned = transform.rotate(frame, angle=-3, mode="reflect", preserve_range=True).astype(np.float32)
features1, features2 = features(xp.asarray(frame)), features(xp.asarray(turned))

# Products of such features are correlation coefficients. Every 8 pixels, compare 15 x 15 displacements.
search = {"patch_size": 15, "stride": 8}
volume = cupycorr.spatial_correlation_sample(features1, features2, **search)  # (1, dy, dx, H / 8, W / 8)
best = cupycorr.correlation_argmax(features1, features2, **search, subpixel=True)  # needs no volume
scores, dy, dx = (array[0] if xp is np else array[0].get() for array in (volume, best.dy, best.dx))

# A rotation about the centre moves the pixel at (y, x) from there by these displacements.
rows, columns = 8 * np.arange(dy.shape[0]), 8 * np.arange(dy.shape[1])
y, x = rows[:, None] - (frame.shape[0] - 9) / 2, columns - (frame.shape[1] - 9) / 2
sine, cosine = np.sin(np.radians(3)), np.cos(np.radians(3))
error = np.hypot(dy - (x * sine + y * (cosine - 1)), dx - (x * (cosine - 1) - y * sine))
print(f"{xp.__name__}: median error {np.median(error):.3f} px of displacements up to {np.hypot(dy, dx).max():.1f} px")

figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", width_ratios=(3, 2))
panels[0].imshow(frame, cmap="gray", vmin=-300, vmax=255)
arrows = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.004, "cmap": "plasma", "clim": (0, 1)}
field = panels[0].quiver(columns + 4, rows + 4, dx, dy, error, **arrows)
panels[0].set(title="displacement of every eighth pixel", xlabel="x (px)", ylabel="y (px)")
figure.colorbar(field, ax=panels[0], label="error (px)", extend="max", shrink=0.85)
image = panels[1].imshow(scores[:, :, 2, -4], extent=(-7.5, 7.5, 7.5, -7.5))
panels[1].set(title=f"scores at x={columns[-4] + 4}, y={rows[2] + 4}", xlabel="dx (px)", ylabel="dy (px)")
figure.colorbar(image, ax=panels[1], label="correlation coefficient", shrink=0.85)
figure.savefig("cupy_arrays.png")
