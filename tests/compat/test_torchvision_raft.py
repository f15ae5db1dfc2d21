"""torchvision's RAFT, unmodified, predicts the same flow with our block as with its own, and trains the same."""

import importlib

import pytest

torch = pytest.importorskip("torch")

from benchmarks.lookup_rivals import torchvision_raft  # noqa: E402
from cupycorr.compat.torchvision import CorrBlock  # noqa: E402


@pytest.fixture(scope="module")
def raft():
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    return torchvision_raft()


# Model -> the radius of its block.
RADII = {"raft_small": 3, "raft_large": 4}
models = pytest.mark.parametrize("name", ["raft_small", pytest.param("raft_large", marks=pytest.mark.slow)])


def both(raft, name, seed=0):
    """Return the model with torchvision's block and with ours, with the same random weights."""
    torch.manual_seed(seed)
    theirs = getattr(raft, name)().eval()
    ours = getattr(raft, name)(corr_block=CorrBlock(radius=RADII[name])).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def frames(height, width, seed=0, dtype=torch.float32):
    return 2 * torch.rand(2, 1, 3, height, width, generator=torch.Generator().manual_seed(seed), dtype=dtype) - 1


@pytest.mark.parametrize(
    ("name", "updates"), [("raft_small", 2), *(pytest.param(name, 12, marks=pytest.mark.slow) for name in RADII)]
)
def test_the_flow_of_every_update_is_that_of_its_own_block(raft, name, updates):
    theirs, ours = both(raft, name)
    with torch.no_grad():
        wanted, found = (model(*frames(128, 128), num_flow_updates=updates) for model in (theirs, ours))
    assert max(abs(flow).max() for flow in wanted) > 1  # pixel
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


def encoder_gradient(model, images, cotangents):
    """Return the gradients of all weights of the feature encoder, one after the other."""
    model.zero_grad()
    torch.autograd.backward(model(*images, num_flow_updates=len(cotangents)), cotangents)
    return torch.cat([weight.grad.flatten() for weight in model.feature_encoder.parameters()])


@pytest.mark.slow
@pytest.mark.parametrize("name", RADII)
def test_in_float64_the_gradient_of_the_encoder_is_that_of_its_own_block(raft, name, monkeypatch):
    """In float32, an activation near a kink of a ReLU may fall on either side, which changes all gradients in the third digit."""
    in_float32 = raft.make_coords_grid
    monkeypatch.setattr(raft, "make_coords_grid", lambda *sizes: in_float32(*sizes).double())
    images, cotangents = frames(128, 128, dtype=torch.float64), list(torch.randn(2, 1, 2, 128, 128, dtype=torch.float64))
    want, got = (encoder_gradient(model.double(), images, cotangents) for model in both(raft, name))
    assert (got - want).norm() < 1e-6 * want.norm()  # it divides by the square root of C in float32


@pytest.mark.slow
@pytest.mark.parametrize("name", RADII)
def test_in_float32_the_gradient_of_the_encoder_is_within_its_rounding(raft, name):
    """The median of several weights is not of one whose activations fall on the other side of a kink."""
    errors = []
    for seed in range(5):
        images, cotangents = frames(128, 128, seed), [torch.randn(1, 2, 128, 128)]
        want, got = (encoder_gradient(model, images, cotangents) for model in both(raft, name, seed))
        errors.append((got - want).norm() / want.norm())
    assert torch.stack(errors).median() < 1e-5


@models
def test_maps_that_its_own_block_refuses_have_a_finite_flow(raft, name):
    theirs, ours = both(raft, name)
    images = frames(120, 128)  # maps of 15 x 16 pixels
    with torch.no_grad():
        with pytest.raises(ValueError, match="too small"):
            theirs(*images)
        assert all(flow.isfinite().all() for flow in ours(*images, num_flow_updates=2))
