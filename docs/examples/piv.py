"""Measure the velocity field of a real experiment in two passes, and test every vector: particle image velocimetry (PIV).

The two frames come with OpenPIV. Windows of 32 pixels find a coarse field, at which windows of 16 pixels begin their search.

    pip install "cupycorr[demo]" openpiv
    python piv.py
"""

from importlib.resources import files

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import cupycorr

folder = files("openpiv") / "data" / "test1"
frame1, frame2 = (np.asarray(Image.open(folder / f"exp1_001_{name}.bmp")) for name in "ab")  # (369, 511), uint8

# A vector is trusted if its peak is 1.2 times as high as the next one, and if it agrees with its neighbours.
tests = {"min_peak_ratio": 1.2, "max_median_residual": 2}
coarse = cupycorr.match(frame1, frame2, window=32, search=((-12, 12), (-12, 12)), step=8)
good = coarse.valid(**tests)
print(f"windows of 32 px: {good.mean():.1%} of {good.size} vectors are trusted")

# Where a vector is not, the second pass begins at the median of all others. Its windows have the same centres, because the
# first one begins 8 pixels inside the frame.
offset = [np.rint(np.where(good, values, np.median(values[good]))) for values in (coarse.dy, coarse.dx)]
inside = np.s_[8:-8, 8:-8]
fine = cupycorr.match(frame1[inside], frame2[inside], window=16, search=((-3, 3), (-3, 3)), step=8, offset=offset)
good = fine.valid(**tests)
print(f"windows of 16 px: {good.mean():.1%} of {good.size} vectors are trusted")
mean_x, mean_y = fine.dx[good].mean(), fine.dy[good].mean()
print(f"mean displacement of these: dx={mean_x:.2f} px, dy={mean_y:.2f} px")

x, y = np.meshgrid(fine.x + 8, fine.y + 8)
some = np.zeros_like(good)
some[1::2, ::2] = good[1::2, ::2]
dx, dy = fine.dx[some], fine.dy[some]
figure, panels = plt.subplots(1, 2, figsize=(10, 3.7), dpi=80, layout="constrained", sharey=True)
panels[0].imshow(frame1, cmap="gray_r", vmax=900)
panels[0].plot(x[~good], y[~good], "r.", markersize=4)
style = {"angles": "xy", "scale_units": "xy", "width": 0.003}
arrows = panels[0].quiver(x[some], y[some], dx, dy, np.hypot(dx, dy), scale=0.5, cmap="viridis_r", **style)
figure.colorbar(arrows, ax=panels[0], label="displacement (px)")
panels[0].set(title="displacement, twice as long; red: not trusted", xlabel="x (px)", ylabel="y (px)")
image = panels[1].pcolormesh(x, y, np.where(good, fine.dy, np.nan), cmap="cividis", clim=(4, 7))
panels[1].quiver(x[some], y[some], dx - mean_x, dy - mean_y, scale=0.1, color="white", **style)
figure.colorbar(image, ax=panels[1], label="dy (px)")
panels[1].set(title="differences from the mean, 10 times as long", xlabel="x (px)", aspect="equal", facecolor="0.8")
figure.savefig("piv.png")
