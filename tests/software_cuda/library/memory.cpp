#include "memory.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <vector>

#include "errors.hpp"

namespace software_cuda {

namespace {

using Byte = std::uint8_t;

// The flags of a shadow byte. The first two change when operations run, the others in the host's time.
constexpr Byte ALLOCATED = 1;
constexpr Byte STORED = 2;
constexpr Byte DEAD = 4;
constexpr Byte RENEWED = 8;  // alive again; the next operation that was enqueued since makes it unset
constexpr std::uint64_t PLAIN_WORD = 0x0303030303030303;  // eight bytes that are allocated and stored, and nothing else

constexpr int PINNED_ARENA = MOST_DEVICES, MANAGED_ARENA = MOST_DEVICES + 1, ARENAS = MOST_DEVICES + 2;
constexpr std::size_t PAGE = 4096;
constexpr Byte POISON = 0xfb;  // numbers that are large and negative, in every type
constexpr std::size_t MOST_POISONED = std::size_t(64) << 20;  // poisoning more would only cost memory; it is unset all the same
constexpr std::size_t MOST_RENEWALS = 64;  // that a block remembers while no operation touches it

struct Allocation {
    std::size_t bytes;
    int device;
    bool freed;
};

// A part of an allocation that was marked dead or alive.
struct Revision {
    std::uint64_t end;
    std::uint64_t died = 0;                // the epoch, 0 while it is alive
    std::vector<std::uint64_t> renewals;   // epochs that no operation has noticed yet, in order
};

struct Range {
    std::size_t bytes;
    Kind kind;
    int device;
};

struct Memory {
    std::uint64_t base = 0, span = 0, distance = 0;  // of the arenas, of one arena, and to the shadow
    std::uint64_t next[ARENAS] = {};                 // address to hand out
    std::size_t in_use[MOST_DEVICES] = {};
    std::map<std::uint64_t, Allocation> allocations;
    std::map<std::uint64_t, Revision> revisions;
    std::multimap<std::uint64_t, Range> ranges;
    std::size_t longest_range = 0;
    std::uint64_t epoch = 1, running_epoch = 1;
};

// Reserves the addresses of all arenas and of their shadow; memory is taken up only by what is touched.
void reserve(Memory& memory) {
    for (std::uint64_t span = std::uint64_t(1) << 40; span >= std::uint64_t(1) << 32; span /= 2) {
        const std::size_t bytes = span * ARENAS;
        void* arenas = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (arenas == MAP_FAILED) continue;
        void* shadow = mmap(nullptr, bytes + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (shadow == MAP_FAILED) {
            munmap(arenas, bytes);
            continue;
        }
        madvise(shadow, bytes + PAGE, MADV_NOHUGEPAGE);  // or a small allocation would take up two megabytes of shadow
        memory.base = reinterpret_cast<std::uint64_t>(arenas);
        memory.distance = reinterpret_cast<std::uint64_t>(shadow) - memory.base;
        memory.span = span;
        for (int arena = 0; arena < ARENAS; ++arena) memory.next[arena] = memory.base + arena * span + PAGE;
        return;
    }
    report("The addresses for the memory of the devices could not be reserved.");
}

// Memory is reserved as the library is loaded, so that the check of an access needs no test for it. It is never destroyed.
Memory& memory = *[] {
    auto* made = new Memory;
    reserve(*made);
    return made;
}();

bool in_arenas(std::uint64_t address) { return address - memory.base < memory.span * ARENAS; }
int arena_of(std::uint64_t address) { return static_cast<int>((address - memory.base) / memory.span); }
Byte* shadow_of(std::uint64_t address) { return reinterpret_cast<Byte*>(address + memory.distance); }
void* pointer(std::uint64_t address) { return reinterpret_cast<void*>(address); }

std::uint64_t page_floor(std::uint64_t address) { return address & ~std::uint64_t(PAGE - 1); }
std::uint64_t page_ceiling(std::uint64_t address) { return page_floor(address + PAGE - 1); }

void poison(std::uint64_t address, std::size_t bytes) { std::memset(pointer(address), POISON, std::min(bytes, MOST_POISONED)); }

int arena_for(Kind kind, int device) {
    if (kind == Kind::device) return device;
    return kind == Kind::pinned ? PINNED_ARENA : MANAGED_ARENA;
}

Kind kind_of_arena(int arena) {
    if (arena < MOST_DEVICES) return Kind::device;
    return arena == PINNED_ARENA ? Kind::pinned : Kind::managed;
}

// The entry of a map whose key is the last that isn't above the address; the map's end when there is none.
template <class Map>
auto entry_below(Map& map, std::uint64_t address) {
    auto found = map.upper_bound(address);
    return found == map.begin() ? map.end() : std::prev(found);
}

struct Flags {
    Byte all = 0xff, any = 0;
};

Flags flags_of(std::uint64_t address, std::size_t bytes) {
    const Byte* shadow = shadow_of(address);
    Flags flags;
    for (std::size_t i = 0; i < bytes; ++i) {
        flags.all &= shadow[i];
        flags.any |= shadow[i];
    }
    return flags;
}

void clear_flags(std::uint64_t address, std::uint64_t end, Byte flags) {
    Byte* shadow = shadow_of(address);
    for (std::size_t i = 0; i < end - address; ++i) shadow[i] &= static_cast<Byte>(~flags);
}

void set_flags(std::uint64_t address, std::uint64_t end, Byte flags) {
    Byte* shadow = shadow_of(address);
    for (std::size_t i = 0; i < end - address; ++i) shadow[i] |= flags;
}

// Makes a block unset if it came alive again before the running operation was enqueued.
void renew(std::uint64_t start, Revision& revision) {
    auto& renewals = revision.renewals;
    const auto later = std::upper_bound(renewals.begin(), renewals.end(), memory.running_epoch);
    if (later == renewals.begin()) return;
    renewals.erase(renewals.begin(), later);
    poison(start, revision.end - start);
    clear_flags(start, revision.end, renewals.empty() ? STORED | RENEWED : STORED);
}

// Settles for bytes that were marked dead or alive whether the running operation may touch them.
bool is_alive_for_operation(std::uint64_t address, std::size_t bytes) {
    const std::uint64_t end = address + bytes;
    for (auto found = entry_below(memory.revisions, address); found != memory.revisions.end() && found->first < end; ++found) {
        Revision& revision = found->second;
        if (revision.end <= address) continue;
        if (revision.died && memory.running_epoch >= revision.died) return false;
        renew(found->first, revision);
    }
    return true;
}

Access access_in_arena(std::uint64_t address, std::size_t bytes, Use use) {
    Flags flags = flags_of(address, bytes);
    if (!(flags.all & ALLOCATED)) return Access::outside;
    if (flags.any & (DEAD | RENEWED)) {
        if (!is_alive_for_operation(address, bytes)) return Access::outside;
        flags = flags_of(address, bytes);
    }
    if (use == Use::store) {
        set_flags(address, address + bytes, STORED);
        return Access::allowed;
    }
    return flags.all & STORED ? Access::allowed : Access::unset;
}

// Compares all shadow bytes of an access with the usual state at once.
template <class Word>
bool is_plain(std::uint64_t address) {
    Word word;
    std::memcpy(&word, shadow_of(address), sizeof word);
    return word == static_cast<Word>(PLAIN_WORD);
}

bool is_plain(std::uint64_t address, std::size_t bytes) {
    switch (bytes) {
        case 1: return is_plain<std::uint8_t>(address);
        case 2: return is_plain<std::uint16_t>(address);
        case 4: return is_plain<std::uint32_t>(address);
        case 8: return is_plain<std::uint64_t>(address);
        case 16: return is_plain<std::uint64_t>(address) && is_plain<std::uint64_t>(address + 8);
        default: return false;
    }
}

// A range that holds all of the bytes and that satisfies the condition. Ranges may lie inside one another, so the search goes on
// downwards as far as the longest one reaches.
template <class Condition>
const std::pair<const std::uint64_t, Range>* find_range(std::uint64_t address, std::size_t bytes, Condition condition) {
    auto found = memory.ranges.upper_bound(address);
    while (found != memory.ranges.begin()) {
        --found;
        const std::uint64_t offset = address - found->first;
        if (offset >= memory.longest_range) break;
        if (offset + bytes <= found->second.bytes && condition(found->second)) return &*found;
    }
    return nullptr;
}

void split_revision(std::uint64_t at) {
    auto found = entry_below(memory.revisions, at);
    if (found == memory.revisions.end() || found->first == at || found->second.end <= at) return;
    Revision upper = found->second;
    found->second.end = at;
    memory.revisions.emplace(at, std::move(upper));
}

// Makes the revisions cover exactly the bytes from start to end, also where there were none.
void cover_with_revisions(std::uint64_t start, std::uint64_t end) {
    split_revision(start);
    split_revision(end);
    std::uint64_t at = start;
    for (auto found = memory.revisions.lower_bound(start); at < end; ++found) {
        const bool gap = found == memory.revisions.end() || found->first > at;
        if (gap) {
            const std::uint64_t stop = found == memory.revisions.end() ? end : std::min(end, found->first);
            found = memory.revisions.emplace(at, Revision{stop, 0, {}}).first;
        }
        at = found->second.end;
    }
}

void forget_revisions(std::uint64_t start, std::uint64_t end) {
    split_revision(start);
    split_revision(end);
    memory.revisions.erase(memory.revisions.lower_bound(start), memory.revisions.lower_bound(end));
}

}  // namespace

Access access(int device, std::uint64_t address, std::size_t bytes, Use use) {
    if (in_arenas(address)) {
        const int arena = arena_of(address);
        if (arena != device && arena < MOST_DEVICES) return Access::outside;
        return is_plain(address, bytes) ? Access::allowed : access_in_arena(address, bytes, use);
    }
    const auto reachable = [device](const Range& range) { return range.device == device || range.kind != Kind::device; };
    return find_range(address, bytes, reachable) ? Access::allowed : Access::outside;
}

Access copy_access(std::uint64_t address, std::size_t bytes, Use use) {
    if (in_arenas(address)) return access_in_arena(address, bytes, use);
    return Access::allowed;  // pageable memory of the host, of which nothing is known, or a range
}

void copy_shadow(std::uint64_t to, std::uint64_t from, std::size_t bytes) {
    if (!in_arenas(to) || !in_arenas(from)) return;
    Byte* target = shadow_of(to);
    const Byte* source = shadow_of(from);
    const auto keep = static_cast<Byte>(~STORED);
    if (kind_of_arena(arena_of(to)) != Kind::device) return;
    const std::vector<Byte> before(source, source + bytes);  // the ranges may overlap
    for (std::size_t i = 0; i < bytes; ++i) target[i] = static_cast<Byte>((target[i] & keep) | (before[i] & STORED));
}

std::uint64_t allocate(Kind kind, int device, std::size_t bytes) {
    const int arena = arena_for(kind, device);
    const std::uint64_t address = memory.next[arena], end = address + bytes;
    const std::uint64_t arena_end = memory.base + (arena + 1) * memory.span;
    if (bytes > memory.span || page_ceiling(end) + PAGE >= arena_end) return 0;
    if (mprotect(pointer(address), page_ceiling(end) - address, PROT_READ | PROT_WRITE)) return 0;
    memory.next[arena] = page_ceiling(end) + PAGE;  // the page between allocations stays out of bounds
    memory.allocations[address] = {bytes, device, false};
    if (kind == Kind::device) {
        memory.in_use[device] += bytes;
        poison(address, bytes);
        set_flags(address, end, ALLOCATED);
    } else {
        set_flags(address, end, ALLOCATED | STORED);  // the host stores there without a word to us
    }
    return address;
}

bool release(std::uint64_t address) {
    auto found = memory.allocations.find(address);
    if (found == memory.allocations.end() || found->second.freed) return false;
    const std::uint64_t end = address + found->second.bytes;
    const std::size_t mapped = page_ceiling(end) - address;
    found->second.freed = true;
    if (kind_of_arena(arena_of(address)) == Kind::device) memory.in_use[found->second.device] -= found->second.bytes;
    forget_revisions(address, end);
    std::memset(shadow_of(address), 0, found->second.bytes);
    madvise(pointer(address), mapped, MADV_DONTNEED);
    mprotect(pointer(address), mapped, PROT_NONE);
    madvise(shadow_of(address), mapped, MADV_DONTNEED);
    return true;
}

std::size_t bytes_in_use(int device) { return memory.in_use[device]; }

Place place_of(std::uint64_t address) {
    if (in_arenas(address)) {
        auto found = entry_below(memory.allocations, address);
        if (found == memory.allocations.end() || found->second.freed) return {};
        if (address >= found->first + found->second.bytes) return {};
        return {kind_of_arena(arena_of(address)), found->second.device, found->first, found->second.bytes};
    }
    const auto* range = find_range(address, 1, [](const Range&) { return true; });
    if (!range) return {};
    return {range->second.kind, range->second.device, range->first, range->second.bytes};
}

bool has_arenas() { return memory.span != 0; }

bool is_known(std::uint64_t address) {
    return in_arenas(address) || find_range(address, 1, [](const Range&) { return true; });
}

std::string describe(std::uint64_t address) {
    if (!in_arenas(address)) return "memory of the host that no device may touch";
    auto found = entry_below(memory.allocations, address);
    const bool nothing_below = found == memory.allocations.end() || arena_of(found->first) != arena_of(address);
    if (nothing_below) return "memory that was never allocated";
    const auto& [start, allocation] = *found;
    const std::string of = "an allocation of " + std::to_string(allocation.bytes) + " bytes";
    const std::string offset = std::to_string(address - start);
    if (allocation.freed) return "byte " + offset + " of " + of + " that was freed";
    if (address >= start + allocation.bytes) return "byte " + offset + ", after the end of " + of;
    auto revision = entry_below(memory.revisions, address);
    const bool dead = revision != memory.revisions.end() && address < revision->second.end && revision->second.died;
    return "byte " + offset + " of " + of + (dead ? ", in a part that was given back" : "");
}

void register_range(Kind kind, int device, std::uint64_t address, std::size_t bytes) {
    memory.ranges.emplace(address, Range{bytes, kind, device});
    memory.longest_range = std::max(memory.longest_range, bytes);
}

bool unregister_range(std::uint64_t address, std::size_t bytes) {
    auto [begin, end] = memory.ranges.equal_range(address);
    for (auto each = begin; each != end; ++each) {
        if (each->second.bytes != bytes) continue;
        memory.ranges.erase(each);
        return true;
    }
    return false;
}

void set_alive(std::uint64_t address, std::size_t bytes, bool alive) {
    if (!bytes || !in_arenas(address)) return;
    const std::uint64_t end = address + bytes;
    const std::uint64_t epoch = ++memory.epoch;
    cover_with_revisions(address, end);
    for (auto each = memory.revisions.lower_bound(address); each != memory.revisions.end() && each->first < end; ++each) {
        Revision& revision = each->second;
        revision.died = alive ? 0 : epoch;
        if (!alive) continue;
        revision.renewals.push_back(epoch);
        if (revision.renewals.size() > MOST_RENEWALS) revision.renewals.erase(revision.renewals.begin());
    }
    if (alive) {
        clear_flags(address, end, DEAD);
        set_flags(address, end, RENEWED);
    } else {
        set_flags(address, end, DEAD);
    }
}

std::uint64_t current_epoch() { return memory.epoch; }

void set_running_epoch(std::uint64_t epoch) { memory.running_epoch = epoch; }

bool is_given_back(std::uint64_t address, std::size_t bytes) {
    if (!in_arenas(address)) return false;
    const auto dead = [](std::uint64_t at) {
        if (*shadow_of(at) & ALLOCATED) return (*shadow_of(at) & DEAD) != 0;
        auto found = entry_below(memory.allocations, at);
        return found != memory.allocations.end() && found->second.freed && at < found->first + found->second.bytes;
    };
    const bool after_living = address > memory.base && (*shadow_of(address - 1) & (ALLOCATED | DEAD)) == ALLOCATED;
    if (dead(address)) return bytes > 1 || !after_living;
    return bytes > 1 && (flags_of(address, bytes).any & DEAD);
}

}  // namespace software_cuda
