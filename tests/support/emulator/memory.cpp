// The memory of threads. Global memory is the buffers that Python lends; shared memory is an arena that every block finds filled
// with NaNs. Every access is checked for bounds, alignment and conflicts with other threads at the same bytes: see Cell.
#include <algorithm>
#include <cstring>

#include "state.hpp"

namespace emulator {
namespace {

constexpr int POISON = 0xff;  // repeated, a NaN in half, bfloat16, float and double, and -1 as an integer

std::uintptr_t number(const void* address) { return reinterpret_cast<std::uintptr_t>(address); }

// `caller` is where in the kernel's code the access was asked for.
void count(Kind kind, const void* at, int bytes, const void* caller) {
    count_step();
    Account& account = machine.launch->account;
    const std::uint64_t size = static_cast<unsigned>(bytes);
    switch (kind) {
        case Kind::global_load: account.global_loads += 1, account.global_load_bytes += size; break;
        case Kind::global_store: account.global_stores += 1, account.global_store_bytes += size; break;
        case Kind::shared_load: account.shared_loads += 1, account.shared_load_bytes += size; break;
        case Kind::shared_store: account.shared_stores += 1, account.shared_store_bytes += size; break;
    }
    if (machine.launch->traced) trace(kind, at, bytes, caller);
}

void need_alignment(const char* verb, const void* at, int bytes, int alignment, Site site) {
    if (number(at) % static_cast<unsigned>(alignment))
        fail("%s %d bytes at an address that is not a multiple of %d, at %s", verb, bytes, alignment, text(site).c_str());
}

// Global memory -----------------------------------------------------------------------------------------------------------------

// Buffer::touched holds, for every byte, 0, one of these, or 1 + the number of the thread in the grid that stored to it.
constexpr std::uint32_t LOADED = 0xffffffffu, ADDED_TO = 0xfffffffeu;

bool all_set(const std::uint8_t* flags, int count) { return !std::memchr(flags, 0, static_cast<std::size_t>(count)); }

bool covers(const Buffer& buffer, const void* at, int bytes) {
    return number(at) >= number(buffer.begin) && number(at) + static_cast<unsigned>(bytes) <= number(buffer.end);
}

Buffer* buffer_of(const void* at, int bytes, bool to_write) {
    for (int i = 0; i < machine.launch->buffer_count; ++i) {
        Buffer& buffer = machine.launch->buffers[i];
        if (!covers(buffer, at, bytes) || (to_write && !buffer.touched)) continue;
        if (!buffer.member || all_set(buffer.member + (number(at) - number(buffer.begin)), bytes)) return &buffer;
    }
    return nullptr;
}

const char* why_not(const Buffer& buffer, std::uintptr_t first, int bytes) {
    const bool gap = buffer.member && !all_set(buffer.member + first, bytes);
    return gap ? ", between its elements" : ", which is lent to be read";
}

std::string whereabouts(const void* at, int bytes) {
    if (!at) return "a null pointer";
    if (is_shared(at)) return "shared memory";
    std::string nearest = "no array was lent to the launch";
    std::uintptr_t least = ~std::uintptr_t{0};
    for (int i = 0; i < machine.launch->buffer_count; ++i) {
        const Buffer& buffer = machine.launch->buffers[i];
        const std::uintptr_t begin = number(buffer.begin), end = number(buffer.end), here = number(at);
        const bool before = here < begin, after = here + static_cast<unsigned>(bytes) > end;
        const std::uintptr_t distance = before ? begin - here : after && here >= end ? here - end + 1 : 0;
        if (distance >= least) continue;
        least = distance;
        if (before) nearest = text("%lu bytes before %s", begin - here, buffer.label);
        else if (after && here >= end) nearest = text("%lu bytes past the end of %s", here - end, buffer.label);
        else if (after) nearest = text("across the end of %s", buffer.label);
        else nearest = text("byte %lu of %s%s", here - begin, buffer.label, why_not(buffer, here - begin, bytes));
    }
    return nearest;
}

[[noreturn]] void out_of_bounds(const char* verb, const void* at, int bytes, Site site) {
    fail("%s %d bytes it may not touch, at %s: %s", verb, bytes, text(site).c_str(), whereabouts(at, bytes).c_str());
}

std::uint32_t mark_of_current() {
    return machine.block_number * static_cast<std::uint32_t>(machine.threads) + static_cast<std::uint32_t>(machine.current) + 1;
}

std::string toucher(std::uint32_t mark) {
    if (mark == LOADED) return "has been loaded";
    if (mark == ADDED_TO) return "has been added to by atomicAdd";
    const std::uint32_t threads = static_cast<std::uint32_t>(machine.threads), thread = (mark - 1) % threads;
    return text("has been written by thread %s of block %s", text(machine.block[thread].index).c_str(),
                text(index_of((mark - 1) / threads, gridDim)).c_str());
}

// Writes `mark` over the bytes' marks, each of which must be none or equal to it.
void touch(Buffer& buffer, const char* verb, const void* at, int bytes, std::uint32_t mark, Site site) {
    const std::uintptr_t first = number(at) - number(buffer.begin);
    for (std::uintptr_t byte = first; byte < first + static_cast<unsigned>(bytes); ++byte) {
        std::uint32_t& before = buffer.touched[byte];
        if (before && before != mark)
            fail("%s byte %lu of %s, which %s in the same launch, at %s", verb, byte, buffer.label, toucher(before).c_str(),
                 text(site).c_str());
        before = mark;
    }
}

void mark_written(Buffer& buffer, const void* at, int bytes) {
    std::memset(buffer.written + (number(at) - number(buffer.begin)), 1, static_cast<std::size_t>(bytes));
}

void need_written(const Buffer& buffer, const void* at, int bytes, Site site) {
    const std::uintptr_t first = number(at) - number(buffer.begin);
    if (buffer.poisoned && !all_set(buffer.written + first, bytes))
        fail("loads %d bytes that nobody has written, at %s: byte %lu of %s", bytes, text(site).c_str(), first, buffer.label);
}

void allow_global_load(const void* from, int bytes, int alignment, Site site) {
    need_alignment("loads", from, bytes, alignment, site);
    Buffer* const buffer = buffer_of(from, bytes, false);
    if (!buffer) out_of_bounds("loads", from, bytes, site);
    need_written(*buffer, from, bytes, site);
    // A load may go by the read-only path, which need not see what the launch itself stores.
    if (buffer->touched) touch(*buffer, "loads", from, bytes, LOADED, site);
}

// Shared memory -----------------------------------------------------------------------------------------------------------------

constexpr int ARENA = 256 * 1024;  // the most a block can have, and gaps between arrays
constexpr int WORD = 2;            // bytes that one cell stands for: no kernel shares single bytes
constexpr int GAP = 16;

struct Access {
    std::uint32_t time;
    std::uint16_t thread;
    std::uint16_t line;
    const char* file;
};

// Time counts the barriers passed. An access is ordered before what follows the next barrier of the block, and, within its warp,
// before what follows the next __syncwarp of the whole warp; shuffles and votes order nothing, as CUDA says. Two accesses to one
// word by two threads, one of them a write, with no order between them are a race. For that a cell remembers the last write and
// two of the reads that are not ordered before the last: of one warp as long as only one warp has read, of two as soon as another
// has. Whoever writes next without order to all of them has none to one of these.
struct Cell {
    Access write, read, other_read;
    bool copy_pending;  // an asynchronous copy will land here
};

constexpr std::uint16_t BY_ATOMICS = 0xffff;  // in place of a writer's thread

struct Region {
    const char* name;
    char* begin;
    char* end;
};

struct Shared {
    alignas(128) char arena[ARENA];
    Cell cells[ARENA / WORD];
    int used = 0;  // of the arena, by this launch so far
    int declared = 0;
    std::vector<Region> regions;
    std::uint32_t now = 0, block_since = 0;  // the time, and the last barrier's
    std::uint32_t warp_since[MOST_THREADS / WARP] = {};
};

Shared shared;

Cell* cell_at(const void* address) { return shared.cells + (number(address) - number(shared.arena)) / WORD; }

void poison(char* begin, char* end) { std::memset(begin, POISON, static_cast<std::size_t>(end - begin)); }

// Lets the address sanitizer see the gaps between the arrays, for accesses that come by no accessor.
void fence([[maybe_unused]] char* begin, [[maybe_unused]] long bytes, [[maybe_unused]] bool closed) {
#if defined(__SANITIZE_ADDRESS__)
    if (closed) __asan_poison_memory_region(begin, static_cast<std::size_t>(bytes));
    else __asan_unpoison_memory_region(begin, static_cast<std::size_t>(bytes));
#endif
}

// A place for an array that is aligned as asked, and to no more than that.
char* allocate(const char* name, unsigned long bytes, unsigned long alignment) {
    const unsigned long aligned = (static_cast<unsigned long>(shared.used) + GAP + 2 * alignment - 1) & ~(2 * alignment - 1);
    const unsigned long begin = aligned + alignment;
    if (begin + bytes + GAP > ARENA) return nullptr;
    shared.used = static_cast<int>(begin + bytes);
    Region region{name, shared.arena + begin, shared.arena + begin + bytes};
    fence(region.begin, region.end - region.begin, false);
    poison(region.begin, region.end);
    shared.regions.push_back(region);
    return region.begin;
}

const Region* region_of(const void* at, int bytes) {
    for (const Region& region : shared.regions)
        if (number(at) >= number(region.begin) && number(at) + static_cast<unsigned>(bytes) <= number(region.end)) return &region;
    return nullptr;
}

std::string shared_whereabouts(const void* at) {
    if (!is_shared(at)) return "that is not in shared memory";
    const Region* nearest = nullptr;
    for (const Region& region : shared.regions)
        if (!nearest || number(region.begin) <= number(at)) nearest = &region;
    if (!nearest) return "the kernel has declared no shared array";
    return text("byte %ld of '%s', which has %ld", static_cast<long>(number(at) - number(nearest->begin)), nearest->name,
                static_cast<long>(nearest->end - nearest->begin));
}

bool same_warp(int thread, int other) { return thread / WARP == other / WARP; }

// Returns whether nothing orders an earlier access before the current thread's next one.
bool concurrent(const Access& before) {
    if (before.time < shared.block_since || before.thread == machine.current) return false;
    if (!same_warp(before.thread, machine.current)) return true;
    return before.time >= shared.warp_since[machine.current / WARP];
}

[[noreturn]] void race(const char* verb, const void* at, const Access& before, const char* did, Site site) {
    const Region* region = region_of(at, 1);
    const std::string who = before.thread == BY_ATOMICS ? "an atomicAdd" : "thread " + thread_text(before.thread);
    fail("race: %s byte %ld of shared '%s' at %s, which %s %s at %s with no barrier between", verb,
         static_cast<long>(number(at) - number(region->begin)), region->name, text(site).c_str(), who.c_str(), did,
         text({before.file, before.line}).c_str());
}

Access access_now(Site site) {
    return {shared.now, static_cast<std::uint16_t>(machine.current), static_cast<std::uint16_t>(site.line), site.file};
}

void remember_read(Cell& cell, const Access& access) {
    Access &first = cell.read, &second = cell.other_read;
    const bool ordered = !concurrent(first) && !concurrent(second);
    const bool one_warp = same_warp(first.thread, second.thread);
    if (ordered) first = second = access;
    else if (first.thread == access.thread) first = access;
    else if (second.thread == access.thread || one_warp) second = access;
}

template <class Act>
void for_cells(const char* verb, const void* at, int bytes, Site site, Act act) {
    const std::uintptr_t offset = number(at) - number(shared.arena);
    for (std::uintptr_t word = offset / WORD; word <= (offset + static_cast<unsigned>(bytes) - 1) / WORD; ++word) {
        const char* const here = shared.arena + word * WORD;
        Cell& cell = shared.cells[word];
        if (cell.copy_pending)
            fail("%s byte %ld of shared '%s' at %s, where the asynchronous copy of thread %s at %s has not been waited for", verb,
                 static_cast<long>(here - region_of(here, 1)->begin), region_of(here, 1)->name, text(site).c_str(),
                 thread_text(cell.write.thread).c_str(), text({cell.write.file, cell.write.line}).c_str());
        act(cell, here);
    }
}

void remember_write(const char* verb, const void* at, int bytes, Site site, bool copy_pending = false) {
    const Access access = access_now(site);
    for_cells(verb, at, bytes, site, [&](Cell& cell, const void* here) {
        if (concurrent(cell.write)) race(verb, here, cell.write, "wrote", site);
        if (concurrent(cell.read)) race(verb, here, cell.read, "read", site);
        if (concurrent(cell.other_read)) race(verb, here, cell.other_read, "read", site);
        cell.write = access;
        cell.copy_pending = copy_pending;
    });
}

void need_region(const char* verb, const void* at, int bytes, int alignment, Site site) {
    need_alignment(verb, at, bytes, alignment, site);
    if (!region_of(at, bytes))
        fail("%s %d bytes out of the bounds of shared memory at %s: %s", verb, bytes, text(site).c_str(),
             shared_whereabouts(at).c_str());
}

}  // namespace

void global_load(const void* from, int bytes, int alignment, Site site) {
    count(Kind::global_load, from, bytes, __builtin_return_address(0));
    allow_global_load(from, bytes, alignment, site);
}

void global_store(const void* to, int bytes, int alignment, Site site) {
    count(Kind::global_store, to, bytes, __builtin_return_address(0));
    need_alignment("stores", to, bytes, alignment, site);
    Buffer* const buffer = buffer_of(to, bytes, true);
    if (!buffer) out_of_bounds("stores", to, bytes, site);
    touch(*buffer, "stores to", to, bytes, mark_of_current(), site);
    mark_written(*buffer, to, bytes);
}

void global_atomic(const void* at, int bytes, Site site) {
    count(Kind::global_load, at, bytes, __builtin_return_address(0));
    count(Kind::global_store, at, bytes, __builtin_return_address(0));
    need_alignment("adds to", at, bytes, bytes, site);
    Buffer* const buffer = buffer_of(at, bytes, true);
    if (!buffer) out_of_bounds("adds to", at, bytes, site);
    need_written(*buffer, at, bytes, site);
    touch(*buffer, "adds to", at, bytes, ADDED_TO, site);
    mark_written(*buffer, at, bytes);
}

void shared_load(const void* from, int bytes, int alignment, Site site) {
    count(Kind::shared_load, from, bytes, __builtin_return_address(0));
    need_region("reads", from, bytes, alignment, site);
    shared_receive(from, bytes, site);
}

void shared_receive(const void* from, int bytes, Site site) {
    const Access access = access_now(site);
    for_cells("reads", from, bytes, site, [&](Cell& cell, const void* here) {
        if (concurrent(cell.write)) race("reads", here, cell.write, "wrote", site);
        remember_read(cell, access);
    });
}

void shared_store(const void* to, int bytes, int alignment, Site site) {
    count(Kind::shared_store, to, bytes, __builtin_return_address(0));
    need_region("writes", to, bytes, alignment, site);
    remember_write("writes", to, bytes, site);
}

void shared_atomic(const void* at, int bytes, Site site) {
    count(Kind::shared_load, at, bytes, __builtin_return_address(0));
    count(Kind::shared_store, at, bytes, __builtin_return_address(0));
    need_region("adds to", at, bytes, bytes, site);
    const Access access = access_now(site);
    for_cells("adds to", at, bytes, site, [&](Cell& cell, const void* here) {
        const bool after_another = cell.write.thread == BY_ATOMICS;
        if (!after_another && concurrent(cell.write)) race("adds to", here, cell.write, "wrote", site);
        if (concurrent(cell.read)) race("adds to", here, cell.read, "read", site);
        if (concurrent(cell.other_read)) race("adds to", here, cell.other_read, "read", site);
        cell.write = access;
        cell.write.thread = BY_ATOMICS;
    });
}

bool is_shared(const void* address) { return number(address) - number(shared.arena) < ARENA; }

void* shared_array(SharedArray& declared) {
    if (declared.launch == machine.launch_number) return declared.place;
    shared.declared += static_cast<int>(declared.bytes);
    if (shared.declared > MOST_STATIC_SHARED || shared.declared + machine.launch->dynamic_shared > MOST_SHARED)
        fail("declares more shared memory than a block can have: %d bytes with '%s', and %d bytes of dynamic shared memory",
             shared.declared, declared.name, machine.launch->dynamic_shared);
    declared.launch = machine.launch_number;
    declared.place = allocate(declared.name, declared.bytes, declared.alignment);
    if (!declared.place) fail("declares more shared arrays than the emulator has room for, '%s' for one", declared.name);
    return declared.place;
}

void* dynamic_shared_array() { return shared.regions.front().begin; }

// The global source is read when the copy is asked for: a launch never writes what it copies, so it makes no difference.
void copy_async(void* to, const void* from, int bytes, bool valid, Site site) {
    if (bytes != 4 && bytes != 8 && bytes != 16) refuse(site, "an asynchronous copy is of 4, 8 or 16 bytes");
    count(Kind::shared_store, to, bytes, __builtin_return_address(0));
    need_region("copies to", to, bytes, bytes, site);
    Thread& thread = machine.block[machine.current];
    Copy copy{static_cast<char*>(to), bytes, thread.groups, site, {}};
    if (valid) {
        count(Kind::global_load, from, bytes, __builtin_return_address(0));
        allow_global_load(from, bytes, bytes, site);
        std::memcpy(copy.data, from, static_cast<std::size_t>(bytes));
    }
    remember_write("copies to", to, bytes, site, true);
    thread.copies.push_back(copy);
}

void copy_async_commit() { machine.block[machine.current].groups += 1; }

void copy_async_wait(int groups_pending) {
    Thread& thread = machine.block[machine.current];
    std::vector<Copy> in_flight;
    for (const Copy& copy : thread.copies) {
        if (copy.group >= thread.groups - groups_pending) {
            in_flight.push_back(copy);
            continue;
        }
        std::fill_n(cell_at(copy.to), copy.bytes / WORD, Cell{access_now(copy.site), {}, {}, false});
        std::memcpy(copy.to, copy.data, static_cast<std::size_t>(copy.bytes));
    }
    thread.copies.swap(in_flight);
}

void memory_starts_launch() {
    std::memset(static_cast<void*>(shared.cells), 0, sizeof(Cell) * static_cast<std::size_t>(shared.used / WORD + 1));
    shared.used = shared.declared = 0;
    shared.regions.clear();
    shared.now = shared.block_since = 0;
    fence(shared.arena, ARENA, true);
    // The place of dynamic shared memory is the same in all launches of a size: aligned to 16 bytes, as platform.cuh declares it.
    allocate("dynamic", static_cast<unsigned long>(machine.launch->dynamic_shared), 16);
    memory_passed_barrier();
}

void memory_starts_block() {
    for (Thread& thread : machine.block) {  // copies that the block before left in flight land nowhere
        for (const Copy& copy : thread.copies)
            std::fill_n(cell_at(copy.to), copy.bytes / WORD, Cell{});
        thread.copies.clear();
        thread.groups = 0;
    }
    for (const Region& region : shared.regions) poison(region.begin, region.end);
    memory_passed_barrier();
}

void memory_passed_barrier() {
    shared.block_since = ++shared.now;
    for (std::uint32_t& since : shared.warp_since) since = shared.now;
}

void memory_passed_warp_barrier(int warp) { shared.warp_since[warp] = ++shared.now; }

}  // namespace emulator
