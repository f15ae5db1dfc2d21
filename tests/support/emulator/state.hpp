// The state that the parts of the machine share: machine.cpp runs threads, memory.cpp checks accesses, trace.cpp counts them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../fibre/fibre.hpp"
#include "machine.hpp"

namespace emulator {

using fibres::Fibre;

constexpr int MOST_THREADS = 1024;                 // of a block
constexpr int MOST_STATIC_SHARED = 48 * 1024;      // what a kernel may declare with a size
constexpr int MOST_SHARED = 227 * 1024;            // what any device lets a block have
constexpr int FRAMES = 24;                         // of the call stack of an error

// A range of global memory that a launch may touch. The shadows have one entry per byte from `begin` on, and are Python's.
struct Buffer {
    char* begin;
    char* end;
    const std::uint8_t* member;  // 0 where the range has a gap between the array's elements; null: it has none
    std::uint8_t* written;       // 0 where no launch has written yet; null, as `touched`, in a buffer that is only read
    std::uint32_t* touched;      // who touched the byte in this launch: memory.cpp says how
    const char* label;
    int poisoned;  // what has not been written is not a value to load
};

struct Account {
    std::uint64_t global_loads, global_load_bytes, global_stores, global_store_bytes;
    std::uint64_t shared_loads, shared_load_bytes, shared_stores, shared_store_bytes;
    std::uint64_t barriers, collectives, multiply_adds;
};

enum class Kind : int { global_load, global_store, shared_load, shared_store };

// The traffic of the warps' accesses at one place of the kernel's code: see trace.cpp.
struct Traffic {
    const void* caller;
    Kind kind;
    std::uint64_t requests;      // of warps
    std::uint64_t accesses;      // of lanes
    std::uint64_t bytes;         // that the lanes asked for
    std::uint64_t transactions;  // sectors of global memory, or passes over the banks of shared memory
    std::uint64_t least;         // transactions that the same bytes would take side by side
};

enum class Order : int { forward, reverse, odd_even };

// One launch as Python asks for it, and what came of it.
struct Launch {
    const char* kernel;
    Index grid, block;
    int dynamic_shared;
    Order order;
    int traced;
    std::uint64_t steps;       // calls of the machine by the kernel's threads, after which the launch is given up
    double seconds_of_a_step;  // CPU time, after twice which a thread that makes no such call is given up
    void* const* values;
    const int* sizes;
    const char* kinds;
    int count;
    Buffer* buffers;
    int buffer_count;
    Account account;
    char error[2048];
    void* frames[FRAMES];  // return addresses at the error, innermost first
    int frame_count;
    const Traffic* traffic;  // where the launch was traced, until the next launch
    int traffic_count;
};

struct Copy {
    char* to;
    int bytes;
    int group;
    Site site;
    char data[16];
};

struct Thread {
    enum class State { ready, at_barrier, at_collective, ended };

    Fibre fibre;
    Index index;
    State state;
    // A waiting thread has the operation that it waits at, the place and its operands.
    const char* waits_at;
    Site site;
    unsigned mask;
    void* operands;
    bool predicate;
    // Asynchronous copies not landed yet, and the number of groups committed.
    std::vector<Copy> copies;
    int groups;
};

// The launch in progress: there is one at a time.
struct Machine {
    Launch* launch;
    unsigned long launch_number;
    int threads;  // of a block
    std::vector<Thread> block;
    int current;  // the thread that runs, by its number in the block
    std::uint32_t block_number;
};

extern Machine machine;

// Ends the launch with an error of the thread that runs; the text is as of printf.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

std::string text(const char* format, ...) __attribute__((format(printf, 1, 2)));
std::string text(Site site);
std::string text(Index index);
std::string thread_text(int thread);
Index index_of(unsigned long number, Index extent);

// memory.cpp, for machine.cpp.
void memory_starts_launch();
void memory_starts_block();
void memory_passed_barrier();
void memory_passed_warp_barrier(int warp);

// trace.cpp: one access of a launch that is traced, by the address that it returns to, and when that comes to an end.
void trace(Kind kind, const void* at, int bytes, const void* caller);
void trace_starts_launch();
void trace_ends_block();
void trace_ends_launch();

// Called by everything that a thread does, so that a kernel that never ends is given up.
void count_step();

}  // namespace emulator
