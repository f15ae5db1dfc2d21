#include "launches.hpp"

#include <algorithm>
#include <cstring>

#include "devices.hpp"
#include "errors.hpp"
#include "memory.hpp"

namespace software_cuda {

namespace {

constexpr std::size_t MOST_RECORDS = 100000;
ThreadOrder thread_order = ThreadOrder::forwards;

bool fits_limits(const Function& function, const Shape& shape) {
    std::uint64_t threads = 1;
    for (int axis = 0; axis < 3; ++axis) {
        if (shape.grid[axis] < 1 || shape.grid[axis] > MOST_BLOCKS[axis]) return false;
        if (shape.block[axis] < 1 || shape.block[axis] > MOST_THREADS_ALONG[axis]) return false;
        threads *= shape.block[axis];
    }
    return threads <= static_cast<std::uint64_t>(most_threads(function)) &&
           shape.dynamic_shared <= static_cast<unsigned>(function.dynamic_shared);
}

// The driver copies the parameters when a kernel is launched; the caller may change them as soon as the call is back.
std::vector<std::uint8_t> pack(const Kernel& kernel, void** parameters) {
    std::vector<std::uint8_t> packed(kernel.parameter_bytes);
    for (int i = 0; i < kernel.parameter_count; ++i) {
        const Parameter& each = kernel.parameters[i];
        std::memcpy(packed.data() + each.offset, parameters[i], each.bytes);
    }
    return packed;
}

// The addresses among the parameters. A structure may hold words that were never set, such as CuPy's indexers, so of a structure
// only the first word counts, which is an array's address in those that have one.
std::vector<Extent> addresses_in(const Kernel& kernel, const std::vector<std::uint8_t>& packed) {
    std::vector<Extent> found;
    for (int i = 0; i < kernel.parameter_count; ++i) {
        const Parameter& each = kernel.parameters[i];
        std::uint64_t word;
        if (each.bytes < static_cast<int>(sizeof word)) continue;
        std::memcpy(&word, packed.data() + each.offset, sizeof word);
        if (is_known(word)) found.push_back({word, 1});
    }
    return found;
}

cudaError_t run_kernel(const Function& function, const Shape& shape, const std::vector<std::uint8_t>& packed) {
    Launch launch{};
    launch.kernel = function.kernel;
    std::copy_n(shape.grid, 3, launch.grid);
    std::copy_n(shape.block, 3, launch.block);
    launch.dynamic_shared = shape.dynamic_shared;
    launch.parameters = packed.data();
    launch.globals = function.module->globals.data();
    launch.device = function.module->device;
    const Outcome outcome = run(launch, thread_order);
    if (!outcome.report.empty()) report(outcome.report);
    return static_cast<cudaError_t>(outcome.failure);
}

}  // namespace

cudaError_t launch(const Function* function, const Shape& shape, Stream& stream, void** parameters) {
    if (!is_function(function)) return cudaErrorInvalidResourceHandle;
    if (function->module->device != current_device() || stream.device != current_device()) return cudaErrorInvalidResourceHandle;
    if (!fits_limits(*function, shape)) return cudaErrorInvalidValue;
    if (function->kernel->parameter_count && !parameters) return cudaErrorInvalidValue;
    auto packed = pack(*function->kernel, parameters);
    Work work;
    work.name = std::string("The kernel ") + function->kernel->name;
    work.touches = addresses_in(*function->kernel, packed);
    work.run = [function = *function, shape, packed = std::move(packed)] { return run_kernel(function, shape, packed); };
    auto& records = launch_records();
    if (records.size() < MOST_RECORDS) records.push_back({function->kernel->name, current_device(), &stream, shape});
    return enqueue(stream, std::move(work));
}

int most_threads(const Function& function) {
    const int bound = function.kernel->max_threads;
    return bound > 0 ? std::min(bound, MOST_THREADS) : MOST_THREADS;
}

cudaError_t function_attribute(const Function& function, CUfunction_attribute attribute, int& value) {
    const int capability = device(function.module->device).row.capability;
    switch (attribute) {
        case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: value = most_threads(function); break;
        case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES: value = function.kernel->static_shared; break;
        case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: value = function.dynamic_shared; break;
        case CU_FUNC_ATTRIBUTE_PTX_VERSION:
        case CU_FUNC_ATTRIBUTE_BINARY_VERSION: value = capability; break;
        case CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT: value = -1; break;
        default:
            if (attribute < 0 || attribute >= CU_FUNC_ATTRIBUTE_MAX) return cudaErrorInvalidValue;
            value = 0;  // registers and local memory are not known: nothing was compiled for a GPU
    }
    return cudaSuccess;
}

cudaError_t set_function_attribute(Function& function, CUfunction_attribute attribute, int value) {
    if (function.module->device != current_device()) return cudaErrorInvalidResourceHandle;
    if (attribute == CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT) return cudaSuccess;
    if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return cudaErrorInvalidValue;
    const int most = device(function.module->device).row.shared_per_block - function.kernel->static_shared;
    if (value < 0 || value > most) return cudaErrorInvalidValue;
    function.dynamic_shared = value;
    return cudaSuccess;
}

int resident_blocks(const Function& function, int threads, std::size_t dynamic_shared) {
    if (threads < 1 || threads > most_threads(function) || dynamic_shared > static_cast<std::size_t>(function.dynamic_shared)) {
        return 0;
    }
    const DeviceRow& row = device(function.module->device).row;
    const Residency lives = residency(row.capability);
    const int whole_warps = (threads + 31) / 32 * 32;
    const std::size_t shared = function.kernel->static_shared + dynamic_shared + lives.shared_reserved_per_block;
    int blocks = std::min(lives.blocks, row.threads_per_multiprocessor / whole_warps);
    if (shared) blocks = std::min(blocks, static_cast<int>(row.shared_per_multiprocessor / shared));
    return blocks;
}

void set_thread_order(ThreadOrder order) { thread_order = order; }

std::vector<LaunchRecord>& launch_records() {
    static auto* records = new std::vector<LaunchRecord>;
    return *records;
}

}  // namespace software_cuda
