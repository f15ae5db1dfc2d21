#include "control.hpp"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "errors.hpp"
#include "launches.hpp"
#include "memory.hpp"
#include "state.hpp"
#include "streams.hpp"

using namespace software_cuda;

namespace {

// These functions also work after an error and in a forked child.
std::lock_guard<std::mutex> locked() { return std::lock_guard<std::mutex>(state_lock()); }

}  // namespace

int software_cuda_add_device(const DeviceRow* row) {
    const auto hold = locked();
    watch_forks();
    return has_arenas() ? add_device(*row) : -1;
}

void software_cuda_set_builder(Builder builder) {
    const auto hold = locked();
    set_builder(builder);
}

void software_cuda_register_range(int device, std::uint64_t address, std::uint64_t bytes) {
    const auto hold = locked();
    if (bytes) register_range(Kind::device, device, address, bytes);
}

int software_cuda_unregister_range(std::uint64_t address, std::uint64_t bytes) {
    const auto hold = locked();
    if (!is_forked_child()) finish_what_touches(address, bytes);
    return unregister_range(address, bytes);
}

void software_cuda_set_alive(std::uint64_t address, std::uint64_t bytes, int alive) {
    const auto hold = locked();
    set_alive(address, bytes, alive != 0);
}

std::uint64_t software_cuda_report_count() {
    const auto hold = locked();
    return reports().size();
}

std::uint64_t software_cuda_report(std::uint64_t index, char* text, std::uint64_t room) {
    const auto hold = locked();
    if (index >= reports().size()) return 0;
    const std::string& found = reports()[index];
    if (room) std::snprintf(text, room, "%s", found.c_str());
    return found.size();
}

void software_cuda_clear_reports() {
    const auto hold = locked();
    reports().clear();
}

void software_cuda_reset_sticky_error() {
    const auto hold = locked();
    if (sticky_error() == cudaSuccess) return;
    finish_everything();
    set_sticky_error(cudaSuccess);
    forget_last_error();
}

void software_cuda_set_lazy(int lazy) {
    const auto hold = locked();
    set_lazy(lazy != 0);
    if (!lazy) finish_everything();
}

void software_cuda_set_thread_order(int order) {
    const auto hold = locked();
    set_thread_order(order ? ThreadOrder::backwards : ThreadOrder::forwards);
}

std::uint64_t software_cuda_pending_operations() {
    const auto hold = locked();
    return pending_operations();
}

std::uint64_t software_cuda_launch_count() {
    const auto hold = locked();
    return launch_records().size();
}

int software_cuda_launch(std::uint64_t index, LaunchRow* row) {
    const auto hold = locked();
    if (index >= launch_records().size()) return 0;
    const LaunchRecord& record = launch_records()[index];
    std::memset(row, 0, sizeof *row);
    std::snprintf(row->kernel, sizeof row->kernel, "%s", record.kernel.c_str());
    row->stream = reinterpret_cast<std::uint64_t>(record.stream);
    row->device = record.device;
    std::copy_n(record.shape.grid, 3, row->grid);
    std::copy_n(record.shape.block, 3, row->block);
    row->dynamic_shared = record.shape.dynamic_shared;
    return 1;
}

void software_cuda_clear_launches() {
    const auto hold = locked();
    launch_records().clear();
}
