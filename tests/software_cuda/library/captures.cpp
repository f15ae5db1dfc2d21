#include "captures.hpp"

#include <algorithm>
#include <map>

#include "devices.hpp"
#include "errors.hpp"

namespace software_cuda {

namespace {

struct Graph {
    std::vector<Node> nodes;
};

struct Executable {
    std::vector<Node> nodes;
    OperationPointer last;  // of its latest launch: a graph never runs beside itself
};

struct Graphs {
    std::vector<std::shared_ptr<Capture>> captures;  // under way
    std::map<const void*, std::unique_ptr<Graph>> graphs;
    std::map<const void*, std::unique_ptr<Executable>> executables;
};

Graphs& all() {
    static auto* graphs = new Graphs;
    return *graphs;
}

std::vector<Stream*> streams_in(const Capture& capture) {
    std::vector<Stream*> found;
    for (int device = 0; device < device_count(); ++device) {
        for (Stream* stream : streams_of(device)) {
            if (stream->capture.get() == &capture) found.push_back(stream);
        }
    }
    return found;
}

// The captures that forbid work in a stream: those of blocking streams, with which the legacy stream would be ordered.
std::vector<Capture*> captures_that_exclude(const Stream& stream) {
    std::vector<Capture*> found;
    if (stream.sort != Stream::Sort::legacy) return found;
    for (Stream* other : streams_of(stream.device)) {
        if (other->capture && other->blocking) found.push_back(other->capture.get());
    }
    return found;
}

// Marks the nodes that are done when the given ones are.
std::vector<bool> reached_from(const Capture& capture, std::vector<int> nodes) {
    std::vector<bool> reached(capture.nodes.size());
    while (!nodes.empty()) {
        const int node = nodes.back();
        nodes.pop_back();
        if (reached[node]) continue;
        reached[node] = true;
        const auto& after = capture.nodes[node].after;
        nodes.insert(nodes.end(), after.begin(), after.end());
    }
    return reached;
}

bool everything_is_joined(const Capture& capture) {
    const auto reached = reached_from(capture, capture.origin->tails);
    for (Stream* stream : streams_in(capture)) {
        for (int node : stream->tails) {
            if (!reached[node]) return false;
        }
    }
    return true;
}

void close(const std::shared_ptr<Capture>& capture) {
    for (Stream* stream : streams_in(*capture)) {
        stream->capture = nullptr;
        stream->tails.clear();
    }
    std::erase(all().captures, capture);
}

template <class Map>
auto* find_in(Map& map, const void* handle) {
    auto found = map.find(handle);
    return found == map.end() ? nullptr : found->second.get();
}

void add_tails(Stream& stream, const std::vector<int>& nodes) {
    for (int node : nodes) {
        if (std::find(stream.tails.begin(), stream.tails.end(), node) == stream.tails.end()) stream.tails.push_back(node);
    }
}

// A graph that is launched into a stream that captures becomes part of what is captured.
cudaError_t capture_graph(const Executable& graph, Stream& stream) {
    if (stream.capture->invalid) return cudaErrorStreamCaptureInvalidated;
    auto& nodes = stream.capture->nodes;
    const int offset = static_cast<int>(nodes.size());
    const std::vector<int> before = stream.tails;
    std::vector<int> tails = before;
    for (const Node& node : graph.nodes) {
        Node copy{node.work, before};
        for (int each : node.after) copy.after.push_back(each + offset);
        tails.push_back(static_cast<int>(nodes.size()));
        nodes.push_back(std::move(copy));
    }
    stream.tails = tails;
    return cudaSuccess;
}

}  // namespace

bool is_active(const Capture& capture) {
    const auto& captures = all().captures;
    return std::any_of(captures.begin(), captures.end(), [&](const auto& each) { return each.get() == &capture; });
}

cudaError_t invalidate(Capture& capture, cudaError_t error) {
    capture.invalid = true;
    return error;
}

cudaError_t begin_capture(Stream& stream, cudaStreamCaptureMode mode) {
    if (mode < cudaStreamCaptureModeGlobal || mode > cudaStreamCaptureModeRelaxed) return cudaErrorInvalidValue;
    if (stream.sort == Stream::Sort::legacy) return cudaErrorStreamCaptureUnsupported;
    if (stream.capture) return cudaErrorIllegalState;
    stream.capture = std::make_shared<Capture>(Capture{&stream, mode, std::this_thread::get_id(), false, {}});
    stream.tails.clear();
    all().captures.push_back(stream.capture);
    return cudaSuccess;
}

cudaError_t end_capture(Stream& stream, cudaGraph_t& graph) {
    graph = nullptr;
    if (!stream.capture) return cudaErrorIllegalState;
    const auto capture = stream.capture;
    const bool of_this_thread = capture->thread == std::this_thread::get_id();
    if (capture->mode != cudaStreamCaptureModeRelaxed && !of_this_thread) return cudaErrorStreamCaptureWrongThread;
    if (capture->origin != &stream) return invalidate(*capture, cudaErrorStreamCaptureUnmatched);
    const bool joined = everything_is_joined(*capture);
    close(capture);
    if (capture->invalid) return cudaErrorStreamCaptureInvalidated;
    if (!joined) return cudaErrorStreamCaptureUnjoined;
    auto made = std::make_unique<Graph>(Graph{std::move(capture->nodes)});
    graph = reinterpret_cast<cudaGraph_t>(made.get());
    all().graphs.emplace(graph, std::move(made));
    return cudaSuccess;
}

void abandon_capture(Stream& stream) {
    const auto capture = stream.capture;
    if (capture->origin == &stream) {
        close(capture);
    } else {
        capture->invalid = true;  // its work can no longer be joined
        stream.capture = nullptr;
    }
}

cudaError_t capture_status(Stream& stream, cudaStreamCaptureStatus& status) {
    // This question alone leaves the captures of blocking streams valid.
    if (!captures_that_exclude(stream).empty()) return cudaErrorStreamCaptureImplicit;
    status = !stream.capture           ? cudaStreamCaptureStatusNone
             : stream.capture->invalid ? cudaStreamCaptureStatusInvalidated
                                       : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

cudaError_t add_node(Stream& stream, Work work) {
    Capture& capture = *stream.capture;
    if (capture.invalid) return cudaErrorStreamCaptureInvalidated;
    capture.nodes.push_back({std::move(work), stream.tails});
    stream.tails = {static_cast<int>(capture.nodes.size()) - 1};
    return cudaSuccess;
}

cudaError_t join_capture(Stream& stream, const std::shared_ptr<Capture>& capture, const std::vector<int>& nodes) {
    if (!is_active(*capture)) return cudaErrorCapturedEvent;
    if (capture->invalid) return cudaErrorStreamCaptureInvalidated;
    if (stream.capture && stream.capture != capture) {
        stream.capture->invalid = true;
        return invalidate(*capture, cudaErrorStreamCaptureMerge);
    }
    if (stream.sort == Stream::Sort::legacy) return invalidate(*capture, cudaErrorStreamCaptureImplicit);
    stream.capture = capture;
    add_tails(stream, nodes);
    return cudaSuccess;
}

cudaError_t refuse_legacy_work_while_capturing(Stream& stream) {
    cudaError_t error = cudaSuccess;
    for (Capture* capture : captures_that_exclude(stream)) error = invalidate(*capture, cudaErrorStreamCaptureImplicit);
    return error;
}

cudaError_t refuse_if_capturing(Stream& stream) {
    if (stream.capture) return invalidate(*stream.capture, cudaErrorStreamCaptureUnsupported);
    return refuse_legacy_work_while_capturing(stream);
}

cudaError_t refuse_unsafe_call() {
    cudaError_t error = cudaSuccess;
    for (const auto& capture : all().captures) {
        const bool of_this_thread = capture->thread == std::this_thread::get_id();
        const bool forbids = capture->mode == cudaStreamCaptureModeGlobal ||
                             (capture->mode == cudaStreamCaptureModeThreadLocal && of_this_thread);
        if (forbids) error = invalidate(*capture, cudaErrorStreamCaptureUnsupported);
    }
    return error;
}

cudaError_t instantiate(cudaGraph_t graph, cudaGraphExec_t& made) {
    const Graph* found = find_in(all().graphs, graph);
    if (!found) return cudaErrorInvalidValue;
    auto executable = std::make_unique<Executable>(Executable{found->nodes, nullptr});
    made = reinterpret_cast<cudaGraphExec_t>(executable.get());
    all().executables.emplace(made, std::move(executable));
    return cudaSuccess;
}

cudaError_t launch_graph(cudaGraphExec_t graph, Stream& stream) {
    Executable* found = find_in(all().executables, graph);
    if (!found) return cudaErrorInvalidValue;
    for (const Node& node : found->nodes) {
        if (!touches_only_living_memory(node.work)) return cudaErrorInvalidValue;
    }
    if (stream.capture) return capture_graph(*found, stream);
    if (auto error = refuse_legacy_work_while_capturing(stream)) return error;
    const OperationPointer before = append(stream, {}, {found->last});
    std::vector<OperationPointer> operations;
    for (const Node& node : found->nodes) {
        std::vector<OperationPointer> after{before};
        for (int each : node.after) after.push_back(operations[each]);
        operations.push_back(make_operation(node.work, std::move(after)));
    }
    found->last = append(stream, {}, std::move(operations));
    return is_lazy() ? cudaSuccess : finish(found->last);
}

cudaError_t upload_graph(cudaGraphExec_t graph) {
    return find_in(all().executables, graph) ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t destroy_graph(cudaGraph_t graph) { return all().graphs.erase(graph) ? cudaSuccess : cudaErrorInvalidValue; }

cudaError_t destroy_executable(cudaGraphExec_t graph) {
    return all().executables.erase(graph) ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace software_cuda
