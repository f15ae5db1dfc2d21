// Element types, the types they are summed in, and loads and stores of single elements and of vectors.
//
// A vector is the elements that one 16-byte access moves, if they are contiguous and aligned; else they are moved one by one.
// This is the only file that knows the bits of 16-bit numbers.
//
// Macros of every kernel: INDEX, the integer of offsets and positions (int, or long long where a tensor or a position needs it).
#pragma once
#include "common/platform.cuh"

typedef INDEX Index;

struct half {
    uint16 bits;
};

struct bfloat16 {
    uint16 bits;
};

// The type of sums of elements.
template <class Element>
struct SumOf {
    typedef float type;
};

template <>
struct SumOf<double> {
    typedef double type;
};

// Element -> sum, exactly.
DEVICE float widen(half element) { return half_to_float(element.bits); }
DEVICE float widen(bfloat16 element) { return float_of_bits(static_cast<uint32>(element.bits) << 16); }
DEVICE float widen(float element) { return element; }
DEVICE double widen(double element) { return element; }

// Rounds to the nearest bfloat16, ties to even: by one instruction, or by adding half a unit of the last place that stays (a
// little less if that is even).
DEVICE bfloat16 nearest_bfloat16(float value) {
    if constexpr (HAS_BFLOAT16_CONVERSION) return bfloat16{float_to_bfloat16(value)};
    const uint32 bits = bits_of_float(value);
    if (value != value) return bfloat16{static_cast<uint16>((bits >> 16) | 0x40)};
    return bfloat16{static_cast<uint16>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

// Rounds a double to a float towards zero and sets the last bit if the result is not exact ("round to odd"): rounding that
// further gives the same number as rounding the double once.
DEVICE float sticky_float(double value) {
    const float cut = double_to_float_towards_zero(value);
    const bool exact = cut == value || value != value;
    return exact ? cut : float_of_bits(bits_of_float(cut) | 1);
}

// Sum -> element, rounded once to nearest.
template <class Element>
struct Narrow;

template <>
struct Narrow<half> {
    DEVICE static half from(float sum) { return half{float_to_half(sum)}; }
    DEVICE static half from(double sum) { return half{double_to_half(sum)}; }
};

template <>
struct Narrow<bfloat16> {
    DEVICE static bfloat16 from(float sum) { return nearest_bfloat16(sum); }
    DEVICE static bfloat16 from(double sum) { return nearest_bfloat16(sticky_float(sum)); }
};

template <>
struct Narrow<float> {
    DEVICE static float from(float sum) { return sum; }
    DEVICE static float from(double sum) { return static_cast<float>(sum); }
};

template <>
struct Narrow<double> {
    DEVICE static double from(float sum) { return sum; }
    DEVICE static double from(double sum) { return sum; }
};

// Single elements --------------------------------------------------------------------------------------------------------------

DEVICE half load_element(const half* from) { return half{load_global(&from->bits)}; }
DEVICE bfloat16 load_element(const bfloat16* from) { return bfloat16{load_global(&from->bits)}; }
DEVICE float load_element(const float* from) { return load_global(from); }
DEVICE double load_element(const double* from) { return load_global(from); }

template <class Element>
DEVICE typename SumOf<Element>::type load(const Element* from) {
    return widen(load_element(from));
}

template <class Element, class Sum>
DEVICE void store(Element* to, Sum sum) {
    store_global(to, Narrow<Element>::from(sum));
}

// Vectors ----------------------------------------------------------------------------------------------------------------------

template <class Element>
struct VectorOf {
    static constexpr int width = sizeof(Words16) / sizeof(Element);
};

// Returns whether `count` elements, `stride` apart from `at` on, can be moved as one vector: contiguous, 16 bytes and aligned.
template <int count, class Element>
DEVICE bool is_vector(const Element* at, Index stride, Index wanted) {
    return count == VectorOf<Element>::width && stride == 1 && wanted >= count &&
           reinterpret_cast<unsigned long long>(at) % sizeof(Words16) == 0;
}

// Loads a vector that can be moved as one.
template <int count, class Element, class Sum>
DEVICE void load_whole_vector(const Element* from, Sum (&values)[count]) {
    const Words16 words = load_global_16(from);
    Element elements[count];
    memcpy(elements, &words, sizeof words);
#pragma unroll
    for (int r = 0; r < count; r++) values[r] = static_cast<Sum>(widen(elements[r]));
}

// Loads the first `wanted` of `count` elements, `stride` apart from `from` on; the others become 0.
template <int count, class Element, class Sum>
DEVICE void load_vector(const Element* from, Index stride, Index wanted, Sum (&values)[count]) {
    if (is_vector<count>(from, stride, wanted)) {
        load_whole_vector(from, values);
    } else {
#pragma unroll
        for (int r = 0; r < count; r++) values[r] = r < wanted ? static_cast<Sum>(load(from + r * stride)) : Sum(0);
    }
}

template <class Element>
DEVICE bool is_aligned(const Element* at) {
    return reinterpret_cast<unsigned long long>(at) % sizeof(Words16) == 0;
}

// Stores a vector to an aligned address.
template <int count, class Element, class Sum>
DEVICE void store_whole_vector(Element* to, const Sum (&values)[count]) {
    static_assert(count == VectorOf<Element>::width, "a vector is 16 bytes");
    Element elements[count];
#pragma unroll
    for (int r = 0; r < count; r++) elements[r] = Narrow<Element>::from(values[r]);
    Words16 words;
    memcpy(&words, elements, sizeof words);
    store_global_16(to, words);
}

// Stores the first `wanted` of `count` sums to elements `stride` apart from `to` on.
template <int count, class Element, class Sum>
DEVICE void store_vector(Element* to, Index stride, Index wanted, const Sum (&values)[count]) {
    if (is_vector<count>(to, stride, wanted)) {
        if constexpr (count == VectorOf<Element>::width) store_whole_vector(to, values);
    } else {
#pragma unroll
        for (int r = 0; r < count; r++)
            if (r < wanted) store(to + r * stride, values[r]);
    }
}

// Sums -------------------------------------------------------------------------------------------------------------------------

// `count` sums of many terms each. Terms are added to a partial sum, which is added to the total every FOLD terms: the error of
// one long chain would grow faster than the square root of the number of terms, which tests bound it by.
constexpr int FOLD = 128;

template <class Sum, int count>
struct Sums {
    Sum partial[count];
    Sum total[count];
    int terms;

    DEVICE void clear() {
        terms = 0;
#pragma unroll
        for (int r = 0; r < count; r++) partial[r] = total[r] = Sum(0);
    }

    // Counts terms that were added to each partial sum.
    DEVICE void added(int number) {
        terms += number;
        if (terms >= FOLD) fold();
    }

    DEVICE void fold() {
        terms = 0;
#pragma unroll
        for (int r = 0; r < count; r++) {
            total[r] += partial[r];
            partial[r] = Sum(0);
        }
    }
};
