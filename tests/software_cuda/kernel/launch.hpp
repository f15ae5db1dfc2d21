// Runs the blocks of a launch one after another, each with one fibre per thread.
#pragma once

#include <cstdint>
#include <string>

#include "module.hpp"

namespace software_cuda {

struct Launch {
    const Kernel* kernel;
    unsigned grid[3], block[3];
    unsigned dynamic_shared;  // bytes
    const std::uint8_t* parameters;
    const std::uint64_t* globals;
    int device;  // whose memory the kernel may touch
};

// Failures of a running kernel, with the driver's numbers.
enum class Failure {
    none = 0,
    illegal_address = 700,
    timed_out = 702,
    assertion = 710,
    misaligned_address = 716,
    launch_failed = 719,
};

struct Outcome {
    Failure failure = Failure::none;
    // Whole sentences: the kernel, the block, the thread and the address. Without a failure they tell of the first load of bytes
    // that nobody stored, after which the kernel went on.
    std::string report;
};

// The order in which the blocks of a launch follow, and in which the threads of a block begin and go on after a barrier.
enum class ThreadOrder { forwards, backwards };

// May be called by several threads of the host at once. A launch that runs for two minutes is given up.
Outcome run(const Launch& launch, ThreadOrder order);

}  // namespace software_cuda
