// Shared by the kernels that reduce the sums of a thread block tile: which displacements are candidates, and partial results.
//
// A displacement is a candidate at an output position if the centre tap of the displaced window is inside input2, or, where none
// is excluded, always: then the host passes numbers for which the formula says so.
//
// Macros: INPUT, OUTPUT (a word of a partial result), REDUCTION, KEPT.
#pragma once
#include "correlation/forward_phases.cuh"
#include "matching/reduction.cuh"

typedef Reduction<Sum> State;

// Output i at patch index m has its centre tap at centre + i stride + m step in input2, and is a candidate inside [0, size).
struct Candidates {
    int centre, stride, step, size;
};

#define CANDIDATE_PARAMETERS(a) int centre_##a, int centre_stride_##a, int centre_step_##a, int centre_size_##a
#define CANDIDATES_OF_PARAMETERS(a) {centre_##a, centre_stride_##a, centre_step_##a, centre_size_##a}

// The channel of the volume for patch indices m and n is first + m row + n column. Kernels have ascending displacements; where
// the caller's descend, `row` or `column` is negative.
struct VolumeChannels {
    int first, row, column;
};

#define VOLUME_CHANNEL_PARAMETERS int channel_first, int channel_row, int channel_column
#define VOLUME_CHANNELS_OF_PARAMETERS {channel_first, channel_row, channel_column}

// A range of patch indices.
struct Range {
    int begin, end;

    DEVICE bool has(int index) const { return index >= begin && index < end; }
};

// Returns the patch indices that are candidates at an output.
DEVICE Range candidates_at(const Candidates& axis, int output, int patch) {
    const int at = axis.centre + output * axis.stride;
    if (axis.step == 0) return Range{0, at >= 0 && at < axis.size ? patch : 0};
    return Range{first_inside(at, axis.step), min(end_inside(at, axis.step, axis.size), patch)};
}

// An output position, for which the displacements of a block are reduced.
struct Position {
    Range rows, columns;  // the candidates
    int first_m, first_n, m_apart, n_apart;  // patch indices of the block

    DEVICE static Position of(int i, int j, const Candidates& vertical_candidates, const Candidates& horizontal_candidates,
                              const Axis& vertical, const Axis& horizontal, const BlockTile& block) {
        return Position{candidates_at(vertical_candidates, i, vertical.patch),
                        candidates_at(horizontal_candidates, j, horizontal.patch),
                        block.rows.first_patch,
                        block.columns.first_patch,
                        vertical.patch_phase_stride,
                        horizontal.patch_phase_stride};
    }

    // Returns the displacement of the block's row and column of patch indices with these numbers.
    DEVICE Displacement displacement(int row, int column, const VolumeChannels& volume) const {
        const int m = first_m + row * m_apart, n = first_n + column * n_apart;
        return Displacement{m, n, volume.first + m * volume.row + n * volume.column};
    }
    DEVICE bool has_row(int row) const { return rows.has(first_m + row * m_apart); }
    DEVICE bool has_column(int column) const { return columns.has(first_n + column * n_apart); }
};

// Merges the states of `shares` threads at each of `positions` positions into that of the first one, in the order of their
// numbers. Every thread of the block must call it; a thread whose share is beyond them has nothing. `shared` has room for a state
// of each.
template <int shares, int positions>
DEVICE void merge_shares(State& state, OUTPUT* shared, int share, int position, const State::Settings& settings) {
    if constexpr (shares > 1) {
        __syncthreads();  // shared memory has been read
        const Words<Sum> mine = Words<Sum>::of(state);
        if (share > 0 && share < shares) {
#pragma unroll
            for (int word = 0; word < Words<Sum>::count; word++)
                store_shared(shared + (word * shares + share) * positions + position, mine.word[word]);
        }
        __syncthreads();
        if (share > 0) return;
#pragma unroll 1
        for (int other = 1; other < shares; other++) {
            Words<Sum> words;
#pragma unroll
            for (int word = 0; word < Words<Sum>::count; word++)
                words.word[word] = load_shared(shared + (word * shares + other) * positions + position);
            state.merge(words.reduction(), settings);
        }
    }
}

// Stores a partial result, whose words are `word_stride` apart.
DEVICE void store_partial(OUTPUT* to, long long word_stride, const State& state) {
    const Words<Sum> words = Words<Sum>::of(state);
#pragma unroll
    for (int word = 0; word < Words<Sum>::count; word++) store_global(to + word * word_stride, words.word[word]);
}
