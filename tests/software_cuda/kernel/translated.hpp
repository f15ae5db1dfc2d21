// Names for the C++ of translated kernels: the thread that runs, and a function for everything that one expression does not do.
//
// Every translated module includes this header, which therefore holds declarations only. The functions are compiled once, into the
// library. Float16 and bfloat16 values are their bits in a u16, as in the registers of PTX.
#pragma once

#include <cstdint>

#include "module.hpp"

#pragma GCC visibility push(default)

namespace software_cuda {

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
using s8 = std::int8_t;
using s16 = std::int16_t;
using s32 = std::int32_t;
using s64 = std::int64_t;
using u128 = unsigned __int128;
using s128 = __int128;

// The part of a thread that translated code reads.
struct Thread {
    u32 tid[3], ntid[3], ctaid[3], nctaid[3];
    u32 linear;    // its number in the block
    u32 patience;  // jumps back until the thread rests
};

// A thread's course -----------------------------------------------------------------------------------------------------------

// Ends a launch whose stack has no room for the local arrays of the function that begins.
void enter(Thread&, const void* frame, u64 local_bytes);
void rest(Thread&);  // lets other threads go on, and ends a launch that takes far too long
[[noreturn]] void end_thread(Thread&);
[[noreturn]] void trap(Thread&);
[[noreturn]] void assertion_failed(Thread&);
u64 nanoseconds();
u32 lane_of(const Thread&);
u32 warps_of_block(const Thread&);
u32 dynamic_shared_of(const Thread&);  // bytes
u32 total_shared_of(const Thread&);

// Memory ----------------------------------------------------------------------------------------------------------------------

#define SOFTWARE_CUDA_WIDTH(space, bits, type)                  \
    type load_##space##_##bits(Thread&, u64 address);           \
    type update_##space##_##bits(Thread&, u64 address);           \
    void store_##space##_##bits(Thread&, u64 address, type value);
#define SOFTWARE_CUDA_SPACE(space)                                                       \
    SOFTWARE_CUDA_WIDTH(space, 8, u8)                                                    \
    SOFTWARE_CUDA_WIDTH(space, 16, u16)                                                  \
    SOFTWARE_CUDA_WIDTH(space, 32, u32)                                                  \
    SOFTWARE_CUDA_WIDTH(space, 64, u64)                                                  \
    SOFTWARE_CUDA_WIDTH(space, 128, u128)                                                \
    void load_##space(Thread&, u64 address, void* vector, u32 bytes);                    \
    void store_##space(Thread&, u64 address, const void* vector, u32 bytes);
SOFTWARE_CUDA_SPACE(global)
SOFTWARE_CUDA_SPACE(shared)
SOFTWARE_CUDA_SPACE(local)
SOFTWARE_CUDA_SPACE(generic)
#undef SOFTWARE_CUDA_SPACE
#undef SOFTWARE_CUDA_WIDTH

u64 shared_window(const Thread&);         // the generic address of the block's shared memory
u64 dynamic_shared_start(const Thread&);  // the shared address of the dynamic shared memory
bool is_shared(const Thread&, u64 address);
bool is_local(const Thread&, u64 address);
bool is_global(const Thread&, u64 address);

void start_copy(Thread&, u64 to, u64 from, u32 bytes, u32 taken);  // cp.async: bytes beyond those taken become zeros
void commit_copies(Thread&);
void wait_for_copies(Thread&, u32 pending_groups);

// Barriers and collectives ----------------------------------------------------------------------------------------------------

// A count of 0 threads stands for the whole block. All lanes of a warp must come to an aligned barrier by the same call.
void bar_sync(Thread&, u32 barrier, u32 threads, bool aligned);
void bar_arrive(Thread&, u32 barrier, u32 threads);
bool bar_red_and(Thread&, u32 barrier, u32 threads, bool value, bool aligned);
bool bar_red_or(Thread&, u32 barrier, u32 threads, bool value, bool aligned);
u32 bar_red_popc(Thread&, u32 barrier, u32 threads, bool value, bool aligned);

void sync_warp(Thread&, u32 mask);
u32 shfl_up(Thread&, u32 value, u32 distance, u32 clamp, u32 mask, bool& inside);
u32 shfl_down(Thread&, u32 value, u32 distance, u32 clamp, u32 mask, bool& inside);
u32 shfl_bfly(Thread&, u32 value, u32 lanes, u32 clamp, u32 mask, bool& inside);
u32 shfl_idx(Thread&, u32 value, u32 lane, u32 clamp, u32 mask, bool& inside);
bool vote_all(Thread&, bool value, u32 mask);
bool vote_any(Thread&, bool value, u32 mask);
bool vote_uni(Thread&, bool value, u32 mask);
u32 vote_ballot(Thread&, bool value, u32 mask);
u32 match_any(Thread&, u64 value, u32 mask, bool& same);
u32 match_all(Thread&, u64 value, u32 mask, bool& same);
u32 active_mask(Thread&);
u32 redux_add(Thread&, u32 value, u32 mask);
u32 redux_and(Thread&, u32 value, u32 mask);
u32 redux_or(Thread&, u32 value, u32 mask);
u32 redux_xor(Thread&, u32 value, u32 mask);
u32 redux_min_u32(Thread&, u32 value, u32 mask);
u32 redux_max_u32(Thread&, u32 value, u32 mask);
u32 redux_min_s32(Thread&, u32 value, u32 mask);
u32 redux_max_s32(Thread&, u32 value, u32 mask);
u32 elect(Thread&, u32 mask, bool& mine);

void ldmatrix(Thread&, u64 row, u32* registers, u32 matrices, bool transposed);
void mma_m16n8k16_f16(Thread&, const u32* a, const u32* b, float* sums);
void mma_m16n8k16_bf16(Thread&, const u32* a, const u32* b, float* sums);
void mma_m16n8k8_f16(Thread&, const u32* a, const u32* b, float* sums);
void mma_m16n8k8_bf16(Thread&, const u32* a, const u32* b, float* sums);
void mma_m16n8k8_tf32(Thread&, const u32* a, const u32* b, float* sums);
void mma_m16n8k4_tf32(Thread&, const u32* a, const u32* b, float* sums);

// Floating-point numbers ------------------------------------------------------------------------------------------------------

// To the nearest number (of two, the even one), towards zero, down, up, and to the nearest (of two, away from zero).
enum class Rounding { rn, rz, rm, rp, rna };

float add_ftz(float, float);  // with denormal operands and results flushed to zero
float sub_ftz(float, float);
float mul_ftz(float, float);
float fma_ftz(float, float, float);

#define SOFTWARE_CUDA_HALF(name)         \
    float from_##name(u16);              \
    u16 to_##name(float);                \
    u16 add_##name(u16, u16);            \
    u16 sub_##name(u16, u16);            \
    u16 mul_##name(u16, u16);            \
    u16 fma_##name(u16, u16, u16);
SOFTWARE_CUDA_HALF(f16)
SOFTWARE_CUDA_HALF(bf16)
#undef SOFTWARE_CUDA_HALF

#define SOFTWARE_CUDA_FLOAT(name, type)                     \
    type ftz_##name(type);                                  \
    type saturate_##name(type);                             \
    type relu_##name(type);                                 \
    type abs_##name(type);                                  \
    type neg_##name(type);                                  \
    type min_##name(type, type);                            \
    type max_##name(type, type);                            \
    type min_nan_##name(type, type);                        \
    type max_nan_##name(type, type);                        \
    type whole_##name(type, Rounding);                      \
    type name##_from_signed(s64, Rounding);                 \
    type name##_from_unsigned(u64, Rounding);               \
    type name##_from_f64(double, Rounding);
SOFTWARE_CUDA_FLOAT(f16, u16)
SOFTWARE_CUDA_FLOAT(bf16, u16)
SOFTWARE_CUDA_FLOAT(f32, float)
SOFTWARE_CUDA_FLOAT(f64, double)
#undef SOFTWARE_CUDA_FLOAT

#define SOFTWARE_CUDA_WIDE(name, type)                \
    type add_##name(type, type, Rounding);            \
    type sub_##name(type, type, Rounding);            \
    type mul_##name(type, type, Rounding);            \
    type fma_##name(type, type, type);                \
    type fma_##name(type, type, type, Rounding);      \
    type div_##name(type, type, Rounding);            \
    type sqrt_##name(type, Rounding);                 \
    type rsqrt_##name(type);                          \
    type ex2_##name(type);                            \
    type lg2_##name(type);                            \
    type sin_##name(type);                            \
    type cos_##name(type);                            \
    type tanh_##name(type);                           \
    type copysign_##name(type magnitude, type sign);
SOFTWARE_CUDA_WIDE(f32, float)
SOFTWARE_CUDA_WIDE(f64, double)
#undef SOFTWARE_CUDA_WIDE

bool is_finite(double);
bool is_infinite(double);
bool is_number(double);
bool is_notanumber(double);
bool is_normal(float);
bool is_normal(double);
bool is_subnormal(float);
bool is_subnormal(double);

u32 tf32_from_f32(float, Rounding);

// A NaN becomes 0, or 1 << (bits - 1) where `nan_is_middle`.
s64 to_signed(double, Rounding, int bits, bool nan_is_middle);
u64 to_unsigned(double, Rounding, int bits, bool nan_is_middle);

// Integers --------------------------------------------------------------------------------------------------------------------

s64 clamp_signed(s64 value, s64 lowest, s64 highest);
u64 clamp_unsigned(u64 value, u64 highest);

#define SOFTWARE_CUDA_QUOTIENT(type) \
    type div_##type(type, type);     \
    type rem_##type(type, type);
SOFTWARE_CUDA_QUOTIENT(u16)
SOFTWARE_CUDA_QUOTIENT(s16)
SOFTWARE_CUDA_QUOTIENT(u32)
SOFTWARE_CUDA_QUOTIENT(s32)
SOFTWARE_CUDA_QUOTIENT(u64)
SOFTWARE_CUDA_QUOTIENT(s64)
#undef SOFTWARE_CUDA_QUOTIENT

#define SOFTWARE_CUDA_FIELD(type)                   \
    type bfe_##type(type, u32 start, u32 length);   \
    u32 bfind_##type(type, bool as_shift);
SOFTWARE_CUDA_FIELD(u32)
SOFTWARE_CUDA_FIELD(s32)
SOFTWARE_CUDA_FIELD(u64)
SOFTWARE_CUDA_FIELD(s64)
#undef SOFTWARE_CUDA_FIELD

#define SOFTWARE_CUDA_BITS(type)                                     \
    type bfi_##type(type from, type into, u32 start, u32 length);    \
    type brev_##type(type);                                          \
    u32 popc_##type(type);                                           \
    u32 clz_##type(type);
SOFTWARE_CUDA_BITS(u32)
SOFTWARE_CUDA_BITS(u64)
#undef SOFTWARE_CUDA_BITS

u32 bmsk_clamp(u32 start, u32 length);
u32 bmsk_wrap(u32 start, u32 length);
u32 szext_clamp_u32(u32, u32 length);
s32 szext_clamp_s32(s32, u32 length);
u32 lop3(u32, u32, u32, u32 table);
u32 shift_left_wrap(u32 low, u32 high, u32 amount);
u32 shift_left_clamp(u32 low, u32 high, u32 amount);
u32 shift_right_wrap(u32 low, u32 high, u32 amount);
u32 shift_right_clamp(u32 low, u32 high, u32 amount);
u32 prmt_default(u32 low, u32 high, u32 digits);
u32 prmt_f4e(u32 low, u32 high, u32 digits);
u32 prmt_b4e(u32 low, u32 high, u32 digits);
u32 prmt_rc8(u32 low, u32 high, u32 digits);
u32 prmt_ecl(u32 low, u32 high, u32 digits);
u32 prmt_ecr(u32 low, u32 high, u32 digits);
u32 prmt_rc16(u32 low, u32 high, u32 digits);
u32 dp4a(u32 a, u32 b, u32 sum, bool a_is_signed, bool b_is_signed);
u32 dp2a(u32 a, u32 b, u32 sum, bool high, bool a_is_signed, bool b_is_signed);
u32 pair(u16 low, u16 high);

}  // namespace software_cuda

#pragma GCC visibility pop

// A translated module is nothing but this namespace's users.
using namespace software_cuda;
