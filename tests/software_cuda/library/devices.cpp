#include "devices.hpp"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <vector>

#include "memory.hpp"

namespace software_cuda {

namespace {

std::vector<Device>& devices() {
    static auto* all = new std::vector<Device>;
    return *all;
}

thread_local int current = 0;
thread_local bool context = false;

constexpr int WARP = 32;
constexpr int REGISTERS = 65536;  // of a block and of a multiprocessor, in every capability that is known here

struct ResidencyRow {
    int capability;
    Residency residency;
};

// From the table of compute capabilities in NVIDIA's programming guide.
constexpr ResidencyRow RESIDENCIES[] = {
    {70, {32, 0}},    {75, {16, 0}},    {80, {32, 1024}},  {86, {16, 1024}},  {87, {16, 1024}},
    {89, {24, 1024}}, {90, {32, 1024}}, {100, {32, 1024}}, {103, {32, 1024}}, {120, {24, 1024}},
};

// The attributes that do not depend on the device.
const std::map<int, int>& common_attributes() {
    static const auto* table = new std::map<int, int>{
        {cudaDevAttrMaxThreadsPerBlock, MOST_THREADS},
        {cudaDevAttrMaxBlockDimX, static_cast<int>(MOST_THREADS_ALONG[0])},
        {cudaDevAttrMaxBlockDimY, static_cast<int>(MOST_THREADS_ALONG[1])},
        {cudaDevAttrMaxBlockDimZ, static_cast<int>(MOST_THREADS_ALONG[2])},
        {cudaDevAttrMaxGridDimX, static_cast<int>(MOST_BLOCKS[0])},
        {cudaDevAttrMaxGridDimY, static_cast<int>(MOST_BLOCKS[1])},
        {cudaDevAttrMaxGridDimZ, static_cast<int>(MOST_BLOCKS[2])},
        {cudaDevAttrMaxSharedMemoryPerBlock, SHARED_WITHOUT_OPTING_IN},
        {cudaDevAttrTotalConstantMemory, 64 << 10},
        {cudaDevAttrWarpSize, WARP},
        {cudaDevAttrMaxPitch, 2147483647},
        {cudaDevAttrMaxRegistersPerBlock, REGISTERS},
        {cudaDevAttrMaxRegistersPerMultiprocessor, REGISTERS},
        {cudaDevAttrTextureAlignment, 512},
        {cudaDevAttrTexturePitchAlignment, 32},
        {cudaDevAttrSurfaceAlignment, 512},
        {cudaDevAttrGpuOverlap, 1},
        {cudaDevAttrCanMapHostMemory, 1},
        {cudaDevAttrConcurrentKernels, 1},
        {cudaDevAttrAsyncEngineCount, 2},
        {cudaDevAttrUnifiedAddressing, 1},
        {cudaDevAttrStreamPrioritiesSupported, 1},
        {cudaDevAttrGlobalL1CacheSupported, 1},
        {cudaDevAttrLocalL1CacheSupported, 1},
        {cudaDevAttrManagedMemory, 1},
        {cudaDevAttrConcurrentManagedAccess, 1},
        {cudaDevAttrComputePreemptionSupported, 1},
        {cudaDevAttrCanUseHostPointerForRegisteredMem, 1},
        {cudaDevAttrHostRegisterSupported, 1},
    };
    return *table;
}

}  // namespace

int add_device(const DeviceRow& row) {
    if (device_count() >= MOST_DEVICES) return -1;
    devices().push_back({row.name, row});
    return device_count() - 1;
}

int device_count() { return static_cast<int>(devices().size()); }
const Device& device(int number) { return devices()[number]; }
bool is_device(int number) { return number >= 0 && number < device_count(); }
int current_device() { return current; }
void set_current_device(int number) { current = number; }
bool has_context() { return context; }
void make_context() { context = true; }

Residency residency(int capability) {
    Residency found = RESIDENCIES[0].residency;
    for (const auto& each : RESIDENCIES) {
        if (each.capability <= capability) found = each.residency;
    }
    return found;
}

std::string bus_identity(int number) {
    char text[16];
    std::snprintf(text, sizeof text, "0000:%02X:00.0", number + 1);
    return text;
}

int device_attribute(int number, int attribute) {
    const DeviceRow& row = device(number).row;
    const Residency lives = residency(row.capability);
    switch (attribute) {
        case cudaDevAttrComputeCapabilityMajor: return row.capability / 10;
        case cudaDevAttrComputeCapabilityMinor: return row.capability % 10;
        case cudaDevAttrMultiProcessorCount: return row.multiprocessors;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: return row.shared_per_block;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return row.shared_per_multiprocessor;
        case cudaDevAttrReservedSharedMemoryPerBlock: return lives.shared_reserved_per_block;
        case cudaDevAttrMaxThreadsPerMultiProcessor: return row.threads_per_multiprocessor;
        case cudaDevAttrMaxBlocksPerMultiprocessor: return lives.blocks;
        case cudaDevAttrClockRate: return row.clock;
        case cudaDevAttrMemoryClockRate: return row.memory_clock;
        case cudaDevAttrGlobalMemoryBusWidth: return row.bus_width;
        case cudaDevAttrSingleToDoublePrecisionPerfRatio: return row.float64_ratio;
        case cudaDevAttrL2CacheSize: return row.l2_bytes;
        case cudaDevAttrPciBusId: return number + 1;
        default: break;
    }
    auto found = common_attributes().find(attribute);
    return found == common_attributes().end() ? 0 : found->second;
}

void fill_properties(int number, cudaDeviceProp& properties) {
    std::memset(&properties, 0, sizeof properties);
    const auto attribute = [number](int name) { return device_attribute(number, name); };
    std::snprintf(properties.name, sizeof properties.name, "%s", device(number).name.c_str());
    std::memset(properties.uuid.bytes, number + 1, sizeof properties.uuid.bytes);
    properties.totalGlobalMem = device(number).row.total_memory;
    properties.sharedMemPerBlock = attribute(cudaDevAttrMaxSharedMemoryPerBlock);
    properties.regsPerBlock = attribute(cudaDevAttrMaxRegistersPerBlock);
    properties.warpSize = attribute(cudaDevAttrWarpSize);
    properties.memPitch = attribute(cudaDevAttrMaxPitch);
    properties.maxThreadsPerBlock = attribute(cudaDevAttrMaxThreadsPerBlock);
    for (int axis = 0; axis < 3; ++axis) {
        properties.maxThreadsDim[axis] = attribute(cudaDevAttrMaxBlockDimX + axis);
        properties.maxGridSize[axis] = attribute(cudaDevAttrMaxGridDimX + axis);
    }
    properties.clockRate = attribute(cudaDevAttrClockRate);
    properties.totalConstMem = attribute(cudaDevAttrTotalConstantMemory);
    properties.major = attribute(cudaDevAttrComputeCapabilityMajor);
    properties.minor = attribute(cudaDevAttrComputeCapabilityMinor);
    properties.textureAlignment = attribute(cudaDevAttrTextureAlignment);
    properties.texturePitchAlignment = attribute(cudaDevAttrTexturePitchAlignment);
    properties.surfaceAlignment = attribute(cudaDevAttrSurfaceAlignment);
    properties.deviceOverlap = attribute(cudaDevAttrGpuOverlap);
    properties.multiProcessorCount = attribute(cudaDevAttrMultiProcessorCount);
    properties.canMapHostMemory = attribute(cudaDevAttrCanMapHostMemory);
    properties.concurrentKernels = attribute(cudaDevAttrConcurrentKernels);
    properties.pciBusID = attribute(cudaDevAttrPciBusId);
    properties.asyncEngineCount = attribute(cudaDevAttrAsyncEngineCount);
    properties.unifiedAddressing = attribute(cudaDevAttrUnifiedAddressing);
    properties.memoryClockRate = attribute(cudaDevAttrMemoryClockRate);
    properties.memoryBusWidth = attribute(cudaDevAttrGlobalMemoryBusWidth);
    properties.l2CacheSize = attribute(cudaDevAttrL2CacheSize);
    properties.maxThreadsPerMultiProcessor = attribute(cudaDevAttrMaxThreadsPerMultiProcessor);
    properties.maxBlocksPerMultiProcessor = attribute(cudaDevAttrMaxBlocksPerMultiprocessor);
    properties.streamPrioritiesSupported = attribute(cudaDevAttrStreamPrioritiesSupported);
    properties.globalL1CacheSupported = attribute(cudaDevAttrGlobalL1CacheSupported);
    properties.localL1CacheSupported = attribute(cudaDevAttrLocalL1CacheSupported);
    properties.sharedMemPerMultiprocessor = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
    properties.sharedMemPerBlockOptin = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    properties.reservedSharedMemPerBlock = attribute(cudaDevAttrReservedSharedMemoryPerBlock);
    properties.regsPerMultiprocessor = attribute(cudaDevAttrMaxRegistersPerMultiprocessor);
    properties.managedMemory = attribute(cudaDevAttrManagedMemory);
    properties.concurrentManagedAccess = attribute(cudaDevAttrConcurrentManagedAccess);
    properties.computePreemptionSupported = attribute(cudaDevAttrComputePreemptionSupported);
    properties.canUseHostPointerForRegisteredMem = attribute(cudaDevAttrCanUseHostPointerForRegisteredMem);
    properties.hostRegisterSupported = attribute(cudaDevAttrHostRegisterSupported);
    properties.singleToDoublePrecisionPerfRatio = attribute(cudaDevAttrSingleToDoublePrecisionPerfRatio);
}

}  // namespace software_cuda
