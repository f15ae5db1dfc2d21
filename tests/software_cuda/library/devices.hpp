// The imagined devices and what their attributes say.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>

namespace software_cuda {

// A device as Python describes it (control.hpp).
struct DeviceRow {
    const char* name;
    std::uint64_t total_memory;  // bytes
    std::int32_t capability;  // 90 for 9.0
    std::int32_t multiprocessors;
    std::int32_t threads_per_multiprocessor;
    std::int32_t shared_per_block;           // bytes that a block can opt in to
    std::int32_t shared_per_multiprocessor;  // bytes
    std::int32_t clock;          // kHz
    std::int32_t memory_clock;   // kHz
    std::int32_t bus_width;      // bits
    std::int32_t float64_ratio;  // operations in float32 for each in float64
    std::int32_t l2_bytes;
};

struct Device {
    std::string name;
    DeviceRow row;
};

// Shared memory that a block gets without opting in, and threads that any block may have.
constexpr int SHARED_WITHOUT_OPTING_IN = 48 << 10;
constexpr int MOST_THREADS = 1024;
constexpr unsigned MOST_BLOCKS[] = {2147483647u, 65535u, 65535u};
constexpr unsigned MOST_THREADS_ALONG[] = {1024u, 1024u, 64u};
constexpr int CUDA_RELEASE = 12090;

int add_device(const DeviceRow& row);  // returns its number, or -1 when there are too many
int device_count();
const Device& device(int number);
bool is_device(int number);

int current_device();  // of this thread
void set_current_device(int number);

// A thread gets a context with its first call of the runtime. Until then the driver refuses to load and launch.
bool has_context();
void make_context();

// The value of an attribute as the runtime and the driver number them; 0 for one that nothing is known about.
int device_attribute(int number, int attribute);
void fill_properties(int number, cudaDeviceProp& properties);
std::string bus_identity(int number);

// The blocks that a multiprocessor of a capability holds at once, and the shared memory that each takes beside its own.
struct Residency {
    int blocks;
    int shared_reserved_per_block;  // bytes
};
Residency residency(int capability);

}  // namespace software_cuda
