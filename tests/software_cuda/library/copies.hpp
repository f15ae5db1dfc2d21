// Copies and fills. All functions expect the lock to be held.
#pragma once

#include <cuda_runtime_api.h>

#include "streams.hpp"

namespace software_cuda {

// Copies like cudaMemcpyAsync: pageable memory of the host is read and written before the call returns, other memory when the
// operation runs.
cudaError_t copy_async(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, Stream& stream);
// Copies like cudaMemcpy, which doesn't wait for copies from a device to a device either.
cudaError_t copy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind);
cudaError_t fill_async(void* to, int value, std::size_t bytes, Stream& stream);

}  // namespace software_cuda
