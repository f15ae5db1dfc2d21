// The seam between a kernel that was built for the CPU and the machine that runs it. The accessors of emulator.hpp call these
// functions before they touch memory; an access that is not allowed never happens, because the function that found it out ends
// the launch instead of returning. Nothing is included here: a kernel must build in a fraction of a second.
#pragma once

namespace emulator {

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

// CUDA's uint3: threadIdx, blockIdx, blockDim and gridDim are of this type.
struct Index {
    unsigned x, y, z;
};

// Where in the source something is called. As a default argument, here() names the line of the call.
struct Site {
    const char* file;
    int line;

    static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
    bool operator==(const Site& other) const { return file == other.file && line == other.line; }
};

// Ends the launch with this text as its error.
[[noreturn]] void refuse(Site site, const char* text);

extern __attribute__((visibility("default"))) unsigned long multiply_adds;  // of this launch

// Checks, counts and remembers one access; the caller then makes it.
void global_load(const void* from, int bytes, int alignment, Site site);
void global_store(const void* to, int bytes, int alignment, Site site);
void global_atomic(const void* at, int bytes, Site site);
void shared_load(const void* from, int bytes, int alignment, Site site);
void shared_store(const void* to, int bytes, int alignment, Site site);
void shared_atomic(const void* at, int bytes, Site site);
void shared_receive(const void* from, int bytes, Site site);  // a load by another lane's instruction: checked, not counted
bool is_shared(const void* address);

// A __shared__ array as it is declared. Its place is chosen when the first thread of a launch comes by, the same for all blocks.
struct SharedArray {
    const char* name;
    unsigned long bytes;
    unsigned long alignment;
    unsigned long launch = 0;
    void* place = nullptr;
};

void* shared_array(SharedArray& declared);
void* dynamic_shared_array();

// cp.async: copies of 4, 8 or 16 bytes, or of as many zeros where the source is not valid, that land in shared memory when the
// thread waits for their group, never before. Other threads may count on them after the barrier that follows.
void copy_async(void* to_shared, const void* from_global, int bytes, bool valid = true, Site site = Site::here());
void copy_async_commit();
void copy_async_wait(int groups_pending);

// __syncthreads and its kin: returns for how many threads of the block the predicate holds.
int barrier(const char* name, bool predicate, Site site);
// __syncwarp. One of part of a warp makes its lanes wait for one another, but counts as no order between what they do to memory.
void warp_barrier(unsigned mask, Site site);

// An operation that the lanes of a warp do together. Every lane named in the mask brings its operands; once all have come,
// `perform` is called once with the operands of each (null for a lane that takes no part) and leaves each lane's result among its
// operands.
using Together = void (*)(void* const (&operands)[WARP]);
void collective(const char* name, unsigned mask, void* operands, Together perform, Site site);
int lane();
bool whole_warp();  // false for the last warp of a block whose size is not a multiple of 32

// A kernel's parameters as it declares them, and how to call it: what the caller's arguments are held against.
struct Signature {
    int count;
    const int* sizes;
    const char* kinds;  // per parameter: p a pointer, f a floating-point number, i an integer
    void (*call)(void* const* values);
    int most_threads;
};

struct Launch;
int launch(Launch& asked, const Signature& signature);

}  // namespace emulator

extern emulator::Index threadIdx, blockIdx, blockDim, gridDim;
