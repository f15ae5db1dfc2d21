"""NVRTC, which needs no GPU: without it a test that needs it is skipped, or fails where CUPYCORR_REQUIRE_NVRTC is set."""

import os

import pytest


def missing():
    """Return the reason why there is no NVRTC, or None."""
    try:
        import cupy

        cupy.cuda.nvrtc.getVersion()
    except (ImportError, RuntimeError) as error:
        return f"NVRTC cannot be loaded: {error}"
    return None


def architectures():
    """Return the architectures from sm_70 on that the installed NVRTC compiles for; none where there is no NVRTC."""
    if missing():
        return []
    import cupy

    return [f"sm_{number}" for number in cupy.cuda.nvrtc.getSupportedArchs() if number >= 70]


needed = pytest.mark.skipif(missing() is not None and "CUPYCORR_REQUIRE_NVRTC" not in os.environ, reason=str(missing()))
