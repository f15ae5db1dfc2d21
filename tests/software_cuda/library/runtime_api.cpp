// The functions of CUDA's runtime (cuda*) that CuPy calls.
#include <cuda_profiler_api.h>
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstring>

#include "captures.hpp"
#include "copies.hpp"
#include "devices.hpp"
#include "errors.hpp"
#include "events.hpp"
#include "export.hpp"
#include "memory.hpp"
#include "state.hpp"
#include "streams.hpp"

using namespace software_cuda;

namespace {

std::uint64_t number_of(const void* pointer) { return reinterpret_cast<std::uint64_t>(pointer); }

template <class Body>
cudaError_t runtime_call(Body body) {
    make_context();
    return guarded(body);
}

// Runs the body with a stream.
template <class Body>
cudaError_t with_stream(cudaStream_t handle, Body body) {
    return runtime_call([&] {
        Stream* stream = find_stream(handle);
        return stream ? body(*stream) : cudaErrorInvalidResourceHandle;
    });
}

// Runs the body for a device that exists. It reads what never changes, so no lock is taken.
template <class Body>
cudaError_t with_device(int number, Body body) {
    if (is_forked_child()) return keep_error(cudaErrorInitializationError);
    if (!device_count()) return keep_error(cudaErrorNoDevice);
    if (!is_device(number)) return keep_error(cudaErrorInvalidDevice);
    return keep_error(body());
}

cudaError_t allocate_into(void** pointer, std::size_t bytes, Kind kind) {
    return runtime_call([&] {
        *pointer = nullptr;
        if (auto error = refuse_unsafe_call()) return error;
        if (!is_device(current_device())) return cudaErrorNoDevice;
        if (!bytes) return cudaSuccess;
        const std::uint64_t total = device(current_device()).row.total_memory;
        const bool too_much = kind == Kind::device && (bytes > total || bytes_in_use(current_device()) > total - bytes);
        if (!too_much) *pointer = reinterpret_cast<void*>(allocate(kind, current_device(), bytes));
        return *pointer ? cudaSuccess : cudaErrorMemoryAllocation;
    });
}

// Freeing waits for the device, as the real functions do, and memory of the host may be in use by any device.
cudaError_t free_at(void* pointer, bool of_host) {
    return runtime_call([&] {
        if (!pointer) return cudaSuccess;
        if (auto error = refuse_unsafe_call()) return error;
        const Place place = place_of(number_of(pointer));
        const bool fits = of_host ? place.kind == Kind::pinned : place.kind == Kind::device || place.kind == Kind::managed;
        if (!fits || place.start != number_of(pointer)) return cudaErrorInvalidValue;
        if (of_host) finish_what_touches(place.start, place.bytes);
        if (auto error = finish_device(place.device)) return error;
        return release(place.start) ? cudaSuccess : cudaErrorInvalidValue;
    });
}

cudaError_t add_host_function(Stream& stream, std::function<void()> function) {
    Work work;
    work.name = "A host function";
    work.calls_host = true;
    work.run = [function = std::move(function)] {
        function();
        return cudaSuccess;
    };
    return enqueue(stream, std::move(work));
}

cudaMemoryType type_of(Kind kind) {
    switch (kind) {
        case Kind::device: return cudaMemoryTypeDevice;
        case Kind::pinned: return cudaMemoryTypeHost;
        case Kind::managed: return cudaMemoryTypeManaged;
        case Kind::pageable: break;
    }
    return cudaMemoryTypeUnregistered;
}

constexpr std::size_t STACK_BYTES = 1024;  // what CUDA documents as the limit that a thread begins with

}  // namespace

// Errors and versions ----------------------------------------------------------------------------------------------------------

EXPORTED const char* cudaGetErrorName(cudaError_t error) {
    const ErrorNames* found = find_error(error);
    return found ? found->runtime : "unrecognized error code";
}

EXPORTED const char* cudaGetErrorString(cudaError_t error) {
    const ErrorNames* found = find_error(error);
    return found ? found->text : "unrecognized error code";
}

EXPORTED cudaError_t cudaGetLastError() {
    const cudaError_t error = last_error();
    forget_last_error();
    return error;
}

EXPORTED cudaError_t cudaPeekAtLastError() { return last_error(); }

EXPORTED cudaError_t cudaDriverGetVersion(int* version) {
    *version = CUDA_RELEASE;
    return cudaSuccess;
}

EXPORTED cudaError_t cudaRuntimeGetVersion(int* version) {
    *version = CUDA_RELEASE;
    return cudaSuccess;
}

EXPORTED cudaError_t cudaProfilerStart() { return cudaSuccess; }
EXPORTED cudaError_t cudaProfilerStop() { return cudaSuccess; }

// Devices ----------------------------------------------------------------------------------------------------------------------

EXPORTED cudaError_t cudaGetDeviceCount(int* count) {
    *count = 0;
    if (is_forked_child()) return keep_error(cudaErrorInitializationError);
    *count = device_count();
    return keep_error(*count ? cudaSuccess : cudaErrorNoDevice);
}

EXPORTED cudaError_t cudaGetDevice(int* number) {
    return with_device(current_device(), [&] {
        *number = current_device();
        return cudaSuccess;
    });
}

EXPORTED cudaError_t cudaSetDevice(int number) {
    return with_device(number, [&] {
        set_current_device(number);
        make_context();
        return cudaSuccess;
    });
}

EXPORTED cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int number) {
    return with_device(number, [&] {
        fill_properties(number, *properties);
        return cudaSuccess;
    });
}

EXPORTED cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int number) {
    return with_device(number, [&] {
        *value = device_attribute(number, attribute);
        return cudaSuccess;
    });
}

EXPORTED cudaError_t cudaDeviceGetPCIBusId(char* text, int room, int number) {
    return with_device(number, [&] {
        std::snprintf(text, room, "%s", bus_identity(number).c_str());
        return cudaSuccess;
    });
}

EXPORTED cudaError_t cudaDeviceGetByPCIBusId(int* number, const char* text) {
    for (int each = 0; each < device_count(); ++each) {
        if (bus_identity(each) != text) continue;
        *number = each;
        return cudaSuccess;
    }
    return keep_error(cudaErrorInvalidDevice);
}

// The devices do not reach one another's memory; copies between them go through the host.
EXPORTED cudaError_t cudaDeviceCanAccessPeer(int* can, int number, int peer) {
    return with_device(number, [&] {
        *can = 0;
        return is_device(peer) ? cudaSuccess : cudaErrorInvalidDevice;
    });
}

EXPORTED cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned) {
    return with_device(peer, [&] { return cudaErrorPeerAccessUnsupported; });
}

EXPORTED cudaError_t cudaDeviceDisablePeerAccess(int peer) {
    return with_device(peer, [&] { return cudaErrorPeerAccessNotEnabled; });
}

EXPORTED cudaError_t cudaDeviceSynchronize() {
    return runtime_call([] {
        if (auto error = refuse_unsafe_call()) return error;
        return finish_device(current_device());
    });
}

EXPORTED cudaError_t cudaDeviceGetLimit(std::size_t* value, cudaLimit limit) {
    *value = limit == cudaLimitStackSize ? STACK_BYTES : 0;
    return cudaSuccess;
}

EXPORTED cudaError_t cudaDeviceSetLimit(cudaLimit, std::size_t) { return cudaSuccess; }

// Memory -----------------------------------------------------------------------------------------------------------------------

EXPORTED cudaError_t cudaMalloc(void** pointer, std::size_t bytes) { return allocate_into(pointer, bytes, Kind::device); }

EXPORTED cudaError_t cudaHostAlloc(void** pointer, std::size_t bytes, unsigned) {
    return allocate_into(pointer, bytes, Kind::pinned);
}

EXPORTED cudaError_t cudaMallocManaged(void** pointer, std::size_t bytes, unsigned) {
    return allocate_into(pointer, bytes, Kind::managed);
}

EXPORTED cudaError_t cudaFree(void* pointer) { return free_at(pointer, false); }
EXPORTED cudaError_t cudaFreeHost(void* pointer) { return free_at(pointer, true); }

// An allocation in the order of a stream is there at once; its addresses are new, so no earlier work can use them.
EXPORTED cudaError_t cudaMallocAsync(void** pointer, std::size_t bytes, cudaStream_t handle) {
    const cudaError_t refused = with_stream(handle, [](Stream& stream) {
        return stream.capture ? invalidate(*stream.capture, cudaErrorStreamCaptureUnsupported) : cudaSuccess;
    });
    return refused ? refused : allocate_into(pointer, bytes, Kind::device);
}

EXPORTED cudaError_t cudaFreeAsync(void* pointer, cudaStream_t handle) {
    return with_stream(handle, [&](Stream& stream) {
        if (!pointer) return cudaSuccess;
        if (stream.capture) return invalidate(*stream.capture, cudaErrorStreamCaptureUnsupported);
        const Place place = place_of(number_of(pointer));
        if (place.kind != Kind::device || place.start != number_of(pointer)) return cudaErrorInvalidValue;
        if (is_given_back(place.start, place.bytes)) return cudaErrorInvalidValue;
        set_alive(place.start, place.bytes, false);
        Work work{"A release", [=] { return release(place.start) ? cudaSuccess : cudaErrorInvalidValue; }, {}};
        return enqueue(stream, std::move(work));
    });
}

EXPORTED cudaError_t cudaHostRegister(void* pointer, std::size_t bytes, unsigned) {
    return runtime_call([&] {
        if (!pointer || !bytes) return cudaErrorInvalidValue;
        if (place_of(number_of(pointer)).kind != Kind::pageable) return cudaErrorHostMemoryAlreadyRegistered;
        register_range(Kind::pinned, current_device(), number_of(pointer), bytes);
        return cudaSuccess;
    });
}

EXPORTED cudaError_t cudaHostUnregister(void* pointer) {
    return runtime_call([&] {
        const Place place = place_of(number_of(pointer));
        if (place.kind != Kind::pinned || place.start != number_of(pointer)) return cudaErrorHostMemoryNotRegistered;
        finish_what_touches(place.start, place.bytes);
        return unregister_range(place.start, place.bytes) ? cudaSuccess : cudaErrorHostMemoryNotRegistered;
    });
}

EXPORTED cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
    return runtime_call([&] {
        if (!is_device(current_device())) return cudaErrorNoDevice;
        *total = device(current_device()).row.total_memory;
        *free = *total - bytes_in_use(current_device());
        return cudaSuccess;
    });
}

EXPORTED cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
    return runtime_call([&] {
        const Place place = place_of(number_of(pointer));
        std::memset(attributes, 0, sizeof *attributes);
        attributes->type = type_of(place.kind);
        attributes->device = place.kind == Kind::pageable ? cudaInvalidDeviceId : place.device;
        if (place.kind != Kind::pageable) attributes->devicePointer = const_cast<void*>(pointer);
        if (place.kind != Kind::device) attributes->hostPointer = const_cast<void*>(pointer);
        return cudaSuccess;
    });
}

EXPORTED cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
    return runtime_call([&] { return copy(to, from, bytes, kind); });
}

EXPORTED cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t handle) {
    return with_stream(handle, [&](Stream& stream) { return copy_async(to, from, bytes, kind, stream); });
}

// It runs after all that either device has been given, and before all that they will be.
EXPORTED cudaError_t cudaMemcpyPeer(void* to, int to_device, const void* from, int from_device, std::size_t bytes) {
    return runtime_call([&] {
        if (auto error = refuse_unsafe_call()) return error;
        for (int number : {from_device, to_device}) {
            if (!is_device(number)) return cudaErrorInvalidDevice;
            if (auto error = finish_device(number)) return error;
        }
        if (auto error = copy(to, from, bytes, cudaMemcpyDefault)) return error;
        return finish_device(current_device());
    });
}

EXPORTED cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, std::size_t bytes, cudaStream_t handle) {
    return with_stream(handle, [&](Stream& stream) { return copy_async(to, from, bytes, cudaMemcpyDefault, stream); });
}

EXPORTED cudaError_t cudaMemset(void* to, int value, std::size_t bytes) {
    return with_stream(nullptr, [&](Stream& stream) { return fill_async(to, value, bytes, stream); });
}

EXPORTED cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t handle) {
    return with_stream(handle, [&](Stream& stream) { return fill_async(to, value, bytes, stream); });
}

// Streams ----------------------------------------------------------------------------------------------------------------------

EXPORTED cudaError_t cudaStreamCreateWithPriority(cudaStream_t* handle, unsigned flags, int priority) {
    return runtime_call([&] { return create_stream(flags, priority, *handle); });
}

EXPORTED cudaError_t cudaStreamCreateWithFlags(cudaStream_t* handle, unsigned flags) {
    return cudaStreamCreateWithPriority(handle, flags, 0);
}

EXPORTED cudaError_t cudaStreamCreate(cudaStream_t* handle) { return cudaStreamCreateWithPriority(handle, cudaStreamDefault, 0); }

EXPORTED cudaError_t cudaStreamDestroy(cudaStream_t handle) {
    return runtime_call([&] { return destroy_stream(handle); });
}

EXPORTED cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
    return with_stream(handle, [](Stream& stream) {
        if (auto error = refuse_if_capturing(stream)) return error;
        return finish_stream(stream);
    });
}

EXPORTED cudaError_t cudaStreamQuery(cudaStream_t handle) {
    return with_stream(handle, [](Stream& stream) {
        if (auto error = refuse_if_capturing(stream)) return error;
        return query_stream(stream);
    });
}

EXPORTED cudaError_t cudaStreamGetFlags(cudaStream_t handle, unsigned* flags) {
    return with_stream(handle, [&](Stream& stream) {
        *flags = stream.flags;
        return cudaSuccess;
    });
}

EXPORTED cudaError_t cudaStreamGetPriority(cudaStream_t handle, int* priority) {
    return with_stream(handle, [&](Stream& stream) {
        *priority = stream.priority;
        return cudaSuccess;
    });
}

EXPORTED cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned) {
    return with_stream(handle, [&](Stream& stream) { return wait_for_event(stream, event); });
}

EXPORTED cudaError_t cudaLaunchHostFunc(cudaStream_t handle, cudaHostFn_t function, void* data) {
    return with_stream(handle, [&](Stream& stream) { return add_host_function(stream, [=] { function(data); }); });
}

EXPORTED cudaError_t cudaStreamAddCallback(cudaStream_t handle, cudaStreamCallback_t function, void* data, unsigned flags) {
    return with_stream(handle, [&](Stream& stream) {
        if (flags) return cudaErrorInvalidValue;
        if (stream.capture) return invalidate(*stream.capture, cudaErrorStreamCaptureUnsupported);
        return add_host_function(stream, [=] { function(handle, cudaSuccess, data); });
    });
}

// Events -----------------------------------------------------------------------------------------------------------------------

EXPORTED cudaError_t cudaEventCreateWithFlags(cudaEvent_t* handle, unsigned flags) {
    return runtime_call([&] { return create_event(flags, *handle); });
}

EXPORTED cudaError_t cudaEventCreate(cudaEvent_t* handle) { return cudaEventCreateWithFlags(handle, cudaEventDefault); }

EXPORTED cudaError_t cudaEventDestroy(cudaEvent_t handle) {
    return runtime_call([&] { return destroy_event(handle); });
}

EXPORTED cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t stream_handle) {
    return with_stream(stream_handle, [&](Stream& stream) { return record_event(handle, stream); });
}

EXPORTED cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
    return runtime_call([&] { return finish_event(handle); });
}

EXPORTED cudaError_t cudaEventQuery(cudaEvent_t handle) {
    return runtime_call([&] { return query_event(handle); });
}

EXPORTED cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
    return runtime_call([&] { return elapsed_time(*milliseconds, start, end); });
}

// Capture and graphs -----------------------------------------------------------------------------------------------------------

EXPORTED cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
    return with_stream(handle, [&](Stream& stream) { return begin_capture(stream, mode); });
}

EXPORTED cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
    return with_stream(handle, [&](Stream& stream) { return end_capture(stream, *graph); });
}

EXPORTED cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
    return with_stream(handle, [&](Stream& stream) { return capture_status(stream, *status); });
}

EXPORTED cudaError_t cudaGraphInstantiate(cudaGraphExec_t* made, cudaGraph_t graph, unsigned long long) {
    return runtime_call([&] { return instantiate(graph, *made); });
}

EXPORTED cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t handle) {
    return with_stream(handle, [&](Stream& stream) { return launch_graph(graph, stream); });
}

EXPORTED cudaError_t cudaGraphUpload(cudaGraphExec_t graph, cudaStream_t handle) {
    return with_stream(handle, [&](Stream&) { return upload_graph(graph); });
}

EXPORTED cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    return runtime_call([&] { return destroy_graph(graph); });
}

EXPORTED cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
    return runtime_call([&] { return destroy_executable(graph); });
}
