// The taps of a window along one axis, seen from an output and seen from a position.
//
//     output i, tap u < kernel is at   z = i s + u d        (z = y + padding, s = stride, d = dilation)
#pragma once
#include "common/numeric.cuh"

// With g = gcd(s, d): s = tap_step g, d = output_step g.
struct Window {
    Index kernel;       // taps
    Index out;          // outputs
    Index common;       // g
    Index inverse;      // of output_step modulo tap_step
    Index tap_step;     // s / g
    Index output_step;  // d / g

    DEVICE Index stride() const { return tap_step * common; }
    DEVICE Index dilation() const { return output_step * common; }
    // Returns whether each position has its own output, with the position's number.
    DEVICE bool is_pixel() const { return kernel == 1 && stride() == 1; }
};

// `count` indices from `first` on, `step` apart.
struct Progression {
    Index first;
    Index step;
    Index count;
};

// The positions that an output reads.
DEVICE Progression positions_of_output(const Window& window, Index output) {
    return Progression{output * window.stride(), window.dilation(), window.kernel};
}

// The outputs that read position z, from the last to the first.
//
// i s + u d = z has solutions only if g divides z. The smallest tap is then u = (z / g) inverse mod tap_step; each tap_step taps
// later, the output is output_step earlier. Solutions with a tap or an output outside its range are removed at both ends.
DEVICE Progression outputs_at_position(const Window& window, Index z) {
    const Index cells = z / window.common;
    if (z < 0 || cells * window.common != z) return Progression{0, 0, 0};
    Index tap = cells % window.tap_step * window.inverse % window.tap_step;
    Index output = (cells - tap * window.output_step) / window.tap_step;
    if (tap >= window.kernel || output < 0) return Progression{0, 0, 0};
    if (output >= window.out) {
        const Index skipped = (output - window.out) / window.output_step + 1;
        tap += skipped * window.tap_step;
        output -= skipped * window.output_step;
        if (tap >= window.kernel || output < 0) return Progression{0, 0, 0};
    }
    const Index taps = (window.kernel - 1 - tap) / window.tap_step + 1;
    const Index outputs = output / window.output_step + 1;
    return Progression{output, -window.output_step, taps < outputs ? taps : outputs};
}
