// Matrix products on tensor cores, by the names and fragments of the PTX instructions.
//
// A fragment is spread over the registers of a warp: all 32 lanes take part in each call. With lane l, g = l / 4 and t = l % 4,
// and two elements of 16 bits to a register, the lower one first:
//
//     A (16 x 16)   a[0]: row g, columns 2 t, 2 t + 1   a[1]: row g + 8   a[2]: columns + 8   a[3]: row g + 8, columns + 8
//     B (16 x 8)    b[0]: rows 2 t, 2 t + 1, column g   b[1]: rows + 8
//     C (16 x 8)    c[0], c[1]: row g, columns 2 t, 2 t + 1    c[2], c[3]: row g + 8
//
// TF32 elements (sign, exponent and 10 bits of the fraction of a float) take one register each:
//
//     A (16 x 8)    a[0]: row g, column t   a[1]: row g + 8   a[2]: column t + 4   a[3]: row g + 8, column t + 4
//     B (8 x 8)     b[0]: row t, column g   b[1]: row t + 4
//
// Where CUPYCORR_EMULATED is defined, the emulator provides the same functions.
#pragma once
#include "common/tile.cuh"

#ifdef CUPYCORR_EMULATED
using emulator::load_matrices;
using emulator::mma_m16n8k16_bf16;
using emulator::mma_m16n8k16_f16;
using emulator::mma_m16n8k8_tf32;
using emulator::nearest_tf32;
#else

// Loads 8 x 8 matrices of 16-bit elements from shared memory. Lane l passes the address of row l % 8 of matrix l / 8, a multiple
// of 16 bytes, and receives elements 2 t and 2 t + 1 of row g of each matrix, or of column g if transposed.
template <int count, bool transposed>
DEVICE void load_matrices(uint32 (&registers)[count], const void* row) {
    static_assert(count == 2 || count == 4, "two matrices or four");
    const uint32 from = static_cast<uint32>(__cvta_generic_to_shared(row));
    if constexpr (count == 4) {
        if constexpr (transposed)
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                         : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                         : "r"(from)
                         : "memory");
        else
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                         : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                         : "r"(from)
                         : "memory");
    } else {
        if constexpr (transposed)
            asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                         : "=r"(registers[0]), "=r"(registers[1])
                         : "r"(from)
                         : "memory");
        else
            asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                         : "=r"(registers[0]), "=r"(registers[1])
                         : "r"(from)
                         : "memory");
    }
}

// C += A B. Compute capability 7.5 has a product of half the depth, which is called twice.
DEVICE void mma_m16n8k16_f16(float (&c)[4], const uint32 (&a)[4], const uint32 (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif __CUDA_ARCH__ >= 750
#pragma unroll
    for (int half = 0; half < 2; half++)
        asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
#else
#error "matrix products of float16 need compute capability 7.5 or later"
#endif
}

#if __CUDA_ARCH__ >= 800
DEVICE void mma_m16n8k16_bf16(float (&c)[4], const uint32 (&a)[4], const uint32 (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

DEVICE void mma_m16n8k8_tf32(float (&c)[4], const uint32 (&a)[4], const uint32 (&b)[2]) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Rounds a float to the nearest TF32 number, ties away from zero.
DEVICE uint32 nearest_tf32(uint32 float_bits) {
    uint32 bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(float_of_bits(float_bits)));
    return bits;
}
#endif

#endif

// The matrix product for an element type: its depth, and the rounding of a register before it.
template <class Element>
struct Multiplier;

template <>
struct Multiplier<half> {
    static constexpr int depth = 16;
    DEVICE static uint32 rounded(uint32 elements) { return elements; }
    DEVICE static void add(float (&c)[4], const uint32 (&a)[4], const uint32 (&b)[2]) { mma_m16n8k16_f16(c, a, b); }
};

#if defined(CUPYCORR_EMULATED) || __CUDA_ARCH__ >= 800
template <>
struct Multiplier<bfloat16> {
    static constexpr int depth = 16;
    DEVICE static uint32 rounded(uint32 elements) { return elements; }
    DEVICE static void add(float (&c)[4], const uint32 (&a)[4], const uint32 (&b)[2]) { mma_m16n8k16_bf16(c, a, b); }
};

template <>
struct Multiplier<float> {
    static constexpr int depth = 8;
    DEVICE static uint32 rounded(uint32 elements) { return nearest_tf32(elements); }
    DEVICE static void add(float (&c)[4], const uint32 (&a)[4], const uint32 (&b)[2]) { mma_m16n8k8_tf32(c, a, b); }
};
#endif
