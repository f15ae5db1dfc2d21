"""NVRTC, which needs no GPU: where it is missing a test that needs it is skipped, unless CUPYCORR_REQUIRE_NVRTC is set."""

import os

import pytest


def missing():
    """Why there is no NVRTC, or None."""
    try:
        import cupy

        cupy.cuda.nvrtc.getVersion()
    except (ImportError, RuntimeError) as error:
        return f"NVRTC cannot be loaded: {error}"
    return None


def architectures():
    """What the installed NVRTC compiles for, from sm_70 on; nothing where there is none."""
    if missing():
        return []
    import cupy

    return [f"sm_{number}" for number in cupy.cuda.nvrtc.getSupportedArchs() if number >= 70]


needed = pytest.mark.skipif(missing() is not None and "CUPYCORR_REQUIRE_NVRTC" not in os.environ, reason=str(missing()))
