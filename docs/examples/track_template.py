"""Track a template through frames whose brightness changes, and compare its path with the true one.

A camera looks at a part of a photograph and moves along a known path, by fractions of a pixel. Every frame has noise and its own
brightness and contrast. The template is cut out of the first frame, and each search begins where it was found last.

    pip install "cupycorr[demo]"
    python track_template.py
"""

import matplotlib.pyplot as plt
import numpy as np
from skimage import data, transform

import cupycorr

photograph = data.camera().astype(float)
rng = np.random.default_rng(0)
time = np.linspace(0, 2 * np.pi, 80)
path_x, path_y = 60 * np.sin(time), 40 * np.sin(2 * time)  # how far the scene has moved in the frames, in pixels


def frame_at(moment):
    """Return a frame of 240 x 320 pixels, uint8, with noise, brightness and contrast of its own."""
    camera = transform.AffineTransform(translation=(130 - path_x[moment], 60 - path_y[moment]))
    view = transform.warp(photograph, camera, output_shape=(240, 320), order=3)
    view = view * rng.uniform(0.5, 0.9) + rng.uniform(0, 30) + rng.normal(0, 8, view.shape)
    return view.clip(0, 255).astype(np.uint8)


top, left, height, width = 65, 75, 40, 40  # the head of the photographer
frames = [frame_at(moment) for moment in range(len(time))]
template = frames[0][top : top + height, left : left + width]
centre = [((height - 1) / 2, (width - 1) / 2)]

found, last = [], (top, left)
for frame in frames:
    # The template is the first frame of the match, so that the displacement is the place of its first pixel.
    match = cupycorr.match(template, frame, (height, width), ((-10, 10), (-10, 10)), points=centre, offset=last)
    found.append((match.dy[0], match.dx[0], match.score[0]))
    last = tuple(np.rint(found[-1][:2]).astype(int))

y, x, score = np.transpose(found)
error = np.hypot(y - top - path_y, x - left - path_x)
print(
    f"{len(frames)} frames: median error {np.median(error):.3f} px, largest {error.max():.3f} px, scores from {score.min():.2f}"
)

figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), dpi=90, layout="constrained", width_ratios=(4, 3))
panels[0].imshow(frame, cmap="gray")
panels[0].plot(left + path_x + 19.5, top + path_y + 19.5, color="white", linewidth=4, label="true path")
panels[0].plot(x + 19.5, y + 19.5, color="tab:red", linewidth=1.5, label="tracked path")
panels[0].add_patch(plt.Rectangle((left, top), width, height, fill=False, edgecolor="tab:orange", linewidth=2))
panels[0].set(title="last frame, template and paths", xlabel="x (px)", ylabel="y (px)")
panels[0].legend(loc="lower right", facecolor="0.6")
panels[1].plot(error, color="tab:red")
panels[1].set(title="distance from the true path", xlabel="frame", ylabel="error (px)", ylim=0)
figure.savefig("track_template.png")
