// The one lock of the library and the gate that every exported function goes through.
//
// The lock is held for a whole call, also while a kernel or a copy runs. It is given up in two places only: while the builder of
// modules runs and while a host function runs. Both may need Python's lock, and CuPy makes some calls (the queries of streams,
// events, devices and pointers) while it holds Python's lock; they would wait for each other forever.
#pragma once

#include <condition_variable>
#include <mutex>

#include "errors.hpp"

namespace software_cuda {

std::mutex& state_lock();
std::condition_variable_any& state_changed();  // notified when an operation is done

// Gives the lock up for as long as it lives.
class Unlocked {
   public:
    Unlocked() { state_lock().unlock(); }
    ~Unlocked() { state_lock().lock(); }
    Unlocked(const Unlocked&) = delete;
    Unlocked& operator=(const Unlocked&) = delete;
};

// A child process has no devices: the operations of its parent would run twice.
bool is_forked_child();
void watch_forks();

// Takes the lock and runs the body of an exported function, unless nothing can succeed any more. Keeps the error for
// cudaGetLastError.
template <class Body>
cudaError_t guarded(Body body) {
    if (is_forked_child()) return keep_error(cudaErrorInitializationError);
    std::lock_guard<std::mutex> hold(state_lock());
    if (sticky_error() != cudaSuccess) return keep_error(sticky_error());
    return keep_error(body());
}

}  // namespace software_cuda
