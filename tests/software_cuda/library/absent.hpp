// The answer of functions that the library lacks.
#pragma once

namespace software_cuda {

// Says on stderr that a function is not supported, and returns the error of the driver and the runtime for it.
int refuse_absent(const char* function);

}  // namespace software_cuda
