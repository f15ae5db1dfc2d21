// Events. All functions expect the lock to be held.
#pragma once

#include <cuda_runtime_api.h>

#include "streams.hpp"

namespace software_cuda {

cudaError_t create_event(unsigned flags, cudaEvent_t& handle);
cudaError_t destroy_event(cudaEvent_t handle);
cudaError_t record_event(cudaEvent_t handle, Stream& stream);
cudaError_t wait_for_event(Stream& stream, cudaEvent_t handle);
cudaError_t finish_event(cudaEvent_t handle);
cudaError_t query_event(cudaEvent_t handle);
cudaError_t elapsed_time(float& milliseconds, cudaEvent_t start, cudaEvent_t end);

}  // namespace software_cuda
