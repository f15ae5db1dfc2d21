"""CuPy's current stream, and its capture by a CUDA graph."""

from __future__ import annotations

from .device import import_cupy

# The status in errors of CUDA's runtime and driver that come of a capture, and the remedy for each.
_CAPTURE_IMPLICIT = 906  # the default stream would have to wait for a capture
_CAPTURE_UNSUPPORTED = 900  # the operation is not permitted while a stream is being captured
_REMEDIES = {
    _CAPTURE_IMPLICIT: (
        "the default stream waits for all blocking streams, and one of them is being captured: "
        "call on the stream that is captured, or capture a non-blocking stream"
    ),
    _CAPTURE_UNSUPPORTED: "kernels are compiled and loaded at the first call: make one such call before the capture begins",
}


def is_capturing() -> bool:
    """Return whether CuPy's current stream records launches instead of running them.

    Raises
    ------
    RuntimeError
        It is the default stream, which CUDA lets nobody use while a blocking stream is being captured.
    """
    try:
        return import_cupy().cuda.get_current_stream().is_capturing()
    except RuntimeError as error:
        if not forbids_default_stream(error):
            raise
        raise RuntimeError(message(error)) from error


def forbids_default_stream(error: RuntimeError) -> bool:
    """Return whether an error of CUDA says that the default stream cannot be used because of a capture."""
    return _status(error) == _CAPTURE_IMPLICIT


def message(error: RuntimeError) -> str:
    """Return the text of an error of CUDA, with the remedy where it comes of a capture."""
    remedy = _REMEDIES.get(_status(error))
    return f"{error} ({remedy})" if remedy else str(error)


def _status(error: RuntimeError) -> int:
    """Return the number of an error of CUDA; 0, which is none, for any other error."""
    return getattr(error, "status", 0)
