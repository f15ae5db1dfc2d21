// Tiles of images in shared memory: how wide they are laid, how runs of elements get there, and how threads read them.
#pragma once
#include "common/numeric.cuh"

constexpr int WARP = 32;

DEVICE constexpr int ceil_div(int number, int unit) { return (number + unit - 1) / unit; }
DEVICE constexpr int round_up(int number, int unit) { return ceil_div(number, unit) * unit; }

// Elements from one row to the next, `width` of which are used, in vectors of 16 bytes. Eight lanes read a vector each at a time: of
// `rows` neighbouring rows where a warp reads that many, and two neighbours in each if the rows are four. With this pitch they lie
// in different banks, four or eight rows.
DEVICE constexpr int pitch(int width, int vector, int rows) {
    const int vectors = ceil_div(width, vector);
    return vector * (rows == 4 ? vectors + (6 - vectors % 4) % 4 : vectors | 1);
}

// How many elements an access from there can move: `piece`, a power of two, or fewer where the address is not a multiple of their size.
template <class Element>
DEVICE int aligned(const Element* from, int piece) {
    while (reinterpret_cast<unsigned long long>(from) % (piece * sizeof(Element))) piece /= 2;
    return piece;
}

// `count` elements from global to shared memory, by copies of so many bytes: each is `apart` of them from the one before, in both
// places. Those whose first element has no bit in `inside` become 0.
template <int bytes, int count, class Element>
DEVICE void copy_pieces(Element* to, const Element* from, uint32 inside, int apart) {
    constexpr int piece = bytes / sizeof(Element);
#pragma unroll
    for (int k = 0; k < count; k += piece) copy_async<bytes>(to + k * apart, from + k * apart, (inside >> k & 1) != 0);
}

// The same, by copies of `piece` elements, which are 4, 8 or 16 bytes.
template <int count, class Element>
DEVICE void copy_columns(Element* to, const Element* from, uint32 inside, int piece, int apart) {
    constexpr int bytes = sizeof(Element);
    if (piece * bytes == 16) copy_pieces<16, count>(to, from, inside, apart);
    else if (piece * bytes == 8) copy_pieces<8, count>(to, from, inside, apart);
    else if constexpr (bytes <= 4) copy_pieces<4, count>(to, from, inside, apart);
}

// The same, one by one, from elements `stride` apart. Those of 2 bytes are too small to be copied asynchronously.
template <int count, class Element>
DEVICE void copy_elements(Element* to, const Element* from, uint32 inside, int apart, int stride) {
    if constexpr (sizeof(Element) >= 4) {
#pragma unroll
        for (int k = 0; k < count; k++) copy_async<sizeof(Element)>(to + k * apart, from + k * apart * stride, (inside >> k & 1) != 0);
    } else {
        Element elements[count];
#pragma unroll
        for (int k = 0; k < count; k++) elements[k] = inside >> k & 1 ? load_element(from + k * apart * stride) : Element{};
#pragma unroll
        for (int k = 0; k < count; k++) store_shared(to + k * apart, elements[k]);
    }
}

// Elements `stride` apart, as they are, by one access where they are neighbours and aligned; those without a bit in `inside` are 0.
template <int count, class Element>
DEVICE void load_run(const Element* from, uint32 inside, Index stride, Element (&run)[count]) {
    constexpr uint32 all = (1u << count) - 1;
    if (inside == all && stride == 1 && reinterpret_cast<unsigned long long>(from) % sizeof(Words16) == 0) {
        const Words16 words = load_global_16(from);
        memcpy(run, &words, sizeof words);
    } else {
#pragma unroll
        for (int k = 0; k < count; k++) run[k] = inside >> k & 1 ? load_element(from + k * stride) : Element{};
    }
}

// Neighbouring vectors of 16 bytes.
template <int count, class Sum>
DEVICE void load_vectors(const Sum* from, Sum (&values)[count]) {
    constexpr int vector = sizeof(Words16) / sizeof(Sum);
#pragma unroll
    for (int k = 0; k < count; k += vector) {
        const Words16 words = load_shared_16(from + k);
        memcpy(values + k, &words, sizeof words);
    }
}

template <class Sum, int count>
DEVICE void store_vector(Sum* to, const Sum (&values)[count]) {
    static_assert(count * sizeof(Sum) == sizeof(Words16), "a vector is 16 bytes");
    Words16 words;
    memcpy(&words, values, sizeof words);
    store_shared_16(to, words);
}

// Neighbours of a row, widened, to `phases` rows that are `phase` apart: every element to the next of them in turn.
template <int phases, class Element, int count, class Sum>
DEVICE void store_parted(Sum* to, int phase, const Element (&run)[count]) {
    constexpr int each = count / phases, vector = sizeof(Words16) / sizeof(Sum);
#pragma unroll
    for (int p = 0; p < phases; p++) {
        if (each % vector == 0) {
#pragma unroll
            for (int k = 0; k < each; k += vector) {
                Sum values[vector];
#pragma unroll
                for (int v = 0; v < vector; v++) values[v] = widen(run[(k + v) * phases + p < count ? (k + v) * phases + p : 0]);
                store_vector(to + p * phase + k, values);
            }
        } else {
#pragma unroll
            for (int k = 0; k < each; k++) store_shared(to + p * phase + k, Sum(widen(run[k * phases + p])));
        }
    }
}

// Elements, widened, `apart` from each other.
template <class Element, int count, class Sum>
DEVICE void store_apart(Sum* to, int apart, const Element (&run)[count]) {
#pragma unroll
    for (int k = 0; k < count; k++) store_shared(to + k * apart, Sum(widen(run[k])));
}
