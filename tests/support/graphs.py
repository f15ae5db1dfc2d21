"""Compiled graphs of torch: how tests make them, and what they compare."""

import pytest
import torch


def through_inductor(test):
    """Ignore warnings about old parts of torch that Inductor and packaging use."""
    for warning in ("`torch.jit.script:DeprecationWarning", "`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"):
        test = pytest.mark.filterwarnings(f"ignore:{warning}")(test)
    return test


def compiled(f, **options):
    return torch.compile(f, fullgraph=True, **{"backend": "aot_eager", **options})


def equal(got, want):
    assert len(got) == len(want)
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one, other)


class Counted:
    """A backend that counts the graphs that it compiles."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, module, inputs):
        self.graphs += 1
        return torch._dynamo.lookup_backend("aot_eager")(module, inputs)
