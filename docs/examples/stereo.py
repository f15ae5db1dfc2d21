"""Match a rectified stereo pair, check it from right to left, and compare the disparity with the ground truth.

The pair is Middlebury's motorcycle, which comes with scikit-image. A pixel at x in the left picture is at x - disparity in the
right one, so the search is one row of displacements to the left.

    pip install "cupycorr[demo]"
    python stereo.py
"""

import matplotlib.pyplot as plt
import numpy as np
from skimage import data

import cupycorr

left, right, truth = data.stereo_motorcycle()  # (500, 741, 3) twice, and disparities; infinite where there is none
field = cupycorr.match(left, right, window=11, search=((0, 0), (-64, 0)), consistency=True)
disparity = -field.dx

# Windows lie within the picture. Their centres are these rows and columns of the left picture.
rows, columns = field.y.astype(int), field.x.astype(int)
truth = np.where(np.isfinite(truth), truth, np.nan)[np.ix_(rows, columns)]
error = np.abs(disparity - truth)

# The match back from the right picture must lead to within a pixel of where it began. In occluded regions it does not.
consistent = field.valid(consistency=1, allow_edge=True)
known = np.isfinite(truth)
for name, counted in (("all pixels", known), ("consistent pixels", known & consistent)):
    bad = 1 - (error[counted] <= 2).mean()  # a pixel without a match counts as bad
    share, median = counted.sum() / known.sum(), np.nanmedian(error[counted])
    print(f"{name} ({share:.0%}): median error {median:.2f} px, {bad:.1%} off by more than 2 px")

figure, panels = plt.subplots(2, 2, figsize=(7.2, 4.8), dpi=78, layout="constrained", sharex=True, sharey=True)
extent = (columns[0], columns[-1], rows[-1], rows[0])
panels[0, 0].imshow(left[rows[0] : rows[-1], columns[0] : columns[-1]].mean(axis=2), cmap="gray", extent=extent)
panels[0, 0].set_title("left picture")
shown = {
    (0, 1): ("ground truth", truth, "viridis", 60),
    (1, 0): ("consistent disparities", np.where(consistent, disparity, np.nan), "viridis", 60),
    (1, 1): ("error where consistent", np.where(consistent, error, np.nan), "magma", 4),
}
for place, (title, values, colours, largest) in shown.items():
    panels[place].set(title=title, facecolor="0.75")
    image = panels[place].imshow(values, cmap=colours, vmin=0, vmax=largest, extent=extent, interpolation="nearest")
    if place != (1, 0):
        figure.colorbar(image, ax=panels[place], label="px", shrink=0.85)
figure.supxlabel("x (px)")
figure.supylabel("y (px)")
figure.savefig("stereo.png", pil_kwargs={"optimize": True})
