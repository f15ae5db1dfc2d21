// The memory of the devices and of the host as kernels and copies see it: allocated, and stored to, byte by byte.
//
// Each device, the pinned memory of the host and managed memory have an arena of addresses. At a fixed distance from each byte of
// an arena lies its shadow byte. Addresses are handed out once and never again, so memory that was freed is always recognised.
// Memory that is allocated elsewhere (tensors of torch, host memory that is registered) is known as ranges.
//
// CuPy's memory pool gives blocks back and takes them again without a call to CUDA. set_alive says so in the host's time, while
// the operations that use the blocks run later. Therefore each change gets the next number of an epoch, and each operation
// remembers the epoch in which it was enqueued:
//   - An operation may touch a block that died after it was enqueued; touching one that died before is an error.
//   - The bytes of a block that became alive again are unset for operations that were enqueued since. The first of them that
//     touches the block makes all of it unset and poisons it; operations that are older still see what was there before.
// No operation has to wait for another because of this, so a missing dependency between streams still shows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace software_cuda {

constexpr int MOST_DEVICES = 16;

enum class Use { load, store };

enum class Access {
    allowed,
    outside,  // not allocated, freed, of another device, or of the host and not registered
    unset,    // a load of bytes that nobody stored
};

// Says whether a kernel on a device may touch these bytes. A store marks them as stored.
Access access(int device, std::uint64_t address, std::size_t bytes, Use use);

// Says in a few words what lies at an address, for reports.
std::string describe(std::uint64_t address);

enum class Kind { pageable, device, pinned, managed };

struct Place {
    Kind kind = Kind::pageable;
    int device = -1;          // of memory of a device, and the device that was current when other memory was allocated
    std::uint64_t start = 0;  // of the allocation
    std::size_t bytes = 0;
};

// The allocation that an address lies in; one byte after it doesn't count.
Place place_of(std::uint64_t address);

// False if the system did not let the addresses be reserved.
bool has_arenas();

// Says whether an address lies in an arena, allocated or not, or in a range.
bool is_known(std::uint64_t address);

// Returns 0 when there is no room. Memory of a device is unset and poisoned.
std::uint64_t allocate(Kind kind, int device, std::size_t bytes);
bool release(std::uint64_t address);  // false for an address that was not handed out, or is freed
std::size_t bytes_in_use(int device);

// Ranges of memory that was allocated elsewhere. Their bytes count as stored.
void register_range(Kind kind, int device, std::uint64_t address, std::size_t bytes);
bool unregister_range(std::uint64_t address, std::size_t bytes);  // false if it was not registered

void set_alive(std::uint64_t address, std::size_t bytes, bool alive);
std::uint64_t current_epoch();
void set_running_epoch(std::uint64_t epoch);  // of the operation that runs now

// Says whether an address lies in memory that is dead now. An address one byte after living memory doesn't count, as it is the
// end of an array.
bool is_given_back(std::uint64_t address, std::size_t bytes);

// Access by copies and fills, which may touch the memory of every device.
Access copy_access(std::uint64_t address, std::size_t bytes, Use use);
// Copies what is known of the bytes of one range to another.
void copy_shadow(std::uint64_t to, std::uint64_t from, std::size_t bytes);

}  // namespace software_cuda
