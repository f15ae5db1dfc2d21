"""Train a network with a correlation layer to measure the shift between two pictures of gravel, and test it on grass.

It computes features of both pictures, compares them in the layer, and reads the shift (dx, dy) in pixels from the scores.

    pip install "cupycorr[demo,cpu,torch]"
    python train_torch.py
"""

import matplotlib.pyplot as plt
import torch
from skimage import data
from torch import nn
from torch.nn.functional import grid_sample, l1_loss, normalize

from cupycorr.torch import SpatialCorrelationSampler


class ShiftNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3))
        self.correlation = SpatialCorrelationSampler(kernel_size=1, patch_size=11)
        self.shift = nn.Sequential(nn.Conv2d(1, 32, 5), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 7 * 7, 2))

    def forward(self, picture1, picture2):  # (B, 1, H, W) each
        scores = self.correlation(normalize(self.features(picture1)), normalize(self.features(picture2)))
        return self.shift(scores.mean(dim=(3, 4))[:, None])  # (B, 11, 11, H, W) -> (B, 1, 11, 11) -> (B, 2)


def pairs(photograph, count):
    """Return pairs of pictures of 24 x 24 pixels, and the shifts of up to 4 pixels from the first to the second."""
    pixels = (torch.from_numpy(photograph[:256, :256]).float() - 128) / 64
    shifts, corners = 8 * torch.rand(count, 2) - 4, 4 + 224 * torch.rand(count, 2)
    inside = torch.stack(torch.meshgrid(torch.arange(24), torch.arange(24), indexing="xy"), dim=2)
    places = (inside + corner[:, None, None] for corner in (corners, corners - shifts))
    return *(grid_sample(pixels.expand(count, 1, -1, -1), 2 / 255 * at - 1, align_corners=True) for at in places), shifts


torch.manual_seed(0)
gravel, net, losses = data.gravel(), ShiftNet(), []
optimizer = torch.optim.Adam(net.parameters(), lr=6e-3)
for _ in range(200):
    picture1, picture2, shifts = pairs(gravel, count=16)
    loss = l1_loss(net(picture1, picture2), shifts)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
picture1, picture2, shifts = pairs(data.grass(), count=200)
predicted = net(picture1, picture2).detach()
print(
    f"gravel: mean error {sum(losses[-20:]) / 20:.2f} px; grass: median error {(predicted - shifts).norm(dim=1).median():.2f} px"
)
figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", width_ratios=(4, 3))
panels[0].plot(losses)
panels[0].set(title="training on gravel", xlabel="step", ylabel="mean error (px)", ylim=0)
panels[1].plot(shifts, predicted, ".", label=("dx", "dy"))
panels[1].set(title="test on grass", xlabel="true shift (px)", ylabel="predicted shift (px)", ylim=(-6, 6), aspect="equal")
panels[1].legend()
figure.savefig("train_torch.png")
