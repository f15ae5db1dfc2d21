"""Record a call of cupycorr as a CUDA graph, and replay it with new frames. This needs an NVIDIA GPU.

A replay starts all kernels of a call at once, without the time that Python takes for it. It reads and writes the memory that was
recorded, so each new frame is copied there.

    pip install "cupycorr[demo,cuda12]"   # or "cupycorr[demo,cuda13]"
    python cuda_graph.py
"""

import matplotlib.pyplot as plt
import numpy as np
from skimage import filters

import cupycorr

try:
    import cupy
except ImportError:
    cupy = None
if cupy is None or not cupy.is_available():
    print("A CUDA graph needs CuPy and an NVIDIA GPU, and one of them is missing: nothing was computed.")
    raise SystemExit

# A speckle pattern drifts along a circle, by whole pixels from frame to frame.
speckle = filters.gaussian(np.random.default_rng(0).standard_normal((80, 112)), 1, mode="wrap").astype(np.float32)
angles = np.linspace(0, 2 * np.pi, 13)
drift = np.rint(5 * np.stack([1 - np.cos(angles), np.sin(angles)]) - [[5], [0]]).astype(int).T  # dy, dx of each frame
frames = [np.roll(speckle, shift, axis=(0, 1))[None, None] for shift in drift]

search = {"kernel_size": 16, "patch_size": 13, "stride": 16}
found, equal = [], []
with cupy.cuda.Stream(non_blocking=True) as stream:
    reference, frame = cupy.asarray(speckle[None, None]), cupy.asarray(frames[0])
    cupycorr.spatial_correlation_sample(reference, frame, **search)  # compiles the kernels, which a recording cannot do
    stream.begin_capture()
    volume = cupycorr.spatial_correlation_sample(reference, frame, **search)  # is recorded, and does not run yet
    graph = stream.end_capture()
    for each in frames:
        frame.set(each)
        graph.launch(stream)
        best = cupycorr.argmax_displacement(volume)
        found.append([best.dy[0].get(), best.dx[0].get()])
        equal.append(bool((volume == cupycorr.spatial_correlation_sample(reference, frame, **search)).all()))
medians = np.median(found, axis=(2, 3))
right = (medians == drift).all(axis=1)
print(f"{sum(equal)} of {len(frames)} replays equal a call, {right.sum()} medians equal the true displacement")

figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", width_ratios=(4, 3))
panels[0].imshow(frames[3][0, 0], cmap="gray")
x, y = (16 * np.arange(size) + 7.5 for size in found[3][0].shape[::-1])
panels[0].quiver(x, y, found[3][1], found[3][0], color="tab:red", angles="xy", scale_units="xy", scale=1)
panels[0].set(title="fourth frame, displacement of each window", xlabel="x (px)", ylabel="y (px)")
panels[1].plot(drift[:, 1], drift[:, 0], "o", color="0.7", markersize=14, label="true")
panels[1].plot(medians[:, 1], medians[:, 0], ".-", color="tab:red", label="by replays of the graph")
panels[1].set(title="drift of the frames", xlabel="dx (px)", ylabel="dy (px)", ylim=(6, -6), aspect="equal")
panels[1].legend(loc="center")
figure.savefig("cuda_graph.png")
