// Runs the threads of a launch: blocks one after another, warps one after another, every thread a fibre that runs until it ends
// or waits for others. Nothing here waits for ever: when no thread can run, whoever still waits is an error.
#include <execinfo.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <ctime>

#include "state.hpp"

emulator::Index threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

Machine machine{};
unsigned long multiply_adds = 0;

namespace {

constexpr std::size_t STACK = 256 * 1024;
constexpr unsigned long long CANARY = 0x5afe5afe5afe5afeull;  // at the far end of each stack

Fibre scheduler;
char* stacks = nullptr;
void (*kernel_call)(void* const*) = nullptr;
std::uint64_t steps_taken = 0;
std::uint64_t steps_at_last_alarm = 0;
volatile bool thread_runs = false;  // rather than the scheduler
int barrier_count = 0;              // of the last barrier passed: for how many threads the predicate held

bool failed() { return machine.launch->error[0] != 0; }

// The first error of a launch is its error.
void report(const std::string& what) {
    Launch& launch = *machine.launch;
    if (failed()) return;
    std::snprintf(launch.error, sizeof launch.error, "kernel '%s': %s", launch.kernel, what.c_str());
}

Thread& current() { return machine.block[machine.current]; }

// Threads ---------------------------------------------------------------------------------------------------------------------

char* stack_of(int thread) { return stacks + static_cast<std::size_t>(thread) * STACK; }

void body_of_thread() {
    Fibre::started_by(scheduler);
    kernel_call(machine.launch->values);
    current().state = Thread::State::ended;
    current().fibre.switch_to(scheduler);
    __builtin_unreachable();
}

void resume(int thread) {
    machine.current = thread;
    threadIdx = current().index;
    steps_taken += 1;
    thread_runs = true;
    scheduler.switch_to(current().fibre);
    thread_runs = false;
}

void wait(Thread::State state, const char* waits_at, unsigned mask, Site site) {
    Thread& mine = current();
    mine.state = state;
    mine.waits_at = waits_at;
    mine.mask = mask;
    mine.site = site;
}

void suspend() { current().fibre.switch_to(scheduler); }

std::string where(const Thread& thread) {
    const std::string who = "thread " + text(thread.index) + " of block " + text(blockIdx);
    if (thread.state == Thread::State::ended) return who + " has ended";
    const std::string what = who + " waits in " + thread.waits_at + " at " + text(thread.site);
    return thread.state == Thread::State::at_collective ? what + text(" with the mask %08x", thread.mask) : what;
}

// Returns whether both threads wait at the same operation, each for the other.
bool wait_together(const Thread& one, const Thread& other) {
    return one.state == other.state && one.waits_at == other.waits_at && one.mask == other.mask && one.site == other.site;
}

// `number` things in the order asked for: what runs k-th.
int in_order(int k, int number) {
    switch (machine.launch->order) {
        case Order::reverse: return number - 1 - k;
        case Order::odd_even: return k < number / 2 ? 2 * k + 1 : 2 * (k - number / 2);
        default: return k;
    }
}

int warps() { return (machine.threads + WARP - 1) / WARP; }

int lanes(int warp) { return machine.threads - warp * WARP < WARP ? machine.threads - warp * WARP : WARP; }

Thread* lane_of(int warp, int lane) { return &machine.block[warp * WARP + lane]; }

// No thread of the warp can go on: one that still waits for its mask waits for a lane that will never come.
void need_no_diverged_lane(int warp) {
    for (int lane = 0; lane < lanes(warp); ++lane) {
        const Thread& waiting = *lane_of(warp, lane);
        for (int other = 0; other < lanes(warp) && waiting.state == Thread::State::at_collective; ++other)
            if (waiting.mask >> other & 1 && !wait_together(waiting, *lane_of(warp, other)))
                return report("diverged warp: " + where(waiting) + ", but " + where(*lane_of(warp, other)));
    }
}

// Runs a warp until none of its threads can go on.
void run_warp(int warp) {
    for (bool again = true; again;) {
        again = false;
        for (int k = 0; k < lanes(warp); ++k) {
            const int lane = in_order(k, lanes(warp));
            if (lane_of(warp, lane)->state != Thread::State::ready) continue;
            resume(warp * WARP + lane);
            if (failed()) return;
            again = true;
        }
    }
    need_no_diverged_lane(warp);
}

// All threads of the block wait, or have ended. Lets them pass the barrier if it is the same for all.
void open_barrier() {
    const Thread* waiting = nullptr;
    for (const Thread& thread : machine.block)
        if (thread.state == Thread::State::at_barrier) waiting = &thread;
    if (!waiting) return;
    barrier_count = 0;
    for (Thread& thread : machine.block) {
        if (!wait_together(*waiting, thread))
            return report("diverged barrier: " + where(*waiting) + ", but " + where(thread));
        barrier_count += thread.predicate;
    }
    for (Thread& thread : machine.block) thread.state = Thread::State::ready;
    machine.launch->account.barriers += 1;
    memory_passed_barrier();
}

bool block_has_ended() {
    for (const Thread& thread : machine.block)
        if (thread.state != Thread::State::ended) return false;
    return true;
}

void start_block(int number) {
    machine.block_number = number;
    blockIdx = index_of(number, gridDim);
    memory_starts_block();
    for (int thread = 0; thread < machine.threads; ++thread) {
        Thread& starting = machine.block[thread];
        starting.index = index_of(thread, blockDim);
        starting.state = Thread::State::ready;
        // Stacks that all began at the same place in a page would fight for the same lines of the cache.
        const std::size_t stagger = static_cast<std::size_t>(thread) * 192 % 4096;
        starting.fibre.prepare(stack_of(thread), STACK - stagger, body_of_thread);
    }
}

void need_stacks_whole() {
    for (int thread = 0; thread < machine.threads; ++thread)
        if (*reinterpret_cast<unsigned long long*>(stack_of(thread)) != CANARY)
            report(text("thread %s has used more than %zu bytes of stack", thread_text(thread).c_str(), STACK));
}

void run_block(int number) {
    start_block(number);
    while (!block_has_ended() && !failed()) {
        for (int k = 0; k < warps() && !failed(); ++k) run_warp(in_order(k, warps()));
        if (!failed()) open_barrier();
    }
    need_stacks_whole();
    trace_ends_block();
}

void pass_warp_barrier(void* const (&)[WARP]) { memory_passed_warp_barrier(machine.current / WARP); }
void pass_nothing(void* const (&)[WARP]) {}

// The launch ------------------------------------------------------------------------------------------------------------------

const char* kind_name(char kind) {
    switch (kind) {
        case 'p': return "a pointer";
        case 'f': return "a floating-point number";
        default: return "an integer";
    }
}

// CUDA takes whatever it is given; nothing else would notice an argument that the kernel does not take.
void check_arguments(const Launch& launch, const Signature& signature) {
    if (launch.count != signature.count)
        return report(text("takes %d arguments, got %d", signature.count, launch.count));
    for (int i = 0; i < launch.count; ++i)
        if (launch.sizes[i] != signature.sizes[i] || launch.kinds[i] != signature.kinds[i])
            return report(text("argument %d is %s of %d bytes, got %s of %d bytes", i, kind_name(signature.kinds[i]),
                               signature.sizes[i], kind_name(launch.kinds[i]), launch.sizes[i]));
}

void check_sizes(const Launch& launch, const Signature& signature) {
    const unsigned long threads = 1ul * launch.block.x * launch.block.y * launch.block.z;
    const unsigned long most = signature.most_threads ? static_cast<unsigned long>(signature.most_threads) : MOST_THREADS;
    const bool grid_fits = launch.grid.x < (1u << 31) && launch.grid.y < (1u << 16) && launch.grid.z < (1u << 16);
    if (threads < 1 || threads > most || threads > MOST_THREADS)
        report(text("a block has from 1 to %lu threads, got %s", most, text(launch.block).c_str()));
    if (launch.grid.x < 1 || launch.grid.y < 1 || launch.grid.z < 1 || !grid_fits)
        report(text("a grid has from 1 to 2147483647 x 65535 x 65535 blocks, got %s", text(launch.grid).c_str()));
    if (1.0 * launch.grid.x * launch.grid.y * launch.grid.z * static_cast<double>(threads) > 2e9)
        report("this is too large a grid to be emulated");
    if (launch.dynamic_shared < 0 || launch.dynamic_shared > MOST_SHARED)
        report(text("a block has from 0 to %d bytes of shared memory, got %d", MOST_SHARED, launch.dynamic_shared));
}

void prepare_stacks() {
    if (!stacks) {
        void* const memory = mmap(nullptr, STACK * MOST_THREADS, PROT_READ | PROT_WRITE,
                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) return report("no memory for the threads' stacks");
        stacks = static_cast<char*>(memory);
    }
#if defined(__SANITIZE_ADDRESS__)
    // Threads that an error stopped have left their frames behind.
    __asan_unpoison_memory_region(stacks, STACK * MOST_THREADS);
#endif
    for (int thread = 0; thread < machine.threads; ++thread)
        *reinterpret_cast<unsigned long long*>(stack_of(thread)) = CANARY;
}

// A thread that calls nothing takes no step that could be counted: a signal ends the launch when it comes twice without a step in
// between. Its clock counts the CPU time of this thread, so that a launch does not fail because the machine is busy with something
// else. What the signal interrupts is the kernel's own arithmetic, so that ending the launch from here leaves nothing half done.
class Alarm {
public:
    explicit Alarm(double seconds) {
        struct sigaction action {};
        action.sa_handler = [](int) {
            if (thread_runs && steps_taken == steps_at_last_alarm)
                fail("is still running after %g s of CPU time without a step", machine.launch->seconds_of_a_step);
            steps_at_last_alarm = steps_taken;
        };
        action.sa_flags = SA_NODEFER;
        sigaction(SIGRTMIN + 7, &action, nullptr);
        sigevent event{};
        event.sigev_notify = SIGEV_THREAD_ID;
        event.sigev_signo = SIGRTMIN + 7;
        event._sigev_un._tid = static_cast<pid_t>(syscall(SYS_gettid));
        armed = timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &timer) == 0;
        const long nanoseconds = static_cast<long>(1e9 * seconds), second = 1'000'000'000;
        const timespec span{nanoseconds / second, nanoseconds % second};
        const itimerspec again_and_again{span, span};
        if (armed) timer_settime(timer, 0, &again_and_again, nullptr);
    }
    ~Alarm() {
        if (armed) timer_delete(timer);
    }
    Alarm(const Alarm&) = delete;

private:
    timer_t timer;
    bool armed;
};

void run_grid() {
    const Alarm alarm(machine.launch->seconds_of_a_step);
    const int blocks = static_cast<int>(gridDim.x * gridDim.y * gridDim.z);
    for (int k = 0; k < blocks && !failed(); ++k) run_block(in_order(k, blocks));
}

}  // namespace

int launch(Launch& asked, const Signature& signature) {
    machine.launch = &asked;
    machine.launch_number += 1;
    asked.account = {};
    asked.error[0] = 0;
    asked.frame_count = asked.traffic_count = 0;
    check_arguments(asked, signature);
    check_sizes(asked, signature);
    if (failed()) return 1;
    gridDim = asked.grid;
    blockDim = asked.block;
    machine.threads = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
    kernel_call = signature.call;
    steps_taken = 0;
    steps_at_last_alarm = ~std::uint64_t{0};  // the first alarm finds a step
    machine.block.resize(machine.threads);
    prepare_stacks();
    if (failed()) return 1;
    memory_starts_launch();
    trace_starts_launch();
    multiply_adds = 0;
    run_grid();
    asked.account.multiply_adds = multiply_adds;
    trace_ends_launch();
    return failed();
}

// Calls of threads -------------------------------------------------------------------------------------------------------------

void fail(const char* format, ...) {
    char what[1024];
    va_list values;
    va_start(values, format);
    std::vsnprintf(what, sizeof what, format, values);
    va_end(values);
    // Python looks up the lines of the calls that led here: the site is the innermost of them only.
    machine.launch->frame_count = backtrace(machine.launch->frames, FRAMES);
    report("block " + text(blockIdx) + ", thread " + thread_text(machine.current) + " " + what);
    suspend();  // for good: a launch with an error resumes nobody
    __builtin_unreachable();
}

void refuse(Site site, const char* what) { fail("at %s: %s", text(site).c_str(), what); }

void count_step() {
    if (++steps_taken > machine.launch->steps)
        fail("is still running after %llu steps", static_cast<unsigned long long>(machine.launch->steps));
}

int barrier(const char* name, bool predicate, Site site) {
    count_step();
    current().predicate = predicate;
    wait(Thread::State::at_barrier, name, 0, site);
    suspend();
    return barrier_count;
}

void collective(const char* name, unsigned mask, void* operands, Together perform, Site site) {
    count_step();
    const int warp = machine.current / WARP;
    if (!(mask >> lane() & 1)) fail("calls %s at %s with the mask %08x, which does not name it", name, text(site).c_str(), mask);
    machine.launch->account.collectives += 1;
    current().operands = operands;
    wait(Thread::State::at_collective, name, mask, site);
    void* all[WARP] = {};
    for (int lane = 0; lane < lanes(warp); ++lane) {
        if (!(mask >> lane & 1)) continue;
        if (!wait_together(current(), *lane_of(warp, lane))) return suspend();  // the last lane to come does the work for all
        all[lane] = lane_of(warp, lane)->operands;
    }
    perform(all);
    for (int lane = 0; lane < lanes(warp); ++lane)
        if (mask >> lane & 1) lane_of(warp, lane)->state = Thread::State::ready;
}

void warp_barrier(unsigned mask, Site site) {
    const int here = lanes(machine.current / WARP);
    const bool whole = (mask | ~(ALL_LANES >> (WARP - here))) == ALL_LANES;
    collective("__syncwarp", mask, nullptr, whole ? pass_warp_barrier : pass_nothing, site);
}

int lane() { return machine.current % WARP; }

bool whole_warp() { return lanes(machine.current / WARP) == WARP; }

// Words -------------------------------------------------------------------------------------------------------------------------

std::string text(const char* format, ...) {
    char line[1024];
    va_list values;
    va_start(values, format);
    std::vsnprintf(line, sizeof line, format, values);
    va_end(values);
    return line;
}

std::string text(Site site) {
    const char* const folder = std::strrchr(site.file, '/');
    return text("%s:%d", folder ? folder + 1 : site.file, site.line);
}

std::string text(Index index) { return text("(%u, %u, %u)", index.x, index.y, index.z); }

std::string thread_text(int thread) { return text(machine.block[thread].index); }

Index index_of(unsigned long number, Index extent) {
    const unsigned long row = number / extent.x;
    const auto narrow = [](unsigned long n) { return static_cast<unsigned>(n); };
    return {narrow(number % extent.x), narrow(row % extent.y), narrow(row / extent.y)};
}

}  // namespace emulator
