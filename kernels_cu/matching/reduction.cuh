// Reductions of the scores at a position: to the best displacements, or to the sums of a mean. A reduction is made of scores one
// by one, and merged with that of other displacements of the same position.
//
//     REDUCTION BEST      the KEPT best scores and their channels: NaN before all numbers, then from the highest to the lowest,
//                         equal ones by their channels
//     REDUCTION MEAN      the highest score M, and the sums of the weights exp((score - M) / temperature), alone, times the patch
//                         row and times the patch column
//
// Partial results are stored as words of the size of a sum, so that all kinds have one layout in memory.
//
// Macros: REDUCTION, KEPT (1 for MEAN).
#pragma once
#include "common/numeric.cuh"

#define BEST 0
#define MEAN 1

// A word of a partial result, which is also the type of channels.
template <class Sum>
struct WordOf {
    typedef int type;
};

template <>
struct WordOf<double> {
    typedef long long type;
};

constexpr int NO_CHANNEL = 0x7fffffff;  // behind every channel
DEVICE float lowest() { return float_of_bits(0xff800000); }  // negative infinity
DEVICE float not_a_number() { return float_of_bits(0x7fc00000); }

// The displacement of a score: its indices in the whole patch.
struct Displacement {
    int m, n, channel;
};

// Returns whether a score comes before another one.
template <class Sum, class Channel>
DEVICE bool precedes(Sum score, Channel channel, Sum other, Channel other_channel) {
    if (score > other) return true;
    if (score < other) return false;
    if (score == other) return channel < other_channel;
    const bool is_number = score == score, other_is_number = other == other;  // one of them is NaN
    return is_number == other_is_number ? channel < other_channel : other_is_number;
}

template <class Sum, int count>
struct Best {
    typedef typename WordOf<Sum>::type Channel;
    struct Settings {
        DEVICE static Settings of(Sum, Sum) { return Settings{}; }
    };

    Sum scores[count];
    Channel channels[count];

    DEVICE void clear() {
#pragma unroll
        for (int k = 0; k < count; k++) scores[k] = lowest(), channels[k] = NO_CHANNEL;
    }

    DEVICE void insert(Sum score, Channel channel) {
        if (!precedes(score, channel, scores[count - 1], channels[count - 1])) return;
        scores[count - 1] = score, channels[count - 1] = channel;
#pragma unroll
        for (int k = count - 1; k > 0; k--) {
            if (!precedes(scores[k], channels[k], scores[k - 1], channels[k - 1])) break;
            const Sum last_score = scores[k];
            const Channel last_channel = channels[k];
            scores[k] = scores[k - 1], channels[k] = channels[k - 1];
            scores[k - 1] = last_score, channels[k - 1] = last_channel;
        }
    }

    DEVICE void add(Sum score, const Displacement& from, Settings) { insert(score, from.channel); }

    DEVICE void merge(const Best& other, Settings) {
#pragma unroll
        for (int k = 0; k < count; k++) insert(other.scores[k], other.channels[k]);
    }
};

template <class Sum>
struct Mean {
    // Scores are multiplied by `factor`, and their differences by `sharpness`: the difference of halved scores cannot overflow,
    // but half of a low temperature could underflow.
    struct Settings {
        Sum factor, sharpness;

        DEVICE static Settings of(Sum factor, Sum sharpness) { return Settings{factor, sharpness}; }

        // The weight of a score. Where all scores are negative infinity, so is the highest one: the weights are 0.
        DEVICE Sum weight(Sum score, Sum highest) const {
            const Sum subtracted = highest == lowest() ? Sum(0) : highest * factor;
            return exponential((score * factor - subtracted) * sharpness);
        }
    };

    Sum highest, total, rows, columns;

    DEVICE void clear() {
        highest = lowest();
        total = rows = columns = 0;
    }

    // Makes a score the highest one.
    DEVICE void raise(Sum score, const Settings& settings) {
        const Sum weight = settings.weight(highest, score);
        highest = score;
        total *= weight, rows *= weight, columns *= weight;
    }

    DEVICE void add(Sum score, const Displacement& from, const Settings& settings) {
        if (!(score <= highest)) raise(score, settings);  // also NaN, which makes every sum NaN
        const Sum weight = settings.weight(score, highest);
        total += weight;
        rows = multiply_add(weight, Sum(from.m), rows);
        columns = multiply_add(weight, Sum(from.n), columns);
    }

    DEVICE void merge(const Mean& other, const Settings& settings) {
        if (!(other.highest <= highest)) raise(other.highest, settings);
        const Sum weight = settings.weight(other.highest, highest);
        total = multiply_add(weight, other.total, total);
        rows = multiply_add(weight, other.rows, rows);
        columns = multiply_add(weight, other.columns, columns);
    }
};

#if REDUCTION == BEST
template <class Sum>
using Reduction = Best<Sum, KEPT>;
#else
template <class Sum>
using Reduction = Mean<Sum>;
#endif

// The words of a reduction.
template <class Sum>
struct Words {
    typedef typename WordOf<Sum>::type Word;
    static constexpr int count = sizeof(Reduction<Sum>) / sizeof(Word);
    Word word[count];

    DEVICE static Words of(const Reduction<Sum>& reduction) {
        Words words;
        memcpy(&words, &reduction, sizeof words);
        return words;
    }

    DEVICE Reduction<Sum> reduction() const {
        Reduction<Sum> found;
        memcpy(&found, this, sizeof found);
        return found;
    }
};

// Returns the partial results of a position, merged in the order of their parts.
template <class Sum>
DEVICE Reduction<Sum> merged(const typename WordOf<Sum>::type* from, Index part_stride, Index word_stride, Index parts,
                             const typename Reduction<Sum>::Settings& settings) {
    Reduction<Sum> state;
    state.clear();
    for (Index part = 0; part < parts; part++, from += part_stride) {
        Words<Sum> words;
#pragma unroll
        for (int word = 0; word < Words<Sum>::count; word++) words.word[word] = load_global(from + word * word_stride);
        state.merge(words.reduction(), settings);
    }
    return state;
}
