"""Faults put into the kernels' own source, one at a time: with each of them a test of the emulated kernels must fail.

    python tests/support/mutants.py                # every mutant: a line for each, with the test that failed
    python tests/support/mutants.py barrier fold   # those with one of these words in their name

A mutant is a text that stands once in a file of ``kernels_cu``, and what stands there instead. It goes into a copy of the folder,
and the file's tests run on that as they are, in a process of their own, until the first fails. To add a mutant, add a row to its
file's table. It must build, and it must be wrong: what changes no result, no access and no order of accesses is no mutant.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cupycorr._gpu import source

ROOT = Path(__file__).resolve().parents[2]
AT_ONCE = 2  # processes
SECONDS = 1800  # of CPU time, after which a process is given up
PROCESSES = multiprocessing.get_context("forkserver")  # each begins with what takes long to import
PROCESSES.set_forkserver_preload(["hypothesis", "ml_dtypes", "numpy", "pytest"])
# What a mutant can end its process by; the last one comes after `SECONDS`.
CRASHES = (signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGXCPU)

# For each file: a test, or a part of its name, and the faults that it sees: what is wrong, the text before, and the text after.
# That test runs first, so that most mutants take no more than it; any other that fails will do.

NUMERIC = {
    "equals_the_oracle[direct-float64-rows]": (
        ("parts of double sums go through float", "total[r] += part[r]", "total[r] += static_cast<float>(part[r])"),
        ("totals of double sums kept in float", "Sum total[count];", "float total[count];"),
        (
            "a double stored through float",
            "double from(double sum) { return sum; }",
            "double from(double sum) { return static_cast<float>(sum); }",
        ),
    ),
    "equals_the_oracle[direct-bfloat16-rows]": (
        ("bits of a bfloat16 shifted one too few", "element.bits) << 16", "element.bits) << 15"),
    ),
    "rounded_once_from_the_sum[direct-bfloat16-float32]": (
        ("bfloat16 cut off instead of rounded", "bits + 0x7fff + ((bits >> 16) & 1)", "bits"),
    ),
    "halfway": (
        ("ties of bfloat16 go up", "0x7fff + ((bits >> 16) & 1)", "0x8000"),
        ("ties of bfloat16 go down", "0x7fff + ((bits >> 16) & 1)", "0x7fff"),
        ("ties of bfloat16 go to the odd", "((bits >> 16) & 1)", "(~(bits >> 16) & 1)"),
        (
            "double rounded to float before bfloat16",
            "nearest_bfloat16(sticky_float(sum))",
            "nearest_bfloat16(static_cast<float>(sum))",
        ),
        ("double cut to float before bfloat16", "bits_of_float(cut) | 1", "bits_of_float(cut)"),
        ("sticky float starts from the nearest", "double_to_float_towards_zero(value)", "static_cast<float>(value)"),
        ("sticky bit set on what was exact", "exact = cut == value ||", "exact ="),
        ("double rounded to float before half", "half{double_to_half(sum)}", "half{float_to_half(static_cast<float>(sum))}"),
    ),
    "nan_stays_nan_in_every_dtype[direct-float16-bfloat16]": (
        ("NaN rounded as if it were a number", "if (value != value)", "if (false)"),
    ),
    "rounded_once_from_the_sum[direct-float16-float32]": (
        (
            "float rounded to bfloat16 before half",
            "half{float_to_half(sum)}",
            "half{float_to_half(widen(nearest_bfloat16(sum)))}",
        ),
    ),
    "equals_the_oracle[direct-float16-channels last]": (
        ("16 bytes moved where fewer are wanted", "wanted >= count", "wanted >= 1"),
    ),
    "neighbouring_channels": (
        ("16 bytes not moved where just as many are wanted", "wanted >= count", "wanted > count"),
        ("16 bytes moved only where a line of 32 begins", "% sizeof(Words16) == 0", "% (2 * sizeof(Words16)) == 0"),
    ),
    "equals_the_oracle[direct-float32-channels last]": (
        ("16 bytes moved from any address", "% sizeof(Words16) == 0", "% sizeof(Element) == 0"),
        ("the rest of a run is not 0", "r * stride)) : Sum(0)", "r * stride)) : Sum(1)"),
    ),
    "equals_the_oracle[direct-float32-rows]": (
        ("16 bytes moved whatever the stride", "&& stride == 1 &&", "&& stride != 0 &&"),
        ("a run loads one element too many", "run[r] = r < wanted ?", "run[r] = r <= wanted ?"),
        ("a run loads one element too few", "run[r] = r < wanted ?", "run[r] = r < wanted - 1 ?"),
        ("a run is loaded without its stride", "load(from + r * stride)", "load(from + r)"),
        ("a run stores one element too many", "if (r < wanted) store(", "if (r <= wanted) store("),
        ("a run stores one element too few", "if (r < wanted) store(", "if (r < wanted - 1) store("),
        ("a run is stored without its stride", "store(to + r * stride, run[r])", "store(to + r, run[r])"),
    ),
    "[direct-float32-channels reversed]": (
        ("16 bytes moved backwards as if forwards", "&& stride == 1 &&", "&& stride * stride == 1 &&"),
    ),
    "over_many_terms[direct-channels-busy]": (
        ("long sums never folded", "FOLD = 128", "FOLD = 1 << 24"),
        ("a folded part counted again", "total[r] += part[r];\n            part[r] = Sum(0);", "total[r] += part[r];"),
        ("a fold forgets the folds before", "total[r] += part[r]", "total[r] = part[r]"),
    ),
    "over_many_terms[direct-displacements-busy]": (
        ("sums folded at every term", "terms >= FOLD", "terms < FOLD"),
        ("terms not counted up", "terms += number", "terms = number"),
    ),
    "direct-one pixel": (("sums begin at 1", "total[r] = Sum(0)", "total[r] = Sum(1)"),),
}

WINDOW = {
    "[rows beyond 32 bits]": (("positions in 32 bits", "const Index cells", "const int cells"),),
    "box-window, stride": (
        ("stride without the common factor", "return tap_step * common", "return tap_step"),
        ("dilation without the common factor", "return output_step * common", "return output_step"),
    ),
    "box-windows apart": (
        (
            "stride and dilation swapped",
            "output * window.stride(), window.dilation()",
            "output * window.dilation(), window.stride()",
        ),
        ("one tap too few", "window.dilation(), window.kernel}", "window.dilation(), window.kernel - 1}"),
    ),
    "drawn_problems_equal_the_oracle[direct]": (
        ("positions before the first tap are read by output 0", "if (z < 0 || cells", "if (cells"),
        ("the first tap is found without the inverse", "* window.inverse %", "* 1 %"),
        ("the first tap is not reduced", "window.inverse % window.tap_step;", "window.inverse;"),
        ("outputs before 0 are taken", "\n    if (tap >= window.kernel || output < 0)", "\n    if (tap >= window.kernel)"),
        ("skipped outputs do not move the tap by their step", "tap += skipped * window.tap_step", "tap += skipped"),
        ("skipped outputs do not move the output by its step", "output -= skipped * window.output_step", "output -= skipped"),
        (
            "a tap past the last is taken after skipping",
            "\n        if (tap >= window.kernel ||",
            "\n        if (tap > window.kernel ||",
        ),
        (
            "outputs before 0 are taken after skipping",
            "\n        if (tap >= window.kernel || output < 0)",
            "\n        if (tap >= window.kernel)",
        ),
        ("one tap too many is counted", "(window.kernel - 1 - tap)", "(window.kernel - tap)"),
    ),
    "direct-one pixel": (
        ("position 0 is read by no output", "if (z < 0 ||", "if (z <= 0 ||"),
        (
            "output 0 is not taken",
            "\n    if (tap >= window.kernel || output < 0)",
            "\n    if (tap >= window.kernel || output <= 0)",
        ),
    ),
    "direct-window, stride": (
        ("positions between the common factors are read", "if (z < 0 || cells * window.common != z)", "if (z < 0)"),
        ("an output just past the last is taken", "if (output >= window.out)", "if (output > window.out)"),
        ("one output too few is skipped", "/ window.output_step + 1;\n        tap", "/ window.output_step;\n        tap"),
        ("one output too many is skipped", "(output - window.out)", "(output - window.out + 1)"),
        ("one output too few is counted", "output / window.output_step + 1", "output / window.output_step"),
        ("the greater of both counts is taken", "taps < outputs", "taps > outputs"),
        ("outputs go up instead of down", "{output, -window.output_step,", "{output, window.output_step,"),
    ),
    "equals_the_oracle[direct-float16-rows]": (
        ("the first tap counts forwards", "cells - tap * window.output_step", "cells + tap * window.output_step"),
    ),
    "direct-stride beyond": (
        ("a first tap just past the last is taken", "\n    if (tap >= window.kernel", "\n    if (tap > window.kernel"),
    ),
}

FORWARD = {
    "equals_the_oracle[direct-float16-rows]": (
        (
            "the input's type keeps the sum",
            "multiply_add(run1[r], run2[r], sums.part[0])",
            "widen(Narrow<INPUT>::from(multiply_add(run1[r], run2[r], sums.part[0])))",
        ),
    ),
    "direct-one pixel": (
        ("products subtracted", "multiply_add(run1[r], run2[r]", "multiply_add(-run1[r], run2[r]"),
        ("row 0 of input1 outside", "y1 < 0", "y1 <= 0"),
        ("row 0 of input2 outside", "y2 < 0", "y2 <= 0"),
        ("last column of input1 outside", "x1 >= horizontal.size1", "x1 >= horizontal.size1 - 1"),
        ("one tap too many", "u < vertical.kernel", "u <= vertical.kernel"),
        ("the last fold left out", "    sums.fold();\n    return sums.total[0];", "    return sums.total[0];"),
        ("threads without an output store", "if (inside && part == 0)", "if (part == 0)"),
        ("an output past the last is inside", "at < plane", "at <= plane"),
    ),
    "direct-scale": (
        ("scale lost", "scale * sum);", "scale / scale * sum);"),
        ("row displaced the wrong way", "y1 + vertical.first", "y1 - vertical.first"),
        ("column displaced the wrong way", "x1 + horizontal.first", "x1 - horizontal.first"),
    ),
    "do_not_overflow": (("scale applied to the rounded sum", "scale * sum);", "scale * widen(Narrow<OUTPUT>::from(sum)));"),),
    "direct-template": (
        ("patch of rows mirrored", "+ m * vertical.step", "- m * vertical.step"),
        ("column displaced by the row's index too", "+ n * horizontal.step", "+ (m + n) * horizontal.step"),
        ("input2 as wide as input1", "x2 >= horizontal.size2", "x2 >= horizontal.size1"),
        ("row and column strides swapped", "y * row_stride + x * column_stride)", "y * column_stride + x * row_stride)"),
        ("input1 taken for input2", "image2.at(b, 0, y2, x2)", "image1.at(b, 0, y2, x2)"),
        (
            "channels of input2 apart as in input1",
            "pixel2 + begin * image2.channel_stride",
            "pixel2 + begin * image1.channel_stride",
        ),
        ("outputs' rows as long as columns", "i = at / out_x", "i = at / out_y"),
        (
            "displacements' strides of the output swapped",
            "m * m_stride_out + n * n_stride_out",
            "m * n_stride_out + n * m_stride_out",
        ),
    ),
    "direct-window, stride": (
        ("row past the last of input1 inside", "y1 >= vertical.size1", "y1 > vertical.size1"),
        ("row past the last of input2 inside", "y2 >= vertical.size2", "y2 > vertical.size2"),
        ("column -1 of input1 inside", "x1 < 0", "x1 < -1"),
        ("column -1 of input2 inside", "x2 < 0", "x2 < -1"),
        ("padding on the wrong side", "i * vertical.stride - vertical.padding", "i * vertical.stride + vertical.padding"),
        ("samples apart by the channels' stride", "data + (b * batch_stride +", "data + (b * channel_stride +"),
    ),
    "direct-windows apart": (("taps apart by the stride", "x1 += horizontal.dilation", "x1 += horizontal.stride"),),
    "2_to_the_31_apart_are_reached[direct": (("offsets in 32 bits", "return data + (b *", "return data + static_cast<int>(b *"),),
    "[rows beyond 32 bits]": (("positions of rows in 32 bits", "Index y1 = i *", "int y1 = i *"),),
    "[columns beyond 32 bits]": (("positions of columns in 32 bits", "Index x1 = j *", "int x1 = j *"),),
    "equals_the_oracle[direct-float32-channels last]": (
        ("parts begin next to each other", "Index begin = part * RUN", "Index begin = part"),
        (
            "a run goes past the last channel",
            "image1.channel_stride, channels - begin, run1",
            "image1.channel_stride, channels, run1",
        ),
        ("shuffles half as wide", "sum, apart, PARTS)", "sum, apart, PARTS / 2)"),
        ("shuffles for half of the lanes", "0xffffffffu", "0x0000ffffu"),
        ("first shuffle left out", "apart = PARTS / 2", "apart = PARTS / 4"),
        ("last shuffle left out", "apart > 0", "apart > 1"),
        ("parts of channels last along x", "CHANNELS_LAST ? thread % PARTS", "CHANNELS_LAST ? thread / POSITIONS"),
        ("positions of channels last along x", "CHANNELS_LAST ? thread / PARTS", "CHANNELS_LAST ? thread % POSITIONS"),
    ),
    "direct-pwcnet-like-idle": (
        ("parts overlap", "const Index step = PARTS * RUN", "const Index step = RUN"),
        ("barrier before the parts are added left out", "    __syncthreads();\n    if (part == 0) {", "    if (part == 0) {"),
        (
            "barrier that some threads do not reach",
            "    __syncthreads();\n    if (part == 0) {",
            "    if (part == 0) {\n        __syncthreads();",
        ),
        ("a warp's barrier in place of the block's", "    __syncthreads();\n    if (part", "    __syncwarp();\n    if (part"),
        ("parts laid over each other", "sums[part * POSITIONS + position], sum", "sums[part + position], sum"),
        ("part 0 added twice", "other = 1;", "other = 0;"),
        ("last part not added", "other < PARTS;", "other < PARTS - 1;"),
        ("every part stores", "if (inside && part == 0)", "if (inside)"),
    ),
    "over_many_terms[direct-channels-busy]": (("products not counted", "terms += RUN", "terms += 0"),),
    "smaller_than_the_work_loops_over_the_rest[direct-idle-pwc": (
        ("barrier before the next tile left out", "    __syncthreads();  // the", "    // the"),
    ),
    "fill_their_blocks": (
        ("a chunk too many where positions fill them", "(plane + POSITIONS - 1) / POSITIONS", "(plane + POSITIONS) / POSITIONS"),
    ),
    "equals_the_oracle[box-float16-rows]": (
        (
            "chunk decoded without the patch's rows",
            "chunk = tile / patch_x / patch_y % chunks",
            "chunk = tile / patch_x % chunks",
        ),
    ),
    "direct-flownet-like-idle": (
        ("sample decoded without the chunks", "b = tile / patch_x / patch_y / chunks", "b = tile / patch_x / patch_y"),
    ),
    "smaller_than_the_work_loops_over_the_rest[direct": (("the grid does not loop", "tile += gridDim.x", "tile += tiles"),),
    "direct-flownet-like-busy": (("blocks take each other's tiles", "tile += gridDim.x", "tile += 1"),),
}

GRADIENT = {
    "direct-one-sided stereo": (
        (
            "rows of the other input found along x",
            "vertical.other(y, m) * row_stride_other",
            "horizontal.other(y, m) * row_stride_other",
        ),
    ),
    "direct-template": (
        ("gradient 1 displaced the wrong way", "? position + displacement", "? position - displacement"),
        ("gradient 2 displaced the wrong way", ": position - displacement", ": position + displacement"),
        ("patch mirrored", "first + m * step;", "first - m * step;"),
        ("outputs found at the position in input2", "(OPERAND == 1 ? position : met)", "(OPERAND == 2 ? position : met)"),
        ("cotangent's displacements swapped", "m * m_stride + n * n_stride", "m * n_stride + n * m_stride"),
        (
            "gradient's rows and columns swapped",
            "y * row_stride_out + x * column_stride_out",
            "y * column_stride_out + x * row_stride_out",
        ),
    ),
    "direct-one pixel": (
        ("row or column 0 of the other input outside", "met < 0", "met <= 0"),
        ("one row of the cotangent too many", "u < rows.count", "u <= rows.count"),
        ("last column of the cotangent left out", "v < columns.count", "v < columns.count - 1"),
        ("the gradient's sign", "multiply_add(weight,", "multiply_add(-weight,"),
        ("the last fold of the cotangent left out", "        sums.fold();\n        return", "        return"),
        ("a thread too many", "at < threads", "at <= threads"),
    ),
    "direct-window, stride": (
        ("row or column past the last of the other input inside", "met >= other_size", "met > other_size"),
        (
            "outputs found on the wrong side of the padding",
            "(OPERAND == 1 ? position : met) + padding",
            "(OPERAND == 1 ? position : met) - padding",
        ),
        ("cotangent's samples apart as its displacements", "data + (b * batch_stride +", "data + (b * m_stride +"),
        ("cotangent's first row without its stride", "rows.first * row_stride", "rows.first"),
        ("cotangent's columns apart as its rows", "columns.step * column_stride", "columns.step * row_stride"),
        ("last row of the cotangent only", "const COTANGENT* at = row;", "const COTANGENT* at = row;\n            sums.clear();"),
        ("samples of the other input not told apart", "b * batch_stride_other + c", "0 * batch_stride_other + c"),
        ("displacements that meet nothing do not end a row", "if (rows.count == 0) continue", "if (rows.count < 0) continue"),
        ("samples of the gradient not told apart", "gradient + (b * batch_stride_out", "gradient + (0 * batch_stride_out"),
    ),
    "equals_the_oracle[direct-float64-rows]": (
        ("cotangent summed in float", "Sums<Sum, 1> sums;", "Sums<float, 1> sums;"),
        ("cotangent read as float", "static_cast<Sum>(load(at))", "static_cast<float>(load(at))"),
    ),
    "cotangents_more_than_2_to_the_31": (
        ("cotangent's offsets in 32 bits", "row = data + (b *", "row = data + static_cast<int>(b *"),
    ),
    "equals_the_oracle[direct-float16-channels last]": (
        ("a run too many where channels fill them", "(channels + RUN - 1) / RUN", "(channels + RUN) / RUN"),
        ("pixels of channels last along x", "CHANNELS_LAST ? at / runs : at", "at"),
        ("samples of channels last counted in runs", "CHANNELS_LAST ? rest :", "CHANNELS_LAST ? rest / runs :"),
    ),
    "direct-pwcnet-like-busy": (
        ("runs of rows along x", ": rest % runs", ": at % runs"),
        ("channels apart by one instead of a run", ": rest % runs) * RUN", ": rest % runs)"),
        (
            "channels of the other input not told apart",
            "b * batch_stride_other + c * channel_stride_other",
            "b * batch_stride_other",
        ),
    ),
    "2_to_the_31_apart_are_reached": (
        ("offsets of the other input in 32 bits", "image = other + (b *", "image = other + static_cast<int>(b *"),
    ),
    "not_finite_stays": (
        (
            "displacements that no output takes are multiplied by 0",
            "if (columns.count == 0) continue",
            "if (columns.count < 0) continue",
        ),
    ),
    "equals_the_oracle[direct-float32-rows]": (
        ("a run goes past the last channel", "channel_stride_other, channels - c, run", "channel_stride_other, channels, run"),
        ("a run is stored past the last channel", "channel_stride_out, channels - c,", "channel_stride_out, channels,"),
    ),
    "equals_the_oracle[direct-float16-rows]": (
        (
            "the input's type keeps the sum",
            "multiply_add(weight, run[r], sums.part[r])",
            "widen(Narrow<INPUT>::from(multiply_add(weight, run[r], sums.part[r])))",
        ),
    ),
    "over_many_terms[direct-displacements-busy]": (
        (
            "displacements not counted",
            "sums.part[r]);\n                sums.added(1)",
            "sums.part[r]);\n                sums.added(0)",
        ),
    ),
    "pixel_read_by_many_outputs": (
        ("outputs not counted", "load(at));\n                sums.added(1)", "load(at));\n                sums.added(0)"),
    ),
    "the_same_sums[float32-5000]": (
        ("what was carried replaces the sum", "sums.total[r] += load(", "sums.total[r] = load("),
        ("what was carried is left out at the end", "if (carried) {", "if (carried && carry) {"),
        ("what was carried is found without the run", "carried + at * RUN + r", "carried + at + r"),
        ("what is carried on is scaled", "carry + at * RUN + r, sums.total[r]", "carry + at * RUN + r, scale * sums.total[r]"),
    ),
    "direct-scale": (("scale lost", "sums.total[r] *= scale", "sums.total[r] *= scale / scale"),),
    "gradients_are_scaled": (
        (
            "scale applied to the rounded sum",
            "sums.total[r] *= scale",
            "sums.total[r] = scale * widen(Narrow<INPUT>::from(sums.total[r]))",
        ),
    ),
    "smaller_than_the_work_loops_over_the_rest[direct": (("the grid does not loop", "at += all", "at += all + threads"),),
}

BOX = {
    "box-one pixel": (
        ("terms along y subtracted", "sums.part[r] += run[r]", "sums.part[r] += ALONG_Y ? -run[r] : run[r]"),
        ("one tap too many", "u < terms.count", "u <= terms.count"),
        ("the last fold left out", "        sums.fold();\n", ""),
        ("a thread too many", "at < threads", "at <= threads"),
    ),
    "box-scale": (("scale lost", "sums.total[r] *= scale", "sums.total[r] *= scale / scale"),),
    "rounded_once_from_the_sum[box-float64-float16]": (
        ("sums kept in the cotangent's type", "#if TRANSPOSED\n", "#if !TRANSPOSED\n"),
    ),
    "box-windows apart": (("window and transpose swapped", "TRANSPOSED ? outputs_at", "!TRANSPOSED ? outputs_at"),),
    "box-window, stride": (
        ("windows along the other axis", "along = ALONG_Y ? y : x", "along = ALONG_Y ? x : y"),
        ("terms apart along the other axis", "along_stride = ALONG_Y ? row", "along_stride = !ALONG_Y ? row"),
        ("rows begin at the first", ": y * row_stride_from)", ": 0 * row_stride_from)"),
        ("windows begin at the first position", " + terms.first * along_stride)", ")"),
        ("taps next to each other", "terms.step * along_stride", "along_stride"),
        ("samples decoded without the patch's rows", "b = plane / patch_x / patch_y", "b = plane / patch_x"),
        ("runs next to each other", "at % runs * RUN", "at % runs"),
        ("rows counted without the runs", "y = at / runs % height", "y = at % height"),
        ("a run goes past the end of its row", "column_stride_from, width - x, run", "column_stride_from, width, run"),
        ("samples of what is read not told apart", "from + (b * batch_stride_from", "from + (0 * batch_stride_from"),
    ),
    "over_many_terms[box-taps of a row-busy]": (("terms not counted", "sums.added(1)", "sums.added(0)"),),
    "box-window of many taps": (("displacements' rows as many as columns", "n = plane % patch_x", "n = plane % patch_y"),),
    "sums_along_y": (("a run too many where columns fill them", "(width + RUN - 1) / RUN", "(width + RUN) / RUN"),),
    "box-template": (
        (
            "displacements' strides of what is read swapped",
            "m * m_stride_from + n * n_stride_from",
            "m * n_stride_from + n * m_stride_from",
        ),
        (
            "displacements' strides of what is written swapped",
            "m * m_stride_to + n * n_stride_to",
            "m * n_stride_to + n * m_stride_to",
        ),
    ),
    "any_strides[box-every other column]": (("columns of what is written without their stride", "x * column_stride_to)", "x)"),),
    "cotangents_more_than_2_to_the_31": (
        ("offsets of what is read in 32 bits", "source = from + (b *", "source = from + static_cast<int>(b *"),
    ),
    "smaller_than_the_work_loops_over_the_rest[box": (("the grid does not loop", "at += all", "at += all + threads"),),
}

TILE = {
    "[P 9-4 bytes": (
        ("alignment counted in elements", "% (piece * sizeof(Element))", "% piece"),
        ("pieces halved once at most", "    while (reinterpret_cast", "    if (reinterpret_cast"),
        ("elements copied next to each other", "copy_async<bytes>(to + k * apart", "copy_async<bytes>(to + k"),
        (
            "elements are outside as the first",
            "copy_async<bytes>(to + k * apart, from + k * apart, (inside >> k & 1) != 0)",
            "copy_async<bytes>(to + k * apart, from + k * apart, (inside & 1) != 0)",
        ),
        (
            "pieces copied from outside",
            "copy_async<bytes>(to + k * apart, from + k * apart, (inside >> k & 1) != 0)",
            "copy_async<bytes>(to + k * apart, from + k * apart, inside <= 0xff)",
        ),
        (
            "pieces never copied from inside",
            "copy_async<bytes>(to + k * apart, from + k * apart, (inside >> k & 1) != 0)",
            "copy_async<bytes>(to + k * apart, from + k * apart, inside > 0xff)",
        ),
        (
            "pieces copied from neighbours",
            "copy_async<bytes>(to + k * apart, from + k * apart",
            "copy_async<bytes>(to + k * apart, from + k",
        ),
        ("every other piece left out", "k += piece) copy_async", "k += 2 * piece) copy_async"),
        ("8 bytes copied from where 4 begin", "else if (piece * bytes == 8)", "else if (piece * bytes >= 4)"),
        (
            "single elements of 4 bytes not copied",
            "else if constexpr (bytes <= 4) copy_pieces",
            "else if constexpr (bytes < 4) copy_pieces",
        ),
    ),
    "[P 9-8 bytes": (("16 bytes copied from where 8 begin", "if (piece * bytes == 16)", "if (piece * bytes >= 8)"),),
    "[0 copied]": (("the same vector read again", "load_shared_16(from + k)", "load_shared_16(from)"),),
    "[2 columnwise]": (
        ("a run loaded whole whatever its stride", "if (inside == all && stride == 1 &&", "if (inside == all &&"),
        ("a run is loaded without its stride", "load_element(from + k * stride)", "load_element(from + k)"),
        ("elements are inside as the first", "run[k] = inside >> k & 1 ?", "run[k] = inside & 1 ?"),
        ("elements stored next to each other", "store_shared(to + k * apart, Sum", "store_shared(to + k + 0 * apart, Sum"),
    ),
    "[2 channelwise]": (
        ("a run loaded whole from any address", " && reinterpret_cast<unsigned long long>(from) % sizeof(Words16) == 0", ""),
        ("a run loaded whole where a part is inside", "if (inside == all &&", "if (inside <= all &&"),
    ),
    "[one phase-9-float16]": (
        (
            "the second vector of a run stored over the first",
            "store_vector(to + p * phase + k, values)",
            "store_vector(to + p * phase, values)",
        ),
    ),
    "[both phases-9-float32]": (
        ("single elements of the phases one after the other", "widen(run[k * phases + p])", "widen(run[k + p * each])"),
        (
            "single elements of the phases over each other",
            "store_shared(to + p * phase + k,",
            "store_shared(to + 0 * p * phase + k,",
        ),
    ),
    "[both phases-9-float16]": (
        ("vectors of the phases one after the other", "? (k + v) * phases + p : 0", "? k + v + p * each : 0"),
    ),
    "[7-float32-every": (
        (
            "single elements copied next to each other",
            "copy_async<sizeof(Element)>(to + k * apart, from",
            "copy_async<sizeof(Element)>(to + k, from",
        ),
        (
            "single elements copied without their stride",
            "copy_async<sizeof(Element)>(to + k * apart, from + k * apart * stride",
            "copy_async<sizeof(Element)>(to + k * apart, from + k * apart",
        ),
        (
            "single elements copied from neighbours",
            "copy_async<sizeof(Element)>(to + k * apart, from + k * apart * stride",
            "copy_async<sizeof(Element)>(to + k * apart, from + k * stride",
        ),
        (
            "single elements are outside as the first",
            "from + k * apart * stride, (inside >> k & 1) != 0)",
            "from + k * apart * stride, (inside & 1) != 0)",
        ),
    ),
    "[7-float16-every": (
        (
            "elements of 2 bytes loaded without their stride",
            "load_element(from + k * apart * stride)",
            "load_element(from + k * apart)",
        ),
        (
            "elements of 2 bytes loaded from neighbours",
            "load_element(from + k * apart * stride)",
            "load_element(from + k * stride)",
        ),
        ("elements of 2 bytes are outside as the first", "elements[k] = inside >> k & 1 ?", "elements[k] = inside & 1 ?"),
        (
            "elements of 2 bytes stored next to each other",
            "store_shared(to + k * apart, elements[k])",
            "store_shared(to + k, elements[k])",
        ),
    ),
}

PHASES = {
    "[0 copied]": (
        ("tiles of outputs overlap", "first = tile * axis.tile_outputs", "first = tile"),
        ("tiles of patch indices overlap", "patch_first = patch_tile * patch_tile_size", "patch_first = patch_tile"),
        ("patch indices of other tiles are taken too", "min(patch_tile_size, ceil_div(", "max(0, ceil_div("),
        ("input2 is not displaced", "part.at2 = axis.origin2", "part.at2 = axis.origin1"),
        ("displacements' strides swapped", "m * m_stride + n * n_stride", "m * n_stride + n * m_stride"),
        ("rows' and columns' strides swapped", "i * row_stride + j * column_stride", "i * column_stride + j * row_stride"),
    ),
    "[1 columnwise]": (
        ("displacements' tiles a phase too near", "patch_first * shift", "patch_first + 0 * shift"),
        ("rows displaced by phases too", "m_rest, patch_rows, 1)", "m_rest, patch_rows, shift)"),
        ("outputs of one phase taken for neighbours", "residue + first * axis.outputs_apart", "residue + first"),
        ("outputs of all phases counted", "ceil_div(axis.out - part.output, axis.outputs_apart)", "axis.out - part.output"),
        ("input1's tile begins at the first phase", "axis.origin1 + residue * axis.stride", "axis.origin1"),
        ("input2's tile begins at the first phase", "axis.origin2 + residue * axis.stride", "axis.origin2"),
        ("input1's positions next to each other", "axis.stride + position * axis.spacing;", "axis.stride + position;"),
        (
            "input2's positions next to each other",
            "(position + patch_first * shift) * axis.spacing;",
            "(position + patch_first * shift);",
        ),
        ("phases of outputs counted along the other axis", "digit(tile, grid.residues_x)", "digit(tile, grid.residues_y)"),
    ),
    "[3 copied]": (("tiles of outputs counted along the other axis", "digit(tile, grid.tiles_x)", "digit(tile, grid.tiles_y)"),),
    "[window over two phases]": (
        ("outputs of tiles that windows need too", "min(axis.tile_outputs, ceil_div(", "max(0, ceil_div("),
    ),
    "[strided window over two phases]": (
        ("tiles of strided outputs overlap", "position = first * axis.output_step", "position = first"),
    ),
    "tiled-stride and step coprime": (
        (
            "patch indices of all phases counted",
            "ceil_div(axis.patch - part.patch, axis.patches_apart)",
            "(axis.patch - part.patch)",
        ),
        ("patch indices of all phases begin at the first", "+ rest * axis.step +", "+"),
    ),
    "in_parts_give_the_same_sums[3-float32]": (
        ("parts counted as samples", "split = digit(tile, grid.splits)", "split = tile % grid.splits"),
    ),
    "phases_of_outputs_and_of_patch_indices_are_told_apart": (
        ("patch indices of one phase taken for neighbours", "rest + patch_first * axis.patches_apart", "rest + patch_first"),
        ("phases of patch indices counted along the other axis", "digit(tile, grid.rests_x)", "digit(tile, grid.rests_y)"),
    ),
    "[12 copied]": (
        (
            "tiles of displacements counted along the other axis",
            "digit(tile, grid.patch_tiles_x)",
            "digit(tile, grid.patch_tiles_y)",
        ),
    ),
    "infinite_in_the_other[both phases-x1]": (
        ("the first column of a phase is rounded down", "ceil_div(-at, spacing)", "(-at / spacing)"),
        ("the last column of a phase is rounded down", "ceil_div(size - at, spacing)", "((size - at) / spacing)"),
    ),
}

FORWARD_TILED = {
    "[0 copied]": (
        ("the first item of input2 taken for input1's", "to() >= PHASES * PHASE1", "to() > PHASES * PHASE1"),
        ("an item too many", "item >= ITEMS1 + ITEMS2", "item > ITEMS1 + ITEMS2"),
        (
            "the last items are left out",
            "SLOTS = ceil_div((ITEMS1 + ITEMS2) * RUNS, THREADS)",
            "SLOTS = (ITEMS1 + ITEMS2) * RUNS / THREADS",
        ),
        ("items of input2 counted on from input1's", "second ? item - ITEMS1 : item,", "item,"),
        ("items of a row taken for the other image's", "items = second ? ROW2 : ROW1", "items = second ? ROW1 : ROW2"),
        ("rows of input2 laid as those of input1", "PHASES * PHASE1 + row * PITCH2", "PHASES * PHASE1 + row * PITCH1"),
        ("row 0 outside", "    if (y < 0 ||", "    if (y <= 0 ||"),
        ("column 0 outside", "if (at >= 0 &&", "if (at > 0 &&"),
        ("a column past the last inside", "at < (second ? horizontal.size2", "at <= (second ? horizontal.size2"),
        ("a row past the last inside", "y >= (second ? vertical.size2", "y > (second ? vertical.size2"),
        ("channels are not moved on", "next1 += channels * channel_stride1", "next1 += channel_stride1"),
        ("channels are not counted down", "left -= channels", "left -= 1"),
        (
            "copies by threads without an item",
            "            if (slots[s].none()) continue;\n#pragma unroll\n            for (int channel = 0; channel < CHANNELS",
            "#pragma unroll\n            for (int channel = 0; channel < CHANNELS",
        ),
        (
            "copies of channels over each other",
            "copy_columns<COLUMNS>(stage + channel * CHANNEL + slots[s].to()",
            "copy_columns<COLUMNS>(stage + slots[s].to()",
        ),
        ("channels past the last copied", "channel < left ? slots[s].inside() : 0, piece", "slots[s].inside(), piece"),
        ("copies not committed", "        copy_async_commit();\n", ""),
        ("copies not waited for", "copy_async_wait<0>()", "copy_async_wait<1>()"),
        (
            "a barrier before the wait in place of after it",
            "        loader.wait();\n        __syncthreads();",
            "        __syncthreads();\n        loader.wait();",
        ),
        ("barrier before a stage left out", "        __syncthreads();  // the stage is there", "        // the stage is there"),
        ("warps take each other's pairs", "warp % PAIR_WARPS * LANES_M", "warp % PAIR_WARPS"),
        ("columns of neighbouring threads overlap", "lane / LANES_M * COLUMNS", "lane / LANES_M"),
        ("rows of neighbouring threads overlap", "last / REACH * ROWS", "last / REACH"),
        ("all rows of a thread have the patch row of the first", "return met - row", "return met - 0 * row"),
        ("all rows of a thread are the first", "load_vectors(rows1 + r * PITCH1", "load_vectors(rows1"),
        ("products subtracted", "multiply_add(row[r][k]", "multiply_add(-row[r][k]"),
        ("tile's rows of input1 without the thread's", "thread.rows * PITCH1 + thread.column", "thread.column"),
        ("tile's rows of input2 without the thread's", "(thread.rows + thread.met) * PITCH2", "thread.met * PITCH2"),
        ("tile of input1 in the place of input2's", "share + PHASES * PHASE1 + thread.phase", "share + thread.phase"),
        ("the last channels left out", "stages = ceil_div(loader.left, CHANNELS)", "stages = loader.left / CHANNELS"),
        ("the last stage is not brought", "more = stages > 1", "more = stages > 2"),
        (
            "a stage is brought over the one that is read",
            "ask_for_stage(shared + (STAGE - offset))",
            "ask_for_stage(shared + offset)",
        ),
        ("stages do not take turns", "offset = STAGE - offset)", "offset = STAGE)"),
        (
            "the same channels of a stage again",
            "add_products(products, shared + offset + unit * CHANNEL + rows1",
            "add_products(products, shared + offset + rows1",
        ),
        ("row 0 of input1 answers nothing", "inside.row[r] = y1 >= 0", "inside.row[r] = y1 > 0"),
        ("row 0 of input2 answers nothing", "y1 < vertical.size1 && y2 >= 0 &&", "y1 < vertical.size1 && y2 > 0 &&"),
        (
            "rows of input2 inside without the thread's",
            "inside;\n    const int y2 = rows.at2 + (thread.rows + thread.met)",
            "inside;\n    const int y2 = rows.at2 + (thread.met)",
        ),
        (
            "rows of patch indices before the first store",
            "if (patch_row < 0 || patch_row >= rows.patches",
            "if (patch_row >= rows.patches",
        ),
        (
            "rows of patch indices past the last store",
            "patch_row < 0 || patch_row >= rows.patches || row",
            "patch_row < 0 || row",
        ),
        ("rows past the last output store", " || row >= rows.outputs", ""),
        ("displacements past the last store", "if (thread.group * DISPLACEMENTS + n >= columns.patches) break;", ""),
        ("scale lost where registers are stored", "out.scale * products[r][n][k]", "products[r][n][k]"),
        ("columns past the last output stored", "columns.outputs - thread.column, run", "columns.outputs, run"),
        ("a vote of half of the lanes", "__any_sync(0xffffffffu", "__any_sync(0x0000ffffu"),
        ("threads that meet nothing do not reach the barriers", "if (__syncthreads_or(meets))", "if (meets)"),
        ("samples of input1 not told apart", "block.b * batch_stride1", "0 * batch_stride1"),
        ("samples of input2 not told apart", "block.b * batch_stride2", "0 * batch_stride2"),
        ("samples of the output not told apart", "block.b * batch_stride_out", "0 * batch_stride_out"),
    ),
    "[1 columnwise]": (
        (
            "phases of a tile not parted",
            "to = row_to + column / PHASES + column % PHASES * (second ? PHASE2 : PHASE1);",
            "to = row_to + column;",
        ),
        ("phases of input1 laid as those of input2", "column % PHASES * (second ? PHASE2 : PHASE1)", "column % PHASES * PHASE2"),
        ("phases taken for shares", "Thread{rest / PHASES / GROUPS", "Thread{rest / GROUPS"),
        ("both phases of input1 are the first", "rows1 = share + thread.phase * PHASE1", "rows1 = share"),
        ("both phases of input2 are the first", "+ PHASES * PHASE1 + thread.phase * PHASE2", "+ PHASES * PHASE1"),
        ("columns of a phase taken for neighbours", "spacing = PHASES * horizontal.spacing", "spacing = horizontal.spacing"),
        ("phases gathered over each other", "* PHASES + phase) * WIDTH", "* PHASES + 0 * phase) * WIDTH"),
        ("phases not put together again", "p, q % PHASES) + q / PHASES)", "p, q / TILE_COLUMNS) + q % TILE_COLUMNS)"),
        (
            "barrier before outputs are gathered left out",
            "        __syncthreads();  // the last stage, or",
            "        // the last stage, or",
        ),
        (
            "barrier before what was gathered is read left out",
            "        __syncthreads();\n        store_displacements(",
            "        store_displacements(",
        ),
        (
            "a warp's barrier in place of the block's",
            "        __syncthreads();\n        store_displacements(",
            "        __syncwarp();\n        store_displacements(",
        ),
        ("rows of patch indices before the first gathered", "if (thread.idle || patch_row < 0 ||", "if (thread.idle ||"),
        (
            "rows of patch indices past the last gathered",
            "patch_row < 0 || patch_row >= PATCH_ROWS) continue",
            "patch_row < 0) continue",
        ),
        ("displacements gathered too early", "if (n < first || n >= first + AT_ONCE)", "if (n < first)"),
        ("displacements gathered again", "if (n < first || n >= first + AT_ONCE)", "if (n >= first + AT_ONCE)"),
        ("displacements not counted from the first gathered", "thread.group, n - first, patch_row", "thread.group, n, patch_row"),
        (
            "every thread's columns gathered at the first's",
            "thread.phase) +\n                                 thread.column,",
            "thread.phase),",
        ),
        ("scale lost where outputs are gathered", "? out.scale * sum_of_taps(", "? sum_of_taps("),
        (
            "the last run of a gathered row left out",
            "runs = ceil_div(columns.outputs, COLUMNS)",
            "runs = columns.outputs / COLUMNS",
        ),
        ("runs of a gathered row overlap", "item % runs * COLUMNS", "item % runs"),
        ("gathered columns past the last output stored", "columns.outputs - j, run", "columns.outputs, run"),
        ("gathered patch rows past the last stored", "if (patch_row >= rows.patches || first", "if (first"),
        ("gathered displacements past the last stored", " || patch_column >= columns.patches", ""),
        ("gathered displacements counted from the first", "group * DISPLACEMENTS + first + n;", "group * DISPLACEMENTS + n;"),
        ("lines of gathered outputs left out", "item < lines * runs; item += THREADS", "item < lines; item += THREADS"),
        ("rows of a phase taken for neighbours", "+ row * vertical.spacing;\n    const int x", "+ row;\n    const int x"),
        ("gathered rows of other phases stored", "rows.output + i * vertical.outputs_apart", "rows.output + i"),
    ),
    "[2 columnwise]": (
        (
            "columns of an item a row of the other image apart",
            "(second ? ROW2 : ROW1) + k % piece",
            "(second ? ROW1 : ROW2) + k % piece",
        ),
        ("an item's pieces loaded as neighbours", "column_stride2 * (piece == RUN ? 1 : ROW2)", "column_stride2"),
        ("input1's pieces loaded as neighbours", "column_stride1 * (piece == RUN ? 1 : ROW1)", "column_stride1"),
        (
            "single columns stored as runs",
            "if (piece == RUN)\n                        store_parted",
            "if (piece > 0)\n                        store_parted",
        ),
        ("channels past the last loaded by columns", "channel < left ? slots[s].inside() : 0, apart", "slots[s].inside(), apart"),
        (
            "columns stored by threads without an item",
            "            if (slots[s].none()) continue;\n            Sum* const to",
            "            Sum* const to",
        ),
        ("units of the first stage over each other", "put_unit(stage + unit * CHANNEL)", "put_unit(stage)"),
        (
            "units of a stage over each other",
            "put_unit(shared + (STAGE - offset) + unit * CHANNEL)",
            "put_unit(shared + (STAGE - offset))",
        ),
        ("a unit put into the stage that is read", "put_unit(shared + (STAGE - offset) +", "put_unit(shared + offset +"),
        (
            "groups of displacements not told apart",
            "thread.column +\n                        thread.group * DISPLACEMENTS;",
            "thread.column;",
        ),
        (
            "groups of displacements inside as the first",
            "(thread.column + thread.group * DISPLACEMENTS) * spacing",
            "thread.column * spacing",
        ),
        ("groups of displacements taken for shares", "Thread{rest / PHASES / GROUPS", "Thread{rest / PHASES"),
        (
            "groups of displacements stored over each other",
            "columns.patch + thread.group * DISPLACEMENTS * horizontal.patches_apart",
            "columns.patch",
        ),
        ("displacements of a group counted from the first", "if (thread.group * DISPLACEMENTS + n >=", "if (n >="),
        (
            "tiles of displacements as if of one group",
            "block_of(tile, grid, vertical, horizontal, PATCH_ROWS, GROUPS * DISPLACEMENTS",
            "block_of(tile, grid, vertical, horizontal, PATCH_ROWS, DISPLACEMENTS",
        ),
        (
            "displacements stored as if of one group",
            "unknown(tile), grid, vertical, horizontal, PATCH_ROWS, GROUPS * DISPLACEMENTS",
            "unknown(tile), grid, vertical, horizontal, PATCH_ROWS, DISPLACEMENTS",
        ),
    ),
    "[2 channelwise]": (
        ("runs of channels all the first", "first = threadIdx.x % RUNS * RUN", "first = 0"),
        ("channels past the last loaded by channels", "min(max(left - first, 0), RUN)", "RUN"),
        ("channels that are left counted from the first run", "max(left - first, 0)", "max(left, 0)"),
        ("runs of channels laid over each other", "(threadIdx.x % RUNS * RUN + channel) * CHANNEL", "channel * CHANNEL"),
        (
            "neighbouring threads take neighbouring items of a sector",
            "slot_of((threadIdx.x + s * THREADS) / RUNS",
            "slot_of((threadIdx.x + s * THREADS)",
        ),
    ),
    "[PWC-Net, channels last]": (
        ("half of every sector brought for nothing", "CHANNELS < 2 * RUN ? 1 : 2", "CHANNELS < 2 * RUN ? 1 : 1"),
    ),
    "[7 copied]": (
        ("every share takes all channels", "channel < UNIT; channel += SHARES", "channel < UNIT; channel += 1"),
        ("every share takes the first channel", "share = thread.share * CHANNEL", "share = 0"),
        ("shares gathered over each other", "(share * GROUPS + group) * AT_ONCE", "(0 * share * GROUPS + group) * AT_ONCE"),
        ("the last share is left out", "share < SHARES; share++", "share < SHARES - 1; share++"),
        ("shares gathered without room", "/ (SHARES * GROUPS * DISPLACEMENT)", "/ (GROUPS * DISPLACEMENT)"),
        ("a stage too many is brought", "more = stages > 1", "more = stages > 0"),
        ("threads without a pair gather", "if (thread.idle || patch_row < 0", "if (patch_row < 0"),
    ),
    "tiled-template": (
        ("rows of input2 as many as of input1", "y >= (second ? vertical.size2 : vertical.size1)", "y >= vertical.size1"),
        (
            "columns of input2 as many as of input1",
            "at < (second ? horizontal.size2 : horizontal.size1)",
            "at < horizontal.size1",
        ),
        ("rows of input2 apart as input1's", "y * (second ? image2.row_stride : image1.row_stride)", "y * image1.row_stride"),
        ("channels of input2 apart as input1's", "next2 + channel * channel_stride2", "next2 + channel * channel_stride1"),
        ("windows taken for single pixels", "u < vertical.taps", "u < 1"),
    ),
    "[window over two phases]": (
        ("taps of a row in one place", "q += horizontal.tap_step", "q += 0"),
        ("the last tap of a row left out", "v < horizontal.taps", "v < horizontal.taps - 1"),
        ("sums of taps lost", "            sum += tap;", "            sum = tap;"),
    ),
    "[strided window over two phases]": (("columns of outputs next to each other", "q = j * horizontal.output_step", "q = j"),),
    "[window along one axis]": (("rows of outputs next to each other", "p = i * vertical.output_step", "p = i"),),
    "tiled-stride and step coprime": (
        (
            "patch rows of other phases stored",
            "rows.patch + patch_row * vertical.patches_apart,\n                            columns",
            "rows.patch + patch_row,\n                            columns",
        ),
        ("displacements of other phases stored", "to += horizontal.patches_apart * out.n_stride", "to += out.n_stride"),
        ("rows of other phases stored", "rows.output + row * vertical.outputs_apart", "rows.output + row"),
        (
            "columns begin in other phases",
            "columns.output + thread.column * horizontal.outputs_apart",
            "columns.output + thread.column",
        ),
    ),
    "in_parts_give_the_same_sums[3-float16]": (
        (
            "the input's type keeps the sum",
            "multiply_add(row[r][k], window[SHIFT + n + k], products[r][n][k])",
            "widen(Narrow<INPUT>::from(multiply_add(row[r][k], window[SHIFT + n + k], products[r][n][k])))",
        ),
    ),
    "in_parts_give_the_same_sums[3-float32]": (
        ("every part sums the first channels", "begin = block.split * split_channels", "begin = 0"),
        ("parts of the channels overlap", "left = min(split_channels, channels - begin)", "left = channels - begin"),
        (
            "the last part as long as the others",
            "left = min(split_channels, channels - begin)",
            "left = min(split_channels, channels)",
        ),
        ("parts of input1 begin at the first channel", " + begin * channel_stride1", ""),
        ("parts of input2 begin at the first channel", " + begin * channel_stride2", ""),
        ("parts stored over each other", "block.split * split_stride_out", "0 * split_stride_out"),
    ),
    "smaller_than_the_work_loops_over_the_rest[tiled": (
        ("the grid does not loop", "tile += gridDim.x", "tile += tiles"),
        ("blocks take each other's tiles", "tile += gridDim.x", "tile += 1"),
        ("barrier before the next tile left out", "if (__syncthreads_or(meets))", "if (true)"),
    ),
    "2_to_the_31_apart_are_reached[tiled": (
        (
            "samples' offsets in 32 bits",
            "input1 + (block.b * batch_stride1 +",
            "input1 + static_cast<int>(block.b * batch_stride1 +",
        ),
        (
            "channels' offsets in 32 bits",
            "next1 + channel * channel_stride1)",
            "next1 + static_cast<int>(channel * channel_stride1))",
        ),
    ),
    "flownetc_loads": (
        ("rows that meet nothing are multiplied", "if (meets) add_products(", "if (meets || true) add_products("),
        (
            "rows that meet no row of input2 are multiplied",
            "meets && y2 >= 0 && y2 < vertical.size2)",
            "meets && (y2 >= 0 || y2 < vertical.size2))",
        ),
    ),
    "[P 9-16 bytes": (("pieces overlap", "within % items * piece", "within % items"),),
    "infinite_in_the_other[one phase-x2]": (
        (
            "columns of input1 inside as the first thread's",
            "thread.phase * horizontal.spacing + thread.column * spacing",
            "thread.phase * horizontal.spacing",
        ),
        ("columns before input1 multiplied", "k >= begin1 && ", ""),
        ("columns past input1 multiplied", "k < end1 && ", ""),
        ("a row before input1 multiplied", "inside.row[r] = y1 >= 0", "inside.row[r] = y1 >= -1"),
        (
            "a row past input1 multiplied",
            "inside.row[r] = y1 >= 0 && y1 < vertical.size1",
            "inside.row[r] = y1 >= 0 && y1 <= vertical.size1",
        ),
    ),
    "phases_of_outputs_and_of_patch_indices_are_told_apart": (
        (
            "columns of other phases stored",
            "horizontal.outputs_apart * out.column_stride, columns.outputs - thread.column",
            "out.column_stride, columns.outputs - thread.column",
        ),
    ),
    "[4 copied]": (
        (
            "rows that meet are looked for without the thread's",
            "rows) {\n    const int y2 = rows.at2 + (thread.rows + thread.met)",
            "rows) {\n    const int y2 = rows.at2 + (thread.met)",
        ),
    ),
    "[both phases-9-float32]": (
        (
            "phases of input1 put where those of input2 go",
            "slots[s].second() ? PHASE2 : PHASE1",
            "slots[s].second() ? PHASE1 : PHASE2",
        ),
    ),
    "infinite_in_the_other[both phases-x2]": (
        (
            "columns of input1 inside as the first phase's",
            "x1 = columns.at1 + thread.phase * horizontal.spacing",
            "x1 = columns.at1",
        ),
    ),
    "infinite_in_the_other[both phases-x1]": (
        (
            "columns of input2 inside as the first phase's",
            "x2 = columns.at2 + thread.phase * horizontal.spacing",
            "x2 = columns.at2",
        ),
        ("what is outside is gathered", "inside.holds(r, n, k) ? products", "inside.holds(r, n, k) || k >= 0 ? products"),
    ),
    "[coprime stride and step]": (
        (
            "columns brought without their spacing",
            "loader.column_stride1 = horizontal.spacing * column_stride1",
            "loader.column_stride1 = column_stride1",
        ),
        (
            "gathered columns of other phases stored",
            "horizontal.outputs_apart * out.column_stride, columns.outputs - j",
            "out.column_stride, columns.outputs - j",
        ),
        ("gathered columns begin in other phases", "columns.output + j * horizontal.outputs_apart", "columns.output + j"),
    ),
    "[10 channelwise]": (
        ("shares take neighbouring channels of input1", "rows1 += SHARES * CHANNEL", "rows1 += CHANNEL"),
        ("shares take neighbouring channels of input2", "window2 += SHARES * CHANNEL", "window2 += CHANNEL"),
    ),
    "[one phase-7-float32]": (
        ("shifted window read without its shift", "window[SHIFT + n + k]", "window[n + k]"),
        ("shifted tile begins without its shift", "columns.at2 - SHIFT * PHASES * horizontal.spacing", "columns.at2"),
    ),
    "[both phases-7-float32]": (
        ("shift counted in columns of one phase", "SHIFT * PHASES * horizontal.spacing", "SHIFT * horizontal.spacing"),
    ),
    "any_tile_that_fits": (
        ("channels of input2 moved on as input1's", "next2 += channels * channel_stride2", "next2 += channels * channel_stride1"),
    ),
    "tiled-window, stride": (("taps of a column next to each other", "p += vertical.tap_step", "p += 1"),),
    "infinite_in_the_other[one phase-x1]": (
        ("outside rows multiplied", "return row[r] && k >= begin1", "return (row[r] || r >= 0) && k >= begin1"),
        ("columns before input2 multiplied", "n + k >= begin2 && ", ""),
        ("columns past input2 multiplied", " && n + k < end2", ""),
        ("a row before input2 multiplied", "y2 >= 0 && y2 < vertical.size2;", "y2 >= -1 && y2 < vertical.size2;"),
        ("a row past input2 multiplied", "y2 >= 0 && y2 < vertical.size2;", "y2 >= 0 && y2 <= vertical.size2;"),
        (
            "what is outside is stored from registers",
            "inside.holds(r, n, k) ? out.scale",
            "inside.holds(r, n, k) || k >= 0 ? out.scale",
        ),
    ),
    "rows_meet_nothing_load_nothing": (
        ("tiles that meet nothing are brought", "if (__syncthreads_or(meets))", "if (__syncthreads_or(meets) || true)"),
    ),
}

MMA = {
    "[1-float16-rows]": (
        (
            "float16 of half the depth",
            "Multiplier<half> {\n    static constexpr int depth = 16;",
            "Multiplier<half> {\n    static constexpr int depth = 8;",
        ),
        ("float16 multiplied as bfloat16", "mma_m16n8k16_f16(c, a, b); }", "mma_m16n8k16_bf16(c, a, b); }"),
        ("factors of float16 swapped", "{ mma_m16n8k16_f16(c, a, b); }", "{ mma_m16n8k16_f16(c, {a[1], a[0], a[2], a[3]}, b); }"),
        (
            "products of float16 made twice",
            "{ mma_m16n8k16_f16(c, a, b); }",
            "{ mma_m16n8k16_f16(c, a, b), mma_m16n8k16_f16(c, a, b); }",
        ),
        (
            "channels of float16 lost",
            "{ mma_m16n8k16_f16(c, a, b); }",
            "{ mma_m16n8k16_f16(c, {a[0] & 0xffff0000u, a[1], a[2], a[3]}, b); }",
        ),
    ),
    "[1-bfloat16-rows]": (
        (
            "bfloat16 of half the depth",
            "Multiplier<bfloat16> {\n    static constexpr int depth = 16;",
            "Multiplier<bfloat16> {\n    static constexpr int depth = 8;",
        ),
        ("bfloat16 multiplied as float16", "mma_m16n8k16_bf16(c, a, b); }", "mma_m16n8k16_f16(c, a, b); }"),
        (
            "factors of bfloat16 swapped",
            "{ mma_m16n8k16_bf16(c, a, b); }",
            "{ mma_m16n8k16_bf16(c, {a[1], a[0], a[2], a[3]}, b); }",
        ),
        (
            "channels of bfloat16 lost",
            "{ mma_m16n8k16_bf16(c, a, b); }",
            "{ mma_m16n8k16_bf16(c, {a[0] & 0xffff0000u, a[1], a[2], a[3]}, b); }",
        ),
        ("bits of bfloat16 lost", "{ mma_m16n8k16_bf16(c, a, b); }", "{ mma_m16n8k16_bf16(c, a, {b[0] & 0xfff0fff0u, b[1]}); }"),
    ),
    "[1-float32-rows]": (
        (
            "float32 of half the depth",
            "Multiplier<float> {\n    static constexpr int depth = 8;",
            "Multiplier<float> {\n    static constexpr int depth = 4;",
        ),
        ("halves of the depth of float32 swapped", "{ mma_m16n8k8_tf32(c, a, b); }", "{ mma_m16n8k8_tf32(c, a, {b[1], b[0]}); }"),
        (
            "products of float32 made twice",
            "{ mma_m16n8k8_tf32(c, a, b); }",
            "{ mma_m16n8k8_tf32(c, a, b), mma_m16n8k8_tf32(c, a, b); }",
        ),
    ),
    "nearest_tf32": (
        ("float32 cut off instead of rounded", "return nearest_tf32(elements); }", "return elements; }"),
        (
            "float32 rounded to 9 bits of the fraction",
            "return nearest_tf32(elements); }",
            "return nearest_tf32(elements) & 0xffffc000u; }",
        ),
    ),
}

FORWARD_MMA = {
    "every_axis[0]": (
        ("an item too many", "if (item >= ITEMS) return", "if (item > ITEMS) return"),
        ("items of a row taken for the other image's", "items = second ? ROW2 : ROW1;", "items = second ? ROW1 : ROW2;"),
        ("rows of input2 laid as those of input1", "(second ? WIDTH2 : WIDTH1) + column / PHASES", "WIDTH1 + column / PHASES"),
        ("input2's rows begin at input1's", "(second ? rows.at2 : rows.at1) + row", "rows.at1 + row"),
        (
            "input2 is not displaced along x",
            "early * PHASES * horizontal.spacing : columns.at1)",
            "early * PHASES * horizontal.spacing + columns.at1 - columns.at2 : columns.at1)",
        ),
        ("a row past the last inside", "y >= (second ? vertical.size2", "y > (second ? vertical.size2"),
        ("a column past the last inside", "at < (second ? horizontal.size2", "at <= (second ? horizontal.size2"),
        ("sharers of columns take the first channels", ": SHARERS == 1 ? 0 : threadIdx.x / ITEMS", ": 0"),
        ("sharers copy the same channels", "channel = sharer() + k;", "channel = k;"),
        ("input1 is never brought", "loader.second = there;", "loader.second = there || tile >= 0;"),
        ("channels are not moved on", "next1 += channels * channel_stride1", "next1 += channel_stride1"),
        ("channels are not counted down", "left -= channels", "left -= 1"),
        (
            "images put into each other's stages",
            "(slot.second() ? stage2 : stage1) + slot.to()",
            "(slot.second() ? stage1 : stage2) + slot.to()",
        ),
        (
            "copies by threads without an item",
            "            if (skips(slot)) continue;\n            INPUT* const to = (slot.second() ? stage2 : stage1)",
            "            INPUT* const to = (slot.second() ? stage2 : stage1)",
        ),
        ("the last channels of a stage left out", "k < CHANNELS; k += SHARERS", "k < CHANNELS - SHARERS; k += SHARERS"),
        ("channels copied over each other", "bring(to + channel * slot.pitch(),", "bring(to,"),
        ("channels past the last copied", "channel < left ? slot.inside() : 0, slot.apart()", "slot.inside(), slot.apart()"),
        ("warps' rows of input2 overlap", "mets % MET_WARPS * MET_ROWS", "mets % MET_WARPS"),
        (
            "rows of input2 without their patch row",
            "(pair.met - pair.row) * vertical.patches_apart",
            "pair.met * vertical.patches_apart",
        ),
        ("an output row past the last asked for", "pair.row < rows.outputs &&", "pair.row <= rows.outputs &&"),
        ("patch row 0 not asked for", "m >= 0 && m < vertical.patch", "m > 0 && m < vertical.patch"),
        ("a patch row past the last asked for", "m >= 0 && m < vertical.patch", "m >= 0 && m <= vertical.patch"),
        (
            "lanes bring the matrices of columns in the other order",
            "(row + 8 * (matrix % 2)) * pitch + matrix / 2 * 8",
            "(row + 8 * (matrix / 2)) * pitch + matrix % 2 * 8",
        ),
        (
            "fragments' halves of the channels swapped",
            "groups[g][0] = matrices[0], groups[g][1] = matrices[1];",
            "groups[g][0] = matrices[1], groups[g][1] = matrices[0];",
        ),
        (
            "the last group of columns of input2 is the one before",
            "from + (count - 1) * GROUP * PIXEL",
            "from + (count - 2) * GROUP * PIXEL",
        ),
        ("matrices not transposed", "load_matrices<4, !CHANNELS_LAST>", "load_matrices<4, CHANNELS_LAST>"),
        (
            "a fragment's rows and channels swapped",
            "groups2[g][0], groups2[g + 1][0], groups2[g][1], groups2[g + 1][1]",
            "groups2[g][0], groups2[g][1], groups2[g + 1][0], groups2[g + 1][1]",
        ),
        ("the last channels left out", "stages = ceil_div(loader.left, CHANNELS)", "stages = loader.left / CHANNELS"),
        (
            "stages of input1 beyond their room",
            "kept > STAGES ? stage : stage % STAGES",
            "kept >= STAGES ? stage : stage % STAGES",
        ),
        ("barrier before a stage left out", "        __syncthreads();  // the stage is there", "        // the stage is there"),
        ("products are not cleared", "    clear(products);\n#pragma unroll 1", "#pragma unroll 1"),
        ("some products are not cleared", "i < PAIRS * GROUPS1 * MATRICES * 4", "i < PAIRS * GROUPS1 * MATRICES * 3"),
        ("the band's columns mirrored", "+ row - column - early;", "+ row + column - early;"),
        ("displacement 0 left out", "if (n >= 0 && n < patches) store", "if (n > 0 && n < patches) store"),
        ("displacement 0 of odd columns left out", "if (n >= 1 && n <= patches)", "if (n > 1 && n <= patches)"),
        ("the last displacement of odd columns left out", "if (n >= 1 && n <= patches)", "if (n >= 1 && n < patches)"),
        ("odd columns gathered at the even one's displacement", "to - LINE + 1, products", "to + 1, products"),
        ("groups of columns gathered over each other", "n * LINE + j * GROUP + column", "n * LINE + column"),
        (
            "rows of a fragment taken for columns",
            "row = lane / 4, column = 2 * (lane % 4);\n#pragma unroll\n    for (int k = 0; k < MATRICES",
            "row = lane % 8, column = 2 * (lane / 8);\n#pragma unroll\n    for (int k = 0; k < MATRICES",
        ),
        ("rows that are not asked for stored", "first + p >= PAIRS || !asked_for(pair, vertical, rows)", "first + p >= PAIRS"),
        ("a warp's pairs read as the first", "+ warp) * AT_ONCE + p;", "+ warp) * AT_ONCE;"),
        ("scale lost", "            run[k] *= out.scale;\n", ""),
        (
            "barrier before a band is gathered left out",
            "        __syncthreads();  // the last stage, or",
            "        // the last stage, or",
        ),
        (
            "barrier before a band is read left out",
            "early, columns.patches);\n        __syncthreads();",
            "early, columns.patches);",
        ),
        ("samples of input1 not told apart", "input1 + (block.b * batch_stride1", "input1 + (0 * batch_stride1"),
        ("samples of input2 not told apart", "input2 + (block.b * batch_stride2", "input2 + (0 * batch_stride2"),
        ("samples of the output not told apart", "block.b * batch_stride_out", "0 * batch_stride_out"),
    ),
    "every_axis[8]": (
        ("the last items are left out", "SLOTS = ceil_div(ITEMS * SHARERS, THREADS)", "SLOTS = 1"),
        (
            "sharers of a pixel take the first channels",
            "return CHANNELS_LAST ? threadIdx.x % SHARERS",
            "return CHANNELS_LAST ? 0",
        ),
        ("every thread has a pixel of its own", "return number / SHARERS;", "return number;"),
        ("runs of channels past the last copied", "min(max(left - first, 0), RUN)", "RUN"),
        ("channels that are left counted from the first run", "max(left - first, 0)", "max(left, 0)"),
        ("runs of channels laid over each other", "bring(to + first, source", "bring(to, source"),
        ("runs of channels all the first", "source(slot, first), slot.inside()", "source(slot, 0), slot.inside()"),
        (
            "matrices of a pixel's channels swapped",
            "(row + 8 * (matrix / 2)) * PIXEL + matrix % 2 * RUN",
            "(row + 8 * (matrix % 2)) * PIXEL + matrix / 2 * RUN",
        ),
    ),
    "[one phase-7-float32]": (
        ("tiles of input2 never begin early", "columns.at2 - early * PHASES", "columns.at2 - 0 * early * PHASES"),
        ("the band does not begin early", "+ row - column - early;", "+ row - column - 0 * early;"),
    ),
    "that_leave_nothing_out[aligned]": (
        (
            "pieces of a run a row of the other image apart",
            "piece * piece * items + k",
            "piece * piece * (second ? ROW1 : ROW2) + k",
        ),
        ("pieces of a run taken for neighbours", "(k / piece * piece * items + k % piece)", "k"),
        (
            "pieces put a row of the other image apart",
            "int apart() const { return second() ? ROW2 : ROW1; }",
            "int apart() const { return second() ? ROW1 : ROW2; }",
        ),
    ),
    "cases_equal_the_oracle[mma-stride and step coprime-busy]": (
        ("columns next to each other", "+ column * horizontal.spacing;\n    if", "+ column;\n    if"),
        ("rows next to each other", "+ row * vertical.spacing;\n    const int x", "+ row;\n    const int x"),
        ("displacements of other phases stored", "columns.patch + n * horizontal.patches_apart", "columns.patch + n"),
        ("rows of other phases stored", "rows.output + pair.row * vertical.outputs_apart", "rows.output + pair.row"),
        ("columns begin in other phases", "columns.output + column * horizontal.outputs_apart", "columns.output + column"),
    ),
    "its_own_way_equal_the_oracle[rows-one phase-bfloat16]": (
        ("rows of input2 as many as of input1", "y >= (second ? vertical.size2 : vertical.size1)", "y >= vertical.size1"),
        (
            "columns of input2 as many as of input1",
            "at < (second ? horizontal.size2 : horizontal.size1)",
            "at < horizontal.size1",
        ),
        ("rows of input2 apart as input1's", "y * (second ? image2.row_stride : image1.row_stride)", "y * image1.row_stride"),
        (
            "columns of input2 apart as input1's",
            "x * (second ? image2.column_stride : image1.column_stride)",
            "x * image1.column_stride",
        ),
        ("channels of input2 apart as input1's", "next2 + channel * channel_stride2", "next2 + channel * channel_stride1"),
        ("elements of input2 apart as input1's", "slot.second() ? column_stride2 : column_stride1);", "column_stride1);"),
        ("blocks whose first row has no displacement meet nothing", "Pair{SKEWED ? 0 : TILE_ROWS - 1, 0}", "Pair{0, 0}"),
        (
            "columns of input2 end where input1's do",
            "end_inside(columns.at2, horizontal.spacing, horizontal.size2)",
            "end_inside(columns.at2, horizontal.spacing, horizontal.size1)",
        ),
    ),
    "every_axis[17]": (
        ("phases of a row not parted", "(row * PHASES + column % PHASES) * (second", "(row * PHASES) * (second"),
        ("columns of a phase laid as if there were one", "+ column / PHASES) * PIXEL", "+ column) * PIXEL"),
        ("channels past the last loaded", "channel < left ? slot.inside() : 0, apart, run", "slot.inside(), apart, run"),
        ("a unit moves on by a stage", "advance(UNIT)", "advance(CHANNELS)"),
        (
            "channels of a unit put over each other",
            "put_run(to + (sharer() + k * SHARERS) * slot.pitch()",
            "put_run(to + sharer() * slot.pitch()",
        ),
        (
            "units of a stage put over each other",
            "place1(stage + AHEAD) + unit * PITCH1, place2(stage + AHEAD) + unit * PITCH2",
            "place1(stage + AHEAD), place2(stage + AHEAD)",
        ),
        (
            "a unit put into the stage that is read",
            "loader.put_unit(place1(stage + AHEAD) + unit * PITCH1, place2(stage + AHEAD)",
            "loader.put_unit(place1(stage) + unit * PITCH1, place2(stage)",
        ),
        (
            "single columns put as neighbours",
            "store_shared(to + k * (slot.apart() / PHASES), run[k])",
            "store_shared(to + k, run[k])",
        ),
        ("single columns put as runs", "if (piece == RUN) {", "if (piece >= 1) {"),
        ("phases of warps not told apart in input2", "(warp.met * PHASES + warp.phase) * WIDTH2", "(warp.met * PHASES) * WIDTH2"),
        ("phases taken for rows", "rows = warp / PHASES, mets", "rows = warp, mets"),
        ("a warp's rows of input2 apart as in one phase", "from2 + u * PHASES * WIDTH2 * PIXEL", "from2 + u * WIDTH2 * PIXEL"),
        ("columns of all phases from the first warp", "rest * PHASES + (column + k) % PHASES;", "rest * PHASES;"),
        ("columns of phases not put together again", "n * LINE + (column + k) / PHASES", "n * LINE + (column + k)"),
        ("phases of warps not skipped where rows are found", "Warp::number(rest * PHASES)", "Warp::number(rest)"),
        ("the same channels of input2 in every unit", "place2(stage) + unit * DEPTH2", "place2(stage)"),
        ("columns met as in one phase", "met = column + n * PHASES;", "met = column + n;"),
    ),
    "[both phases-7-float32]": (
        ("columns that come early counted in one phase", "early * PHASES * horizontal.spacing :", "early * horizontal.spacing :"),
    ),
    "counted_to_be_loaded_is_loaded[9-channels_last]": (
        ("pixels outside copied", "slot.inside() ? (1u << wanted) - 1 : 0, 1, 1)", "(1u << wanted) - 1, 1, 1)"),
    ),
    "passes_over": (
        ("input2 skipped in later passes", "second && !slot.second()", "second && slot.second()"),
        (
            "stages that are kept laid over each other",
            "kept > STAGES ? stage : stage % STAGES",
            "kept > STAGES ? stage % STAGES : stage % STAGES",
        ),
        ("input2 laid over the kept stages", "shared + kept * STAGE1", "shared + STAGES * STAGE1"),
        ("every block takes the patch rows of one pass", "passes * MET, patch_columns", "MET, patch_columns"),
        (
            "rows of input2 of a pass are those of the first",
            "block.rows.at2 += pass * MET * vertical.spacing;",
            "block.rows.at2 += 0 * pass;",
        ),
        ("all passes stored as the first", "block = block_at(unknown(tile), pass)", "block = block_at(unknown(tile), 0)"),
        ("barrier before the next pass left out", "        __syncthreads();  // nobody reads", "        // nobody reads"),
    ),
    "counted_to_be_loaded_is_loaded[9-aligned]": (
        ("input1 brought in every pass", "loader.second = there;", "loader.second = there && tile < 0;"),
    ),
    "count_to_the_last[1-float16-rows]": (
        ("single elements copied as pieces", "if (piece == 1) copy_elements", "if (piece == 0) copy_elements"),
    ),
    "[both phases-9-float32]": (
        ("phases of a run one after the other", "run[k * PHASES + phase]", "run[k + phase * (RUN / PHASES)]"),
        (
            "phases of input2 put where those of input1 go",
            "to + phase * (slot.second() ? WIDTH2 : WIDTH1)",
            "to + phase * WIDTH1",
        ),
    ),
    "fit[4 bytes beyond a line-columnwise]": (
        (
            "pieces that are shorter than runs taken for single columns",
            "if (STAGING == COLUMNWISE && loader.piece < RUN) loader.piece = 1;\n",
            "",
        ),
    ),
    "cases_equal_the_oracle[mma-pwcnet-like-busy]": (
        ("skewed rows begin at the same row of input2", "(SKEWED ? row : 0)", "0"),
        ("a displacement before the first of odd columns gathered", "if (n >= 1 && n <= patches)", "if (n >= 0 && n <= patches)"),
    ),
    "every_axis[5]": (
        ("rows of a warp overlap", "row = rows % ROW_WARPS * ROWS", "row = rows % ROW_WARPS"),
        ("rows skewed that are not", "(SKEWED ? row : 0)", "row"),
        (
            "pairs counted along input2 first",
            "Pair{warp.row + pair % ROWS, warp.met + pair / ROWS}",
            "Pair{warp.row + pair / MET_ROWS, warp.met + pair % MET_ROWS}",
        ),
        ("patch rows before the first asked for", "m >= 0 && m < vertical.patch", "m < vertical.patch"),
        ("sums of pairs counted along input2 first", "products[u * ROWS + r][j][k]", "products[r * MET_ROWS + u][j][k]"),
        ("all rows of a warp are the first of input1", "from1 + r * PHASES * WIDTH1 * PIXEL", "from1"),
        ("neighbouring matrices of a band overlap", "g = j + 2 * k;", "g = j + k;"),
        ("more pairs gathered than fit", "AT_ONCE = lesser(FITTING, PAIRS)", "AT_ONCE = PAIRS"),
        ("pairs after those at once gathered too", "if (p >= first && p < first + AT_ONCE)", "if (p >= first)"),
        ("pairs not counted from the first at once", "AT_ONCE + p - first) * BAND", "AT_ONCE + p) * BAND"),
    ),
    "every_axis[2]": (
        ("every share multiplies the first channels of input2", "warp.share * Multiply::depth * DEPTH2", "0"),
        ("the last share left out", "share < SHARES; share++", "share < SHARES - 1; share++"),
        ("shares read as the first", "share * (BLOCK_WARPS / SHARES) + warp", "warp"),
        ("lanes of single channels swapped", "return lane % 4 * pitch + lane / 4;", "return lane / 8 * pitch + lane % 8;"),
        ("the second half of the channels next to the first", "g * GROUP + half * 4 * pitch", "g * GROUP + half * pitch"),
        ("one stage too few asked for at first", "stage < AHEAD; stage++", "stage < AHEAD - 1; stage++"),
        ("the first stages not committed", "place2(stage));\n        copy_async_commit();", "place2(stage));"),
        ("stages not committed", "place2(stage + AHEAD));\n        copy_async_commit();", "place2(stage + AHEAD));"),
        ("stages not waited for", "copy_async_wait<AHEAD - 1>()", "copy_async_wait<AHEAD>()"),
        (
            "a barrier before the wait in place of after it",
            "        if (ASYNCHRONOUS) copy_async_wait<AHEAD - 1>();\n        __syncthreads();",
            "        __syncthreads();\n        if (ASYNCHRONOUS) copy_async_wait<AHEAD - 1>();",
        ),
        ("the last stage is not brought", "more = stage + AHEAD < stages", "more = stage + AHEAD < stages - 1"),
    ),
    "rounded_to_the_nearest_tf32": (
        ("halves of the fragments not rounded", "groups[g][0] = Multiply::rounded(groups[g][0])", "groups[g][0] = groups[g][0]"),
    ),
    "factors": (
        (
            "the other halves of the fragments not rounded",
            "groups[g][1] = Multiply::rounded(groups[g][1])",
            "groups[g][1] = groups[g][1]",
        ),
    ),
    "every_axis[9]": (("stages of input2 beyond their room", "shared2 + stage % STAGES * STAGE2", "shared2 + stage * STAGE2"),),
    "told_apart_in_every_pass": (
        ("patch rows of a pass without their phases", "pass * MET * vertical.patches_apart", "pass * MET"),
        (
            "patch rows of one phase taken for neighbours",
            "(pair.met - pair.row) * vertical.patches_apart",
            "(pair.met - pair.row) * vertical.spacing",
        ),
        ("rows inside without their spacing", "rows.at1 + pair.row * vertical.spacing, y2", "rows.at1 + pair.row, y2"),
    ),
    "whose_rows_meet_nothing": (
        (
            "blocks that meet nothing are brought",
            "if (rows_meet(vertical, block.rows)) {",
            "if (rows_meet(vertical, block.rows) || true) {",
        ),
        ("rows of one image are enough to meet", "return any1 && any2 &&", "return (any1 || any2) &&"),
    ),
    "of_what_is_multiplied[P 21]": (
        ("pairs that are not asked for multiplied", "if (asked_for(pair_of(warp, p), vertical, rows) && inside(", "if (inside("),
    ),
    "any_tile_that_fits": (
        ("a block's last row of input1 does not count", "min(ROWS1, end_inside", "min(ROWS1 - 1, end_inside"),
    ),
    "has_its_products[0]": (
        ("a block's last row of input2 does not count", "min(ROWS2, end_inside", "min(ROWS2 - 1, end_inside"),
    ),
    "no_further": (
        ("the last run of a row left out", "runs = ceil_div(columns.outputs, count)", "runs = columns.outputs / count"),
        ("columns past the last output stored", "columns.outputs - column, run", "columns.outputs, run"),
    ),
    "[one phase-9-float32]": (
        ("runs of a row overlap", "digit(rest, runs) * count, n", "digit(rest, runs), n"),
        ("a line too few for the band", "2 * GROUP * MATRICES - GROUP + 1;", "2 * GROUP * MATRICES - GROUP;"),
    ),
    "every_axis[1]": (("pairs past the last stored", "if (first + p >= PAIRS || !asked_for", "if (!asked_for"),),
    "of_the_band_few[P 9-bfloat16]": (("lines of a band meet the same banks", "LINE = WIDTH1 + 5", "LINE = WIDTH1"),),
    "infinite_in_the_other[x1]": (
        (
            "columns that are outside stored",
            " || !inside_columns.hold(column + k, n)) continue",
            " || (k < 0 && !inside_columns.hold(column + k, n))) continue",
        ),
        ("columns before input2 stored", "met >= begin2 && ", ""),
        ("a row before input2 stored", "&& y2 >= 0 && y2 < vertical.size2;", "&& y2 >= -1 && y2 < vertical.size2;"),
        ("a row past input2 stored", "&& y2 >= 0 && y2 < vertical.size2;", "&& y2 >= 0 && y2 <= vertical.size2;"),
    ),
    "infinite_in_the_other[x2]": (
        ("columns before input1 stored", "column >= begin1 && ", ""),
        ("a row before input1 stored", "return y1 >= 0 &&", "return y1 >= -1 &&"),
        ("a row past input1 stored", "y1 < vertical.size1 &&", "y1 <= vertical.size1 &&"),
    ),
    "as_far_apart_as_they_lie": (
        (
            "columns of input1 brought without their spacing",
            "loader.column_stride1 = horizontal.spacing * column_stride1",
            "loader.column_stride1 = column_stride1",
        ),
        (
            "columns of input2 brought without their spacing",
            "loader.column_stride2 = horizontal.spacing * column_stride2",
            "loader.column_stride2 = column_stride2",
        ),
    ),
    "cases_equal_the_oracle[mma-pwcnet-like-idle]": (
        ("every part sums the first channels", "begin = block.split * split_channels", "begin = 0 * block.split"),
        ("parts of input2 begin at the first channel", " + begin * channel_stride2", ""),
        (
            "the last part as long as the others",
            "left = min(split_channels, channels - begin)",
            "left = min(split_channels, channels)",
        ),
    ),
    "long_sums": (
        ("parts of the channels overlap", "left = min(split_channels, channels - begin)", "left = channels - begin"),
        ("parts stored over each other", "block.split * split_stride_out", "0 * split_stride_out"),
    ),
    "fit[4 bytes beyond a line-copied]": (
        ("input2 taken to be aligned as input1", "min(aligned(input1, piece), aligned(input2, piece))", "aligned(input1, piece)"),
    ),
    "smaller_than_the_work_loops_over_the_rest[mma": (
        ("the grid does not loop", "tile += gridDim.x", "tile += tiles"),
        ("blocks take each other's tiles", "tile += gridDim.x", "tile += 1"),
    ),
    "apart_are_reached[batch]": (
        (
            "samples' offsets in 32 bits",
            "input1 + (block.b * batch_stride1 +",
            "input1 + static_cast<int>(block.b * batch_stride1 +",
        ),
    ),
    "apart_are_reached[channels]": (
        (
            "channels' offsets in 32 bits",
            "next1 + channel * channel_stride1)",
            "next1 + static_cast<int>(channel * channel_stride1))",
        ),
    ),
}

SUM_PARTS = {
    "in_parts_give_the_same_sums[3-float32]": (
        ("runs overlap", "at % runs * RUN", "at % runs"),
        ("rows counted without the runs", "row = at / runs", "row = at"),
        ("the first axis but one decoded as the last", "c = row / size_d % size_c", "c = row % size_c"),
        ("patch indices decoded without the rows", "b = row / size_d / size_c % size_b", "b = row / size_d % size_b"),
        ("samples decoded without the displacements", "a = row / size_d / size_c / size_b", "a = row / size_d / size_c"),
        ("samples not told apart", "a * stride_from_a", "0 * stride_from_a"),
        ("columns of what is read in one place", "x * column_stride_from)", "0 * column_stride_from)"),
        ("the last part left out", "k < parts;", "k < parts - 1;"),
        ("a part too many", "k < parts;", "k <= parts;"),
        ("the first part again", "source += part_stride", "source += 0 * part_stride"),
        ("a run goes past the end of its row", "column_stride_from, width - x, run", "column_stride_from, width, run"),
        ("a run stored past the end of its row", "column_stride_to, width - x, sums", "column_stride_to, width, sums"),
        ("parts subtracted", "sums.part[r] += run[r]", "sums.part[r] -= run[r]"),
        ("the last fold left out", "        sums.fold();\n", ""),
        ("scale lost", "sums.total[r] *= scale", "sums.total[r] *= scale / scale"),
        ("strides of what is written swapped", "b * stride_to_b + c * stride_to_c", "b * stride_to_c + c * stride_to_b"),
        ("a thread too many", "at < threads", "at <= threads"),
    ),
    "smaller_than_the_work_loops_over_the_rest[idle]": (("the grid does not loop", "at += all", "at += all + threads"),),
    "that_fill_their_blocks_equal_the_oracle[tiled-idle": (
        ("a run too many where columns fill them", "(width + RUN - 1) / RUN", "(width + RUN) / RUN"),
    ),
    "many_parts_keep_the_error_bound": (("parts not counted", "sums.added(1)", "sums.added(0)"),),
}

GRADIENT_PHASES = {
    "equals_the_oracle[float32-rows]": (
        ("the first of a range left out", "begin <= index && index < end", "begin < index && index < end"),
        ("one past a range taken", "begin <= index && index < end", "begin <= index && index <= end"),
        ("first index inside rounded down", "(step - 1 - first) / step", "-first / step"),
        ("last index inside rounded down", "left > 0 ? (left + step - 1) / step", "left > 0 ? left / step"),
        ("the output stands at the other image's pixel", "(second ? k : t)", "(second ? t : k)"),
        ("patch mirrored", "(second ? patch - 1 - m : m) * patch_stride", "m * patch_stride"),
        (
            "pixels of the shortest phase only",
            "(own_size + step / together - 1) / (step / together)",
            "own_size / (step / together)",
        ),
        ("the other image displaced a step too far", "-first - (patch - 1) * step", "-first - patch * step"),
        ("gradient 1 displaced the wrong way", "(patch - 1) * step : first)", "(patch - 1) * step : -first)"),
        ("the last row is not streamed", "rows.end + m.end - 1}", "rows.end + m.end - 2}"),
        ("the first row is not streamed", "Range{rows.begin + m.begin,", "Range{rows.begin + m.begin + 1,"),
        ("rows outside streamed", "m.end - 1}.within(y.met)", "m.end - 1}"),
        ("rows meet whatever their displacement", "y.read.has(t) && m.has(k - t)", "y.read.has(t) && (k >= t || k < t)"),
        (
            "tiles of rows overlap",
            "ceil_div(vertical.longest(1), extent.rows)) * extent.rows;",
            "ceil_div(vertical.longest(1), extent.rows));",
        ),
    ),
    "every phase has its outputs elsewhere-busy": (
        (
            "outputs found on the wrong side of the padding",
            "made.other : made.own) + padding",
            "made.other : made.own) - padding",
        ),
        ("positions between outputs read", "z % stride == 0 ? inside", "z % stride <= stride ? inside"),
        ("outputs as far apart as pixels", "made.output_step = made.step / stride", "made.output_step = made.step"),
        ("outputs begin at the first", "const long long at = output + ", "const long long at = 0 * output + "),
        (
            "cotangents of outputs past the last for gradient 2",
            "if (second) made.met = made.met.within(answered);\n        else",
            "if (!second)",
        ),
        ("cotangents of outputs past the last for gradient 1", "        else made.read = made.read.within(answered);\n", ""),
        (
            "phases of columns counted along y",
            "digit(number, horizontal.phases(PHASES))",
            "digit(number, vertical.phases(PHASES))",
        ),
    ),
    "pwcnet-like-idle": (("parts of rows go past their end", "min(m + parts.rows, vertical.patch)", "vertical.patch"),),
    "cotangents_more_than_2_to_the_31": (
        ("cotangent's offsets in 32 bits", "* patch_stride + at * stride;", "* static_cast<int>(patch_stride) + at * stride;"),
    ),
    "seams[1 phases, 32 x 2 x 32, 9]": (
        (
            "tiles of channels overlap",
            "ceil_div(channels, extent.channels)) * extent.channels;",
            "ceil_div(channels, extent.channels));",
        ),
        (
            "tiles of columns overlap",
            "ceil_div(horizontal.longest(PHASES), extent.columns)) * extent.columns;",
            "ceil_div(horizontal.longest(PHASES), extent.columns));",
        ),
    ),
    "one-sided stereo-idle": (
        ("parts of columns go past their end", "min(n + parts.columns, horizontal.patch)", "horizontal.patch"),
    ),
    "every phase has its outputs elsewhere-idle": (
        ("phases of rows counted along x", "digit(number, vertical.phases(1))", "digit(number, horizontal.phases(1))"),
    ),
    "keep_the_error_bound[one column]": (
        ("parts of rows overlap", "tile.part % parts.of_rows * parts.rows", "tile.part % parts.of_rows"),
    ),
}

GRADIENT_TILED = {
    "equals_the_oracle[float32-rows]": (
        ("phases laid over each other", "u % PHASES * plane + u / PHASES", "u + 0 * plane"),
        ("columns outside loaded", "return met.has(first + u) && c", "return (met.has(first + u) || u >= 0) && c"),
        ("channels past the last loaded", " && c < channels; }", " && c >= 0; }"),
        ("samples of the other image not told apart", "tile.sample * image.batch_stride", "0 * image.batch_stride"),
        ("rows apart as in one phase", "(tile.y.other + at.k * tile.y.step)", "(tile.y.other + at.k)"),
        ("a row's displacement is not the row's", "at.k, at.k - row, cotangent.m_stride", "at.k, at.k, cotangent.m_stride"),
        ("cotangents of the tile's first row for all", "from + q * next_row", "from + 0 * q * next_row"),
        ("cotangents of one displacement for all", "k < batch; k++, from += next)", "k < batch; k++, from += 0 * next)"),
        ("cotangents begin at the first row", "along_y(tile.row) + along_x", "along_y(0) + along_x"),
        ("samples of the cotangent not told apart", "tile.sample * cotangent.batch_stride", "0 * cotangent.batch_stride"),
        ("cotangents of rows that meet nothing loaded", "counts && tile.meets(tile.row + q, at.k) ?", "counts ?"),
        (
            "cotangents of the rows over each other",
            "to + (q * WIDTH + n + k * apart) * PHASE_COLUMNS, values",
            "to + (n + k * apart) * PHASE_COLUMNS, values",
        ),
        (
            "cotangents of the displacements over each other",
            "to + (q * WIDTH + n + k * apart) * PHASE_COLUMNS, values",
            "to + (q * WIDTH + n) * PHASE_COLUMNS, values",
        ),
        (
            "rows of a thread not told apart in the sum",
            "cotangent + (q * WIDTH + n + i) * PHASE_COLUMNS",
            "cotangent + (n + i) * PHASE_COLUMNS",
        ),
        ("channels of a thread not told apart", "image + c * CHANNEL_LANES * PITCH + n", "image + n"),
        ("columns are not displaced", "x[i + column], sums", "x[column], sums"),
        ("the gradient's sign", "multiply_add(g[q][i][column]", "multiply_add(-g[q][i][column]"),
        ("a part of 4 displacements left out", "if (part > 4 && n + 4 <= count)", "if (part > 4 && n + 4 < count)"),
        (
            "the second row is not put in the first's place",
            "        if (second) swap_rows(sums);\n        add_any<1>",
            "        add_any<1>",
        ),
        ("the second row is not put back", "count);\n        if (second) swap_rows(sums);", "count);"),
        (
            "the first row is lost when rows are swapped",
            "sums.of[c][1][column] = first;",
            "sums.of[c][1][column] = first - first;",
        ),
        ("columns of neighbouring threads overlap", "lane / 4 % COLUMN_LANES * COLUMNS", "lane / 4 % COLUMN_LANES"),
        ("channels of neighbouring threads not told apart", "* 4 + lane % 4;", "* 4;"),
        (
            "image read without the thread's channel",
            "seat.phase * IMAGE_PLANE + seat.channel * PITCH + seat.column;\n    const Sum* const cotangent",
            "seat.phase * IMAGE_PLANE + seat.column;\n    const Sum* const cotangent",
        ),
        ("phases of the image not told apart", "image = buffer + seat.phase * IMAGE_PLANE", "image = buffer"),
        ("phases of the cotangent not told apart", "seat.phase * COTANGENT_PLANE", "0 * COTANGENT_PLANE"),
        ("the second row meets what the first does", "second = tile.meets(t + 1, at.k)", "second = tile.meets(t, at.k)"),
        ("the second row takes the first's cotangent", "second ? cotangent + WIDTH * PHASE_COLUMNS : cotangent", "cotangent"),
        ("samples of the gradient not told apart", "tile.sample * to.batch_stride", "0 * to.batch_stride"),
        (
            "barrier before sums are gathered left out",
            "for (int q = 0; q < ROWS; q++) {\n        __syncthreads();",
            "for (int q = 0; q < ROWS; q++) {",
        ),
        ("barrier before gathered sums are read left out", "sums.of[c][q]);\n        __syncthreads();", "sums.of[c][q]);"),
        ("phases gathered over each other", "* PHASES + seat.phase) * IMAGE_PLANE", "* PHASES) * IMAGE_PLANE"),
        ("rows past the last stored", "if (t >= tile.y.size) break;", "if (t > tile.y.size) break;"),
        (
            "columns past the last stored",
            "u < TILE_COLUMNS && tile.column + u < tile.x.size",
            "u < TILE_COLUMNS && tile.column + u <= tile.x.size",
        ),
        ("channels past the last stored", "tile.channel + c < channels;", "tile.channel + c < channels + TILE_CHANNELS;"),
        ("rows of one phase stored as neighbours", "(tile.y.own + t * tile.y.step)", "(tile.y.own + t)"),
        ("every other row of a thread is the first", "tile.row + group * ROWS + q", "tile.row + group * ROWS"),
        ("columns gathered in one place", "+ place(u, IMAGE_PLANE);\n", ";\n"),
        ("scale lost", "load_shared(from + c * PITCH) * scale", "load_shared(from + c * PITCH) * (scale / scale)"),
        ("each gradient from its own input", "if (second) image = image1;", "if (!second) image = image1;"),
        ("gradients stored as each other", "if (second) result = result2;", "if (!second) result = result2;"),
        ("tiles of gradient 2 counted on from gradient 1's", "second ? number - tiles_of_first : number", "number"),
        ("barrier between steps left out", "            __syncthreads();\n            now = next;", "            now = next;"),
        ("buffers do not take turns", "            load = worked;\n", "            load = worked == shared ? load : worked;\n"),
        (
            "the last step is brought and not worked on",
            "while (now.n < tile.n.end || next.n < tile.n.end)",
            "while (next.n < tile.n.end)",
        ),
        ("the last row of a step left out", "++next.k >= rows.end", "++next.k >= rows.end - 1"),
    ),
    "equals_the_oracle[float32-channels last]": (
        ("channels loaded in runs overlap", "lane % 2) * RUN; c <", "lane % 2); c <"),
        ("runs of channels loaded again", "c += 2 * WARPS * RUN", "c += WARPS * RUN"),
        ("channels of a run past the last loaded", "counts ? piece.channels - c : 0", "counts ? RUN : 0"),
        ("columns of channel runs are outside as the first", "piece.counts(u + k * apart, c)", "piece.counts(u, c)"),
        ("columns of channel runs past the last stored", "                    if (u + k * apart < piece.end)\n", ""),
        ("channels of a run over each other", "IMAGE_PLANE) + (c + r) * PITCH", "IMAGE_PLANE) + c * PITCH"),
    ),
    "equals_the_oracle[float32-every other column]": (
        (
            "single columns of one channel for all",
            "k++, from += WARPS * piece.channel_stride",
            "k++, from += 0 * piece.channel_stride",
        ),
        ("single columns past the last channel", "piece.counts(u, c + k * WARPS)", "piece.counts(u, c)"),
        ("single columns begin at the first channel", "from += first * piece.channel_stride + u", "from += u"),
        ("single columns stored at the first channel", "place(u, IMAGE_PLANE) + first * PITCH", "place(u, IMAGE_PLANE)"),
        ("channels of single columns over each other", "store_shared(column + k * WARPS * PITCH", "store_shared(column"),
    ),
    "every phase has its outputs elsewhere-busy": (
        (
            "columns of one phase stored as neighbours",
            "(tile.x.own + (tile.column + u) * tile.x.step)",
            "(tile.x.own + tile.column + u)",
        ),
    ),
    "seams[1 phases, 128 x 2 x 8, any 20]": (
        ("channels of all tiles loaded as the first's", "channels - tile.channel, first, end", "channels, first, end"),
        ("channels of all tiles stored as the first's", "tile.channel * to.channel_stride", "0 * to.channel_stride"),
        ("channels of all tiles are the first's", "tile.channel * image.channel_stride", "0 * image.channel_stride"),
        ("displacements after the first step are the same", "next.n + WIDTH}", "next.n + 2 * WIDTH}"),
        ("channels of a warp's lanes overlap", "lane / (4 * COLUMN_LANES) * 4", "lane / (4 * COLUMN_LANES)"),
    ),
    "seams[2 phases, 64 x 4 x 32, 21]": (
        (
            "displacements beyond a part of 12 left out",
            "if constexpr (left > count) add_exactly",
            "if constexpr (left < count) add_exactly",
        ),
        ("rows of warps not told apart", "warp / PHASES / CHANNEL_WARPS * ROWS", "0 * ROWS"),
        ("cotangents of rows of warps not told apart", "seat.row * (WIDTH * PHASE_COLUMNS)", "0 * (WIDTH * PHASE_COLUMNS)"),
        ("warps meet the rows of the first", "t = tile.row + seat.row", "t = tile.row"),
        ("rows of warps gathered over each other", "(seat.row / ROWS * PHASES + seat.phase)", "(seat.phase)"),
        ("rows of warps read from the first's", "group * (PHASES * IMAGE_PLANE)", "0 * (PHASES * IMAGE_PLANE)"),
        ("rows of all warps but the first left out", "group < ROW_WARPS; group++", "group < 1; group++"),
    ),
    "[one-sided stereo-busy]": (
        ("parts of 8 displacements left out", "for (; n + part <= count; n += part)", "for (; n + part < count; n += part)"),
    ),
    "pwcnet-like-idle": (("parts of the sum stored over each other", "tile.part * to.part_stride", "0 * to.part_stride"),),
    "is_not_finite_stays": (
        ("rows that meet nothing multiplied by 0", "if (first && second) {", "if (first || second) {"),
        ("pixels that no output reads keep what was multiplied", "read ? load_shared", "read || u >= 0 ? load_shared"),
        (
            "cotangents of pixels that nothing reads loaded",
            "const bool counts = read && n",
            "const bool counts = (read || t >= 0) && n",
        ),
        (
            "cotangents of columns that meet nothing loaded",
            "count && tile.x.met.has(t + PHASES * (at.n + n + k * apart));",
            "count;",
        ),
    ),
    "equals_the_oracle[bfloat16-rows]": (
        (
            "the input's type keeps the sum",
            "multiply_add(g[q][i][column], x[i + column], sums.of[c][q][column])",
            "widen(Narrow<INPUT>::from(multiply_add(g[q][i][column], x[i + column], sums.of[c][q][column])))",
        ),
    ),
    "smaller_than_the_work_loops_over_the_rest[busy]": (
        ("the grid does not loop", "number += gridDim.x", "number += tiles"),
        ("blocks take each other's tiles", "number += gridDim.x", "number += 1"),
    ),
    "cotangents_more_than_2_to_the_31": (
        (
            "cotangent's samples in 32 bits",
            "tile.sample * cotangent.batch_stride",
            "tile.sample * static_cast<int>(cotangent.batch_stride)",
        ),
    ),
    "elements_more_than_2_to_the_31": (
        ("samples' offsets in 32 bits", "tile.sample * image.batch_stride", "tile.sample * static_cast<int>(image.batch_stride)"),
    ),
    "bank_conflicts": (
        (
            "lanes meet every other column first",
            "lane / 4 % COLUMN_LANES * COLUMNS",
            "(lane / 4 * 2 + lane / 16) % COLUMN_LANES * COLUMNS",
        ),
    ),
    "16_bytes_at_a_time[pwcnet-like]": (
        ("runs of columns never loaded", "return column_stride == 1 && aligned", "return column_stride == 0 && aligned"),
    ),
    "neighbouring_channels_are_loaded_16_bytes_at_a_time[float32]": (
        ("runs of channels never loaded", "else if (image.channel_stride == 1)", "else if (image.channel_stride == 0)"),
    ),
    "seams[1 phases, 32 x 2 x 32, 9]": (
        ("columns counted from the tile's first", "met.has(first + u)", "met.has(u)"),
        (
            "the last column that is met is not brought",
            "PHASES * (PHASE_COLUMNS + count - 1)",
            "PHASES * (PHASE_COLUMNS + count - 2)",
        ),
        ("channels of a run not told apart", "store_run_apart(to + k * CHANNELS_APART * PITCH", "store_run_apart(to"),
        ("runs of channels past the last", "piece.counts(u, c + k * CHANNELS_APART)", "piece.counts(u, c)"),
        ("runs begin in one place", "(c * piece.channel_stride + u)", "(c * piece.channel_stride)"),
        (
            "one channel's run for all",
            "k++, from += CHANNELS_APART * piece.channel_stride",
            "k++, from += 0 * piece.channel_stride",
        ),
        ("threads beyond the row store runs", "    if (u >= piece.end) return;\n", ""),
    ),
    "[float32-every other column]": (
        ("runs of columns whatever their stride", "return column_stride == 1 && aligned", "return aligned"),
    ),
    "seams[1 phases, 32 x 2 x 32, any 20]": (
        ("columns of a step without its displacements", "tile.column + PHASES * at.n, column", "tile.column, column"),
    ),
    "wide_problems": (("columns apart as in one phase", "tile.x.other + first * tile.x.step", "tile.x.other + first"),),
    "seams[1 phases, 64 x 4 x 32, 9]": (
        ("cotangents begin at the first displacement", "along_x(at.n + n));", "along_x(at.n));"),
        (
            "channels of warps not told apart",
            "warp / PHASES % CHANNEL_WARPS * (CHANNELS * CHANNEL_LANES)",
            "0 * (CHANNELS * CHANNEL_LANES)",
        ),
    ),
    "seams[2 phases, 32 x 2 x 32, 21]": (("runs laid as single columns", "to += c * PITCH + u / PHASES", "to += c * PITCH + u"),),
    "smaller_than_the_work_loops_over_the_rest[idle]": (
        ("barrier before the next tile left out", "scale, shared);\n        __syncthreads();", "scale, shared);"),
    ),
    "that_begin_where_16_bytes_do_equal_the_oracle[float16-one phase]": (
        (
            "the second vector of a run over the first",
            "to + p * IMAGE_PLANE + k / PHASES), values",
            "to + p * IMAGE_PLANE), values",
        ),
    ),
    "infinite_where_that_part[begins]": (("runs that begin outside", " && (met.begin - first) % RUN == 0", ""),),
    "infinite_where_that_part[ends]": (("runs that end outside", " && (met.end - first) % RUN == 0", ""),),
    "wide_rows_of_neighbouring_channels": (
        ("columns of channel runs left out", "u < piece.end; u += count * apart)", "u < apart; u += count * apart)"),
    ),
    "neighbouring_channels_are_stored_in_whole_sectors": (
        (
            "stores along columns where channels are neighbours",
            "to.channel_stride == 1 && to.column_stride != 1",
            "to.channel_stride == 0 && to.column_stride != 1",
        ),
    ),
    "larger_image_equal_the_oracle[float32-one phase]": (
        (
            "runs of columns from any address",
            "% sizeof(Words16) == 0 && channel_stride % RUN == 0",
            "% sizeof(INPUT) == 0 && channel_stride % RUN == 0",
        ),
        (
            "runs of columns whatever the channels are apart",
            "% sizeof(Words16) == 0 && channel_stride % RUN == 0",
            "% sizeof(Words16) == 0",
        ),
    ),
    "that_begin_where_16_bytes_do_equal_the_oracle[float32-both phases]": (
        ("phases of a run one after the other", "run[k + i * PHASES + p]", "run[k + i + p * together]"),
    ),
}

GRADIENT_MMA = {
    "[bfloat16, 1 phases, 64 x 4 x 16, 9]": (
        (
            "rows meet whatever their displacement",
            "return read.has(t) && m.has(k - t)",
            "return read.has(t) && (k >= t || k < t)",
        ),
        (
            "channels of all tiles are the first's",
            "batch_stride + tile.channel * image.channel_stride",
            "batch_stride + 0 * image.channel_stride",
        ),
        (
            "rows of X begin at the first tile's",
            "(tile.y.other + tile.row * tile.y.step) * image.row_stride",
            "(tile.y.other) * image.row_stride",
        ),
        (
            "columns of X begin at the first tile's",
            "(tile.x.other + tile.column * tile.x.step) * image.column_stride",
            "(tile.x.other) * image.column_stride",
        ),
        (
            "cotangents begin at the first row's displacement",
            "tile.y.offset(tile.row + t, tile.row + k, k - t,",
            "tile.y.offset(tile.row + t, tile.row + k, k,",
        ),
        (
            "columns that are met counted from the first tile's",
            "stream.met_columns = from(tile.column, tile.x.met)",
            "stream.met_columns = from(0, tile.x.met)",
        ),
        (
            "channels past the last loaded",
            "min(channels - tile.channel, TILE_CHANNELS);\n    stream.shift",
            "max(channels - tile.channel, TILE_CHANNELS);\n    stream.shift",
        ),
        (
            "a row's shift is not the band's",
            "const int shift = shift_of(tile, width);",
            "const int shift = shift_of(tile, width) + 1;",
        ),
        ("columns of X begin without the shift", "PHASES * (at.n - stream.shift), met", "PHASES * at.n, met"),
        ("displacements past the last multiplied", "if (n >= end || counts.begin", "if (n >= end + width || counts.begin"),
        ("displacements of the first step for all", "const int n = at.n + place.n;", "const int n = place.n;"),
        ("runs of a row overlap", "int u = place.run * RUN;", "int u = place.run;"),
        ("a run's columns inside as its first", "if (counts.has(u + i)) values[i]", "if (counts.has(u)) values[i]"),
        (
            "rows of the band over each other",
            "bands += band(0, place.row, 0) + (place.n + shift) * SIDE;",
            "bands += band(0, 0, 0) + (place.n + shift) * SIDE;",
        ),
        ("the band is not shifted", "(place.n + shift) * SIDE;", "(place.n + 0 * shift) * SIDE;"),
        ("the band is upright", "t % SIDE * (SIDE + 1);", "t % SIDE;"),
        ("column tiles of the band over each other", "band(u % PHASES, 0, t / SIDE)", "band(u % PHASES, 0, 0)"),
        ("a run begins at its first word whatever the turn", "(i / each + turn) % 4 * each", "i / each * each"),
        (
            "the last runs of a row left out",
            "run = last ? RUNS - 1 : digit(number, RUNS - 1);",
            "run = last ? 0 : digit(number, RUNS - 1);",
        ),
        (
            "warps have the same channels",
            "channel = digit(warp, CHANNEL_WARPS) * (2 * SIDE * CHANNEL_TILES);",
            "channel = digit(warp, CHANNEL_WARPS) * 0;",
        ),
        ("warps' rows overlap", "row = warp * ROWS;", "row = warp;"),
        ("lanes bring the lower channels twice", "lower = lane / SIDE % 2 * SIDE;", "lower = 0;"),
        ("the next group's columns are the first's", "column = (g + lane / (2 * SIDE)) * SIDE;", "column = g * SIDE;"),
        ("fragments of two groups swapped", "groups[g + r / 2][r % 2] = both[r]", "groups[g + r % 2][r / 2] = both[r]"),
        ("the band read without its transpose", "load_matrices<count, true>(registers", "load_matrices<count, false>(registers"),
        ("groups of a column tile are the first's", "groups[column_tile + d", "groups[0 * column_tile + d"),
        ("the mask of rows shifted by one", "if (!(meet >> q & 1)) continue;", "if (!(meet >> (q + 1) & 1)) continue;"),
        ("rows of a warp multiply the first's band", "band(seat.phase, seat.row + q, j)", "band(seat.phase, seat.row, j)"),
        (
            "warps meet the rows of the first",
            "rows_that_meet(load_stream<Rows>(stream), seat.row, now.k)",
            "rows_that_meet(load_stream<Rows>(stream), 0, now.k)",
        ),
        ("rows of a warp meet what its first does", "rows.meet(first + q, k)", "rows.meet(first, k)"),
        (
            "sums of warps' rows gathered over each other",
            "sum_place(shared, seat.row / ROWS, seat.channel",
            "sum_place(shared, 0, seat.channel",
        ),
        ("lower halves of the sums over the upper", "(c * 2 + lower) * SIDE * SUMS_PITCH", "(c * 2) * SIDE * SUMS_PITCH"),
        ("columns of a fragment gathered one apart", "lane % 4 * 2;", "lane % 4;"),
        ("column tiles gathered over each other", "* SUMS_PITCH + j * SIDE", "* SUMS_PITCH + 0 * j"),
        ("rows past the last stored", "return row < rows && channel", "return row <= rows && channel"),
        ("channels past the last stored", "channel < channels && u", "channel <= channels && u"),
        ("columns past the last stored", "u < columns; }", "u <= columns; }"),
        (
            "rows stored at the first tile's",
            "(tile.y.own + tile.row * tile.y.step) * to.row_stride",
            "(tile.y.own) * to.row_stride",
        ),
        ("each gradient from its own input", "if (tile.x.second) image = image1;", "if (!tile.x.second) image = image1;"),
        ("gradients stored as each other", "if (tile.x.second) result = result2;", "if (!tile.x.second) result = result2;"),
        ("off the band nothing is cleared", "            clear(shared + IMAGE);\n", ""),
        ("off the second band nothing is cleared", "            clear(shared + BUFFER + IMAGE);\n", ""),
        (
            "barrier before the first step left out",
            "clear(shared + BUFFER + IMAGE);\n            __syncthreads();",
            "clear(shared + BUFFER + IMAGE);",
        ),
        ("copies not waited for", "                copy_async_wait<0>();\n", ""),
        ("copies not committed", "                    copy_async_commit();\n", ""),
        ("barrier between steps left out", "copy_async_wait<0>();\n                __syncthreads();", "copy_async_wait<0>();"),
        ("buffers do not take turns", "buffer = 1 - buffer;", "buffer = 0;"),
        ("the last step is not worked on", "while (now.n < none.n || next.n < none.n)", "while (next.n < none.n)"),
        ("the last row of X left out", "++next.k >= rows.end)", "++next.k >= rows.end - 1)"),
        ("displacements after the first step skipped", "next.n + width};", "next.n + 2 * width};"),
        ("barrier before gathered sums are read left out", "if (__syncthreads_or(any)) {", "if (any) {"),
        (
            "barrier before the next row is gathered left out",
            "q, scale, gathered);\n            __syncthreads();",
            "q, scale, gathered);",
        ),
        (
            "every row is the first",
            "rest * ROWS + q;\n        const int channel",
            "rest * ROWS + 0 * q;\n        const int channel",
        ),
        (
            "channels of warps not told apart where they are neighbours",
            "(CHANNELS_LAST ? seat.channel : seat.channel * PITCH)",
            "(CHANNELS_LAST ? 0 : seat.channel * PITCH)",
        ),
        ("lanes' neighbouring channels taken for columns", "(column + row) * PITCH + lower", "(column + lower) * PITCH + row"),
        ("neighbouring channels not transposed", "load_matrices<4, CHANNELS_LAST>", "load_matrices<4, false>"),
        ("pieces that do not count copied", "piece.at(i, o) : piece.data, counts)", "piece.at(i, o) : piece.data, true)"),
    ),
    "definition_puts_it[cropped-bfloat16-inf]": (
        ("rows that no output reads meet", "return read.has(t) && m.has(k - t)", "return m.has(k - t)"),
        ("columns that nothing reads loaded", "counts = stream.read_columns.within(met)", "counts = met"),
    ),
    "memory_order_equals_the_oracle[bfloat16-rows]": (
        (
            "samples of X not told apart",
            "tile.sample * image.batch_stride + tile.channel * image",
            "0 * image.batch_stride + tile.channel * image",
        ),
        (
            "cotangents begin at the first sample",
            "tile.sample * cotangent.batch_stride + along_y(0, 0)",
            "0 * cotangent.batch_stride + along_y(0, 0)",
        ),
        ("samples of the gradient not told apart", "tile.sample * to.batch_stride", "0 * to.batch_stride"),
        ("tiles of gradient 2 counted on from gradient 1's", "second ? number - tiles_of_first : number", "number"),
    ),
    "cases_equal_the_oracle[columns that runs do not fit-bfloat16-busy]": (
        (
            "columns that are read counted from the first tile's",
            "stream.read_columns = from(tile.column, tile.x.read)",
            "stream.read_columns = from(0, tile.x.read)",
        ),
    ),
    "a_cotangent_may_have_any_strides": (
        ("cotangents of columns next to each other", "load_element(data + i * stream.by_u)", "load_element(data + i)"),
    ),
    "[bfloat16, 1 phases, 32 x 8 x 32, 25]": (
        (
            "a group's depth is the first",
            "column_tile + d * Unit::depth / SIDE + r / GROUP_REGISTERS",
            "column_tile + r / GROUP_REGISTERS",
        ),
        ("column tiles multiply the first's band", "band(seat.phase, seat.row + q, j)", "band(seat.phase, seat.row + q, 0)"),
    ),
    "[float32, 1 phases, 64 x 2 x 16, 9]": (
        (
            "a band of the second half's rows is the first's",
            "registers[r] = load_shared(from + r * (SIDE / 2) * SIDE)",
            "registers[r] = load_shared(from)",
        ),
        (
            "the next columns of a group are the first's",
            "column = g * SIDE + lane / (2 * SIDE) * (SIDE / 2);",
            "column = g * SIDE;",
        ),
    ),
    "factors_of_32_bits": (
        ("elements of 32 bits not rounded", "groups[g][r] = Unit::rounded(groups[g][r]);", "groups[g][r] = groups[g][r];"),
        ("cotangents not rounded", "{ return float_of_bits(Unit::rounded(bits_of_float(element))); }", "{ return element; }"),
    ),
    "across_its_seams[float32, 1 phases, 64 x 2 x 16, 9]": (
        ("rows of the band of 32 bits in one place", "from + r * (SIDE / 2) * SIDE)", "from + r * SIDE)"),
    ),
    "memory_order_equals_the_oracle[float32-channels last]": (
        (
            "channels last of 32 bits: halves swapped",
            "r / 2 * (SIDE / 2) * PITCH + r % 2 * SIDE",
            "r % 2 * (SIDE / 2) * PITCH + r / 2 * SIDE",
        ),
    ),
    "[bfloat16, 2 phases, 64 x 2 x 32, 21]": (
        ("phases of the image over each other", "return u % PHASES * PLANE +", "return 0 * PLANE +"),
        (
            "phases of the band over each other",
            "((phase * TILE_ROWS + row) * COLUMN_TILES",
            "((0 * phase * TILE_ROWS + row) * COLUMN_TILES",
        ),
        ("phases of warps not told apart in the image", "+ seat.phase * PLANE;", "+ 0 * PLANE;"),
        ("phases of warps not told apart in the band", "band(seat.phase, seat.row + q, j)", "band(0, seat.row + q, j)"),
        ("a displacement moves columns by one phase", "own + PHASES * n, n,", "own + n, n,"),
        ("phases gathered over each other", "seat.channel + lane / 4, seat.phase)", "seat.channel + lane / 4, 0)"),
        ("phases of a run one after the other", "run[i * PHASES + p];", "run[i + p * (RUN / PHASES)];"),
        ("phases of the sums not put together", "u % PHASES * (SIDE * COLUMN_TILES) + u / PHASES", "u"),
        (
            "runs of phases count as the first channel's",
            "piece.counts(u, channel) ? load_global_16",
            "piece.counts(u, 0 * channel) ? load_global_16",
        ),
        (
            "runs of phases are not put",
            "if (image_waits) store_image_runs(image_runs, load);",
            "if (image_waits && !loads) store_image_runs(image_runs, load);",
        ),
    ),
    "the_definition_puts_it[one phase-bfloat16-inf]": (
        ("sums that are NaN are not made again", "if (sum == sum || tile", "if (sum == sum || sum != sum || tile"),
        ("sums made again from the first displacement", "int m = tile.m.begin; m", "int m = 0; m"),
        (
            "sums made again of the first channel",
            "(tile.channel + channel) * image.channel_stride",
            "(tile.channel + 0 * channel) * image.channel_stride",
        ),
        ("sums made again of each warp's first row", "channel, rest * ROWS + q, u)", "channel, rest * ROWS + 0 * q, u)"),
        ("sums made again lose the rows before", "sum += of_row;", "sum = of_row;"),
        (
            "barrier after sums made again left out",
            "q, channels, gathered);\n                __syncthreads();",
            "q, channels, gathered);",
        ),
    ),
    "the_definition_puts_it[cropped-bfloat16-inf]": (
        (
            "sums made again with columns that nothing reads",
            "if (!tile.x.read.has(first) || !tile.x.met.has(k)) continue;",
            "if (!tile.x.met.has(k)) continue;",
        ),
    ),
    "infinite_column_does_not_reach": (
        (
            "NaN in a fragment's second column not seen",
            "any = any || two.of[0] != two.of[0] || two.of[1] != two.of[1];",
            "any = any || two.of[0] != two.of[0];",
        ),
    ),
    "sums_made_again_take": (
        (
            "factors of sums made again not rounded",
            "multiply_add(widen(rounded(x)), widen(rounded(g)), of_row)",
            "multiply_add(widen(x), widen(g), of_row)",
        ),
    ),
    "loops_over_the_rest[busy]": (
        ("the grid does not loop", "number += gridDim.x", "number += tiles"),
        ("blocks take each other's tiles", "number += gridDim.x", "number += 1"),
    ),
    "one_after_the_other[one row]": (
        ("parts of the sum stored over each other", "tile.part * to.part_stride", "0 * to.part_stride"),
        (
            "parts stored in the input's type",
            "if (parts.of_rows * parts.of_columns > 1)",
            "if (parts.of_rows * parts.of_columns > 1 << 20)",
        ),
    ),
    "31_apart_are_reached[patch rows]": (
        (
            "columns of cotangents in 32 bits",
            "const COTANGENT* data = stream.cotangent + (at.k",
            "const COTANGENT* data = stream.cotangent + static_cast<int>(at.k",
        ),
    ),
    "halves_do_not_overflow[busy]": (
        ("scale lost where runs are stored", "= of_phase.of[v] * scale;", "= of_phase.of[v] * (scale / scale);"),
    ),
    "memory_order_equals_the_oracle[bfloat16-every other column]": (
        (
            "scale lost where single elements are stored",
            "load_shared(sum_place(sums, group, channel, u)) * scale",
            "load_shared(sum_place(sums, group, channel, u)) * (scale / scale)",
        ),
        ("single elements count as the first", "if (piece.counts(i, o + k * apart)) load", "if (piece.counts(i, o)) load"),
    ),
    "runs_of_channels_are_scaled": (
        (
            "scale lost where runs of channels are stored",
            "run[i] = load_shared(sum_place(sums, rest, channel + i, u)) * scale;",
            "run[i] = load_shared(sum_place(sums, rest, channel + i, u)) * (scale / scale);",
        ),
    ),
    "larger_image_equal_the_oracle[bfloat16-one phase]": (
        ("pieces that count in part moved whole", "| outer_stride | inner.begin |", "| outer_stride |"),
    ),
    "where_elements_lie[float16-one phase]": (
        (
            "16 bytes copied from where 8 begin",
            "        if (bytes == 16) copy_image<RUN>(piece, to);",
            "        if (bytes >= 8) copy_image<RUN>(piece, to);",
        ),
    ),
    "[bfloat16, 1 phases, 32 x 8 x 32, 9]": (
        (
            "channels of a warp's tiles over each other where they are neighbours",
            "c * 2 * SIDE * (CHANNELS_LAST ? 1 : PITCH)",
            "c * 2 * SIDE * (CHANNELS_LAST ? 0 : PITCH)",
        ),
        (
            "single elements stored past the last",
            "                if (o + k * apart < OUTER) store_shared",
            "                store_shared",
        ),
    ),
}

FILES = {
    "common/numeric.cuh": NUMERIC,
    "correlation/window.cuh": WINDOW,
    "correlation/forward_direct.cu": FORWARD,
    "correlation/gradient_direct.cu": GRADIENT,
    "correlation/box_filter.cu": BOX,
    "common/tile.cuh": TILE,
    "correlation/forward_phases.cuh": PHASES,
    "correlation/forward_tiled.cu": FORWARD_TILED,
    "common/mma.cuh": MMA,
    "correlation/forward_mma.cu": FORWARD_MMA,
    "common/sum_parts.cu": SUM_PARTS,
    "correlation/gradient_phases.cuh": GRADIENT_PHASES,
    "correlation/gradient_tiled.cu": GRADIENT_TILED,
    "correlation/gradient_mma.cu": GRADIENT_MMA,
}

# What pytest is asked to run with the mutants of a file.
ROUTES = ("tests/correlation/test_kernels_emulated.py",)
FORWARD_TILES, FORWARD_FRAGMENTS = "tests/correlation/test_forward_tiled.py", "tests/correlation/test_forward_mma.py"
GRADIENT_TILES, GRADIENT_FRAGMENTS = "tests/correlation/test_gradient_tiled.py", "tests/correlation/test_gradient_mma.py"
TILED, FRAGMENTS, EITHER = (*ROUTES, "-k", "tiled"), (*ROUTES, "-k", "mma"), (*ROUTES, "-k", "tiled or mma")
TESTS = dict.fromkeys(FILES, ROUTES) | {
    "common/tile.cuh": (FORWARD_TILES, GRADIENT_TILES, FORWARD_FRAGMENTS, GRADIENT_FRAGMENTS, *EITHER),
    "correlation/forward_phases.cuh": (FORWARD_TILES, FORWARD_FRAGMENTS, *EITHER),
    "correlation/forward_tiled.cu": (FORWARD_TILES, *TILED),
    "common/mma.cuh": (FORWARD_FRAGMENTS, GRADIENT_FRAGMENTS, *FRAGMENTS),
    "correlation/forward_mma.cu": (FORWARD_FRAGMENTS, *FRAGMENTS),
    "common/sum_parts.cu": (FORWARD_TILES, GRADIENT_TILES, FORWARD_FRAGMENTS, GRADIENT_FRAGMENTS, *EITHER),
    "correlation/gradient_phases.cuh": (GRADIENT_TILES, GRADIENT_FRAGMENTS, *EITHER),
    "correlation/gradient_tiled.cu": (GRADIENT_TILES, *TILED),
    "correlation/gradient_mma.cu": (GRADIENT_FRAGMENTS, *FRAGMENTS),
}


class InvalidMutantError(Exception):
    """A mutant that says nothing about the tests: its text is not there once, or it does not build."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One fault of the tables."""

    file: str
    seen_by: str
    name: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.file}: {self.name}"

    def applied(self, text: str) -> str:
        """The file's text with the fault in it."""
        found = text.count(self.before)
        if found != 1 or self.before == self.after:
            raise InvalidMutantError(
                f"{self}: {self.before!r} must be changed and stand once in the file, stands there {found} times"
            )
        return text.replace(self.before, self.after)


MUTANTS = tuple(Mutant(file, seen_by, *row) for file, table in FILES.items() for seen_by, rows in table.items() for row in rows)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What failed first with a mutant, None where nothing did, and the seconds until then."""

    killer: str | None
    seconds: float


# The process that runs the tests: pytest with this module as a plugin -----------------------------------------------------------


def run_pytest(arguments: list[str], printed: Path) -> None:
    """End this process as pytest ends; what it prints goes to a file."""
    import pytest

    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    os.chdir(ROOT)
    with printed.open("wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.exit(int(pytest.main(arguments)))


def pytest_addoption(parser):
    parser.addoption("--kernels", type=Path, help="the folder in the place of kernels_cu")
    parser.addoption("--first", action="append", default=[], help="part of the names of the tests to run first")
    parser.addoption("--only-first", action="store_true", help="run no others")


def pytest_sessionstart(session):
    from hypothesis import Phase, settings

    source.folder = lambda: session.config.getoption("--kernels")
    # The first problem that fails will do: none is looked for that is smaller.
    settings.register_profile("mutants", settings.get_profile("suite"), phases=[Phase.explicit, Phase.generate])
    settings.load_profile("mutants")


def pytest_collection_modifyitems(config, items):
    first = config.getoption("--first")
    items[:] = [item for item in items if "sanitizers" not in item.name]  # which a process runs that knows of no other kernels
    items.sort(key=lambda item: not any(part in item.nodeid for part in first))
    if config.getoption("--only-first"):
        items[:] = [item for item in items if any(part in item.nodeid for part in first)]


# The process that starts it -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Run:
    """How pytest ended, and what it printed."""

    code: int
    printed: str


def run_tests(kernels: Path, tests: Iterable[str], first: Iterable[str], *options: str) -> Run:
    """Run some tests on the kernels in a folder until one fails; ``first`` are those to begin with."""
    plugin = ("-p", "mutants", f"--kernels={kernels}", *(f"--first={part}" for part in first), *options)
    quiet = ("-q", "-x", "-rfE", "--tb=short", "--assert=plain", "-p", "no:cacheprovider")
    with tempfile.TemporaryDirectory() as place:
        printed = Path(place) / "printed"
        process = PROCESSES.Process(target=run_pytest, args=([*quiet, *plugin, *tests], printed))
        process.start()
        process.join()
        return Run(process.exitcode, printed.read_text("utf-8"))


@contextmanager
def mutated(mutant: Mutant) -> Iterator[Path]:
    """A copy of the kernels with a mutant in it."""
    text = mutant.applied((source.folder() / mutant.file).read_text("utf-8"))
    with tempfile.TemporaryDirectory() as place:
        copy = Path(shutil.copytree(source.folder(), Path(place) / "kernels_cu"))
        (copy / mutant.file).write_text(text, "utf-8")
        yield copy


def attempt(mutant: Mutant) -> Outcome:
    """Run the tests on a mutant until one fails."""
    begun = time.perf_counter()
    with mutated(mutant) as kernels:
        killer = killer_of(mutant, run_tests(kernels, TESTS[mutant.file], [mutant.seen_by]))
    return Outcome(killer, time.perf_counter() - begun)


def killer_of(mutant: Mutant, run: Run) -> str | None:
    """What a run of the tests failed with."""
    if run.code == 0:
        return None
    if -run.code in CRASHES:
        return signal.Signals(-run.code).name
    failed = re.search(r"^(?:FAILED|ERROR) \S+?::(.+?)(?: - .*)?$", run.printed, re.MULTILINE)
    if not failed or "g++ cannot build" in run.printed:
        raise InvalidMutantError(f"{mutant} cannot be tried:\n{run.printed}")
    return failed[1]


@contextmanager
def attempts(mutants: Iterable[Mutant]) -> Iterator[dict[Mutant, Future[Outcome]]]:
    """The outcomes of some mutants, as they come."""
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        yield {mutant: pool.submit(attempt, mutant) for mutant in mutants}
    finally:
        pool.shutdown(cancel_futures=True)


def main(words: list[str]) -> int:
    chosen = [mutant for mutant in MUTANTS if not words or any(word in str(mutant) for word in words)]
    begun, killed = time.perf_counter(), 0
    with attempts(chosen) as futures:
        names = {future: mutant for mutant, future in futures.items()}
        for future in as_completed(names):
            line, dead = verdict(names[future], future)
            print(line, flush=True)
            killed += dead
    print(f"{killed} of {len(chosen)} mutants killed in {time.perf_counter() - begun:.0f} s")
    return 0 if killed == len(chosen) > 0 else 1


def verdict(mutant: Mutant, future: Future[Outcome]) -> tuple[str, bool]:
    """A line about a mutant that has been tried, and whether it was killed."""
    try:
        outcome = future.result()
    except InvalidMutantError as error:
        return f"INVALID   {error}", False
    seconds = f"{outcome.seconds:5.1f} s"
    if outcome.killer is None:
        return f"SURVIVED  {seconds}  {mutant}", False
    return f"killed    {seconds}  {mutant}  by {outcome.killer}", True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
