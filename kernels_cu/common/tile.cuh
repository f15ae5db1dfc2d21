// Tiles of images in shared memory: row pitches without bank conflicts, ways to fill them, and vector accesses.
#pragma once
#include "common/numeric.cuh"

constexpr int WARP = 32;
constexpr int SCHEDULERS = 4;  // of a multiprocessor: warps whose numbers differ by this share one
constexpr int SECTOR = 32;  // the least bytes that global memory moves

// Most units that are no constants are 1: a branch is faster than a division.
DEVICE constexpr int ceil_div(int number, int unit) { return unit == 1 ? number : (number + unit - 1) / unit; }
DEVICE constexpr int round_up(int number, int unit) { return ceil_div(number, unit) * unit; }

// Removes the last digit of a mixed-radix number, the one that varies fastest, and returns it. Numbers are never negative; which
// of the two divisions leaves more registers depends on the kernel.
template <bool as_unsigned = false>
DEVICE int digit(int& number, int base) {
    if (base == 1) return 0;  // most are: a branch is faster than a division
    const int rest = as_unsigned ? static_cast<int>(static_cast<uint32>(number) / static_cast<uint32>(base)) : number / base;
    const int last = number - rest * base;
    number = rest;
    return last;
}

// The elements from one row to the next, of which `width` are used, in vectors of 16 bytes. Eight lanes load a vector each at a
// time: from eight neighbouring rows, or, if `rows` is 4, two neighbouring vectors from each of four rows. This pitch avoids bank
// conflicts in both cases.
DEVICE constexpr int pitch(int width, int vector, int rows) {
    const int vectors = ceil_div(width, vector);
    return vector * (rows == 4 ? vectors + (6 - vectors % 4) % 4 : vectors | 1);
}

// The elements that an access at this address can move: `vector_width`, a power of two, or fewer if the address is not aligned.
template <class Element>
DEVICE int aligned(const Element* from, int vector_width) {
    while (reinterpret_cast<unsigned long long>(from) % (vector_width * sizeof(Element))) vector_width /= 2;
    return vector_width;
}

// Copies `count` elements from global to shared memory, by copies of `bytes` each. Copies are `distance` of their width apart, in
// both places. Copies whose first element has no bit in `inside` store 0.
template <int bytes, int count, class Element>
DEVICE void copy_vectors(Element* to, const Element* from, uint32 inside, int distance) {
    constexpr int width = bytes / sizeof(Element);
#pragma unroll
    for (int k = 0; k < count; k += width) copy_async<bytes>(to + k * distance, from + k * distance, (inside >> k & 1) != 0);
}

// The same, by copies of `vector_width` elements, which are 4, 8 or 16 bytes.
template <int count, class Element>
DEVICE void copy_columns(Element* to, const Element* from, uint32 inside, int vector_width, int distance) {
    constexpr int bytes = sizeof(Element);
    if (vector_width * bytes == 16) copy_vectors<16, count>(to, from, inside, distance);
    else if (vector_width * bytes == 8) copy_vectors<8, count>(to, from, inside, distance);
    else if constexpr (bytes <= 4) copy_vectors<4, count>(to, from, inside, distance);
}

// Moves an element from global to shared memory, 0 if it is not `valid`: by an asynchronous copy unless it is widened.
template <class Element, class Sum>
DEVICE void copy_element(Sum* to, const Element* from, bool valid) {
    if constexpr (sizeof(Element) == sizeof(Sum)) copy_async<sizeof(Sum)>(to, from, valid);
    else store_shared(to, valid ? Sum(load(from)) : Sum(0));
}

// Loads elements `stride` apart, by one vector access if they are contiguous and aligned; those without a bit in `inside` are 0.
template <int count, class Element>
DEVICE void load_vector(const Element* from, uint32 inside, Index stride, Element (&values)[count]) {
    constexpr uint32 all = (1u << count) - 1;
    if (inside == all && stride == 1 && reinterpret_cast<unsigned long long>(from) % sizeof(Words16) == 0) {
        const Words16 words = load_global_16(from);
        memcpy(values, &words, sizeof words);
    } else {
#pragma unroll
        for (int k = 0; k < count; k++) values[k] = inside >> k & 1 ? load_element(from + k * stride) : Element{};
    }
}

// Loads contiguous vectors of 16 bytes.
template <int count, class Sum>
DEVICE void load_shared_vectors(const Sum* from, Sum (&values)[count]) {
    constexpr int vector = sizeof(Words16) / sizeof(Sum);
#pragma unroll
    for (int k = 0; k < count; k += vector) {
        const Words16 words = load_shared_16(from + k);
        memcpy(values + k, &words, sizeof words);
    }
}

template <class Sum, int count>
DEVICE void store_shared_vector(Sum* to, const Sum (&values)[count]) {
    static_assert(count * sizeof(Sum) == sizeof(Words16), "a vector is 16 bytes");
    Words16 words;
    memcpy(&words, values, sizeof words);
    store_shared_16(to, words);
}

// Stores contiguous elements, widened, to `phases` rows that are `phase` apart: one element to each row in turn.
template <int phases, class Element, int count, class Sum>
DEVICE void store_deinterleaved(Sum* to, int phase, const Element (&elements)[count]) {
    constexpr int each = count / phases, vector = sizeof(Words16) / sizeof(Sum);
#pragma unroll
    for (int p = 0; p < phases; p++) {
        if (each % vector == 0) {
#pragma unroll
            for (int k = 0; k < each; k += vector) {
                Sum values[vector];
#pragma unroll
                for (int v = 0; v < vector; v++)
                    values[v] = widen(elements[(k + v) * phases + p < count ? (k + v) * phases + p : 0]);
                store_shared_vector(to + p * phase + k, values);
            }
        } else {
#pragma unroll
            for (int k = 0; k < each; k++) store_shared(to + p * phase + k, Sum(widen(elements[k * phases + p])));
        }
    }
}

// Stores elements, widened, `distance` apart.
template <class Element, int count, class Sum>
DEVICE void store_strided(Sum* to, int distance, const Element (&elements)[count]) {
#pragma unroll
    for (int k = 0; k < count; k++) store_shared(to + k * distance, Sum(widen(elements[k])));
}
