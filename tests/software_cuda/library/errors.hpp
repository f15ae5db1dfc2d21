// Errors: their names, the error that sticks to the process, the last error of each thread, and reports in words.
//
// The driver and the runtime number their errors alike, so one type serves both.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>
#include <vector>

namespace software_cuda {

struct ErrorNames {
    int number;
    const char* driver;
    const char* runtime;
    const char* text;
};

const ErrorNames* find_error(int number);  // null for a number that the table lacks

// After a kernel has failed, every call returns its error until the process ends.
cudaError_t sticky_error();
void set_sticky_error(cudaError_t error);  // cudaSuccess takes it back

cudaError_t keep_error(cudaError_t error);  // for cudaGetLastError; returns its argument
cudaError_t last_error();
void forget_last_error();

// Reports say in whole sentences what went wrong. They are kept for Python and shown on stderr.
void report(const std::string& text);
std::vector<std::string>& reports();
std::string in_hexadecimal(std::uint64_t address);

}  // namespace software_cuda
