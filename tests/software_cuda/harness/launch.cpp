// Launches of translated kernels by ctypes.
#include <dlfcn.h>

#include <cstdio>
#include <cstring>
#include <vector>

#include "../kernel/launch.hpp"

using namespace software_cuda;

extern "C" void harness_add_memory(void* address, std::uint64_t bytes, int stored);

// Returns the failure, or -1 where there is no such kernel. The variables of the module have their first values at each launch.
extern "C" __attribute__((visibility("default"))) int harness_run(const char* path, const char* name, const unsigned* grid,
                                                                 const unsigned* block, unsigned dynamic_shared,
                                                                 const std::uint8_t* parameters, int backwards, char* report,
                                                                 int room) {
    void* file = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!file) {
        std::snprintf(report, room, "%s", dlerror());
        return -1;
    }
    const auto& module = *static_cast<const Module*>(dlsym(file, "software_cuda_module"));
    std::vector<std::vector<std::uint64_t>> variables;
    std::vector<std::uint64_t> globals;
    for (int i = 0; i < module.variable_count; ++i) {
        const Variable& variable = module.variables[i];
        variables.emplace_back(variable.bytes / 8 + 1);
        if (variable.initial) std::memcpy(variables.back().data(), variable.initial, variable.bytes);
        harness_add_memory(variables.back().data(), variable.bytes, 1);
        globals.push_back(reinterpret_cast<std::uint64_t>(variables.back().data()));
    }
    for (int i = 0; i < module.kernel_count; ++i) {
        const Kernel& kernel = module.kernels[i];
        if (std::strcmp(kernel.name, name)) continue;
        const Launch launch{&kernel, {grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, dynamic_shared, parameters,
                            globals.data(), 0};
        const Outcome outcome = run(launch, backwards ? ThreadOrder::backwards : ThreadOrder::forwards);
        std::snprintf(report, room, "%s", outcome.report.c_str());
        return static_cast<int>(outcome.failure);
    }
    std::snprintf(report, room, "there is no kernel %s", name);
    return -1;
}
