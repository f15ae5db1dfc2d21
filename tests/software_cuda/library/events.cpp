#include "events.hpp"

#include <map>

#include "captures.hpp"
#include "devices.hpp"
#include "errors.hpp"

namespace software_cuda {

namespace {

struct Event {
    unsigned flags;
    int device;
    OperationPointer operation;  // the mark that it was recorded as
    // Where it was recorded last, if that was in a stream that captures.
    std::shared_ptr<Capture> capture;
    std::vector<int> nodes;
};

constexpr float LEAST_MILLISECONDS = 0.0005F;  // the resolution that CUDA documents

std::map<const void*, std::unique_ptr<Event>>& events() {
    static auto* all = new std::map<const void*, std::unique_ptr<Event>>;
    return *all;
}

Event* find_event(cudaEvent_t handle) {
    auto found = events().find(handle);
    return found == events().end() ? nullptr : found->second.get();
}

// An event of a capture marks no work that could be waited for.
cudaError_t refuse_captured(Event& event) {
    if (!event.capture) return refuse_unsafe_call();
    return invalidate(*event.capture, cudaErrorCapturedEvent);
}

}  // namespace

cudaError_t create_event(unsigned flags, cudaEvent_t& handle) {
    constexpr unsigned KNOWN = cudaEventBlockingSync | cudaEventDisableTiming | cudaEventInterprocess;
    if (flags & ~KNOWN) return cudaErrorInvalidValue;
    auto made = std::make_unique<Event>(Event{flags, current_device(), nullptr, nullptr, {}});
    handle = reinterpret_cast<cudaEvent_t>(made.get());
    events().emplace(handle, std::move(made));
    return cudaSuccess;
}

cudaError_t destroy_event(cudaEvent_t handle) { return events().erase(handle) ? cudaSuccess : cudaErrorInvalidResourceHandle; }

cudaError_t record_event(cudaEvent_t handle, Stream& stream) {
    Event* event = find_event(handle);
    if (!event || event->device != stream.device) return cudaErrorInvalidResourceHandle;
    if (stream.capture) {
        if (stream.capture->invalid) return cudaErrorStreamCaptureInvalidated;
        event->capture = stream.capture;
        event->nodes = stream.tails;
        event->operation = nullptr;
        return cudaSuccess;
    }
    OperationPointer mark;
    const cudaError_t error = enqueue(stream, {}, {}, &mark);
    if (!mark) return error;
    event->operation = mark;
    event->capture = nullptr;
    event->nodes.clear();
    return error;
}

cudaError_t wait_for_event(Stream& stream, cudaEvent_t handle) {
    Event* event = find_event(handle);
    if (!event) return cudaErrorInvalidResourceHandle;
    if (event->capture) return join_capture(stream, event->capture, event->nodes);
    if (!event->operation) return cudaSuccess;
    if (stream.capture) return invalidate(*stream.capture, cudaErrorStreamCaptureIsolation);
    return enqueue(stream, {}, {event->operation});
}

cudaError_t finish_event(cudaEvent_t handle) {
    Event* event = find_event(handle);
    if (!event) return cudaErrorInvalidResourceHandle;
    if (auto error = refuse_captured(*event)) return error;
    return finish(OperationPointer(event->operation));
}

cudaError_t query_event(cudaEvent_t handle) {
    Event* event = find_event(handle);
    if (!event) return cudaErrorInvalidResourceHandle;
    if (auto error = refuse_captured(*event)) return error;
    return query(OperationPointer(event->operation));
}

cudaError_t elapsed_time(float& milliseconds, cudaEvent_t start, cudaEvent_t end) {
    Event* first = find_event(start);
    Event* second = find_event(end);
    for (Event* event : {first, second}) {
        if (!event || (event->flags & cudaEventDisableTiming)) return cudaErrorInvalidResourceHandle;
        if (event->capture) return cudaErrorCapturedEvent;
        if (!event->operation) return cudaErrorInvalidResourceHandle;
    }
    if (first->device != second->device) return cudaErrorInvalidResourceHandle;
    for (Event* event : {first, second}) {
        if (event->operation->state != Operation::State::done) return cudaErrorNotReady;
    }
    const std::chrono::duration<float, std::milli> passed = second->operation->finished - first->operation->finished;
    milliseconds = passed.count() == 0 ? LEAST_MILLISECONDS : passed.count();
    return cudaSuccess;
}

}  // namespace software_cuda
