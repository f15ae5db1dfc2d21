"""ptlflow's models with ``alternate_corr=True`` run on our alt_cuda_corr, and predict the flow of ``alternate_corr=False``."""

import importlib

import pytest

torch = pytest.importorskip("torch")

from benchmarks.lookup_rivals import torchvision_raft  # noqa: E402
from cupycorr.compat import installed  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ptlflow") is None, reason="ptlflow is not installed"),
    pytest.mark.filterwarnings("ignore"),  # of its packages
]


@pytest.fixture(scope="module")
def ptlflow():
    """The package, imported while alt_cuda_corr is our adapter: its models import the module when they are imported."""
    torchvision_raft()
    with installed("alt_cuda_corr", force=True):
        yield importlib.import_module("ptlflow")


# Model -> the module that calls alt_cuda_corr.
MODELS = {"raft": "raft", "raft_small": "raft", "gma": "gma", "sea_raft_s": "sea_raft", "skflow": "skflow"}


def made(ptlflow, name, alternate):
    """Return a model with random weights, as ptlflow makes it."""
    parser = importlib.import_module("jsonargparse").ArgumentParser()
    parser.add_class_arguments(ptlflow.get_model_reference(name), "model")
    return ptlflow.get_model(name, args=parser.parse_args([f"--model.alternate_corr={alternate}", "--model.iters=6"])).eval()


@pytest.mark.parametrize("name", MODELS)
def test_a_model_predicts_the_flow_that_it_predicts_without_alternate_corr(ptlflow, name, monkeypatch):
    corr = importlib.import_module(f"ptlflow.models.{MODELS[name]}.corr")
    forward, calls = corr.alt_cuda_corr.forward, []
    assert forward.__module__ == "cupycorr.compat.alt_cuda_corr"
    monkeypatch.setattr(corr.alt_cuda_corr, "forward", lambda *given: calls.append(given) or forward(*given))
    torch.manual_seed(0)
    images = torch.rand(1, 2, 3, 128, 128)
    theirs, ours = (made(ptlflow, name, alternate) for alternate in ("false", "true"))
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        want, got = (each({"images": images})["flows"] for each in (theirs, ours))
    assert calls
    assert abs(want).max() > 0.1  # pixels
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
