// The table by which a translated module shows its kernels and global variables to the library that loads and launches them.
#pragma once

#include <cstdint>

namespace software_cuda {

struct Thread;

struct Parameter {
    int offset, bytes;  // in the packed parameters of a launch
};

struct Kernel {
    const char* name;
    // Runs one thread. `parameters` are packed at their offsets, `globals` are the addresses of the module's variables as they
    // lie on the device that it was loaded on, in the order of Module::variables.
    void (*body)(Thread& thread, const std::uint8_t* parameters, const std::uint64_t* globals);
    const Parameter* parameters;
    int parameter_count, parameter_bytes;
    int static_shared;  // bytes
    int max_threads;    // of .maxntid or .reqntid, 0 where there is none
};

struct Variable {  // of .global or .const
    const char* name;
    std::uint64_t bytes, alignment;
    const void* initial;  // null for zeros
};

struct Module {
    const Kernel* kernels;
    int kernel_count;
    const Variable* variables;
    int variable_count;
};

}  // namespace software_cuda

// Every translated module defines it.
extern "C" __attribute__((visibility("default"))) const software_cuda::Module software_cuda_module;
