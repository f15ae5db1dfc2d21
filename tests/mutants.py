"""Faults put into the kernels' own source, one at a time: with each of them a test of test_kernels_emulated.py must fail.

    python tests/mutants.py                # every mutant: a line for each, with the test that failed
    python tests/mutants.py barrier fold   # those with one of these words in their name

A mutant is a text that stands once in a file of ``kernels_cu``, and what stands there instead. It goes into a copy of the folder,
and the tests run on that as they are, in a process of their own, until the first fails. To add a mutant, add a row to its file's
table. It must build, and it must be wrong: what changes no result, no access and no order of accesses is no mutant.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cupycorr._cuda import source

ROOT = Path(__file__).resolve().parents[1]
TESTS = "tests/test_kernels_emulated.py"
AT_ONCE = 2  # processes
SECONDS = 600  # after which a process is given up
CRASHES = (signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV)  # that a mutant can cause

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
    "direct-template": (
        ("gradient 1 displaced the wrong way", "? position + displacement", "? position - displacement"),
        ("gradient 2 displaced the wrong way", ": position - displacement", ": position + displacement"),
        ("patch mirrored", "first + m * step;", "first - m * step;"),
        ("outputs found at the position in input2", "(OPERAND == 1 ? position : met)", "(OPERAND == 2 ? position : met)"),
        ("cotangent's displacements swapped", "m * m_stride + n * n_stride", "m * n_stride + n * m_stride"),
        (
            "rows of the other input found along x",
            "vertical.other(y, m) * row_stride_other",
            "horizontal.other(y, m) * row_stride_other",
        ),
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

FILES = {
    "numeric.cuh": NUMERIC,
    "window.cuh": WINDOW,
    "forward_direct.cu": FORWARD,
    "gradient_direct.cu": GRADIENT,
    "box_filter.cu": BOX,
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
    items.sort(key=lambda item: not any(part in item.nodeid for part in first))
    if config.getoption("--only-first"):
        items[:] = [item for item in items if any(part in item.nodeid for part in first)]


# The process that starts it -----------------------------------------------------------------------------------------------------


def run_tests(kernels: Path, first: Iterable[str], *options: str) -> subprocess.CompletedProcess:
    """Run the tests on the kernels in a folder until one fails."""
    plugin = ("-p", "mutants", f"--kernels={kernels}", *(f"--first={part}" for part in first), *options)
    quiet = ("-q", "-x", "-rfE", "--tb=short", "--assert=plain", "-p", "no:cacheprovider")
    python_path = os.pathsep.join([str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        (sys.executable, "-m", "pytest", *quiet, *plugin, TESTS),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": python_path},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


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
        try:
            killer = killer_of(mutant, run_tests(kernels, [mutant.seen_by]))
        except subprocess.TimeoutExpired:
            killer = f"no end within {SECONDS} s"
    return Outcome(killer, time.perf_counter() - begun)


def killer_of(mutant: Mutant, done: subprocess.CompletedProcess) -> str | None:
    """What a run of the tests failed with."""
    if done.returncode == 0:
        return None
    if -done.returncode in CRASHES:
        return signal.Signals(-done.returncode).name
    failed = re.search(r"^(?:FAILED|ERROR) \S+?::(.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
    if not failed or "g++ cannot build" in done.stdout:
        raise InvalidMutantError(f"{mutant} cannot be tried:\n{done.stdout}{done.stderr}")
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
