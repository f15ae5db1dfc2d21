// Streams, and the operations that wait in them.
//
// By default nothing runs until somebody waits for it: an operation runs when it is waited for, after the operations that it
// depends on. Work that the program forgot to order is therefore not ordered by accident. All functions expect the lock to be
// held.
#pragma once

#include <cuda_runtime_api.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

namespace software_cuda {

struct Extent {
    std::uint64_t address;
    std::size_t bytes;
};

// The work of an operation; graphs keep it and run it again.
struct Work {
    std::string name;                  // for reports: "the kernel add", "a copy"
    std::function<cudaError_t()> run;  // null for a mark in a stream. An error sticks to the process.
    std::vector<Extent> touches;       // memory that is known to be used, of which none may be dead
    bool calls_host = false;           // runs without the lock
};

struct Operation {
    enum class State { waiting, running, done };

    Work work;
    std::vector<std::shared_ptr<Operation>> after;
    std::uint64_t epoch;  // of memory, when it was enqueued (memory.hpp)
    State state = State::waiting;
    std::thread::id runner;
    std::chrono::steady_clock::time_point finished;
    int asked = 0;  // how often a query answered that it is not ready
};
using OperationPointer = std::shared_ptr<Operation>;

struct Capture;

struct Stream {
    enum class Sort { legacy, per_thread, created };

    Sort sort;
    int device;
    bool blocking;  // ordered with the legacy stream
    unsigned flags;
    int priority;
    OperationPointer last;
    std::shared_ptr<Capture> capture;
    std::vector<int> tails;  // nodes of the capture that the next node depends on
};

cudaError_t create_stream(unsigned flags, int priority, cudaStream_t& handle);
cudaError_t destroy_stream(cudaStream_t handle);
// Null for a handle that is not of a stream. The default streams are those of the current device.
Stream* find_stream(cudaStream_t handle);
std::vector<Stream*> streams_of(int device);
Stream& legacy_stream(int device);

// Appends work to a stream, or to the graph that the stream captures. Dependencies are for work that isn't captured.
cudaError_t enqueue(Stream& stream, Work work, std::vector<OperationPointer> dependencies = {},
                    OperationPointer* enqueued = nullptr);
// The same for a stream that doesn't capture, whose checks are done.
OperationPointer append(Stream& stream, Work work, std::vector<OperationPointer> dependencies);
// An operation in no stream; it becomes part of one as something that the stream's next operation depends on.
OperationPointer make_operation(Work work, std::vector<OperationPointer> dependencies);

// Runs an operation and everything before it, and returns the sticky error. A caller that holds Python's lock must not wait for a
// host function that runs in another thread; it gets cudaErrorNotReady.
enum class Wait { allowed, forbidden };
cudaError_t finish(const OperationPointer& operation, Wait wait = Wait::allowed);
cudaError_t finish_stream(Stream& stream);
cudaError_t finish_device(int device);
void finish_everything();
void finish_what_touches(std::uint64_t address, std::size_t bytes);
// Answers whether an operation is done. It runs only when it was asked for several times, so that a loop of queries ends.
cudaError_t query(const OperationPointer& operation);
cudaError_t query_stream(Stream& stream);

// Says on stderr and returns false if work uses memory that was given back.
bool touches_only_living_memory(const Work& work);

void set_lazy(bool lazy);
bool is_lazy();
std::uint64_t pending_operations();

}  // namespace software_cuda
