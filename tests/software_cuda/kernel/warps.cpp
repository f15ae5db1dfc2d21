// Instructions that the lanes of a warp execute together: a lane waits until all lanes of its mask that have not ended have come to
// the same instruction with the same mask. The last one works out the results of all.
#include <bit>

#include "block.hpp"

namespace software_cuda {

using namespace execution;

namespace {

constexpr u32 whole_warp = ~0u;
constexpr u32 undefined_value = 0xffffffff;  // what a lane outside the mask would have given

template <class Visit>
void for_each_lane(Warp& warp, u32 lanes, Visit visit) {
    for (u32 rest = lanes; rest; rest &= rest - 1) visit(warp.lanes[std::countr_zero(rest)]);
}

// Two lanes that wait for each other at different instructions, or with different masks, would wait for ever.
void refuse_different(Fibre& thread, Fibre& other) {
    if (!(other.mask >> thread.lane() & 1)) return;
    fail(thread, Failure::launch_failed,
         text("is at %s, while lane %u of its warp is at %s and waits for it", waiting_text(thread).c_str(), other.lane(),
              waiting_text(other).c_str()));
}

// Completes the collective that a lane waits at, if all have come. `except` is the lane that runs.
bool try_to_complete(Warp& warp, Fibre& thread, const Fibre* except) {
    if (thread.whole && warp.live != whole_warp)
        fail(thread, Failure::launch_failed,
             text("is at %s, which needs all 32 lanes of a warp, but only the lanes %#x have not ended", thread.collective, warp.live));
    const u32 lanes = thread.mask & warp.live;
    if ((warp.meeting & lanes) != lanes) return false;
    bool same = true;
    for_each_lane(warp, lanes, [&](Fibre& other) {
        if (other.complete == thread.complete && other.mask == thread.mask) {
            if (thread.whole && other.site != thread.site)
                fail(thread, Failure::launch_failed,
                     text("is at %s, but lane %u of its warp is at %s of another place in the kernel", thread.collective, other.lane(),
                          other.collective));
            return;
        }
        same = false;
        refuse_different(thread, other);
    });
    if (!same) return false;
    thread.complete(warp, lanes);
    warp.meeting &= ~lanes;
    for_each_lane(warp, lanes, [&](Fibre& other) {
        if (&other != except) wake(other);
    });
    return true;
}

Fibre& meet(Thread& t, u32 mask, Complete complete, const char* name, bool whole = false) {
    Fibre& thread = fibre_of(t);
    Warp& warp = *thread.warp;
    thread.complete = complete;
    thread.collective = name;
    thread.mask = mask;
    thread.whole = whole;
    if (!(mask >> thread.lane() & 1)) fail(thread, Failure::launch_failed, text("is at %s, without being in it", waiting_text(thread).c_str()));
    warp.meeting |= 1u << thread.lane();
    if (!try_to_complete(warp, thread, &thread)) wait(thread, Fibre::State::at_collective);
    return thread;
}

// Waits at an instruction that all 32 lanes must execute, at the same place of the kernel.
Fibre& meet_whole(Thread& t, Complete complete, const char* name, const void* site) {
    fibre_of(t).site = site;
    return meet(t, whole_warp, complete, name, true);
}

// Shuffles --------------------------------------------------------------------------------------------------------------------

// `source(lane, distance, least, most)` is the lane to read; it is inside its segment where `inside(source, least, most)`. The third
// operand has the clamp in its low bits and the mask of the segments above.
template <class Source, class Inside>
void shuffle(Warp& warp, u32 lanes, Source source, Inside inside) {
    for_each_lane(warp, lanes, [&](Fibre& thread) {
        const int lane = thread.lane(), segment = thread.third >> 8 & 31, clamp = thread.third & 31;
        const int most = (lane & segment) | (clamp & ~segment), least = lane & segment;
        const int from = source(lane, int(thread.second & 31), least, segment);
        thread.flag = inside(from, most);
        const int read = thread.flag ? from : lane;
        thread.result = lanes >> read & 1 ? u32(warp.lanes[read].value) : undefined_value;
    });
}

bool is_above(int lane, int bound) { return lane >= bound; }
bool is_below(int lane, int bound) { return lane <= bound; }

void complete_up(Warp& warp, u32 lanes) {
    shuffle(warp, lanes, [](int lane, int distance, int, int) { return lane - distance; }, is_above);
}
void complete_down(Warp& warp, u32 lanes) {
    shuffle(warp, lanes, [](int lane, int distance, int, int) { return lane + distance; }, is_below);
}
void complete_bfly(Warp& warp, u32 lanes) {
    shuffle(warp, lanes, [](int lane, int bits, int, int) { return lane ^ bits; }, is_below);
}
void complete_idx(Warp& warp, u32 lanes) {
    shuffle(warp, lanes, [](int, int index, int least, int segment) { return least | (index & ~segment); }, is_below);
}

u32 shuffled(Thread& t, u32 value, u32 second, u32 third, u32 mask, bool& inside, Complete complete, const char* name) {
    Fibre& thread = fibre_of(t);
    thread.value = value;
    thread.second = second;
    thread.third = third;
    meet(t, mask, complete, name);
    inside = thread.flag;
    return thread.result;
}

// Votes, matches and reductions -----------------------------------------------------------------------------------------------

void complete_nothing(Warp&, u32) {}

void complete_ballot(Warp& warp, u32 lanes) {
    u32 trues = 0;
    for_each_lane(warp, lanes, [&](Fibre& thread) { trues |= u32(thread.value) << thread.lane(); });
    for_each_lane(warp, lanes, [&](Fibre& thread) {
        thread.result = trues;
        thread.second = lanes;
    });
}

// Leaves the lanes that voted in `second`.
u32 ballot(Thread& t, bool value, u32 mask, const char* name) {
    Fibre& thread = fibre_of(t);
    thread.value = value;
    meet(t, mask, complete_ballot, name);
    return thread.result;
}

void complete_match_any(Warp& warp, u32 lanes) {
    for_each_lane(warp, lanes, [&](Fibre& thread) {
        thread.result = 0;
        for_each_lane(warp, lanes, [&](Fibre& other) { thread.result |= u32(other.value == thread.value) << other.lane(); });
    });
}

void complete_match_all(Warp& warp, u32 lanes) {
    const u64 first = warp.lanes[std::countr_zero(lanes)].value;
    bool same = true;
    for_each_lane(warp, lanes, [&](Fibre& thread) { same &= thread.value == first; });
    for_each_lane(warp, lanes, [&](Fibre& thread) {
        thread.result = same ? lanes : 0;
        thread.flag = same;
    });
}

template <class Combine>
void reduce(Warp& warp, u32 lanes, Combine combine) {
    u32 total = warp.lanes[std::countr_zero(lanes)].value;
    for_each_lane(warp, lanes & (lanes - 1), [&](Fibre& thread) { total = combine(total, u32(thread.value)); });
    for_each_lane(warp, lanes, [&](Fibre& thread) { thread.result = total; });
}

void complete_elect(Warp& warp, u32 lanes) {
    for_each_lane(warp, lanes, [&](Fibre& thread) { thread.result = std::countr_zero(lanes); });
}

// Matrices --------------------------------------------------------------------------------------------------------------------

constexpr u32 row_bytes = 16;  // of a matrix of 8 x 8 halves

struct Matrices {
    u64 row;
    u32* registers;
};

u16 half_at(Warp& warp, u32 matrix, u32 row, u32 column) {
    Fibre& owner = warp.lanes[matrix * 8 + row];
    return load_shared_16(owner, static_cast<Matrices*>(owner.operands)->row + column * 2);
}

template <u32 matrices, bool transposed>
void complete_ldmatrix(Warp& warp, u32 lanes) {
    for (u32 lane = 0; lane < matrices * 8; ++lane) {
        const u64 row = static_cast<Matrices*>(warp.lanes[lane].operands)->row;
        if (row % row_bytes) fail(warp.lanes[lane], Failure::misaligned_address, text("loads a row of a matrix at shared address %#llx, not a multiple of 16", (unsigned long long)row));
    }
    for_each_lane(warp, lanes, [&](Fibre& thread) {
        const u32 line = thread.lane() / 4, first = thread.lane() % 4 * 2;
        for (u32 matrix = 0; matrix < matrices; ++matrix) {
            const auto element = [&](u32 i) {
                return transposed ? half_at(warp, matrix, first + i, line) : half_at(warp, matrix, line, first + i);
            };
            static_cast<Matrices*>(thread.operands)->registers[matrix] = pair(element(0), element(1));
        }
    });
}

struct Factors {
    const u32 *a, *b;
    float* sums;
};

// How the registers of a lane hold a row of the depth: pairs of halves, or single numbers of which the low bits count for nothing.
struct F16 {
    static constexpr u32 width = 2;
    static double value(u32 bits, u32 i) { return from_f16(u16(bits >> 16 * i)); }
};
struct BF16 {
    static constexpr u32 width = 2;
    static double value(u32 bits, u32 i) { return from_bf16(u16(bits >> 16 * i)); }
};
struct TF32 {
    static constexpr u32 width = 1;
    static double value(u32 bits, u32) { return std::bit_cast<float>(bits & 0xffffe000); }
};

// d (16 x 8) = a (16 x depth) b (depth x 8) + c. Lane 4 g + t has of a the rows g and g + 8 and of b the column g, at the depths
// width t + i of every 4 width; and of the sums the columns 2 t and 2 t + 1 in the rows g and g + 8.
template <class Type, u32 depth>
void complete_mma(Warp& warp, u32 lanes) {
    constexpr u32 stretch = 4 * Type::width;
    double a[16][depth], b[depth][8];
    for_each_lane(warp, lanes, [&](Fibre& thread) {
        const u32 g = thread.lane() / 4, t = thread.lane() % 4;
        const Factors& factors = *static_cast<Factors*>(thread.operands);
        for (u32 part = 0; part < depth / stretch; ++part)
            for (u32 i = 0; i < Type::width; ++i) {
                const u32 k = part * stretch + t * Type::width + i;
                a[g][k] = Type::value(factors.a[2 * part], i);
                a[g + 8][k] = Type::value(factors.a[2 * part + 1], i);
                b[k][g] = Type::value(factors.b[part], i);
            }
    });
    for_each_lane(warp, lanes, [&](Fibre& thread) {
        const u32 g = thread.lane() / 4, t = thread.lane() % 4;
        float* sums = static_cast<Factors*>(thread.operands)->sums;
        for (u32 i = 0; i < 4; ++i) {
            const u32 row = g + 8 * (i / 2), column = 2 * t + i % 2;
            double sum = sums[i];
            for (u32 k = 0; k < depth; ++k) sum += a[row][k] * b[k][column];
            sums[i] = float(sum);
        }
    });
}

template <class Type, u32 depth>
void multiply(Thread& t, const u32* a, const u32* b, float* sums, const void* site) {
    Factors factors{a, b, sums};
    fibre_of(t).operands = &factors;
    meet_whole(t, complete_mma<Type, depth>, "mma", site);
}

}  // namespace

std::string execution::waiting_text(const Fibre& thread) {
    if (thread.state == Fibre::State::at_barrier) return text("barrier %u", thread.barrier);
    if (thread.state == Fibre::State::at_active_mask) return "activemask";
    return text("%s for the lanes %#x", thread.collective, thread.mask);
}

void execution::warp_loses_thread(Warp& warp) {
    for (u32 rest = warp.meeting; rest; rest &= rest - 1)
        if (warp.meeting & rest & -rest) {
            Fibre& thread = warp.lanes[std::countr_zero(rest)];
            try_to_complete(warp, thread, nullptr);
        }
}

void execution::tell_active_lanes(Warp& warp) {
    const void* site = warp.lanes[std::countr_zero(warp.at_active)].site;
    u32 together = 0;
    for_each_lane(warp, warp.at_active, [&](Fibre& thread) { together |= u32(thread.site == site) << thread.lane(); });
    warp.at_active &= ~together;
    for_each_lane(warp, together, [&](Fibre& thread) {
        thread.result = together;
        wake(thread);
    });
}

// Lanes that execute the instruction together are those that come to it before any lane of the warp must wait for another.
u32 active_mask(Thread& t) {
    Fibre& thread = fibre_of(t);
    thread.site = __builtin_return_address(0);
    thread.warp->at_active |= 1u << thread.lane();
    wait(thread, Fibre::State::at_active_mask);
    return thread.result;
}

void sync_warp(Thread& t, u32 mask) { meet(t, mask, complete_nothing, "bar.warp.sync"); }

u32 shfl_up(Thread& t, u32 value, u32 distance, u32 clamp, u32 mask, bool& inside) {
    return shuffled(t, value, distance, clamp, mask, inside, complete_up, "shfl.up");
}
u32 shfl_down(Thread& t, u32 value, u32 distance, u32 clamp, u32 mask, bool& inside) {
    return shuffled(t, value, distance, clamp, mask, inside, complete_down, "shfl.down");
}
u32 shfl_bfly(Thread& t, u32 value, u32 lanes, u32 clamp, u32 mask, bool& inside) {
    return shuffled(t, value, lanes, clamp, mask, inside, complete_bfly, "shfl.bfly");
}
u32 shfl_idx(Thread& t, u32 value, u32 lane, u32 clamp, u32 mask, bool& inside) {
    return shuffled(t, value, lane, clamp, mask, inside, complete_idx, "shfl.idx");
}

u32 vote_ballot(Thread& t, bool value, u32 mask) { return ballot(t, value, mask, "vote.ballot"); }
bool vote_any(Thread& t, bool value, u32 mask) { return ballot(t, value, mask, "vote.any") != 0; }
bool vote_all(Thread& t, bool value, u32 mask) { return ballot(t, value, mask, "vote.all") == fibre_of(t).second; }
bool vote_uni(Thread& t, bool value, u32 mask) {
    const u32 trues = ballot(t, value, mask, "vote.uni");
    return trues == 0 || trues == fibre_of(t).second;
}

u32 match_any(Thread& t, u64 value, u32 mask, bool& same) {
    fibre_of(t).value = value;
    same = false;
    return meet(t, mask, complete_match_any, "match.any").result;
}
u32 match_all(Thread& t, u64 value, u32 mask, bool& same) {
    Fibre& thread = fibre_of(t);
    thread.value = value;
    meet(t, mask, complete_match_all, "match.all");
    same = thread.flag;
    return thread.result;
}

#define SOFTWARE_CUDA_REDUX(name, formula)                                                             \
    u32 redux_##name(Thread& t, u32 value, u32 mask) {                                                 \
        fibre_of(t).value = value;                                                                     \
        constexpr auto complete = [](Warp& warp, u32 lanes) {                                          \
            reduce(warp, lanes, [](u32 a, u32 b) { return u32(formula); });                            \
        };                                                                                             \
        return meet(t, mask, complete, "redux." #name).result;                                         \
    }
SOFTWARE_CUDA_REDUX(add, a + b)
SOFTWARE_CUDA_REDUX(and, a& b)
SOFTWARE_CUDA_REDUX(or, a | b)
SOFTWARE_CUDA_REDUX(xor, a ^ b)
SOFTWARE_CUDA_REDUX(min_u32, a < b ? a : b)
SOFTWARE_CUDA_REDUX(max_u32, a > b ? a : b)
SOFTWARE_CUDA_REDUX(min_s32, s32(a) < s32(b) ? a : b)
SOFTWARE_CUDA_REDUX(max_s32, s32(a) > s32(b) ? a : b)
#undef SOFTWARE_CUDA_REDUX

u32 elect(Thread& t, u32 mask, bool& mine) {
    Fibre& thread = meet(t, mask, complete_elect, "elect");
    mine = thread.result == thread.lane();
    return thread.result;
}

void ldmatrix(Thread& t, u64 row, u32* registers, u32 matrices, bool transposed) {
    static constexpr Complete table[2][3] = {
        {complete_ldmatrix<1, false>, complete_ldmatrix<2, false>, complete_ldmatrix<4, false>},
        {complete_ldmatrix<1, true>, complete_ldmatrix<2, true>, complete_ldmatrix<4, true>},
    };
    Matrices operands{row, registers};
    fibre_of(t).operands = &operands;
    meet_whole(t, table[transposed][matrices / 2], "ldmatrix", __builtin_return_address(0));
}

#define SOFTWARE_CUDA_MMA(name, type, depth)                                          \
    void mma_##name(Thread& t, const u32* a, const u32* b, float* sums) {             \
        multiply<type, depth>(t, a, b, sums, __builtin_return_address(0));            \
    }
SOFTWARE_CUDA_MMA(m16n8k16_f16, F16, 16)
SOFTWARE_CUDA_MMA(m16n8k16_bf16, BF16, 16)
SOFTWARE_CUDA_MMA(m16n8k8_f16, F16, 8)
SOFTWARE_CUDA_MMA(m16n8k8_bf16, BF16, 8)
SOFTWARE_CUDA_MMA(m16n8k8_tf32, TF32, 8)
SOFTWARE_CUDA_MMA(m16n8k4_tf32, TF32, 4)
#undef SOFTWARE_CUDA_MMA

}  // namespace software_cuda
