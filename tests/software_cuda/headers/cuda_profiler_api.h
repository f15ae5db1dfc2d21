// A stand-in for the header of this name, which NVIDIA's wheel with the headers of the runtime lacks.
#pragma once

#include <cuda_runtime_api.h>

extern "C" cudaError_t CUDARTAPI cudaProfilerStart(void);
extern "C" cudaError_t CUDARTAPI cudaProfilerStop(void);
