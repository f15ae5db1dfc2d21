// The functions that Python calls by ctypes beside CUDA's own: they add devices, take how memory is used, and tell what happened.
//
// The functions take the lock for themselves, so Python must call them without holding its own lock (ctypes.CDLL does so).
#pragma once

#include <cstddef>
#include <cstdint>

#include "devices.hpp"
#include "export.hpp"
#include "modules.hpp"

// Adds a device and returns its number; -1 if there are 16 already, or if the memory of devices could not be reserved.
EXPORTED int software_cuda_add_device(const software_cuda::DeviceRow* row);

// The function that makes a shared object of PTX (modules.hpp). It is called without the library's lock.
EXPORTED void software_cuda_set_builder(software_cuda::Builder builder);

// Lets a device use memory that was allocated elsewhere, until the same range is unregistered: 1 if it was registered, else 0.
// Operations that use the range run before it is forgotten.
EXPORTED void software_cuda_register_range(int device, std::uint64_t address, std::uint64_t bytes);
EXPORTED int software_cuda_unregister_range(std::uint64_t address, std::uint64_t bytes);

// Marks bytes in an allocation as given back (alive = 0), or as taken again and unset (memory.hpp).
EXPORTED void software_cuda_set_alive(std::uint64_t address, std::uint64_t bytes, int alive);

// Reports, oldest first. The text is cut to the room, with its zero; the answer is its length, or 0 if there is no such report.
EXPORTED std::uint64_t software_cuda_report_count();
EXPORTED std::uint64_t software_cuda_report(std::uint64_t index, char* text, std::uint64_t room);
EXPORTED void software_cuda_clear_reports();

// Takes back the error that every call returns. Operations that still wait are dropped, as they are on a real device.
EXPORTED void software_cuda_reset_sticky_error();

// 1: an operation runs only when somebody waits for it (the beginning); 0: it runs as it is enqueued.
EXPORTED void software_cuda_set_lazy(int lazy);
EXPORTED void software_cuda_set_thread_order(int order);  // 0 forwards, 1 backwards
EXPORTED std::uint64_t software_cuda_pending_operations();

// The launches of kernels since the records were cleared, also those that became part of a graph.
struct LaunchRow {
    char kernel[256];
    std::uint64_t stream;
    std::int32_t device;
    std::uint32_t grid[3], block[3];
    std::uint32_t dynamic_shared;  // bytes
};
EXPORTED std::uint64_t software_cuda_launch_count();
EXPORTED int software_cuda_launch(std::uint64_t index, LaunchRow* row);  // 0 if there is no such launch
EXPORTED void software_cuda_clear_launches();
