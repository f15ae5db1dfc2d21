"""The parameters of the operator have one table: every signature, the module and torch's schemas have its names and defaults."""

import inspect

import numpy as np
import pytest
import torch

import cupycorr
import cupycorr.torch
from cupycorr._correlation.problem import PARAMETERS, parameters
from cupycorr.torch._correlation import Arguments

DEFAULTS = {parameter.name: parameter.default for parameter in PARAMETERS}

SIGNATURES = {
    "arrays": cupycorr.spatial_correlation_sample,
    "arrays, vjp": cupycorr.spatial_correlation_sample_vjp,
    "arrays, explain": cupycorr.explain,
    "torch": cupycorr.torch.spatial_correlation_sample,
    "torch module": cupycorr.torch.SpatialCorrelationSampler,
    "checks": parameters,
}


@pytest.mark.parametrize("function", SIGNATURES.values(), ids=SIGNATURES)
def test_signatures_have_the_names_and_defaults_of_the_table(function):
    found = {name: each.default for name, each in inspect.signature(function).parameters.items() if name in DEFAULTS}
    assert list(found.items()) == list(DEFAULTS.items())


def test_arguments_of_torchs_operators_have_the_names_and_defaults_of_the_table():
    pairs = {name: default and default[0] for name, default in Arguments._field_defaults.items() if name in DEFAULTS}
    assert list(pairs.items()) == list(DEFAULTS.items())
    for operator in (torch.ops.cupycorr.spatial_correlation_sample, torch.ops.cupycorr.spatial_correlation_sample_vjp):
        schema = [(argument.name, argument.default_value) for argument in operator.default._schema.arguments]
        wanted = [(name, None if default is None else [default] * 2) for name, default in DEFAULTS.items()]
        begin = [name for name, _ in schema].index(wanted[0][0])
        assert schema[begin : begin + len(wanted)] == wanted
        assert [name for name, _ in schema[begin:]] == list(Arguments._fields)


@pytest.mark.parametrize("parameter", PARAMETERS, ids=[parameter.name for parameter in PARAMETERS])
def test_the_smallest_legal_value_is_that_of_the_table(parameter):
    x = np.ones((1, 1, 12, 12), np.float32)
    smallest = -3 if parameter.minimum is None else parameter.minimum
    cupycorr.explain(x, x, **{parameter.name: smallest})
    if parameter.minimum is not None:
        with pytest.raises(ValueError, match=f"{parameter.name} must be at least {parameter.minimum}"):
            cupycorr.explain(x, x, **{parameter.name: smallest - 1})
