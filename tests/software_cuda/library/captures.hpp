// The capture of streams into graphs, and the launch of graphs. All functions expect the lock to be held.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <thread>
#include <vector>

#include "streams.hpp"

namespace software_cuda {

struct Node {
    Work work;
    std::vector<int> after;  // earlier nodes
};

struct Capture {
    Stream* origin;
    cudaStreamCaptureMode mode;
    std::thread::id thread;
    bool invalid = false;
    std::vector<Node> nodes;
};

cudaError_t begin_capture(Stream& stream, cudaStreamCaptureMode mode);
cudaError_t end_capture(Stream& stream, cudaGraph_t& graph);
void abandon_capture(Stream& stream);  // of a stream that is destroyed
cudaError_t capture_status(Stream& stream, cudaStreamCaptureStatus& status);

cudaError_t add_node(Stream& stream, Work work);
// Makes the stream's next node wait for nodes of a capture; a stream that doesn't capture joins it.
cudaError_t join_capture(Stream& stream, const std::shared_ptr<Capture>& capture, const std::vector<int>& nodes);
bool is_active(const Capture& capture);

// The refusals return cudaSuccess when there is nothing to refuse; otherwise the captures that forbid the call become invalid.
cudaError_t refuse_legacy_work_while_capturing(Stream& stream);
cudaError_t refuse_if_capturing(Stream& stream);
cudaError_t refuse_unsafe_call();  // one that the modes "global" and "thread-local" forbid
cudaError_t invalidate(Capture& capture, cudaError_t error);

cudaError_t instantiate(cudaGraph_t graph, cudaGraphExec_t& made);
cudaError_t launch_graph(cudaGraphExec_t graph, Stream& stream);
cudaError_t upload_graph(cudaGraphExec_t graph);
cudaError_t destroy_graph(cudaGraph_t graph);
cudaError_t destroy_executable(cudaGraphExec_t graph);

}  // namespace software_cuda
