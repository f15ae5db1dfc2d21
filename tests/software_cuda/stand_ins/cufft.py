"""Stands in for `cupy.cuda.cufft`: Fourier transforms along the last axis, computed by NumPy. cuFFT is code of real devices."""

import numpy as np

from .arrays import read, write

CUFFT_C2C, CUFFT_R2C, CUFFT_C2R = 0x29, 0x2A, 0x2C
CUFFT_Z2Z, CUFFT_D2Z, CUFFT_Z2D = 0x69, 0x6A, 0x6C
CUFFT_FORWARD, CUFFT_INVERSE = -1, 1

_RESULTS = {
    CUFFT_C2C: "complex64",
    CUFFT_R2C: "complex64",
    CUFFT_C2R: "float32",
    CUFFT_Z2Z: "complex128",
    CUFFT_D2Z: "complex128",
    CUFFT_Z2D: "float64",
}


def get_current_plan():
    """Return the plan of a context manager, which there is none of."""


class Plan1d:
    """Transforms of ``batch`` rows that have ``nx`` elements each, or as many as half of a spectrum has."""

    work_area = gpus = None

    def __init__(self, nx, fft_type, batch, *, devices=None, out=None):
        self.nx, self.fft_type, self.batch = nx, fft_type, batch

    def get_output_array(self, a):
        """Return an array for the result of a transform of ``a``."""
        import cupy

        lengths = {CUFFT_R2C: self.nx // 2 + 1, CUFFT_D2Z: self.nx // 2 + 1, CUFFT_C2R: self.nx, CUFFT_Z2D: self.nx}
        return cupy.empty((*a.shape[:-1], lengths.get(self.fft_type, a.shape[-1])), _RESULTS[self.fft_type])

    def fft(self, a, out, direction):
        """Write the transform of ``a``, which is not scaled, to ``out``."""
        rows = read(a.data.ptr, a.dtype, a.size).reshape(a.shape)
        if self.fft_type in (CUFFT_R2C, CUFFT_D2Z):
            result = np.fft.rfft(rows, self.nx)
        elif self.fft_type in (CUFFT_C2R, CUFFT_Z2D):
            result = np.fft.irfft(rows, self.nx) * self.nx
        elif direction == CUFFT_FORWARD:
            result = np.fft.fft(rows)
        else:
            result = np.fft.ifft(rows) * self.nx
        write(out.data.ptr, result.astype(out.dtype))


def __getattr__(name):
    raise AttributeError(f"the software CUDA has no {name} of cuFFT")
