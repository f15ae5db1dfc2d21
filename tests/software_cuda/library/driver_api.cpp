// The functions of CUDA's driver (cu*) that CuPy and NVRTC ask for.
#include <cuda.h>

#include <cstdio>
#include <fstream>
#include <sstream>

#include "devices.hpp"
#include "errors.hpp"
#include "export.hpp"
#include "launches.hpp"
#include "modules.hpp"
#include "state.hpp"
#include "streams.hpp"

using namespace software_cuda;

namespace {

CUresult as_driver(cudaError_t error) { return static_cast<CUresult>(error); }

template <class Body>
CUresult driver_call(Body body) {
    return as_driver(guarded(body));
}

// The same for calls that are made in the context of the thread. Other calls find the context by the handle that they get.
template <class Body>
CUresult call_in_context(Body body) {
    return has_context() ? driver_call(body) : CUDA_ERROR_INVALID_CONTEXT;
}

// Each device has its primary context only, so a context is a number that no pointer has.
constexpr std::intptr_t FIRST_CONTEXT = 0x1000;

CUcontext context_of(int device) { return reinterpret_cast<CUcontext>(FIRST_CONTEXT + device); }
int device_of(CUcontext context) { return static_cast<int>(reinterpret_cast<std::intptr_t>(context) - FIRST_CONTEXT); }

Function* as_function(CUfunction handle) { return reinterpret_cast<Function*>(handle); }
LoadedModule* as_module(CUmodule handle) { return reinterpret_cast<LoadedModule*>(handle); }

const char* UNKNOWN_NAME = "CUDA_ERROR_UNKNOWN";

}  // namespace

EXPORTED CUresult cuGetErrorName(CUresult error, const char** name) {
    const ErrorNames* found = find_error(error);
    *name = found ? found->driver : UNKNOWN_NAME;
    return found ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

EXPORTED CUresult cuGetErrorString(CUresult error, const char** text) {
    const ErrorNames* found = find_error(error);
    *text = found ? found->text : "unrecognized error code";
    return found ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

EXPORTED CUresult cuInit(unsigned flags) {
    if (flags) return CUDA_ERROR_INVALID_VALUE;
    if (is_forked_child()) return CUDA_ERROR_NOT_INITIALIZED;
    return device_count() ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE;
}

EXPORTED CUresult cuDriverGetVersion(int* version) {
    *version = CUDA_RELEASE;
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuDeviceGetCount(int* count) {
    *count = device_count();
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuDeviceGet(CUdevice* found, int number) {
    if (!is_device(number)) return CUDA_ERROR_INVALID_DEVICE;
    *found = number;
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuDeviceGetName(char* name, int room, CUdevice number) {
    if (!is_device(number)) return CUDA_ERROR_INVALID_DEVICE;
    std::snprintf(name, room, "%s", device(number).name.c_str());
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice number) {
    if (!is_device(number)) return CUDA_ERROR_INVALID_DEVICE;
    *value = device_attribute(number, attribute);
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuCtxGetCurrent(CUcontext* context) {
    if (is_forked_child()) return CUDA_ERROR_NOT_INITIALIZED;
    *context = has_context() ? context_of(current_device()) : nullptr;
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuCtxSetCurrent(CUcontext context) {
    if (is_forked_child()) return CUDA_ERROR_NOT_INITIALIZED;
    if (!context) return CUDA_SUCCESS;  // the runtime would take the primary context of the device again
    if (!is_device(device_of(context))) return CUDA_ERROR_INVALID_CONTEXT;
    set_current_device(device_of(context));
    make_context();
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuCtxGetDevice(CUdevice* number) {
    if (is_forked_child()) return CUDA_ERROR_NOT_INITIALIZED;
    if (!has_context()) return CUDA_ERROR_INVALID_CONTEXT;
    *number = current_device();
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuDevicePrimaryCtxRelease(CUdevice number) {
    return is_device(number) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

EXPORTED CUresult cuStreamGetCtx(CUstream handle, CUcontext* context) {
    return driver_call([&] {
        const Stream* stream = find_stream(handle);
        if (!stream) return cudaErrorInvalidResourceHandle;
        *context = context_of(stream->device);
        return cudaSuccess;
    });
}

EXPORTED CUresult cuModuleLoadData(CUmodule* handle, const void* image) {
    return call_in_context([&] {
        LoadedModule* module = nullptr;
        const auto error = load_module(static_cast<const char*>(image), module);
        *handle = reinterpret_cast<CUmodule>(module);
        return error;
    });
}

EXPORTED CUresult cuModuleLoad(CUmodule* handle, const char* path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) return CUDA_ERROR_FILE_NOT_FOUND;
    std::ostringstream text;
    text << file.rdbuf();
    return cuModuleLoadData(handle, text.str().c_str());
}

EXPORTED CUresult cuModuleUnload(CUmodule handle) {
    return driver_call([&] { return unload_module(as_module(handle)); });
}

EXPORTED CUresult cuModuleGetFunction(CUfunction* handle, CUmodule module, const char* name) {
    return driver_call([&] {
        Function* function = nullptr;
        const auto error = find_function(as_module(module), name, function);
        *handle = reinterpret_cast<CUfunction>(function);
        return error;
    });
}

EXPORTED CUresult cuModuleGetGlobal(CUdeviceptr* address, std::size_t* bytes, CUmodule module, const char* name) {
    return driver_call([&] {
        std::uint64_t found = 0;
        std::size_t size = 0;
        const auto error = find_variable(as_module(module), name, found, size);
        if (address) *address = found;
        if (bytes) *bytes = size;
        return error;
    });
}

EXPORTED CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction handle) {
    return driver_call([&] {
        if (!is_function(as_function(handle))) return cudaErrorInvalidResourceHandle;
        return function_attribute(*as_function(handle), attribute, *value);
    });
}

EXPORTED CUresult cuFuncSetAttribute(CUfunction handle, CUfunction_attribute attribute, int value) {
    return driver_call([&] {
        if (!is_function(as_function(handle))) return cudaErrorInvalidResourceHandle;
        return set_function_attribute(*as_function(handle), attribute, value);
    });
}

EXPORTED CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction handle, int threads, std::size_t shared) {
    return driver_call([&] {
        if (!is_function(as_function(handle))) return cudaErrorInvalidResourceHandle;
        *blocks = resident_blocks(*as_function(handle), threads, shared);
        return cudaSuccess;
    });
}

EXPORTED CUresult cuOccupancyMaxPotentialBlockSize(int* blocks, int* threads, CUfunction handle, CUoccupancyB2DSize shared_of,
                                                   std::size_t shared, int most) {
    return driver_call([&] {
        const Function* function = as_function(handle);
        if (!is_function(function)) return cudaErrorInvalidResourceHandle;
        constexpr int WARP = 32;
        const int limit = most > 0 && most < most_threads(*function) ? most : most_threads(*function);
        int best = 0, best_blocks = 0, best_threads = 0;
        for (int candidate = limit; candidate > 0; candidate = (candidate - 1) / WARP * WARP) {
            const int resident = resident_blocks(*function, candidate, shared_of ? shared_of(candidate) : shared);
            if (resident * candidate <= best) continue;
            best = resident * candidate;
            best_blocks = resident;
            best_threads = candidate;
        }
        *threads = best_threads;
        *blocks = best_blocks * device(function->module->device).row.multiprocessors;
        return cudaSuccess;
    });
}

EXPORTED CUresult cuLaunchKernel(CUfunction handle, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                                 unsigned block_y, unsigned block_z, unsigned dynamic_shared, CUstream stream_handle,
                                 void** parameters, void** extra) {
    return call_in_context([&] {
        Stream* stream = find_stream(stream_handle);
        if (!stream) return cudaErrorInvalidResourceHandle;
        if (extra) {
            report("A kernel was launched with packed parameters, which are not supported; CuPy passes an array of addresses.");
            return cudaErrorNotSupported;
        }
        const Shape shape{{grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, dynamic_shared};
        return launch(as_function(handle), shape, *stream, parameters);
    });
}

// NVRTC asks for tables that are not documented, and goes on without them.
EXPORTED CUresult cuGetExportTable(const void** table, const CUuuid*) {
    *table = nullptr;
    return CUDA_ERROR_NOT_FOUND;
}
