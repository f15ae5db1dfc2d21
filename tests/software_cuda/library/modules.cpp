#include "modules.hpp"

#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <map>

#include "captures.hpp"
#include "devices.hpp"
#include "errors.hpp"
#include "memory.hpp"
#include "state.hpp"

namespace software_cuda {

namespace {

constexpr int NEWEST_PTX = 88;  // of CUDA 12.9
constexpr std::size_t MOST_OF_ANSWER = 1 << 16;

struct Modules {
    std::map<const LoadedModule*, std::shared_ptr<LoadedModule>> loaded;
    std::map<std::pair<const LoadedModule*, const Kernel*>, std::unique_ptr<Function>> functions;
    Builder builder = nullptr;
};

Modules& all() {
    static auto* modules = new Modules;
    return *modules;
}

// The number after a directive of PTX, with its digits around a point joined: 88 for ".version 8.8", 90 for ".target sm_90a".
// Returns 0 without it; `suffix` becomes the character that follows.
int number_after(const std::string& ptx, const std::string& directive, char& suffix) {
    const auto found = ptx.find(directive);
    if (found == std::string::npos) return 0;
    int number = 0;
    for (std::size_t i = found + directive.size(); i < ptx.size(); ++i) {
        suffix = ptx[i];
        if (suffix == '.') continue;
        if (suffix < '0' || suffix > '9') break;
        number = 10 * number + (suffix - '0');
    }
    return number;
}

bool runs_target(int capability, int target, char suffix) {
    if (suffix == 'a') return capability == target;                                          // of one architecture only
    if (suffix == 'f') return capability >= target && capability / 10 == target / 10;        // of its family
    return capability >= target;
}

cudaError_t check_image(const char* image, int capability) {
    if (!std::memcmp(image, "\177ELF", 4)) {
        report("A module of machine code cannot run here; CUPY_COMPILE_WITH_PTX=1 makes CuPy compile to PTX.");
        return cudaErrorNoKernelImageForDevice;
    }
    const std::string ptx = image;
    char suffix = 0;
    const int version = number_after(ptx, ".version ", suffix);
    if (!version) return cudaErrorInvalidKernelImage;
    if (version > NEWEST_PTX) return cudaErrorUnsupportedPtxVersion;
    const int target = number_after(ptx, ".target sm_", suffix);
    if (!target) return cudaErrorInvalidPtx;
    return runs_target(capability, target, suffix) ? cudaSuccess : cudaErrorNoKernelImageForDevice;
}

cudaError_t build(const char* ptx, std::string& path) {
    if (!all().builder) {
        report("A module cannot be loaded: no builder of modules is set.");
        return cudaErrorInvalidPtx;
    }
    std::string answer(MOST_OF_ANSWER, '\0');
    int status;
    {
        Unlocked unlocked;  // the builder is written in Python
        status = all().builder(ptx, answer.data(), answer.size());
    }
    path = answer.c_str();
    if (status == 0) return cudaSuccess;
    report("A module could not be built: " + path);
    return cudaErrorInvalidPtx;
}

cudaError_t place_variables(LoadedModule& module) {
    for (int i = 0; i < module.table->variable_count; ++i) {
        const Variable& variable = module.table->variables[i];
        const std::uint64_t address = allocate(Kind::device, module.device, variable.bytes);
        if (!address) return cudaErrorMemoryAllocation;
        module.globals.push_back(address);
        copy_access(address, variable.bytes, Use::store);
        auto* bytes = reinterpret_cast<void*>(address);
        if (variable.initial) {
            std::memcpy(bytes, variable.initial, variable.bytes);
        } else {
            std::memset(bytes, 0, variable.bytes);
        }
    }
    return cudaSuccess;
}

cudaError_t check_kernels(const Module& table) {
    for (int i = 0; i < table.kernel_count; ++i) {
        const Kernel& kernel = table.kernels[i];
        if (kernel.static_shared <= SHARED_WITHOUT_OPTING_IN) continue;
        report(std::string("The kernel ") + kernel.name + " has more static shared memory than a block may have.");
        return cudaErrorInvalidPtx;
    }
    return cudaSuccess;
}

cudaError_t open(const std::string& path, LoadedModule& module) {
    module.object = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!module.object) {
        report(std::string("A module could not be loaded: ") + dlerror());
        return cudaErrorInvalidKernelImage;
    }
    module.table = static_cast<const Module*>(dlsym(module.object, "software_cuda_module"));
    if (!module.table) {
        report("A module could not be loaded: " + path + " lacks the table of a translated module.");
        return cudaErrorInvalidKernelImage;
    }
    if (auto error = check_kernels(*module.table)) return error;
    return place_variables(module);
}

bool is_loaded(const LoadedModule* handle) { return all().loaded.count(handle) != 0; }

}  // namespace

LoadedModule::~LoadedModule() {
    for (std::uint64_t address : globals) release(address);
    if (object) dlclose(object);
}

void set_builder(Builder builder) { all().builder = builder; }

cudaError_t load_module(const char* image, LoadedModule*& handle) {
    const int number = current_device();
    if (auto error = refuse_unsafe_call()) return error;
    if (auto error = check_image(image, device(number).row.capability)) return error;
    std::string path;
    if (auto error = build(image, path)) return error;
    auto module = std::make_shared<LoadedModule>();
    module->device = number;
    if (auto error = open(path, *module)) return error;
    handle = module.get();
    all().loaded[handle] = std::move(module);
    return cudaSuccess;
}

cudaError_t unload_module(const LoadedModule* handle) {
    if (!is_loaded(handle)) return cudaErrorInvalidResourceHandle;
    std::erase_if(all().functions, [handle](const auto& each) { return each.first.first == handle; });
    all().loaded.erase(handle);
    return cudaSuccess;
}

cudaError_t find_function(const LoadedModule* handle, const char* name, Function*& function) {
    if (!is_loaded(handle)) return cudaErrorInvalidResourceHandle;
    for (int i = 0; i < handle->table->kernel_count; ++i) {
        const Kernel* kernel = &handle->table->kernels[i];
        if (std::strcmp(kernel->name, name)) continue;
        auto& made = all().functions[{handle, kernel}];
        if (!made) {
            const int dynamic = SHARED_WITHOUT_OPTING_IN - kernel->static_shared;
            made = std::make_unique<Function>(Function{all().loaded[handle], kernel, dynamic});
        }
        function = made.get();
        return cudaSuccess;
    }
    return cudaErrorSymbolNotFound;
}

cudaError_t find_variable(const LoadedModule* handle, const char* name, std::uint64_t& address, std::size_t& bytes) {
    if (!is_loaded(handle)) return cudaErrorInvalidResourceHandle;
    for (int i = 0; i < handle->table->variable_count; ++i) {
        if (std::strcmp(handle->table->variables[i].name, name)) continue;
        address = handle->globals[i];
        bytes = handle->table->variables[i].bytes;
        return cudaSuccess;
    }
    return cudaErrorSymbolNotFound;
}

bool is_function(const Function* function) {
    for (const auto& [key, each] : all().functions) {
        if (each.get() == function) return true;
    }
    return false;
}

}  // namespace software_cuda
