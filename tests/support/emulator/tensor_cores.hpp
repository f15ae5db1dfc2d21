// The functions behind the wrappers of tensor core instructions (ldmatrix and mma.sync) where there is no tensor core. Matrix
// fragments are laid out over the lanes of a warp as in the PTX manual. All 32 lanes take part. (The third of them,
// cp.async, is in machine.hpp: copy_async, copy_async_commit and copy_async_wait.)
#pragma once

namespace emulator {

inline void need_whole_warp(Site site) {
    if (!whole_warp()) refuse(site, "a tensor-core instruction needs all 32 lanes: the block's size must be a multiple of 32");
}

// ldmatrix: `count` matrices of 8 x 8 16-bit elements. Lane l brings the address of row l % 8 of matrix l / 8, and takes of each
// matrix the elements 2 (l % 4) and the next of row l / 4, or, transposed, of column l / 4.
template <int count, bool transposed>
DEVICE void load_matrices(uint32 (&registers)[count], const void* row, Site site = Site::here()) {
    static_assert(count == 2 || count == 4, "two matrices or four");
    need_whole_warp(site);
    struct Rows {
        const uint16* mine;
        const uint16* all[WARP];
    } rows{static_cast<const uint16*>(row), {}};
    if (lane() < 8 * count) shared_load(row, 16, 16, site);
    collective("ldmatrix", ALL_LANES, &rows, [](void* const (&operands)[WARP]) {
        for (void* operand : operands)
            for (int from = 0; from < WARP; ++from)
                static_cast<Rows*>(operand)->all[from] = static_cast<Rows*>(operands[from])->mine;
    }, site);
    const int across = lane() / 4, along = 2 * (lane() % 4);
    for (int matrix = 0; matrix < count; ++matrix) {
        uint32 pair = 0;
        for (int element = 0; element < 2; ++element) {
            const int matrix_row = transposed ? along + element : across, column = transposed ? across : along + element;
            const uint16* const at = rows.all[8 * matrix + matrix_row] + column;
            shared_receive(at, sizeof *at, site);
            pair |= static_cast<uint32>(*at) << (16 * element);
        }
        registers[matrix] = pair;
    }
}

// cvt.rna.tf32.f32: the nearest number with 10 bits of the fraction, ties away from zero.
inline uint32 nearest_tf32(uint32 float_bits) {
    const bool not_a_number = (float_bits & 0x7fffffffu) > 0x7f800000u;
    return not_a_number ? 0x7fffffffu : (float_bits + 0x1000u) & 0xffffe000u;
}

// One element of a fragment: which of the matrix it is.
struct Element {
    int row, column;
};

// An operand type of mma.sync. `elements` says how many sit in a register, `depth` how long the sum is.
struct Half {
    static constexpr int elements = 2, depth = 16;
    static double value(uint32 bits) { return half_to_float(static_cast<uint16>(bits)); }
};

struct BFloat16 {
    static constexpr int elements = 2, depth = 16;
    static double value(uint32 bits) { return float_of_bits(bits << 16); }
};

struct TF32 {
    static constexpr int elements = 1, depth = 8;
    static double value(uint32 bits) { return float_of_bits(bits & 0xffffe000u); }  // the unit reads 10 bits of the fraction
};

// Where element i of a lane's fragment is in A (16 x depth, 4 registers), B (depth x 8, 2 registers), and C and D (16 x 8).
template <class Type>
Element element_of_a(int lane, int i) {
    const int reg = i / Type::elements;
    return {lane / 4 + 8 * (reg % 2), Type::elements * (lane % 4) + i % Type::elements + Type::depth / 2 * (reg / 2)};
}

template <class Type>
Element element_of_b(int lane, int i) {
    const int reg = i / Type::elements;
    return {Type::elements * (lane % 4) + i % Type::elements + Type::depth / 2 * reg, lane / 4};
}

inline Element element_of_c(int lane, int i) { return {lane / 4 + 8 * (i / 2), 2 * (lane % 4) + i % 2}; }

struct Fragments {
    const uint32* a;
    const uint32* b;
    float* sums;
};

template <class Type>
double fragment_value(const uint32* registers, int i) {
    const uint32 bits = registers[i / Type::elements];
    return Type::value(Type::elements == 1 ? bits : bits >> (16 * (i % 2)) & 0xffffu);
}

// D = A B + C of the whole warp. Products are exact and summed in double, then rounded once: no device is less exact.
template <class Type>
void multiply_matrices(void* const (&operands)[WARP]) {
    double a[16][Type::depth], b[Type::depth][8];
    for (int lane = 0; lane < WARP; ++lane) {
        const Fragments& mine = *static_cast<Fragments*>(operands[lane]);
        for (int i = 0; i < 4 * Type::elements; ++i) {
            const Element at = element_of_a<Type>(lane, i);
            a[at.row][at.column] = fragment_value<Type>(mine.a, i);
        }
        for (int i = 0; i < 2 * Type::elements; ++i) {
            const Element at = element_of_b<Type>(lane, i);
            b[at.row][at.column] = fragment_value<Type>(mine.b, i);
        }
    }
    multiply_adds += 16 * 8 * Type::depth;
    for (int lane = 0; lane < WARP; ++lane)
        for (int i = 0; i < 4; ++i) {
            const Element at = element_of_c(lane, i);
            float& sum = static_cast<Fragments*>(operands[lane])->sums[i];
            double exact = sum;
            for (int k = 0; k < Type::depth; ++k) exact += a[at.row][k] * b[k][at.column];
            sum = static_cast<float>(exact);
        }
}

template <class Type>
void multiply_add_matrices(float (&sums)[4], const uint32 (&a)[4], const uint32 (&b)[2], const char* name, Site site) {
    need_whole_warp(site);
    Fragments mine{a, b, sums};
    collective(name, ALL_LANES, &mine, multiply_matrices<Type>, site);
}

// mma.sync, D over C, with float32 sums.
inline void mma_m16n8k16_f16(float (&sums)[4], const uint32 (&a)[4], const uint32 (&b)[2], Site site = Site::here()) {
    multiply_add_matrices<Half>(sums, a, b, "mma.m16n8k16.f16", site);
}
inline void mma_m16n8k16_bf16(float (&sums)[4], const uint32 (&a)[4], const uint32 (&b)[2], Site site = Site::here()) {
    multiply_add_matrices<BFloat16>(sums, a, b, "mma.m16n8k16.bf16", site);
}
inline void mma_m16n8k8_tf32(float (&sums)[4], const uint32 (&a)[4], const uint32 (&b)[2], Site site = Site::here()) {
    multiply_add_matrices<TF32>(sums, a, b, "mma.m16n8k8.tf32", site);
}

}  // namespace emulator
