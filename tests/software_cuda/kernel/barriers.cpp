// Barriers of a block. Threads are counted one by one; those that have ended are not waited for by a barrier of the whole block.
#include <algorithm>

#include "block.hpp"

namespace software_cuda {

using namespace execution;

namespace {

bool is_complete(const Block& block, const Barrier& barrier) {
    return barrier.arrived && barrier.arrived >= (barrier.expected ? barrier.expected : block.live);
}

// The lanes of a warp must come to an aligned barrier at the same instruction.
void require_one_site_per_warp(const std::vector<Fibre*>& waiting) {
    for (Fibre* thread : waiting) thread->warp->barrier_site = thread->site;
    for (Fibre* thread : waiting)
        if (thread->site != thread->warp->barrier_site)
            fail(*thread, Failure::launch_failed,
                 text("is at barrier %u, which other lanes of its warp have come to at another instruction", thread->barrier));
}

// Gives the waiting threads how many predicates were true and of how many, and lets them go on.
void release(Barrier& barrier, const Fibre* except) {
    std::vector<Fibre*> waiting;
    waiting.swap(barrier.waiting);
    require_one_site_per_warp(waiting);
    for (Fibre* thread : waiting) {
        thread->result = barrier.trues;
        thread->second = barrier.arrived;
        if (thread != except) wake(*thread);
    }
    barrier = Barrier();
}

Barrier& arrive(Fibre& thread, u32 number, u32 threads, bool value) {
    if (number >= std::size(thread.block->barriers)) fail(thread, Failure::launch_failed, text("names barrier %u of 16", number));
    if (threads % warp_size) fail(thread, Failure::launch_failed, text("waits for %u threads, which are not whole warps", threads));
    Barrier& barrier = thread.block->barriers[number];
    if (barrier.arrived && barrier.expected != threads)
        fail(thread, Failure::launch_failed,
             text("arrives at barrier %u of %u threads, at which others have arrived with %u", number, threads, barrier.expected));
    barrier.expected = threads;
    ++barrier.arrived;
    barrier.trues += value;
    return barrier;
}

// `site` is the instruction of an aligned barrier, or null where lanes may come to it at several.
void meet(Thread& t, u32 number, u32 threads, bool value, const void* site) {
    Fibre& thread = fibre_of(t);
    Barrier& barrier = arrive(thread, number, threads, value);
    thread.barrier = number;
    thread.site = site;
    barrier.waiting.push_back(&thread);
    if (is_complete(*thread.block, barrier))
        release(barrier, &thread);
    else
        wait(thread, Fibre::State::at_barrier);
}

}  // namespace

void bar_sync(Thread& thread, u32 barrier, u32 threads, bool aligned) {
    meet(thread, barrier, threads, false, aligned ? __builtin_return_address(0) : nullptr);
}

void bar_arrive(Thread& t, u32 number, u32 threads) {
    Fibre& thread = fibre_of(t);
    if (!threads) fail(thread, Failure::launch_failed, "arrives at a barrier without a number of threads");
    Barrier& barrier = arrive(thread, number, threads, false);
    if (is_complete(*thread.block, barrier)) release(barrier, nullptr);
}

u32 bar_red_popc(Thread& thread, u32 barrier, u32 threads, bool value, bool aligned) {
    meet(thread, barrier, threads, value, aligned ? __builtin_return_address(0) : nullptr);
    return fibre_of(thread).result;
}

bool bar_red_or(Thread& thread, u32 barrier, u32 threads, bool value, bool aligned) {
    meet(thread, barrier, threads, value, aligned ? __builtin_return_address(0) : nullptr);
    return fibre_of(thread).result > 0;
}

bool bar_red_and(Thread& thread, u32 barrier, u32 threads, bool value, bool aligned) {
    meet(thread, barrier, threads, value, aligned ? __builtin_return_address(0) : nullptr);
    return fibre_of(thread).result == fibre_of(thread).second;
}

void execution::barriers_lose_thread(Block& block) {
    for (Barrier& barrier : block.barriers)
        if (!barrier.expected && is_complete(block, barrier)) release(barrier, nullptr);
}

}  // namespace software_cuda
