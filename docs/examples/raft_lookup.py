"""Give torchvision's RAFT the lookup of cupycorr by one argument: the same flow, with less memory and time.

The weights are random, so that nothing is downloaded. Such a flow means nothing, but both models must compute the same one. For
real flow, pass ``weights=Raft_Small_Weights.DEFAULT`` to both.

    pip install "cupycorr[demo,cpu,torch]" torchvision
    python raft_lookup.py
"""

import statistics
import time

import matplotlib.pyplot as plt
import torch
from skimage import data
from torchvision.models.optical_flow import raft, raft_small

from cupycorr.compat.torchvision import CorrBlock
from cupycorr.torch import CorrBlock as Maps

torch.manual_seed(0)
theirs, ours = raft_small().eval(), raft_small(corr_block=CorrBlock(radius=3)).eval()
ours.load_state_dict(theirs.state_dict())
pair = [torch.tensor(frame[:496, :736]).movedim(2, 0)[None] / 127.5 - 1 for frame in data.stereo_motorcycle()[:2]]


def seconds(block, features, places):
    """Return the time to make a block of a pair of feature maps, and to look up windows around all places."""
    start = time.perf_counter()
    block.build_pyramid(*features)
    for each in places:
        block.index_pyramid(each)
    return time.perf_counter() - start


sizes, memory, times = ((128, 192), (256, 384), (384, 576), (496, 736)), [], []
with torch.inference_mode():
    flow1, flow2 = (model(*pair, num_flow_updates=2)[-1] for model in (theirs, ours))
    print(f"flows of up to {flow1.abs().max():.0f} px differ by at most {(flow1 - flow2).abs().max():.1g} px")
    for height, width in sizes:
        features = [theirs.feature_encoder(frame[:, :, :height, :width]) for frame in pair]
        places = raft.make_coords_grid(1, height // 8, width // 8) + torch.randn(12, 1, 2, 1, 1).cumsum(0)
        blocks = raft.CorrBlock(radius=3), CorrBlock(radius=3)
        rounds = [[seconds(block, features, places) for block in blocks] for _ in range(3)]
        times.append([statistics.median(each) for each in zip(*rounds, strict=True)])
        kept = sum(level.nbytes for level in blocks[0].corr_pyramid), Maps(*features, 4, 3).kept_bytes
        memory.append([size / 2**20 for size in kept])
for name, (volumes, lookups), unit in (("memory", memory[-1], "MiB"), ("time", times[-1], "s")):
    print(f"{name} at 496 x 736 px: {volumes:.3g} {unit} by torchvision, {lookups:.3g} {unit} by cupycorr")

figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
drawn = ("memory of a block", memory, "MiB"), ("time of a block and 12 lookups", times, "s")
for panel, (title, values, unit) in zip(panels, drawn, strict=True):
    panel.semilogy([height * width / 1e3 for height, width in sizes], values, "o-", label=("torchvision", "cupycorr"))
    panel.set(title=title, xlabel="thousand pixels of a frame", ylabel=unit, xlim=0)
    panel.legend(loc="lower right")
figure.savefig("raft_lookup.png")
