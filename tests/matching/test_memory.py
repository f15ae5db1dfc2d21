"""No call allocates more than its results and the smaller of 64 MiB and half of the volume, however many threads there are."""

import numpy as np
import pytest
from cases import DTYPES, same
from memory import MEBIBYTE, WORKSPACE, peak

from cupycorr import correlation_argmax, correlation_soft_argmax
from cupycorr._cpu import workers

DEMANDS = {
    "FlowNetC": same((4, 256, 48, 64), patch_size=21, dilation_patch=2),
    "PWC-Net": same((1, 32, 96, 256), patch_size=9),
    "stereo": same((1, 32, 500, 741), patch_size=(1, 64), patch_offset=(0, -32)),
    "float64": same((1, 64, 96, 128), "float64", patch_size=9),
    "bfloat16": same((2, 64, 80, 120), "bfloat16", patch_size=9),
    "PIV windows": same((1, 1, 369, 511), kernel_size=32, patch_size=25, stride=4),
    "passes of channels": same((1, 4096, 24, 40), patch_size=(9, 40)),
    "search wholly outside": same((1, 4, 300, 400), patch_size=9, patch_offset=1000),
}
QUICK = ("PWC-Net", "float64")
CALLS = {
    "argmax": correlation_argmax,
    "argmax, excluded": lambda *given, **more: correlation_argmax(*given, **more, outside="excluded"),
    "subpixel": lambda *given, **more: correlation_argmax(*given, **more, subpixel=True),
    "soft argmax": correlation_soft_argmax,
}


@pytest.mark.parametrize("threads", [2, pytest.param(16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    "case",
    [pytest.param(each, id=name, marks=() if name in QUICK else pytest.mark.slow) for name, each in DEMANDS.items()],
)
def test_a_call_allocates_its_results_and_half_of_a_volume_at_most(case, call, threads):
    if call is CALLS["subpixel"] and case.problem().windowed:
        pytest.skip("subpixel is for windows of one pixel")
    rng = np.random.default_rng(0)
    x1, x2 = (rng.random(case.shape1, np.float32).astype(DTYPES[case.dtype]) for _ in range(2))
    volume = int(np.prod(case.out_shape(), dtype=np.int64)) * (8 if case.dtype == "float64" else 4)
    with workers.team_of(threads):
        call(x1, x2, **case.parameters)  # plans and kernels, which later calls use again, do not count
        found, used = peak(lambda: call(x1, x2, **case.parameters))
    around = 4 * found[0].nbytes if call is CALLS["subpixel"] else 0  # the scores around the best ones, as the pages say
    beyond = used - sum(array.nbytes for array in found) - around
    allowed = WORKSPACE if threads > 2 or case.problem().windowed or case.shape1[1] > 1000 else min(WORKSPACE, volume // 2)
    assert beyond <= allowed, f"{beyond / MEBIBYTE:.2f} MiB at once beyond the results, {allowed / MEBIBYTE:.2f} MiB are allowed"


@pytest.mark.slow
def test_stereo_of_4k_takes_less_than_a_gibibyte_beyond_its_inputs():
    rng = np.random.default_rng(0)
    x1, x2 = (rng.random((1, 32, 2160, 3840), np.float32) for _ in range(2))
    for call in (correlation_argmax, correlation_soft_argmax):
        _, used = peak(lambda call=call: call(x1, x2, patch_size=(1, 256), patch_offset=(0, -128)))
        assert used < 1024 * MEBIBYTE
