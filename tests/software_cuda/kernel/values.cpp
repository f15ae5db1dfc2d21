// Numbers as the instructions of PTX compute them.
//
// Where one operation of the processor rounds wrongly, the result is computed so that it can be rounded once: sums and quotients in
// double, with the last bit set where they are not exact ("rounded to odd"), and then rounded from their bits to the type wanted.
#include <algorithm>
#include <bit>
#include <cfenv>
#include <cfloat>
#include <cmath>
#include <limits>
#include <type_traits>

#include "translated.hpp"

namespace software_cuda {

namespace {

struct Format {
    int bits;     // of the number
    int digits;   // of the significand, with the hidden one
    int highest;  // exponent

    int lowest() const { return 1 - highest; }
    u64 infinity() const { return u64(2 * highest + 1) << (digits - 1); }
    u64 not_a_number() const { return (u64{1} << (bits - 1)) - 1; }
};

constexpr Format format_f16{16, 11, 15}, format_bf16{16, 8, 127}, format_tf32{19, 11, 127}, format_f32{32, 24, 127},
    format_f64{64, 53, 1023};

bool is_rounded_up(Rounding rounding, bool negative, bool odd, bool half, bool below) {
    switch (rounding) {
        case Rounding::rn: return half && (below || odd);
        case Rounding::rna: return half;
        case Rounding::rm: return negative && (half || below);
        case Rounding::rp: return !negative && (half || below);
        default: return false;
    }
}

u64 overflow(Format format, bool negative, Rounding rounding) {
    const bool to_infinity = rounding == Rounding::rn || rounding == Rounding::rna || rounding == (negative ? Rounding::rm : Rounding::rp);
    return to_infinity ? format.infinity() : format.infinity() - 1;
}

// Returns the bits of magnitude * 2 ** exponent in the format.
u64 encoded(bool negative, u64 magnitude, int exponent, Format format, Rounding rounding) {
    const u64 sign = u64{negative} << (format.bits - 1);
    if (!magnitude) return sign;
    const int top = 63 - std::countl_zero(magnitude) + exponent;
    int last = std::max(top, format.lowest()) - (format.digits - 1);  // the exponent of the last digit kept
    const int dropped = last - exponent;
    u64 kept = dropped <= 0 ? magnitude << -dropped : dropped < 64 ? magnitude >> dropped : 0;
    if (dropped > 0) {
        const bool half = dropped <= 64 && (magnitude >> (dropped - 1) & 1);
        const bool below = dropped > 64 || (dropped > 1 && (magnitude << (65 - dropped)));
        kept += is_rounded_up(rounding, negative, kept & 1, half, below);
    }
    if (kept >> format.digits) {
        kept >>= 1;
        ++last;
    }
    const int result = last + format.digits - 1;
    if (result > format.highest) return sign | overflow(format, negative, rounding);
    const u64 hidden = u64{1} << (format.digits - 1);
    if (kept < hidden) return sign | kept;  // denormal
    return sign | u64(result + format.highest) << (format.digits - 1) | (kept & (hidden - 1));
}

u64 encoded(double value, Format format, Rounding rounding) {
    const u64 bits = std::bit_cast<u64>(value);
    const bool negative = bits >> 63;
    const int exponent = bits >> 52 & 2047;
    const u64 fraction = bits & ((u64{1} << 52) - 1);
    if (exponent == 2047) return fraction ? format.not_a_number() : format.infinity() | u64{negative} << (format.bits - 1);
    return encoded(negative, fraction | (exponent ? u64{1} << 52 : 0), std::max(exponent, 1) - 1075, format, rounding);
}

u64 encoded(s64 value, Format format, Rounding rounding) {
    return encoded(value < 0, value < 0 ? 0 - u64(value) : u64(value), 0, format, rounding);
}

u64 encoded(u64 value, Format format, Rounding rounding) { return encoded(false, value, 0, format, rounding); }

// Sets the last bit of a value that is not exact, given the sign of what is missing.
double odd(double value, double missing) {
    if (missing == 0 || !std::isfinite(value) || std::isnan(missing)) return value;
    u64 bits = std::bit_cast<u64>(value);
    if (bits & 1) return value;
    if (value == 0) return std::copysign(std::numeric_limits<double>::denorm_min(), missing);
    return std::bit_cast<double>((missing > 0) == (value > 0) ? bits + 1 : bits - 1);
}

double odd_sum(double a, double b) {
    const double sum = a + b, part = sum - a;
    return odd(sum, (a - (sum - part)) + (b - part));
}

double odd_quotient(double a, double b) {
    const double quotient = a / b;
    const double missing = std::fma(-quotient, b, a);
    return odd(quotient, b < 0 ? -missing : missing);
}

double odd_root(double a) {
    const double root = std::sqrt(a);
    return odd(root, std::fma(-root, root, a));
}

// The sum of numbers that cancel is +0, but -0 where it is rounded down.
double with_zero(double sum, double a, double b, Rounding rounding) {
    return sum == 0 && rounding == Rounding::rm && std::signbit(a) != std::signbit(b) ? -0.0 : sum;
}

float as_float(u64 bits) { return std::bit_cast<float>(u32(bits)); }
double as_double(u64 bits) { return std::bit_cast<double>(bits); }

template <class Operation>
double rounded(Rounding rounding, Operation operation) {
    static constexpr int modes[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD};
    const int before = std::fegetround();
    std::fesetround(modes[int(rounding)]);
    const volatile double result = operation();
    std::fesetround(before);
    return result;
}

double whole(double value, Rounding rounding) {
    switch (rounding) {
        case Rounding::rz: return std::trunc(value);
        case Rounding::rm: return std::floor(value);
        case Rounding::rp: return std::ceil(value);
        default: return std::nearbyint(value);
    }
}

template <class T>
T canonical_nan();
template <>
float canonical_nan<float>() { return as_float(format_f32.not_a_number()); }
template <>
double canonical_nan<double>() { return as_double(format_f64.not_a_number()); }

template <class T>
T smaller(T a, T b) {
    if (a == b) return std::signbit(a) ? a : b;
    return a < b ? a : b;
}

template <class T>
T larger(T a, T b) {
    if (a == b) return std::signbit(a) ? b : a;
    return a > b ? a : b;
}

// The other number where one is NaN.
template <class T>
T chosen(T a, T b, T (*choose)(T, T)) {
    if (std::isnan(a) && std::isnan(b)) return canonical_nan<T>();
    if (std::isnan(a)) return b;
    return std::isnan(b) ? a : choose(a, b);
}

template <class T>
T chosen_or_nan(T a, T b, T (*choose)(T, T)) {
    return std::isnan(a) || std::isnan(b) ? canonical_nan<T>() : choose(a, b);
}

inline float flushed(float value) { return std::fabs(value) < FLT_MIN ? std::copysign(0.0f, value) : value; }

}  // namespace

// float32 and float64 ---------------------------------------------------------------------------------------------------------

float add_ftz(float a, float b) { return flushed(flushed(a) + flushed(b)); }
float sub_ftz(float a, float b) { return flushed(flushed(a) - flushed(b)); }
float mul_ftz(float a, float b) { return flushed(flushed(a) * flushed(b)); }
float fma_ftz(float a, float b, float c) { return flushed(std::fma(flushed(a), flushed(b), flushed(c))); }

float ftz_f32(float value) { return flushed(value); }
double ftz_f64(double value) { return value; }

#define SOFTWARE_CUDA_WIDE(name, type)                                                                              \
    type saturate_##name(type a) { return a > 0 ? (a > 1 ? 1 : a) : 0; }                                            \
    type relu_##name(type a) { return std::isnan(a) ? canonical_nan<type>() : a > 0 ? a : 0; }                      \
    type abs_##name(type a) { return std::fabs(a); }                                                                \
    type neg_##name(type a) { return -a; }                                                                          \
    type min_##name(type a, type b) { return chosen(a, b, smaller<type>); }                                         \
    type max_##name(type a, type b) { return chosen(a, b, larger<type>); }                                          \
    type min_nan_##name(type a, type b) { return chosen_or_nan(a, b, smaller<type>); }                              \
    type max_nan_##name(type a, type b) { return chosen_or_nan(a, b, larger<type>); }                               \
    type whole_##name(type a, Rounding rounding) { return whole(a, rounding); }                                     \
    type fma_##name(type a, type b, type c) { return std::fma(a, b, c); }                                           \
    type rsqrt_##name(type a) { return type(1 / std::sqrt(double(a))); }                                            \
    type ex2_##name(type a) { return std::exp2(a); }                                                                \
    type lg2_##name(type a) { return std::log2(a); }                                                                \
    type sin_##name(type a) { return std::sin(a); }                                                                 \
    type cos_##name(type a) { return std::cos(a); }                                                                 \
    type tanh_##name(type a) { return std::tanh(a); }                                                               \
    type copysign_##name(type magnitude, type sign) { return std::copysign(magnitude, sign); }
SOFTWARE_CUDA_WIDE(f32, float)
SOFTWARE_CUDA_WIDE(f64, double)
#undef SOFTWARE_CUDA_WIDE

float f32_from_f64(double a, Rounding rounding) { return as_float(encoded(a, format_f32, rounding)); }
float f32_from_signed(s64 a, Rounding rounding) { return as_float(encoded(a, format_f32, rounding)); }
float f32_from_unsigned(u64 a, Rounding rounding) { return as_float(encoded(a, format_f32, rounding)); }
double f64_from_f64(double a, Rounding) { return a; }
double f64_from_signed(s64 a, Rounding rounding) { return as_double(encoded(a, format_f64, rounding)); }
double f64_from_unsigned(u64 a, Rounding rounding) { return as_double(encoded(a, format_f64, rounding)); }

float add_f32(float a, float b, Rounding rounding) { return f32_from_f64(with_zero(odd_sum(a, b), a, b, rounding), rounding); }
float sub_f32(float a, float b, Rounding rounding) { return add_f32(a, -b, rounding); }
float mul_f32(float a, float b, Rounding rounding) { return f32_from_f64(double(a) * b, rounding); }
float fma_f32(float a, float b, float c, Rounding rounding) {
    const double product = double(a) * b;
    return f32_from_f64(with_zero(odd_sum(product, c), product, c, rounding), rounding);
}
float div_f32(float a, float b, Rounding rounding) {
    return rounding == Rounding::rn ? a / b : f32_from_f64(odd_quotient(a, b), rounding);
}
float sqrt_f32(float a, Rounding rounding) { return rounding == Rounding::rn ? std::sqrt(a) : f32_from_f64(odd_root(a), rounding); }

double add_f64(double a, double b, Rounding rounding) {
    const volatile double x = a, y = b;
    return rounded(rounding, [&] { return x + y; });
}
double sub_f64(double a, double b, Rounding rounding) { return add_f64(a, -b, rounding); }
double mul_f64(double a, double b, Rounding rounding) {
    const volatile double x = a, y = b;
    return rounded(rounding, [&] { return x * y; });
}
double fma_f64(double a, double b, double c, Rounding rounding) {
    const volatile double x = a, y = b, z = c;
    return rounded(rounding, [&] { return std::fma(x, y, z); });
}
double div_f64(double a, double b, Rounding rounding) {
    const volatile double x = a, y = b;
    return rounded(rounding, [&] { return x / y; });
}
double sqrt_f64(double a, Rounding rounding) {
    const volatile double x = a;
    return rounded(rounding, [&] { return std::sqrt(x); });
}

// Half precision --------------------------------------------------------------------------------------------------------------

float from_bf16(u16 bits) { return std::bit_cast<float>(u32{bits} << 16); }

float from_f16(u16 bits) {
    const u32 sign = u32(bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023;
    if (exponent == 0) return std::copysign(float(fraction) * 0x1p-24f, std::bit_cast<float>(sign | 0x3f800000));
    const u32 biased = exponent == 31 ? 255 : exponent + 112;
    return std::bit_cast<float>(sign | biased << 23 | fraction << 13);
}

// Sums and products of two halves are exact in double, or rounded to odd there.
#define SOFTWARE_CUDA_HALF(name)                                                                                              \
    u16 name##_from_f64(double a, Rounding rounding) { return encoded(a, format_##name, rounding); }                          \
    u16 name##_from_signed(s64 a, Rounding rounding) { return encoded(a, format_##name, rounding); }                          \
    u16 name##_from_unsigned(u64 a, Rounding rounding) { return encoded(a, format_##name, rounding); }                        \
    u16 to_##name(float a) { return encoded(double(a), format_##name, Rounding::rn); }                                        \
    u16 add_##name(u16 a, u16 b) { return name##_from_f64(odd_sum(from_##name(a), from_##name(b)), Rounding::rn); }           \
    u16 sub_##name(u16 a, u16 b) { return add_##name(a, neg_##name(b)); }                                                     \
    u16 mul_##name(u16 a, u16 b) { return name##_from_f64(double(from_##name(a)) * from_##name(b), Rounding::rn); }           \
    u16 fma_##name(u16 a, u16 b, u16 c) {                                                                                     \
        return name##_from_f64(odd_sum(double(from_##name(a)) * from_##name(b), from_##name(c)), Rounding::rn);               \
    }                                                                                                                         \
    u16 ftz_##name(u16 a) { return a & format_##name.infinity() ? a : a & 0x8000; }                                           \
    u16 saturate_##name(u16 a) { return to_##name(saturate_f32(from_##name(a))); }                                            \
    u16 relu_##name(u16 a) { return to_##name(relu_f32(from_##name(a))); }                                                    \
    u16 abs_##name(u16 a) { return a & 0x7fff; }                                                                              \
    u16 neg_##name(u16 a) { return a ^ 0x8000; }                                                                              \
    u16 min_##name(u16 a, u16 b) { return to_##name(min_f32(from_##name(a), from_##name(b))); }                               \
    u16 max_##name(u16 a, u16 b) { return to_##name(max_f32(from_##name(a), from_##name(b))); }                               \
    u16 min_nan_##name(u16 a, u16 b) { return to_##name(min_nan_f32(from_##name(a), from_##name(b))); }                       \
    u16 max_nan_##name(u16 a, u16 b) { return to_##name(max_nan_f32(from_##name(a), from_##name(b))); }                       \
    u16 whole_##name(u16 a, Rounding rounding) { return to_##name(whole(from_##name(a), rounding)); }
SOFTWARE_CUDA_HALF(f16)
SOFTWARE_CUDA_HALF(bf16)
#undef SOFTWARE_CUDA_HALF

u32 tf32_from_f32(float a, Rounding rounding) { return encoded(double(a), format_tf32, rounding) << 13; }

u32 pair(u16 low, u16 high) { return low | u32{high} << 16; }

// Classes and conversions to integers -----------------------------------------------------------------------------------------

bool is_finite(double a) { return std::isfinite(a); }
bool is_infinite(double a) { return std::isinf(a); }
bool is_number(double a) { return !std::isnan(a); }
bool is_notanumber(double a) { return std::isnan(a); }
bool is_normal(float a) { return std::isnormal(a); }
bool is_normal(double a) { return std::isnormal(a); }
bool is_subnormal(float a) { return std::fpclassify(a) == FP_SUBNORMAL; }
bool is_subnormal(double a) { return std::fpclassify(a) == FP_SUBNORMAL; }

s64 to_signed(double value, Rounding rounding, int bits, bool nan_is_middle) {
    const s64 lowest = s64(~u64{0} << (bits - 1));
    if (std::isnan(value)) return nan_is_middle ? lowest : 0;
    const double result = whole(value, rounding), limit = std::ldexp(1.0, bits - 1);
    return result >= limit ? ~lowest : result <= -limit ? lowest : s64(result);
}

u64 to_unsigned(double value, Rounding rounding, int bits, bool nan_is_middle) {
    if (std::isnan(value)) return nan_is_middle ? u64{1} << (bits - 1) : 0;
    const double result = whole(value, rounding);
    if (result >= std::ldexp(1.0, bits)) return ~u64{0} >> (64 - bits);
    return result <= 0 ? 0 : u64(result);
}

// Integers --------------------------------------------------------------------------------------------------------------------

s64 clamp_signed(s64 value, s64 lowest, s64 highest) { return value < lowest ? lowest : value > highest ? highest : value; }
u64 clamp_unsigned(u64 value, u64 highest) { return value > highest ? highest : value; }

namespace {

// A quotient by zero has all bits set, as on devices. The smallest number divided by -1 wraps around.
template <class T>
T quotient(T a, T b) {
    if (b == 0) return T(~T{0});
    if (std::numeric_limits<T>::is_signed && b == T(-1)) return T(0 - u64(a));
    return a / b;
}

template <class T>
T remainder_of(T a, T b) {
    if (b == 0) return a;
    return std::numeric_limits<T>::is_signed && b == T(-1) ? 0 : a % b;
}

template <class T>
T field(T value, u32 start, u32 length) {
    using Unsigned = std::make_unsigned_t<T>;
    constexpr u32 bits = sizeof(T) * 8;
    start &= 255;
    length &= 255;
    if (length == 0) return 0;
    const u32 last = std::min(start + length - 1, bits - 1);
    const bool fill = std::numeric_limits<T>::is_signed && (value >> last & 1);
    const u32 width = start < bits ? std::min(length, bits - start) : 0;
    const Unsigned mask = width == bits ? Unsigned(~Unsigned{0}) : Unsigned((Unsigned{1} << width) - 1);
    const Unsigned found = width ? Unsigned(value) >> start & mask : 0;
    return T(fill ? found | Unsigned(~mask) : found);
}

template <class T>
T with_field(T from, T into, u32 start, u32 length) {
    constexpr u32 bits = sizeof(T) * 8;
    start &= 255;
    length &= 255;
    if (start >= bits || length == 0) return into;
    const T mask = (length >= bits ? T(~T{0}) : T((T{1} << length) - 1)) << start;
    return (into & ~mask) | (from << start & mask);
}

template <class T>
u32 highest_bit(T value, bool as_shift) {
    using Unsigned = std::make_unsigned_t<T>;
    const Unsigned bits = value < 0 ? Unsigned(~value) : Unsigned(value);
    if (!bits) return ~0u;
    return as_shift ? std::countl_zero(bits) : sizeof(T) * 8 - 1 - std::countl_zero(bits);
}

template <class T>
T reversed(T value) {
    T result = 0;
    for (u32 i = 0; i < sizeof(T) * 8; ++i) result = result << 1 | (value >> i & 1);
    return result;
}

}  // namespace

#define SOFTWARE_CUDA_QUOTIENT(type)                          \
    type div_##type(type a, type b) { return quotient(a, b); } \
    type rem_##type(type a, type b) { return remainder_of(a, b); }
SOFTWARE_CUDA_QUOTIENT(u16)
SOFTWARE_CUDA_QUOTIENT(s16)
SOFTWARE_CUDA_QUOTIENT(u32)
SOFTWARE_CUDA_QUOTIENT(s32)
SOFTWARE_CUDA_QUOTIENT(u64)
SOFTWARE_CUDA_QUOTIENT(s64)
#undef SOFTWARE_CUDA_QUOTIENT

#define SOFTWARE_CUDA_FIELD(type)                                                                    \
    type bfe_##type(type value, u32 start, u32 length) { return field(value, start, length); }       \
    u32 bfind_##type(type value, bool as_shift) { return highest_bit(value, as_shift); }
SOFTWARE_CUDA_FIELD(u32)
SOFTWARE_CUDA_FIELD(s32)
SOFTWARE_CUDA_FIELD(u64)
SOFTWARE_CUDA_FIELD(s64)
#undef SOFTWARE_CUDA_FIELD

#define SOFTWARE_CUDA_BITS(type)                                                                                          \
    type bfi_##type(type from, type into, u32 start, u32 length) { return with_field(from, into, start, length); }        \
    type brev_##type(type value) { return reversed(value); }                                                              \
    u32 popc_##type(type value) { return std::popcount(value); }                                                          \
    u32 clz_##type(type value) { return std::countl_zero(value); }
SOFTWARE_CUDA_BITS(u32)
SOFTWARE_CUDA_BITS(u64)
#undef SOFTWARE_CUDA_BITS

u32 bmsk_clamp(u32 start, u32 length) {
    if (start >= 32) return 0;
    return (length >= 32 ? ~0u : (1u << length) - 1) << start;
}
u32 bmsk_wrap(u32 start, u32 length) { return ((1u << (length & 31)) - 1) << (start & 31); }

u32 szext_clamp_u32(u32 value, u32 length) { return length >= 32 ? value : bfe_u32(value, 0, length); }
s32 szext_clamp_s32(s32 value, u32 length) { return length >= 32 ? value : bfe_s32(value, 0, length); }

u32 lop3(u32 a, u32 b, u32 c, u32 table) {
    u32 result = 0;
    for (u32 row = 0; row < 8; ++row)
        if (table >> row & 1) result |= (row & 4 ? a : ~a) & (row & 2 ? b : ~b) & (row & 1 ? c : ~c);
    return result;
}

namespace {
u64 joined(u32 low, u32 high) { return u64{high} << 32 | low; }
u32 clamped(u32 amount) { return amount > 32 ? 32 : amount; }
}  // namespace

u32 shift_left_wrap(u32 low, u32 high, u32 amount) { return joined(low, high) << (amount & 31) >> 32; }
u32 shift_left_clamp(u32 low, u32 high, u32 amount) { return joined(low, high) << clamped(amount) >> 32; }
u32 shift_right_wrap(u32 low, u32 high, u32 amount) { return joined(low, high) >> (amount & 31); }
u32 shift_right_clamp(u32 low, u32 high, u32 amount) { return joined(low, high) >> clamped(amount); }

namespace {

u32 byte_of(u64 bytes, u32 number) { return bytes >> 8 * (number & 7) & 255; }

// `choice(i)` is the number of the byte that becomes byte i.
template <class Choice>
u32 permuted(u32 low, u32 high, Choice choice) {
    u32 result = 0;
    for (u32 i = 0; i < 4; ++i) result |= byte_of(joined(low, high), choice(i)) << 8 * i;
    return result;
}

}  // namespace

u32 prmt_default(u32 low, u32 high, u32 digits) {
    u32 result = 0;
    for (u32 i = 0; i < 4; ++i) {
        const u32 digit = digits >> 4 * i & 15, byte = byte_of(joined(low, high), digit);
        result |= (digit & 8 ? (byte & 128 ? 255 : 0) : byte) << 8 * i;  // bit 3 asks for the sign of the byte
    }
    return result;
}
u32 prmt_f4e(u32 low, u32 high, u32 digits) {
    return permuted(low, high, [=](u32 i) { return (digits & 3) + i; });
}
u32 prmt_b4e(u32 low, u32 high, u32 digits) {
    return permuted(low, high, [=](u32 i) { return (digits & 3) - i; });
}
u32 prmt_rc8(u32 low, u32 high, u32 digits) {
    return permuted(low, high, [=](u32) { return digits & 3; });
}
u32 prmt_ecl(u32 low, u32 high, u32 digits) {
    return permuted(low, high, [=](u32 i) { return std::max(digits & 3, i); });
}
u32 prmt_ecr(u32 low, u32 high, u32 digits) {
    return permuted(low, high, [=](u32 i) { return std::min(digits & 3, i); });
}
u32 prmt_rc16(u32 low, u32 high, u32 digits) {
    return permuted(low, high, [=](u32 i) { return (digits & 1) * 2 + i % 2; });
}

namespace {
s64 element(u32 word, u32 bits, u32 number, bool is_signed) {
    return is_signed ? s64(bfe_s32(s32(word), bits * number, bits)) : s64(bfe_u32(word, bits * number, bits));
}
}  // namespace

u32 dp4a(u32 a, u32 b, u32 sum, bool a_is_signed, bool b_is_signed) {
    for (u32 i = 0; i < 4; ++i) sum += u32(element(a, 8, i, a_is_signed) * element(b, 8, i, b_is_signed));
    return sum;
}

u32 dp2a(u32 a, u32 b, u32 sum, bool high, bool a_is_signed, bool b_is_signed) {
    for (u32 i = 0; i < 2; ++i) sum += u32(element(a, 16, i, a_is_signed) * element(b, 8, i + 2 * high, b_is_signed));
    return sum;
}

}  // namespace software_cuda
