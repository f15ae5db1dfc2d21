// Launches: blocks one after another, fibres, and reports of what went wrong.
#include "launch.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <map>
#include <memory>

#include "block.hpp"

namespace software_cuda::execution {

namespace {

// A stack has the thread's local arrays, which are at most 512 KiB on a device. Pages that nobody touches cost nothing.
constexpr std::size_t stack_bytes = 1024 * 1024;
constexpr u64 stack_of_a_function = 256 * 1024;  // at most, without its local arrays: its registers and what it calls of ours
constexpr u32 jumps_before_rest = 4096;
constexpr u64 longest_launch = 120'000'000'000;  // nanoseconds
constexpr u8 shared_poison = 0xff;               // a NaN of every type

// The stacks of the fibres, each above a page that nobody may touch. They are kept for the next launch of this thread of the host.
class Stacks {
public:
    Stacks() = default;
    Stacks(const Stacks&) = delete;
    ~Stacks() { release(); }

    void provide(u32 wanted) {
        if (wanted <= count) return;
        release();
        void* found = mmap(nullptr, wanted * stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (found == MAP_FAILED) std::abort();
        memory = static_cast<char*>(found);
        count = wanted;
        for (u32 i = 0; i < count; ++i) mprotect(memory + i * stack_bytes, guard(), PROT_NONE);
    }

    // Stacks that began at the same place of a page would compete for the same lines of the caches.
    char* begin(u32 i) const { return memory + i * stack_bytes + guard(); }
    char* end(u32 i) const { return memory + (i + 1) * stack_bytes - i % 61 * 64; }

private:
    static std::size_t guard() {
        static const std::size_t page = sysconf(_SC_PAGESIZE);
        return page;
    }
    void release() {
        if (memory) munmap(memory, count * stack_bytes);
        memory = nullptr;
        count = 0;
    }

    char* memory = nullptr;
    u32 count = 0;
};

thread_local Stacks stacks;
thread_local Block* running;

// The processor's time of this thread: a machine that is busy or asleep ends no launch.
u64 own_time() {
    timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return now.tv_sec * 1'000'000'000ull + now.tv_nsec;
}

// Goes on with the next thread of the queue, or with the scheduler where there is none.
void switch_from(Fibre& thread) {
    Block& block = *thread.block;
    Fibre* next = block.outcome.failure == Failure::none ? block.queue.pop() : nullptr;
    if (next == &thread) return;
    block.last_running = &thread.fibre;
    if (next) block.current = next;
    thread.fibre.switch_to(next ? next->fibre : block.scheduler);
}

[[noreturn]] void leave(Fibre& thread) {
    for (;;) switch_from(thread);
}

void run_thread() {
    Block& block = *running;
    fibres::Fibre::started_by(*block.last_running);
    Fibre& thread = *block.current;
    block.launch->kernel->body(thread, block.launch->parameters, block.launch->globals);
    end_thread(thread);
}

void prepare(Fibre& thread, Block& block, u32 linear, const u32 (&index)[3]) {
    const Launch& launch = *block.launch;
    for (int axis = 0; axis < 3; ++axis) {
        thread.ntid[axis] = launch.block[axis];
        thread.nctaid[axis] = launch.grid[axis];
        thread.ctaid[axis] = index[axis];
    }
    thread.tid[0] = linear % launch.block[0];
    thread.tid[1] = linear / launch.block[0] % launch.block[1];
    thread.tid[2] = linear / launch.block[0] / launch.block[1];
    thread.linear = linear;
    thread.patience = jumps_before_rest;
    thread.block = &block;
    thread.warp = &block.warps[linear / warp_size];
    thread.state = Fibre::State::ready;
    thread.stack_begin = stacks.begin(linear);
    thread.stack_end = stacks.end(linear);
    thread.copies.clear();
    thread.group = 0;
    thread.fibre.prepare(thread.stack_begin, thread.stack_end - thread.stack_begin, run_thread);
}

std::string deadlock_text(const Block& block) {
    std::map<std::string, std::pair<u32, const Fibre*>> waiting;
    for (const Fibre& thread : block.threads) {
        if (thread.state == Fibre::State::ended) continue;
        auto [place, is_new] = waiting.try_emplace(waiting_text(thread), 0, &thread);
        ++place->second.first;
    }
    std::string result = text("No thread of block (%u, %u, %u) of kernel %s can go on", block.threads[0].ctaid[0],
                              block.threads[0].ctaid[1], block.threads[0].ctaid[2], block.launch->kernel->name);
    for (const auto& [at, who] : waiting) {
        const Fibre& first = *who.second;
        result += text("; %u of its threads (the first is (%u, %u, %u)) wait at %s", who.first, first.tid[0], first.tid[1],
                       first.tid[2], at.c_str());
    }
    const u32 ended = block.count - block.live;
    return result + (ended ? text("; %u threads have ended.", ended) : ".");
}

void run_block(Block& block, const u32 (&index)[3]) {
    std::memset(block.shared, shared_poison, block.shared_bytes);
    std::fill(block.shadow.begin(), block.shadow.end(), Shadow::unset);
    for (Barrier& barrier : block.barriers) barrier = Barrier();
    block.live = block.count;
    block.queue.reset(block.count);
    for (u32 w = 0; w < block.warps.size(); ++w) {
        const u32 lanes = std::min(warp_size, block.count - w * warp_size);
        const u32 all = lanes == warp_size ? ~0u : (1u << lanes) - 1;
        block.warps[w] = {&block.threads[w * warp_size], all, all, 0, 0, nullptr};
    }
    for (u32 i = 0; i < block.count; ++i) prepare(block.threads[i], block, i, index);
    for (u32 i = 0; i < block.count; ++i)
        block.queue.push(block.threads[block.order == ThreadOrder::forwards ? i : block.count - 1 - i]);
    running = &block;
    block.last_running = &block.scheduler;
    block.current = block.queue.pop();
    block.scheduler.switch_to(block.current->fibre);
    if (block.live && block.outcome.failure == Failure::none) block.outcome = {Failure::launch_failed, deadlock_text(block)};
}

}  // namespace

Outcome run_blocks(const Launch& launch, ThreadOrder order) {
    Block block;
    block.launch = &launch;
    block.order = order;
    block.deadline = own_time() + longest_launch;
    block.count = launch.block[0] * launch.block[1] * launch.block[2];
    block.threads.resize(block.count);
    block.warps.resize((block.count + warp_size - 1) / warp_size);
    block.static_bytes = launch.kernel->static_shared;
    block.shared_bytes = (block.static_bytes + 15) / 16 * 16 + launch.dynamic_shared;
    block.shadow.resize(block.shared_bytes);
    const std::unique_ptr<u8, void (*)(void*)> shared(static_cast<u8*>(std::aligned_alloc(1024, block.shared_bytes / 1024 * 1024 + 1024)),
                                                      std::free);
    block.shared = shared.get();
    stacks.provide(block.count);
    const u64 blocks = u64{launch.grid[0]} * launch.grid[1] * launch.grid[2];
    for (u64 i = 0; i < blocks && block.outcome.failure == Failure::none; ++i) {
        const u64 number = order == ThreadOrder::forwards ? i : blocks - 1 - i;
        const u32 index[3] = {u32(number % launch.grid[0]), u32(number / launch.grid[0] % launch.grid[1]),
                              u32(number / launch.grid[0] / launch.grid[1])};
        run_block(block, index);
    }
    running = nullptr;
    return block.outcome;
}

// Reports ---------------------------------------------------------------------------------------------------------------------

std::string text(const char* format, ...) {
    char buffer[512];
    va_list values;
    va_start(values, format);
    std::vsnprintf(buffer, sizeof buffer, format, values);
    va_end(values);
    return buffer;
}

std::string place_of(const Fibre& thread) {
    return text("Thread (%u, %u, %u) of block (%u, %u, %u) of kernel %s", thread.tid[0], thread.tid[1], thread.tid[2], thread.ctaid[0],
                thread.ctaid[1], thread.ctaid[2], thread.block->launch->kernel->name);
}

void fail(Fibre& thread, Failure failure, const std::string& what) {
    Block& block = *thread.block;
    block.outcome = {failure, place_of(thread) + " " + what + "."};
    leave(*block.current);
}

void remark(Fibre& thread, const std::string& what) {
    std::string& report = thread.block->outcome.report;
    if (report.empty()) report = place_of(thread) + " " + what + ".";
}

// Waiting ---------------------------------------------------------------------------------------------------------------------

void wait(Fibre& thread, Fibre::State state) {
    Warp& warp = *thread.warp;
    thread.state = state;
    warp.runnable &= ~(1u << thread.lane());
    if (!warp.runnable && warp.at_active) tell_active_lanes(warp);
    switch_from(thread);
}

void wake(Fibre& thread) {
    thread.state = Fibre::State::ready;
    thread.warp->runnable |= 1u << thread.lane();
    thread.block->queue.push(thread);
}

void pass_on(Fibre& thread) {
    thread.block->queue.push(thread);
    switch_from(thread);
}

}  // namespace software_cuda::execution

namespace software_cuda {

using namespace execution;

Outcome run(const Launch& launch, ThreadOrder order) { return run_blocks(launch, order); }

// A thread's course -----------------------------------------------------------------------------------------------------------

void rest(Thread& t) {
    Fibre& thread = fibre_of(t);
    thread.patience = jumps_before_rest;
    if (own_time() > thread.block->deadline) fail(thread, Failure::timed_out, "has not ended after two minutes");
    pass_on(thread);
}

void enter(Thread& t, const void* frame, u64 local_bytes) {
    Fibre& thread = fibre_of(t);
    const u64 left = static_cast<const char*>(frame) - thread.stack_begin;
    if (left < local_bytes + stack_of_a_function)
        fail(thread, Failure::launch_failed,
             text("begins a function with %llu bytes of local arrays, for which its stack has no room", (unsigned long long)local_bytes));
}

void end_thread(Thread& t) {
    Fibre& thread = fibre_of(t);
    Block& block = *thread.block;
    Warp& warp = *thread.warp;
    const u32 bit = 1u << thread.lane();
    check_copies_at_end(thread);
    thread.state = Fibre::State::ended;
    --block.live;
    warp.live &= ~bit;
    warp.runnable &= ~bit;
    barriers_lose_thread(block);
    warp_loses_thread(warp);
    if (!warp.runnable && warp.at_active) tell_active_lanes(warp);
    leave(thread);
}

void trap(Thread& thread) { fail(fibre_of(thread), Failure::launch_failed, "executes a trap"); }

void assertion_failed(Thread& thread) { fail(fibre_of(thread), Failure::assertion, "finds that an assertion does not hold"); }

u64 nanoseconds() {
    timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return now.tv_sec * 1'000'000'000ull + now.tv_nsec;
}

// What a thread can ask -------------------------------------------------------------------------------------------------------

u32 lane_of(const Thread& thread) { return fibre_of(thread).lane(); }
u32 warps_of_block(const Thread& thread) { return fibre_of(thread).block->warps.size(); }
u32 dynamic_shared_of(const Thread& thread) { return fibre_of(thread).block->launch->dynamic_shared; }
u32 total_shared_of(const Thread& thread) { return fibre_of(thread).block->shared_bytes; }

}  // namespace software_cuda
