// Every conversion of platform.cuh, element by element.
#include "common/platform.cuh"

#define EACH(name, from, to, expression)                             \
    KERNEL(256) name(const from* input, to* out, int size) {          \
        const int i = blockIdx.x * 256 + threadIdx.x;                  \
        if (i >= size) return;                                          \
        const from value = load_global(input + i);                       \
        store_global(out + i, static_cast<to>(expression));               \
    }

EACH(halves_to_floats, uint16, float, half_to_float(value))
EACH(floats_to_halves, float, uint16, float_to_half(value))
EACH(doubles_to_halves, double, uint16, double_to_half(value))
EACH(doubles_towards_zero, double, float, double_to_float_towards_zero(value))
EACH(products_rounded_once, double, float, multiply_add(static_cast<float>(value), static_cast<float>(value), -1.f))
EACH(bits_and_back, float, float, float_of_bits(bits_of_float(value)))
