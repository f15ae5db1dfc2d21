"""The docstrings of all public objects are numpydoc's, by numpydoc's own validation."""

import importlib
import inspect

import pytest

validate = pytest.importorskip("numpydoc.validate").validate
pytest.importorskip("torch")
pytest.importorskip("dask")

MODULES = ("cupycorr", "cupycorr.compat", "cupycorr.dask", "cupycorr.torch", "cupycorr.variants")
# The checks that do not fit, and why.
OFF = {
    "ES01": "a summary of one line may say everything",
    "PR08": "a description may begin with a dtype or with the formula's letter, such as float16 or k",
}
OFF_FOR_MEMBERS = OFF | {
    "EX01": "the example is that of the class",
    "RT01": "the summary of a property says what it is",
    "SA01": "the class refers to other objects",
}
OFF_FOR_RESULTS = OFF | {"PR01": "only the package makes these objects, whose fields are attributes"}
RESULTS = {
    "cupycorr.BestDisplacement",
    "cupycorr.Displacement",
    "cupycorr.Match",
    "cupycorr.MeanDisplacement",
    "cupycorr.variants.Finding",
    "cupycorr.variants.Problem",
    "cupycorr.variants.Report",
}


def public():
    """Return the checks that are switched off of each public object and of its public members, by their full names."""
    found = {}
    for module in map(importlib.import_module, MODULES):
        for name in module.__all__:
            full = f"{module.__name__}.{name}"
            found[full] = OFF_FOR_RESULTS if full in RESULTS else OFF
            members = vars(getattr(module, name)).items() if inspect.isclass(getattr(module, name)) else ()
            for member, value in members:
                if not member.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
                    found[f"{full}.{member}"] = OFF_FOR_MEMBERS
    return found


PUBLIC = public()


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_docstring_is_valid(name):
    wrong = [(code, text) for code, text in validate(name)["errors"] if code not in PUBLIC[name]]
    assert not wrong
