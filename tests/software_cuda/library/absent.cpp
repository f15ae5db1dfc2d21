// The functions that CuPy links against or looks up, and that are not here.
//
// CUDA's headers are not included: the functions have no parameters, because nothing looks at them.
#include "absent.hpp"

#include <cstdio>

#include "export.hpp"

namespace software_cuda {

int refuse_absent(const char* function) {
    constexpr int NOT_SUPPORTED = 801;
    std::fprintf(stderr, "software CUDA: %s is not supported.\n", function);
    return NOT_SUPPORTED;
}

}  // namespace software_cuda

#define ABSENT(name) \
    EXPORTED int name() { return software_cuda::refuse_absent(#name); }

// Textures, surfaces and arrays
ABSENT(cudaCreateSurfaceObject)
ABSENT(cudaCreateTextureObject)
ABSENT(cudaDestroySurfaceObject)
ABSENT(cudaDestroyTextureObject)
ABSENT(cudaFreeArray)
ABSENT(cudaGetChannelDesc)
ABSENT(cudaGetTextureObjectResourceDesc)
ABSENT(cudaGetTextureObjectTextureDesc)
ABSENT(cudaMalloc3DArray)
ABSENT(cudaMallocArray)
ABSENT(cudaMemcpy2DFromArray)
ABSENT(cudaMemcpy2DFromArrayAsync)
ABSENT(cudaMemcpy2DToArray)
ABSENT(cudaMemcpy2DToArrayAsync)

// Copies of more than one dimension
ABSENT(cudaMemcpy2D)
ABSENT(cudaMemcpy2DAsync)
ABSENT(cudaMemcpy3D)
ABSENT(cudaMemcpy3DAsync)

// Memory that processes share
ABSENT(cudaIpcCloseMemHandle)
ABSENT(cudaIpcGetEventHandle)
ABSENT(cudaIpcGetMemHandle)
ABSENT(cudaIpcOpenEventHandle)
ABSENT(cudaIpcOpenMemHandle)

// CUDA's own memory pools, and hints
ABSENT(cudaDeviceGetDefaultMemPool)
ABSENT(cudaDeviceGetMemPool)
ABSENT(cudaDeviceSetMemPool)
ABSENT(cudaMallocFromPoolAsync)
ABSENT(cudaMemAdvise)
ABSENT(cudaMemPoolCreate)
ABSENT(cudaMemPoolDestroy)
ABSENT(cudaMemPoolGetAttribute)
ABSENT(cudaMemPoolSetAttribute)
ABSENT(cudaMemPoolTrimTo)
ABSENT(cudaMemPrefetchAsync)

// Graphs as text
ABSENT(cudaGraphDebugDotPrint)

// Contexts beside the primary ones, linking, and blocks that wait for one another
ABSENT(cuCtxCreate_v2)
ABSENT(cuCtxDestroy_v2)
ABSENT(cuLaunchCooperativeKernel)
ABSENT(cuLinkAddData_v2)
ABSENT(cuLinkAddFile_v2)
ABSENT(cuLinkComplete)
ABSENT(cuLinkCreate_v2)
ABSENT(cuLinkDestroy)
