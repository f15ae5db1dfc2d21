// Everything that kernels assume about the machine: types, all accesses to global and shared memory, and operations that are one
// instruction. On a device each function is that instruction and nothing else. Where CUPYCORR_EMULATED is defined, emulator.hpp
// provides the same names for a CPU, checking and counting what they do; only this file and mma.cuh know of the two. Thread
// indices, barriers, shuffles and votes have CUDA's own names.
#pragma once

typedef unsigned short uint16;
typedef unsigned int uint32;

// The 16 bytes that one instruction moves.
struct __attribute__((aligned(16))) Words16 {
    uint32 word[4];
};

#ifdef CUPYCORR_EMULATED
#include "emulator.hpp"
#else

#define DEVICE __device__ __forceinline__
#define KERNEL(threads) KERNEL_OF_BLOCKS(threads, 1)
// Registers of a thread are limited such that a multiprocessor has room for so many blocks.
#define KERNEL_OF_BLOCKS(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks)
// The bytes of shared memory of a multiprocessor, from the technical specifications in the CUDA C++ Programming Guide.
#if __CUDA_ARCH__ < 750
constexpr int MULTIPROCESSOR_SHARED = 96 * 1024;
#elif __CUDA_ARCH__ < 800
constexpr int MULTIPROCESSOR_SHARED = 64 * 1024;
#elif __CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1200
constexpr int MULTIPROCESSOR_SHARED = 100 * 1024;
#elif __CUDA_ARCH__ < 900
constexpr int MULTIPROCESSOR_SHARED = 164 * 1024;
#else
constexpr int MULTIPROCESSOR_SHARED = 228 * 1024;
#endif

// An array in shared memory. A dynamic one takes all the shared memory that the launch asks for.
#define SHARED_ARRAY(type, name, count) __shared__ type name[count]
#define DYNAMIC_SHARED_ARRAY(type, name)                            \
    extern __shared__ __attribute__((aligned(16))) uint32 name##_words[]; \
    type* const name = reinterpret_cast<type*>(name##_words)

// Global memory. Kernels do not store to what they load, so loads go through the read-only path.
DEVICE uint16 load_global(const uint16* from) { return __ldg(from); }
DEVICE float load_global(const float* from) { return __ldg(from); }
DEVICE double load_global(const double* from) { return __ldg(from); }
DEVICE int load_global(const int* from) { return __ldg(from); }
DEVICE long long load_global(const long long* from) { return __ldg(from); }

DEVICE Words16 load_global_16(const void* from) {
    const uint4 loaded = __ldg(static_cast<const uint4*>(from));
    return Words16{{loaded.x, loaded.y, loaded.z, loaded.w}};
}

template <class T>
DEVICE void store_global(T* to, T value) {
    *to = value;
}

// In assembly, because the compiler may split an assignment into single stores.
DEVICE void store_global_16(void* to, Words16 value) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(value.word[0]), "r"(value.word[1]),
                 "r"(value.word[2]), "r"(value.word[3])
                 : "memory");
}

// Shared memory.
template <class T>
DEVICE T load_shared(const T* from) {
    return *from;
}

template <class T>
DEVICE void store_shared(T* to, T value) {
    *to = value;
}

DEVICE Words16 load_shared_16(const void* from) {
    const uint4 loaded = *static_cast<const uint4*>(from);
    return Words16{{loaded.x, loaded.y, loaded.z, loaded.w}};
}

DEVICE void store_shared_16(void* to, Words16 value) {
    *static_cast<uint4*>(to) = make_uint4(value.word[0], value.word[1], value.word[2], value.word[3]);
}

// Copies 4, 8 or 16 bytes, aligned to their size, from global to shared memory; zeros if not `valid`. The copy completes between
// the call and the wait for its group, and is visible to other threads after the next barrier. Devices before compute capability
// 8.0 copy synchronously.
#if __CUDA_ARCH__ >= 800
constexpr bool HAS_ASYNC_COPIES = true;

template <int bytes>
DEVICE void copy_async(void* to_shared, const void* from_global, bool valid) {
    const uint32 to = static_cast<uint32>(__cvta_generic_to_shared(to_shared));
    const int count = valid ? bytes : 0;
    if (bytes == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from_global), "r"(count) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from_global), "n"(bytes), "r"(count)
                     : "memory");
}

DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `pending` of this thread's groups are in flight.
template <int pending>
DEVICE void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}
#else
constexpr bool HAS_ASYNC_COPIES = false;

template <int bytes>
DEVICE void copy_async(void* to_shared, const void* from_global, bool valid) {
    const uint32* const from = static_cast<const uint32*>(from_global);
    uint32 words[bytes / 4] = {};
    if (valid) {
        if (bytes == 16) *reinterpret_cast<uint4*>(words) = __ldg(reinterpret_cast<const uint4*>(from));
        else if (bytes == 8) *reinterpret_cast<uint2*>(words) = __ldg(reinterpret_cast<const uint2*>(from));
        else words[0] = __ldg(from);
    }
    memcpy(__builtin_assume_aligned(to_shared, bytes), words, bytes);
}

DEVICE void copy_async_commit() {}
template <int pending>
DEVICE void copy_async_wait() {}
#endif

// Optimisation barrier: forces recomputation instead of keeping registers.
template <class Number>
DEVICE Number opaque(Number number) {
    if constexpr (sizeof(Number) == sizeof(long long)) {
        asm volatile("" : "+l"(number));
    } else {
        asm volatile("" : "+r"(number));
    }
    return number;
}

// Multiply-adds that round once.
DEVICE float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
DEVICE double multiply_add(double a, double b, double c) { return fma(a, b, c); }

// Products that round by themselves: the compiler does not fuse them with the addition that follows.
DEVICE float multiply(float a, float b) { return __fmul_rn(a, b); }
DEVICE double multiply(double a, double b) { return __dmul_rn(a, b); }

// The largest whole number that is not above a number.
DEVICE float round_down(float number) { return floorf(number); }
DEVICE double round_down(double number) { return floor(number); }

DEVICE float exponential(float number) { return expf(number); }
DEVICE double exponential(double number) { return exp(number); }
DEVICE double logarithm(double number) { return log(number); }

// Conversions, with half-precision numbers as bits. Narrowing rounds to nearest, ties to even.
DEVICE uint32 bits_of_float(float value) { return __float_as_uint(value); }
DEVICE float float_of_bits(uint32 bits) { return __uint_as_float(bits); }
DEVICE float double_to_float_towards_zero(double value) { return __double2float_rz(value); }

DEVICE float half_to_float(uint16 bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

DEVICE uint16 float_to_half(float value) {
    uint16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

#if __CUDA_ARCH__ >= 800
constexpr bool HAS_BFLOAT16_CONVERSION = true;

DEVICE uint16 float_to_bfloat16(float value) {
    uint16 bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
#else
constexpr bool HAS_BFLOAT16_CONVERSION = false;
DEVICE uint16 float_to_bfloat16(float) { return 0; }  // never called
#endif

DEVICE uint16 double_to_half(double value) {
    uint16 bits;
    asm("cvt.rn.f16.f64 %0, %1;" : "=h"(bits) : "d"(value));
    return bits;
}

#endif
