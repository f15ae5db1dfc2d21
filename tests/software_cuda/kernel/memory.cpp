// Loads, stores and asynchronous copies, each checked.
#include <cstring>

#include "../library/memory.hpp"
#include "block.hpp"

namespace software_cuda {

using namespace execution;

namespace {

[[noreturn]] void refuse(Fibre& thread, Failure failure, const char* verb, const char* space, u64 address, u64 bytes, const char* why) {
    fail(thread, failure, text("%s %llu bytes at %s address %#llx, %s", verb, (unsigned long long)bytes, space, (unsigned long long)address, why));
}

const char* verb_of(Use use) { return use == Use::load ? "loads" : "stores"; }

void require_alignment(Fibre& thread, Use use, const char* space, u64 address, u64 bytes) {
    if (address & (bytes - 1)) [[unlikely]]
        refuse(thread, Failure::misaligned_address, verb_of(use), space, address, bytes, "which is no multiple of that");
}

// Global ----------------------------------------------------------------------------------------------------------------------

[[gnu::noinline]] void refuse_global(Fibre& thread, Use use, u64 address, u64 bytes, Access access) {
    if (access == Access::unset)
        return remark(thread, text("loads %llu bytes at global address %#llx, where nobody has stored", (unsigned long long)bytes,
                                   (unsigned long long)address));
    const Launch& launch = *thread.block->launch;
    const u64 parameters = reinterpret_cast<u64>(launch.parameters);
    if (use == Use::load && address - parameters < u64(launch.kernel->parameter_bytes)) return;
    refuse(thread, Failure::illegal_address, verb_of(use), "global", address, bytes, ("which is " + describe(address)).c_str());
}

void check_global(Thread& t, u64 address, u64 bytes, Use use) {
    Fibre& thread = fibre_of(t);
    require_alignment(thread, use, "global", address, bytes);
    const Access result = access(thread.block->launch->device, address, bytes, use);
    if (result != Access::allowed) [[unlikely]]
        refuse_global(thread, use, address, bytes, result);
}

void* global_place(Thread& t, u64 address, u64 bytes, Use use) {
    check_global(t, address, bytes, use);
    return reinterpret_cast<void*>(address);
}

// Shared ----------------------------------------------------------------------------------------------------------------------

[[gnu::noinline]] void report_shared(Fibre& thread, u64 address, u64 bytes, bool copying) {
    const char* why = copying ? "to which an asynchronous copy goes that has not been waited for" : "where nobody of the block has stored";
    remark(thread, text("loads %llu bytes at shared address %#llx, %s", (unsigned long long)bytes, (unsigned long long)address, why));
}

void require_in_shared(Fibre& thread, Use use, u64 address, u64 bytes) {
    const Block& block = *thread.block;
    if (address > block.shared_bytes || bytes > block.shared_bytes - address) [[unlikely]]
        refuse(thread, Failure::illegal_address, verb_of(use), "shared", address, bytes,
               text("but the block has %u bytes of shared memory", block.shared_bytes).c_str());
}

void* shared_place(Thread& t, u64 address, u64 bytes, Use use) {
    Fibre& thread = fibre_of(t);
    Block& block = *thread.block;
    require_alignment(thread, use, "shared", address, bytes);
    require_in_shared(thread, use, address, bytes);
    Shadow* shadow = block.shadow.data() + address;
    if (use == Use::store) {
        std::memset(shadow, int(Shadow::stored), bytes);
    } else {
        // The last vector of a row may go beyond what was stored, into padding whose elements are not used. So a load is reported
        // if nothing of it was stored, or if a copy is under way to any of it.
        bool stored = false, copying = false;
        for (u64 i = 0; i < bytes; ++i) {
            stored |= shadow[i] == Shadow::stored;
            copying |= shadow[i] == Shadow::copying;
        }
        if (!stored || copying) [[unlikely]]
            report_shared(thread, address, bytes, copying);
    }
    return block.shared + address;
}

// Local and generic -----------------------------------------------------------------------------------------------------------

bool is_on_stack(const Fibre& thread, u64 address) {
    return address >= reinterpret_cast<u64>(thread.stack_begin) && address < reinterpret_cast<u64>(thread.stack_end);
}

void* local_place(Thread& t, u64 address, u64 bytes, Use use) {
    Fibre& thread = fibre_of(t);
    require_alignment(thread, use, "local", address, bytes);
    if (!is_on_stack(thread, address)) refuse(thread, Failure::illegal_address, verb_of(use), "local", address, bytes, "which is not local memory of the thread");
    return reinterpret_cast<void*>(address);
}

void* generic_place(Thread& t, u64 address, u64 bytes, Use use) {
    if (is_shared(t, address)) return shared_place(t, address - shared_window(t), bytes, use);
    if (is_on_stack(fibre_of(t), address)) return local_place(t, address, bytes, use);
    return global_place(t, address, bytes, use);
}

// Asynchronous copies ---------------------------------------------------------------------------------------------------------

void require_source(Fibre& thread, const Copy& copy) {
    if (copy.taken) check_global(thread, copy.from, copy.bytes, Use::load);
}

void land(Fibre& thread, const Copy& copy) {
    require_source(thread, copy);
    Block& block = *thread.block;
    std::memset(block.shared + copy.to, 0, copy.bytes);
    std::memcpy(block.shared + copy.to, reinterpret_cast<const void*>(copy.from), copy.taken);
    std::memset(block.shadow.data() + copy.to, int(Shadow::stored), copy.bytes);
}

}  // namespace

// A copy lands when it is waited for, and not before: what is there until then is reported as not stored.
void start_copy(Thread& t, u64 to, u64 from, u32 bytes, u32 taken) {
    Fibre& thread = fibre_of(t);
    require_alignment(thread, Use::store, "shared", to, bytes);
    require_alignment(thread, Use::load, "global", from, bytes);
    require_in_shared(thread, Use::store, to, bytes);
    if (taken > bytes) fail(thread, Failure::launch_failed, text("copies %u bytes from a source of %u", bytes, taken));
    std::memset(thread.block->shadow.data() + to, int(Shadow::copying), bytes);
    thread.copies.push_back({to, from, bytes, taken, thread.group});
}

void commit_copies(Thread& t) { ++fibre_of(t).group; }

void wait_for_copies(Thread& t, u32 pending) {
    Fibre& thread = fibre_of(t);
    std::size_t landed = 0;
    for (; landed < thread.copies.size() && thread.copies[landed].group + pending < thread.group; ++landed) land(thread, thread.copies[landed]);
    thread.copies.erase(thread.copies.begin(), thread.copies.begin() + landed);
}

void execution::check_copies_at_end(Fibre& thread) {
    if (thread.copies.empty()) return;
    for (const Copy& copy : thread.copies) require_source(thread, copy);
    remark(thread, "ends with copies that were not waited for");
}

// What translated code calls --------------------------------------------------------------------------------------------------

namespace {

template <class T>
T loaded(const void* from) {
    T value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

}  // namespace

#define SOFTWARE_CUDA_WIDTH(space, bits, type)                                                                          \
    type load_##space##_##bits(Thread& thread, u64 address) {                                                           \
        return loaded<type>(space##_place(thread, address, bits / 8, Use::load));                                       \
    }                                                                                                                   \
    type update_##space##_##bits(Thread& thread, u64 address) { return load_##space##_##bits(thread, address); }        \
    void store_##space##_##bits(Thread& thread, u64 address, type value) {                                              \
        std::memcpy(space##_place(thread, address, bits / 8, Use::store), &value, bits / 8);                            \
    }
#define SOFTWARE_CUDA_SPACE(space)                                                                                      \
    SOFTWARE_CUDA_WIDTH(space, 8, u8)                                                                                   \
    SOFTWARE_CUDA_WIDTH(space, 16, u16)                                                                                 \
    SOFTWARE_CUDA_WIDTH(space, 32, u32)                                                                                 \
    SOFTWARE_CUDA_WIDTH(space, 64, u64)                                                                                 \
    SOFTWARE_CUDA_WIDTH(space, 128, u128)                                                                               \
    void load_##space(Thread& thread, u64 address, void* vector, u32 bytes) {                                           \
        std::memcpy(vector, space##_place(thread, address, bytes, Use::load), bytes);                                   \
    }                                                                                                                   \
    void store_##space(Thread& thread, u64 address, const void* vector, u32 bytes) {                                    \
        std::memcpy(space##_place(thread, address, bytes, Use::store), vector, bytes);                                  \
    }
SOFTWARE_CUDA_SPACE(global)
SOFTWARE_CUDA_SPACE(shared)
SOFTWARE_CUDA_SPACE(local)
SOFTWARE_CUDA_SPACE(generic)
#undef SOFTWARE_CUDA_SPACE
#undef SOFTWARE_CUDA_WIDTH

u64 shared_window(const Thread& thread) { return reinterpret_cast<u64>(fibre_of(thread).block->shared); }

u64 dynamic_shared_start(const Thread& thread) {
    const Block& block = *fibre_of(thread).block;
    return block.shared_bytes - block.launch->dynamic_shared;
}

bool is_shared(const Thread& thread, u64 address) { return address - shared_window(thread) < fibre_of(thread).block->shared_bytes; }
bool is_local(const Thread& thread, u64 address) { return is_on_stack(fibre_of(thread), address); }
bool is_global(const Thread& thread, u64 address) { return !is_shared(thread, address) && !is_local(thread, address); }

}  // namespace software_cuda
