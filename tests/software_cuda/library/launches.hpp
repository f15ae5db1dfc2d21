// Launches of kernels: what the driver refuses, and what a function may ask for. All functions expect the lock to be held.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <string>
#include <vector>

#include "../kernel/launch.hpp"
#include "modules.hpp"
#include "streams.hpp"

namespace software_cuda {

struct Shape {
    unsigned grid[3], block[3];
    unsigned dynamic_shared;  // bytes
};

cudaError_t launch(const Function* function, const Shape& shape, Stream& stream, void** parameters);

cudaError_t function_attribute(const Function& function, CUfunction_attribute attribute, int& value);
cudaError_t set_function_attribute(Function& function, CUfunction_attribute attribute, int value);

// Blocks of a kernel that a multiprocessor holds at once.
int resident_blocks(const Function& function, int threads, std::size_t dynamic_shared);
int most_threads(const Function& function);

void set_thread_order(ThreadOrder order);

struct LaunchRecord {
    std::string kernel;
    int device;
    const Stream* stream;  // only as a name: it may be destroyed by now
    Shape shape;
};
std::vector<LaunchRecord>& launch_records();

}  // namespace software_cuda
