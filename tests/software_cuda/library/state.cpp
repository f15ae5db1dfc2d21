#include "state.hpp"

#include <pthread.h>

namespace software_cuda {

namespace {
bool forked_child = false;
}

// These objects are never destroyed: threads of Python may still call while the process ends.
std::mutex& state_lock() {
    static auto* lock = new std::mutex;
    return *lock;
}

std::condition_variable_any& state_changed() {
    static auto* changed = new std::condition_variable_any;
    return *changed;
}

bool is_forked_child() { return forked_child; }

void watch_forks() {
    static bool watching = false;
    if (watching) return;
    watching = true;
    pthread_atfork(nullptr, nullptr, [] { forked_child = true; });
}

}  // namespace software_cuda
