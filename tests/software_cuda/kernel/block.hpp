// A block that runs: its threads as fibres, which of them can go on, its shared memory and its barriers.
//
// Fibres hand over to one another directly. A thread that waits is in no queue; whoever completes what it waits for puts it at the
// end of the queue of those that can go on. When the queue is empty the block has ended, or no thread can ever go on.
#pragma once

#include <string>
#include <vector>

#include "../../support/fibre/fibre.hpp"
#include "launch.hpp"
#include "translated.hpp"

namespace software_cuda::execution {

constexpr u32 warp_size = 32;

struct Block;
struct Warp;

// Gives each of these lanes, which have all come, the result of a collective.
using Complete = void (*)(Warp& warp, u32 lanes);

struct Copy {
    u64 to, from;
    u32 bytes, taken;
    u32 group;
};

struct Fibre : Thread {
    enum class State { ready, at_barrier, at_collective, at_active_mask, ended };

    fibres::Fibre fibre;
    Block* block;
    Warp* warp;
    State state;
    char *stack_begin, *stack_end;

    // A thread that waits leaves its operands here, and finds its results here.
    u32 barrier;
    Complete complete;
    const char* collective;  // its name, for reports
    const void* site;  // the call of translated code, where it matters
    u32 mask;
    bool whole;  // the collective needs all lanes of the warp
    u64 value;
    u32 second, third;
    void* operands;
    u32 result;
    bool flag;

    std::vector<Copy> copies;  // not landed yet
    u32 group;                 // that the next copy belongs to

    u32 lane() const { return linear % warp_size; }
};

struct Warp {
    Fibre* lanes;
    u32 live;       // a bit for each lane that has not ended
    u32 runnable;   // that runs, or is in the queue
    u32 meeting;    // that waits at a collective
    u32 at_active;  // that waits to know who is active
    const void* barrier_site;  // where its lanes wait at the barrier that is being completed
};

struct Barrier {
    u32 arrived = 0, expected = 0;
    u32 trues = 0;
    std::vector<Fibre*> waiting;
};

// Threads in the order in which they go on. Each is in it at most once.
class Queue {
public:
    void reset(u32 capacity) {
        places.resize(capacity + 1);
        first = last = 0;
    }
    void push(Fibre& thread) {
        places[last] = &thread;
        last = last + 1 == places.size() ? 0 : last + 1;
    }
    Fibre* pop() {
        if (first == last) return nullptr;
        Fibre* thread = places[first];
        first = first + 1 == places.size() ? 0 : first + 1;
        return thread;
    }

private:
    std::vector<Fibre*> places;
    std::size_t first = 0, last = 0;
};

enum class Shadow : u8 { unset, stored, copying };

struct Block {
    const Launch* launch;
    ThreadOrder order;
    u64 deadline;  // in nanoseconds
    Outcome outcome;

    u32 count, live;  // threads
    std::vector<Fibre> threads;
    std::vector<Warp> warps;
    Barrier barriers[16];
    Queue queue;
    fibres::Fibre scheduler;
    fibres::Fibre* last_running;
    Fibre* current;

    u8* shared;
    u32 shared_bytes, static_bytes;
    std::vector<Shadow> shadow;  // of each byte of shared memory
};

inline Fibre& fibre_of(Thread& thread) { return static_cast<Fibre&>(thread); }
inline const Fibre& fibre_of(const Thread& thread) { return static_cast<const Fibre&>(thread); }

// Ends the launch. The text says what the thread did: "loads 4 bytes at ...".
[[noreturn]] void fail(Fibre& thread, Failure failure, const std::string& what);
// Reports something after which the kernel goes on; only the first report is kept.
void remark(Fibre& thread, const std::string& what);
std::string place_of(const Fibre& thread);
std::string text(const char* format, ...) __attribute__((format(printf, 1, 2)));

void wait(Fibre& thread, Fibre::State state);  // until somebody wakes it
void wake(Fibre& thread);
void pass_on(Fibre& thread);  // lets those in the queue go on first

// Called before a thread ends: its asynchronous copies that have not landed read memory all the same.
void check_copies_at_end(Fibre& thread);
// Called when a thread has ended: others may have waited for it only.
void barriers_lose_thread(Block& block);
void warp_loses_thread(Warp& warp);
void tell_active_lanes(Warp& warp);  // where no lane of the warp can go on otherwise
std::string waiting_text(const Fibre& thread);

}  // namespace software_cuda::execution
