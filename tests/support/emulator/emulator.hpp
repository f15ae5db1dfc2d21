// platform.cuh and CUDA's own names for a processor without a GPU. Each name means here what it means on a device, and is also
// checked and counted: see machine.hpp for what that takes. Included by platform.cuh, once that has named its types.
#pragma once

#include <cstring>
#include <utility>

#include "machine.hpp"

#define DEVICE inline __attribute__((always_inline))
#define KERNEL(threads)                                                                   \
    static const emulator::LaunchBounds EMULATOR_NAME(launch_bounds_, __COUNTER__)(threads); \
    extern "C" void
#define KERNEL_OF_BLOCKS(threads, blocks) KERNEL(threads)
#define EMULATOR_NAME(prefix, number) EMULATOR_JOIN(prefix, number)
#define EMULATOR_JOIN(prefix, number) prefix##number

constexpr int MULTIPROCESSOR_SHARED = 228 * 1024;

#define SHARED_ARRAY(type, name, count)                                                                            \
    static emulator::SharedArray name##_declared{#name, sizeof(type) * static_cast<unsigned long>(count), alignof(type)}; \
    type(&name)[count] = *static_cast<type(*)[count]>(emulator::shared_array(name##_declared))
#define DYNAMIC_SHARED_ARRAY(type, name) type* const name = static_cast<type*>(emulator::dynamic_shared_array())

// Memory --------------------------------------------------------------------------------------------------------------------

namespace emulator {

template <class T>
DEVICE T checked_global_load(const T* from, Site site) {
    global_load(from, sizeof(T), alignof(T), site);
    return *from;
}

}  // namespace emulator

DEVICE uint16 load_global(const uint16* from, emulator::Site site = emulator::Site::here()) {
    return emulator::checked_global_load(from, site);
}
DEVICE float load_global(const float* from, emulator::Site site = emulator::Site::here()) {
    return emulator::checked_global_load(from, site);
}
DEVICE double load_global(const double* from, emulator::Site site = emulator::Site::here()) {
    return emulator::checked_global_load(from, site);
}
DEVICE int load_global(const int* from, emulator::Site site = emulator::Site::here()) {
    return emulator::checked_global_load(from, site);
}
DEVICE long long load_global(const long long* from, emulator::Site site = emulator::Site::here()) {
    return emulator::checked_global_load(from, site);
}

DEVICE Words16 load_global_16(const void* from, emulator::Site site = emulator::Site::here()) {
    return emulator::checked_global_load(static_cast<const Words16*>(from), site);
}

template <class T>
DEVICE void store_global(T* to, T value, emulator::Site site = emulator::Site::here()) {
    emulator::global_store(to, sizeof(T), alignof(T), site);
    *to = value;
}

DEVICE void store_global_16(void* to, Words16 value, emulator::Site site = emulator::Site::here()) {
    store_global(static_cast<Words16*>(to), value, site);
}

template <class T>
DEVICE T load_shared(const T* from, emulator::Site site = emulator::Site::here()) {
    static_assert(sizeof(T) > 1, "shared memory is looked after in words of 2 bytes");
    emulator::shared_load(from, sizeof(T), alignof(T), site);
    return *from;
}

template <class T>
DEVICE void store_shared(T* to, T value, emulator::Site site = emulator::Site::here()) {
    static_assert(sizeof(T) > 1, "shared memory is looked after in words of 2 bytes");
    emulator::shared_store(to, sizeof(T), alignof(T), site);
    *to = value;
}

DEVICE Words16 load_shared_16(const void* from, emulator::Site site = emulator::Site::here()) {
    return load_shared(static_cast<const Words16*>(from), site);
}

DEVICE void store_shared_16(void* to, Words16 value, emulator::Site site = emulator::Site::here()) {
    store_shared(static_cast<Words16*>(to), value, site);
}

constexpr bool HAS_ASYNC_COPIES = true;

template <int bytes>
DEVICE void copy_async(void* to_shared, const void* from_global, bool valid, emulator::Site site = emulator::Site::here()) {
    emulator::copy_async(to_shared, from_global, bytes, valid, site);
}
inline void copy_async_commit() { emulator::copy_async_commit(); }
template <int pending>
void copy_async_wait() {
    emulator::copy_async_wait(pending);
}

template <class T>
DEVICE T atomicAdd(T* at, T value, emulator::Site site = emulator::Site::here()) {
    (emulator::is_shared(at) ? emulator::shared_atomic : emulator::global_atomic)(at, sizeof(T), site);
    const T before = *at;
    *at = before + value;
    return before;
}

template <class Number>
Number opaque(Number number) {
    return number;
}

// Arithmetic and conversions --------------------------------------------------------------------------------------------------

inline float multiply_add(float a, float b, float c) { return ++emulator::multiply_adds, __builtin_fmaf(a, b, c); }
inline double multiply_add(double a, double b, double c) { return ++emulator::multiply_adds, __builtin_fma(a, b, c); }

inline float multiply(float a, float b) { return a * b; }  // built with -ffp-contract=off
inline double multiply(double a, double b) { return a * b; }
inline float round_down(float number) { return __builtin_floorf(number); }
inline double round_down(double number) { return __builtin_floor(number); }
inline float exponential(float number) { return __builtin_expf(number); }
inline double exponential(double number) { return __builtin_exp(number); }
inline double logarithm(double number) { return __builtin_log(number); }

#define EMULATOR_LESSER_AND_GREATER(type)                           \
    inline constexpr type min(type a, type b) { return b < a ? b : a; } \
    inline constexpr type max(type a, type b) { return a < b ? b : a; }
EMULATOR_LESSER_AND_GREATER(int)
EMULATOR_LESSER_AND_GREATER(unsigned)
EMULATOR_LESSER_AND_GREATER(long long)
EMULATOR_LESSER_AND_GREATER(unsigned long long)
#undef EMULATOR_LESSER_AND_GREATER

// CUDA's functions return the number if the other operand is NaN, as these do.
inline float fminf(float a, float b) { return __builtin_fminf(a, b); }
inline float fmaxf(float a, float b) { return __builtin_fmaxf(a, b); }
inline float min(float a, float b) { return __builtin_fminf(a, b); }
inline float max(float a, float b) { return __builtin_fmaxf(a, b); }
inline double min(double a, double b) { return __builtin_fmin(a, b); }
inline double max(double a, double b) { return __builtin_fmax(a, b); }

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

inline uint32 bits_of_float(float value) {
    uint32 bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float float_of_bits(uint32 bits) {
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}

inline float double_to_float_towards_zero(double value) {
    const float nearest = static_cast<float>(value);
    const bool too_far = __builtin_fabs(static_cast<double>(nearest)) > __builtin_fabs(value);
    return too_far ? float_of_bits(bits_of_float(nearest) - 1) : nearest;  // one step towards zero, from infinity too
}

inline float half_to_float(uint16 bits) {
    const uint32 sign = static_cast<uint32>(bits & 0x8000u) << 16, exponent = bits >> 10 & 31u, fraction = bits & 0x3ffu;
    if (exponent == 31) return float_of_bits(fraction ? 0x7fffffffu : sign | 0x7f800000u);  // a device has one NaN only
    if (exponent == 0) return (sign ? -0x1p-24f : 0x1p-24f) * static_cast<float>(fraction);
    return float_of_bits(sign | (exponent + 112) << 23 | fraction << 13);
}

inline uint16 double_to_half(double value) {
    unsigned long long bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    const uint16 sign = static_cast<uint16>(bits >> 48 & 0x8000u);
    const double size = __builtin_fabs(value);
    if (size != size) return 0x7fff;
    if (size >= 65536.0) return sign | 0x7c00;  // what is below, and rounded up to this, becomes infinity by the carry
    // The size is counted in steps: of the spacing of halves around it, and of the smallest half where they lie closest. A half's
    // bits count steps too, so that a count rounded up to the next power of two carries into the exponent by itself.
    const int exponent = static_cast<int>(bits >> 52 & 0x7ff) - 1023;
    const int spacing = exponent < -14 ? -24 : exponent - 10;
    const double steps = size * __builtin_ldexp(1.0, -spacing);  // below 2^11, and exact
    const double rounded = (steps + 0x3p51) - 0x3p51;                // doubles of this size are whole numbers
    return static_cast<uint16>(sign | (((spacing + 24) << 10) + static_cast<int>(rounded)));
}

constexpr bool HAS_BFLOAT16_CONVERSION = false;  // numeric.cuh rounds by itself
inline uint16 float_to_bfloat16(float) { return 0; }  // never called
inline uint16 float_to_half(float value) { return double_to_half(value); }  // every float is a double: rounded once

// Barriers, votes and shuffles --------------------------------------------------------------------------------------------------

inline void __syncthreads(emulator::Site site = emulator::Site::here()) { emulator::barrier("__syncthreads", false, site); }
inline int __syncthreads_count(int predicate, emulator::Site site = emulator::Site::here()) {
    return emulator::barrier("__syncthreads_count", predicate != 0, site);
}
inline int __syncthreads_or(int predicate, emulator::Site site = emulator::Site::here()) {
    return emulator::barrier("__syncthreads_or", predicate != 0, site) != 0;
}
inline int __syncthreads_and(int predicate, emulator::Site site = emulator::Site::here()) {
    return emulator::barrier("__syncthreads_and", predicate == 0, site) == 0;
}
inline void __syncwarp(unsigned mask = emulator::ALL_LANES, emulator::Site site = emulator::Site::here()) {
    emulator::warp_barrier(mask, site);
}

namespace emulator {

struct Vote {
    bool predicate;
    unsigned ballot;
};

inline unsigned vote(const char* name, unsigned mask, int predicate, Site site) {
    Vote mine{predicate != 0, 0};
    collective(name, mask, &mine, [](void* const (&operands)[WARP]) {
        unsigned ballot = 0;
        for (int lane = 0; lane < WARP; ++lane)
            if (operands[lane] && static_cast<Vote*>(operands[lane])->predicate) ballot |= 1u << lane;
        for (void* operand : operands)
            if (operand) static_cast<Vote*>(operand)->ballot = ballot;
    }, site);
    return mine.ballot;
}

template <class T>
struct Parcel {
    T value;
    int source;  // the lane to take the value of
    T received;
};

// A lane that takes no part has no value to give: what it would give is undefined, here a NaN or -1.
template <class T>
T shuffle(const char* name, unsigned mask, T value, int source, Site site) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "a shuffle moves 4 or 8 bytes");
    Parcel<T> mine{value, source, value};
    __builtin_memset(&mine.received, 0xff, sizeof(T));
    collective(name, mask, &mine, [](void* const (&operands)[WARP]) {
        for (void* operand : operands) {
            Parcel<T>* const parcel = static_cast<Parcel<T>*>(operand);
            if (parcel && operands[parcel->source])
                parcel->received = static_cast<Parcel<T>*>(operands[parcel->source])->value;
        }
    }, site);
    return mine.received;
}

inline int first_of_group(int width, Site site) {
    if (width < 1 || width > WARP || (width & (width - 1))) refuse(site, "a shuffle's width must be a power of two up to 32");
    return lane() & ~(width - 1);
}

}  // namespace emulator

inline unsigned __ballot_sync(unsigned mask, int predicate, emulator::Site site = emulator::Site::here()) {
    return emulator::vote("__ballot_sync", mask, predicate, site);
}
inline int __any_sync(unsigned mask, int predicate, emulator::Site site = emulator::Site::here()) {
    return emulator::vote("__any_sync", mask, predicate, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, emulator::Site site = emulator::Site::here()) {
    return emulator::vote("__all_sync", mask, predicate == 0, site) == 0;
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = emulator::WARP, emulator::Site site = emulator::Site::here()) {
    const int first = emulator::first_of_group(width, site);
    return emulator::shuffle("__shfl_sync", mask, value, first + (source & (width - 1)), site);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = emulator::WARP,
                 emulator::Site site = emulator::Site::here()) {
    const int lane = emulator::lane(), within = lane - emulator::first_of_group(width, site);
    const bool inside = delta <= static_cast<unsigned>(within);
    return emulator::shuffle("__shfl_up_sync", mask, value, inside ? lane - static_cast<int>(delta) : lane, site);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = emulator::WARP,
                   emulator::Site site = emulator::Site::here()) {
    const int lane = emulator::lane(), within = lane - emulator::first_of_group(width, site);
    const bool inside = delta < static_cast<unsigned>(width - within);
    return emulator::shuffle("__shfl_down_sync", mask, value, inside ? lane + static_cast<int>(delta) : lane, site);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int flipped, int width = emulator::WARP, emulator::Site site = emulator::Site::here()) {
    const int lane = emulator::lane(), source = lane ^ flipped, past_the_group = emulator::first_of_group(width, site) + width;
    return emulator::shuffle("__shfl_xor_sync", mask, value, source >= 0 && source < past_the_group ? source : lane, site);
}

#include "tensor_cores.hpp"

// The way in ------------------------------------------------------------------------------------------------------------------

namespace emulator {

// The number of threads in KERNEL(threads); in a file with several kernels, the largest.
static int most_threads = 0;

struct LaunchBounds {
    explicit LaunchBounds(int threads) { most_threads = max(most_threads, threads); }
};

template <class T> constexpr char kind_of = 'i';
template <class T> constexpr char kind_of<T*> = 'p';
template <> inline constexpr char kind_of<float> = 'f';
template <> inline constexpr char kind_of<double> = 'f';

template <auto kernel> struct Entry;

template <class... Parameters, void (*kernel)(Parameters...)>
struct Entry<kernel> {
    template <std::size_t... position>
    static void call_with(void* const* values, std::index_sequence<position...>) {
        kernel(*static_cast<Parameters*>(values[position])...);
    }

    static void call([[maybe_unused]] void* const* values) { call_with(values, std::index_sequence_for<Parameters...>()); }

    static int launch(Launch& asked) {
        static constexpr int sizes[] = {sizeof(Parameters)..., 0};
        static constexpr char kinds[] = {kind_of<Parameters>..., 0};
        return emulator::launch(asked, {sizeof...(Parameters), sizes, kinds, call, most_threads});
    }
};

}  // namespace emulator

#define EMULATOR_ENTRY(kernel)                                                                                     \
    extern "C" __attribute__((visibility("default"))) int emulator_launch_##kernel(emulator::Launch* asked) {     \
        return emulator::Entry<kernel>::launch(*asked);                                                            \
    }
