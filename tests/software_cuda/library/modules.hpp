// Modules: PTX that the builder has made a shared object of, loaded onto a device. All functions expect the lock to be held.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "../kernel/module.hpp"

namespace software_cuda {

// Makes a shared object of PTX. Writes its path into `answer` and returns 0, or writes why it cannot and returns another number.
using Builder = int (*)(const char* ptx, char* answer, std::size_t room);
void set_builder(Builder builder);

struct LoadedModule {
    void* object = nullptr;  // as the dynamic linker knows it
    const Module* table = nullptr;
    int device = 0;
    std::vector<std::uint64_t> globals;  // addresses of the variables

    ~LoadedModule();
};

struct Function {
    std::shared_ptr<LoadedModule> module;  // operations keep it loaded
    const Kernel* kernel;
    int dynamic_shared;  // bytes that a launch may ask for
};

cudaError_t load_module(const char* image, LoadedModule*& handle);
cudaError_t unload_module(const LoadedModule* handle);
cudaError_t find_function(const LoadedModule* handle, const char* name, Function*& function);
cudaError_t find_variable(const LoadedModule* handle, const char* name, std::uint64_t& address, std::size_t& bytes);
bool is_function(const Function* function);

}  // namespace software_cuda
