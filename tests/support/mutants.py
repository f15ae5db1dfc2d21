"""Faults put into the kernels' source, one at a time: with each of them a test of the emulated kernels must fail.

    python tests/support/mutants.py                           # every mutant: a line for each, with the test that failed
    python tests/support/mutants.py gradient_mma barrier      # those with one of these words in their name
    python tests/support/mutants.py --sample 60 --seed 1      # 60 drawn of them

Most mutants are generated: an operator, such as "constant up", is applied at one of the places of a file that it fits. A few are
written by hand, for faults that no operator makes. A mutated copy of ``kernels_cu`` goes through the tests of its file, as they
are, in a process of its own, until the first fails. A mutant that does not build is invalid and does not count. One that survives
either shows a gap in the tests, or is equivalent: it changes the cost only, or what another line makes good.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from kernel_files import kernel_files

from cupycorr._gpu import source

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 1800  # of CPU time, after which a process is given up
PROCESSES = multiprocessing.get_context("forkserver")  # each begins with what takes long to import
PROCESSES.set_forkserver_preload(["hypothesis", "ml_dtypes", "numpy", "pytest"])
# What a mutant can end its process by; the last one comes after `SECONDS`.
CRASHES = (signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGXCPU)


class Mutant(NamedTuple):
    """One change of one file: ``text[begin:end]`` becomes ``after``."""

    file: str
    name: str
    begin: int
    end: int
    after: str

    def __str__(self) -> str:
        return f"{self.file}: {self.name}"

    def applied(self, text: str) -> str:
        """Return the file's text with the fault in it."""
        return text[: self.begin] + self.after + text[self.end :]


# Source text that operators may change ------------------------------------------------------------------------------------------

# What must stay as it is: comments, strings, the branch that only a device's compiler sees, preprocessor lines with their
# continuations, and declarations in which hardly any change would build.
FIXED = re.compile(
    r"""//[^\n]* | /\*[\s\S]*?\*/ | "(?:\\.|[^"\\\n])*"
    | ^\#ifdef\ CUPYCORR_EMULATED\n (?:(?!\#).*\n)* \#else\n (?:\#if.*\n(?:(?!\#endif).*\n)*\#endif.*\n | (?!\#endif).*\n)*
    | ^[ \t]*\#(?:\\\n|[^\n])* | \bstatic_assert\([^;]*; | \(&\w+\)\[[^;)]*\] | \btemplate\ <[^;{}]*?>(?=\n)""",
    re.MULTILINE | re.VERBOSE,
)
# A function, an unindented struct or an unindented constant.
SCOPES = re.compile(
    r"\bDEVICE [^;{}()]*?\b(\w+)\(|\bKERNEL\(\w+\)\s+(\w+)\(|^struct [^;{]*?([\w<>]+) \{|^constexpr [^=;(]*\b(\w+) =",
    re.MULTILINE,
)


def mutable(text: str) -> str:
    """Return the text with blanks in the place of everything that must stay as it is, and everything else where it was."""
    return FIXED.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)


# Operators ----------------------------------------------------------------------------------------------------------------------


class Operator(NamedTuple):
    """A kind of fault: the text that it applies to, and a function of the match that returns what comes in its place."""

    name: str
    pattern: str
    change: Callable[[re.Match[str]], str]


def exchange(*pairs: tuple[str, str]) -> Callable[[re.Match[str]], str]:
    """Return a change of each text of a pair into the other one."""
    others = {one: other for pair in pairs for one, other in (pair, pair[::-1])}
    return lambda match: others[match[0]]


def expand(template: str) -> Callable[[re.Match[str]], str]:
    """Return a change into a template, in which ``\\1`` is the pattern's first group."""
    return lambda match: match.expand(template)


def add(number: int) -> Callable[[re.Match[str]], str]:
    """Return a change of a literal into one that is greater by a number."""
    return lambda match: f"{int(match[1], 0) + number}{match[2]}"


def spaced(*symbols: str) -> str:
    """Return the pattern of binary operators: as the kernels are formatted, there are blanks around them."""
    return rf"(?<=\s)(?:{'|'.join(map(re.escape, symbols))})(?=\s)"


LITERAL = r"(?<![\w.])(0x[\da-fA-F]+|\d+)(u?)(?![\w.])"
OPERAND = r"[\w.]+(?![\w.]*[(<\[{])"
BARRIER = r"\b(?:__syncthreads\(\)|__syncwarp\(\)|copy_async_wait<[^;]*>\(\)|copy_async_commit\(\))"
START = r"(?:(?<=\n)[ \t]+|(?<=\) )|(?<=else ))"  # of a statement

OPERATORS = (
    Operator("constant up", LITERAL, add(1)),
    Operator("constant down", LITERAL, add(-1)),
    Operator("bound moved", spaced("<", "<=", ">", ">="), exchange(("<", "<="), (">", ">="))),
    Operator("equality turned", spaced("==", "!="), exchange(("==", "!="))),
    Operator("and for or", spaced("&&", "||"), exchange(("&&", "||"))),
    Operator("not dropped", r"!(?=[\w(])", expand("")),
    Operator("condition dropped", rf"\s(?:&&|\|\|) {OPERAND} (?:[<>]=?|[=!]=) {OPERAND}", expand("")),
    Operator("plus for minus", spaced("+", "-", "+=", "-="), exchange(("+", "-"), ("+=", "-="))),
    Operator("times for divided", spaced("*", "/", "*=", "/="), exchange(("*", "/"), ("*=", "/="))),
    Operator("quotient for remainder", spaced("%"), expand("/")),
    Operator("bits", spaced("<<", ">>", "&", "|"), exchange(("<<", ">>"), ("&", "|"))),
    Operator("factor dropped", rf"(?<=\w|[)\]]) \* {OPERAND}", expand("")),
    Operator("term dropped", rf"(?<=\w|[)\]]) [+-] {OPERAND}(?! [*/%])", expand("")),
    Operator("remainder dropped", rf"(?<=\w|[)\]]) % {OPERAND}", expand("")),
    Operator("sum replaced", r"(?<=\n)([ \t]+[\w.\[\]]+) \+= ", expand(r"\1 = ")),
    Operator("alternatives swapped", rf"\? ({OPERAND}) : ({OPERAND})", expand(r"? \2 : \1")),
    Operator("least for greatest", r"\b(?:min|max)(?=\()", exchange(("min", "max"))),
    Operator("truth turned", r"\b(?:true|false)\b", exchange(("true", "false"))),
    Operator("indices swapped", r"\[([^\[\]]+)\]\[([^\[\]]+)\](?! =)", expand(r"[\2][\1]")),
    Operator("barrier dropped", BARRIER, expand("")),
    Operator("barrier of a warp", r"\b__syncthreads\(\)", expand("__syncwarp()")),
    Operator("vote of a thread", r"\b(?:__syncthreads_or\(|__any_sync\(\w+, )", expand("(")),
    Operator("call dropped", rf"{START}(?!__sync|copy_async|\w+_cast|min|max)[\w.]+(?:<[^<>;]*>)?\([^;{{}}]*\);", expand(" {}")),
    Operator("exit dropped", r"\b(?:continue|break|return);", expand("{}")),
)

# Parts of names, each of which stands for the same thing on the other axis, of the other image, or at the other end.
TWINS = "row column, rows columns, vertical horizontal, height width, y x, m n, i j, u v, 1 2, begin end, t k, ROWS COLUMNS"
TWIN = {one: other for pair in TWINS.split(", ") for one, other in (pair.split(), pair.split()[::-1])}
USE = re.compile(r"(?<!\w )(?<!\w[*&] )\b[A-Za-z_]\w*")  # of a name; in a declaration, a type comes before it


def changes(code: str, names: set[str]) -> Iterator[tuple[str, int, int, str]]:
    """Yield every change of some code: the operator's name, its place and what comes there; ``names`` are those in scope."""
    for operator in OPERATORS:
        for match in re.finditer(operator.pattern, code):
            if (after := operator.change(match)) != match[0]:
                yield operator.name, *match.span(), after
    for match in USE.finditer(code):
        parts = re.findall(r"[A-Za-z]+|\d+|_+", match[0])
        for at, part in enumerate(parts):
            other = "".join((*parts[:at], TWIN.get(part, part), *parts[at + 1 :]))
            if part in TWIN and other in names:
                yield "name swapped", *match.span(), other


def generated(file: str, text: str) -> Iterator[Mutant]:
    """Yield the mutants that the operators make of a file; their names tell the function or constant, and count within it."""
    code = mutable(text)
    starts = [(0, "file"), *((match.start(), next(filter(None, match.groups()))) for match in SCOPES.finditer(code))]
    count: Counter[tuple[str, str]] = Counter()
    for (begin, scope), (end, _) in zip(starts, [*starts[1:], (len(code), "")], strict=True):
        part = code[begin:end]
        for name, first, last, after in changes(part, set(re.findall(r"\w+", part))):
            count[scope, name] += 1
            yield Mutant(file, f"{scope}: {name} {count[scope, name]}", begin + first, begin + last, after)


# Mutants written by hand --------------------------------------------------------------------------------------------------------

AS_INPUT = r"widen(Narrow<INPUT>::from(multiply_add(\1)));"

# The file, what is wrong, a pattern that matches once in its code, and what comes in the place of what it matches.
# fmt: off
BY_HAND = (
    ("numeric.cuh", "totals kept in float", r"Sum (total\[count\];)", r"float \1"),
    ("numeric.cuh", "parts go through float", r"(total\[r\] \+= )(\w+\[r\]);", r"\1static_cast<float>(\2);"),
    ("numeric.cuh", "folded part counted again", r"(total\[r\] \+= (\w+)\[r\];)\s*\2\[r\] = Sum\(0\);", r"\1"),
    ("numeric.cuh", "double stored as float", r"(double from\(double (\w+)\) \{ return )\2;", r"\1static_cast<float>(\2);"),
    ("numeric.cuh", "bfloat16 cut off", r"bits \+ 0x7fff \+ \(\(bits >> 16\) & 1\)", "bits"),
    ("numeric.cuh", "ties of bfloat16 up", r"0x7fff \+ \(\(bits >> 16\) & 1\)", "0x8000"),
    ("numeric.cuh", "ties of bfloat16 to the odd", r"\((\(bits >> 16\)) & 1\)", r"(~\1 & 1)"),
    ("numeric.cuh", "double rounded twice on the way to bfloat16", r"sticky_float\(sum\)", "static_cast<float>(sum)"),
    ("numeric.cuh", "double rounded twice to half", r"double_to_half\(sum\)", "float_to_half(static_cast<float>(sum))"),
    ("numeric.cuh", "half rounded to bfloat16 first", r"float_to_half\(sum\)", "float_to_half(widen(nearest_bfloat16(sum)))"),
    ("numeric.cuh", "double not truncated", r"double_to_float_towards_zero\((\w+)\)", r"static_cast<float>(\1)"),
    ("window.cuh", "positions in 32 bits", r"const Index (cells|\w+ = z /)", r"const int \1"),
    ("forward_direct.cu", "sums kept in the input's type", r"multiply_add\((\w+\[r\], \w+\[r\], [^;]*)\);", AS_INPUT),
    ("forward_direct.cu", "scale applied to the rounded sum", r"scale \* sum\)", "scale * widen(Narrow<OUTPUT>::from(sum)))"),
    ("image.cuh", "offsets in 32 bits", r"return data \+ \(", "return data + static_cast<int>("),
    ("forward_direct.cu", "rows' positions in 32 bits", "Index y1 = i", "int y1 = i"),
    ("forward_direct.cu", "columns' positions in 32 bits", "Index x1 = j", "int x1 = j"),
    ("forward_direct.cu", "barrier missed by threads", r"__syncthreads\(\);(\s*if \(\w+ == 0\) \{)", r"\1 __syncthreads();"),
    ("gradient_direct.cu", "cotangent summed in float", "Sums<Sum, 1>", "Sums<float, 1>"),
    ("gradient_direct.cu", "cotangent read as float", r"static_cast<Sum>\(load\(at", "static_cast<float>(load(at"),
    ("gradient_direct.cu", "sums kept in the input's type", r"multiply_add\((\w+, \w+\[r\], [^;]*)\);", AS_INPUT),
    ("gradient_direct.cu", "cotangent's offsets in 32 bits", r"row = data \+ \(", "row = data + static_cast<int>("),
    ("gradient_direct.cu", "image's offsets in 32 bits", r"image = \{other \+ \(", "image = {other + static_cast<int>("),
    ("gradient_direct.cu", "scale applied to the rounded sum",
     r"total\[r\] \*= scale", "total[r] = scale * widen(Narrow<INPUT>::from(sums.total[r]))"),
    ("gradient_direct.cu", "carried sums are scaled", r"(store\(\w+ \+ at \* \w+ \+ r), ", r"\1, scale * "),
    ("gradient_direct.cu", "last row of the cotangent only", r"(const COTANGENT\* \w+ = row;)", r"\1 sums.clear();"),
    ("box_filter.cu", "sums kept in float", r"Sums<Sum, (\w+)>", r"Sums<float, \1>"),
    ("box_filter.cu", "offsets in 32 bits", r"source = from \+ \(", "source = from + static_cast<int>("),
    ("sum_parts.cu", "parts rounded", r"(sums\.\w+\[r\] \+= )(\w+\[s\]\[r\]);", r"\1widen(Narrow<TO>::from(\2));"),
    ("tile.cuh", "address halved once at most", r"while (\(reinterpret_cast)", r"if \1"),
    ("forward_phases.cuh", "offsets in 32 bits", r"data \+ \(m \* m_stride", "data + static_cast<int>(m * m_stride"),
    ("forward_tiled.cuh", "sums kept in the input's type", r"multiply_add\((row\[r\]\[k\], [^;]*)\);", AS_INPUT),
    ("forward_tiled.cuh", "samples' offsets in 32 bits", r"image\.data \+ \(block\.b", "image.data + static_cast<int>(block.b"),
    ("forward_tiled.cuh", "channels' offsets in 32 bits", r"(next1 \+ channel \* )(channel_stride1)", r"\1static_cast<int>(\2)"),
    ("forward_tiled.cuh", "rows outside are multiplied", r"if \((\w+)\)(?=\s+add_products)", r"if (\1 || true)"),
    ("forward_tiled.cuh", "rows outside are stored", r"return (row\[r\]) \?", r"return (\1 || r >= 0) ?"),
    ("forward_tiled.cuh", "tiles that nothing is in are loaded", r"if \((__syncthreads_or\(\w+\))\)", r"if (\1 || true)"),
    ("forward_tiled.cuh", "no barrier before the next tile", r"if \(__syncthreads_or\(\w+\)\)", "if (true)"),
    ("mma.cuh", "float16 multiplied as bfloat16", r"mma_m16n8k16_f16\(c, a, b\);", "mma_m16n8k16_bf16(c, a, b);"),
    ("mma.cuh", "bfloat16 multiplied as float16", r"mma_m16n8k16_bf16\(c, a, b\);", "mma_m16n8k16_f16(c, a, b);"),
    ("mma.cuh", "rows of float16 swapped", r"(mma_m16n8k16_f16\(c, )a, b\);", r"\1{a[1], a[0], a[2], a[3]}, b);"),
    ("mma.cuh", "products of float16 made twice", r"(mma_m16n8k16_f16\(c, a, b\));", r"\1, \1;"),
    ("mma.cuh", "channel lost", r"(mma_m16n8k16_bf16\(c, )a, b\);", r"\1{a[0] & 0xffff0000u, a[1], a[2], a[3]}, b);"),
    ("mma.cuh", "depth of float32 swapped", r"(mma_m16n8k8_tf32\(c, a, )b\);", r"\1{b[1], b[0]});"),
    ("mma.cuh", "float32 cut off to TF32", r"nearest_tf32\((\w+)\)", r"\1"),
    ("mma.cuh", "float32 rounded to 9 bits", r"nearest_tf32\((\w+)\)", r"nearest_tf32(\1) & 0xffffc000u"),
    ("forward_mma.cuh", "fragment transposed", r"(columns2\[1\] = next)\[0\](, columns2\[3\] = next)\[2\]", r"\1[2]\2[0]"),
    ("forward_mma.cuh", "input1 never loaded", r"(access_width,\s+)has_input1\)", r"\1tile >= 0)"),
    ("forward_mma.cuh", "input2 over the stages that stay", r"(shared2 = shared \+) \w+ \*", r"\1 STAGES *"),
    ("tile_loader.cuh", "channels' offsets in 32 bits", r"(first \* )(image1\.channel_stride)", r"\1static_cast<int>(\2)"),
    ("gradient_phases.cuh", "cotangent's offsets in 32 bits", r"\* patch_stride \+", "* static_cast<int>(patch_stride) +"),
    ("gradient_tiled.cu", "sums kept in the input's type", r"multiply_add\((g\[q\][^;]*)\);", AS_INPUT),
    ("gradient_tiled.cu", "samples' offsets in 32 bits", r"(tile\.sample \* )(image\.batch_stride)", r"\1static_cast<int>(\2)"),
    ("gradient_tiled.cu", "bank conflicts", "lane / 4 (% COLUMN_LANES)", r"(lane / 4 * 2 + lane / 16) \1"),
    ("gradient_tiled.cu", "phases of a run one after the other", r"(i < (\w+); [^;]*\[k \+ i) \* PHASES \+ p\]", r"\1 + p * \2]"),
    ("gradient_mma.cu", "NaN not recomputed", r"if \((\w+) == \1 \|\|", r"if (\1 == \1 || \1 != \1 ||"),
    ("gradient_mma.cu", "recomputed factors not rounded", r"(multiply_add\(widen\()as_factor\((\w+)\)", r"\1\2"),
    ("gradient_mma.cu", "recomputed rows before the last lost", r"\bsum \+= (\w+);", r"sum = \1;"),
    ("gradient_mma.cu", "partial sums stored in the input's type", r"(if \((\w+)\.\w+ \* \2\.\w+ > 1)\)", r"\1 << 20)"),
    ("gradient_mma.cu", "cotangent's offsets in 32 bits", r"(source\.data \+ )\((k \*)", r"\1static_cast<int>(\2"),
)
# fmt: on


def by_hand(file: str, text: str) -> Iterator[Mutant]:
    """Yield a file's mutants that are written by hand."""
    code = mutable(text)
    for name, pattern, after in (row[1:] for row in BY_HAND if row[0] == Path(file).name):
        found = [*re.finditer(pattern, code)]
        if len(found) != 1:
            raise ValueError(f"{file}: {name}: {pattern!r} must match once, matches {len(found)} times")
        yield Mutant(file, f"by hand: {name}", *found[0].span(), found[0].expand(after))


# Tests of a file ----------------------------------------------------------------------------------------------------------------

EMULATED, LOOKUP = "tests/correlation/test_kernels_emulated.py", "tests/lookup/test_kernels_emulated.py"
FORWARD_TILED, FORWARD_MMA = "tests/correlation/test_forward_tiled.py", "tests/correlation/test_forward_mma.py"
GRADIENT_TILED, GRADIENT_MMA = "tests/correlation/test_gradient_tiled.py", "tests/correlation/test_gradient_mma.py"
TILED, MMA, EITHER = (EMULATED, "-k", "tiled"), (EMULATED, "-k", "mma"), (EMULATED, "-k", "tiled or mma")


class Tests(NamedTuple):
    """The tests that a file's mutants go through."""

    selection: tuple[str, ...]  # as on pytest's command line
    first: str  # parts of the names of those that see most, between bars: they run before the others, in this order


BAR = " | "

# fmt: off
TESTS = {
    "common/numeric.cuh": Tests((EMULATED,),
        "halfway | equals_the_oracle[direct-float32-rows] | equals_the_oracle[direct-float32-channels last] | "
        "equals_the_oracle[direct-float16-channels last] | over_many_terms[direct-channels-busy] | "
        "equals_the_oracle[direct-float64-rows] | over_many_terms[direct-displacements-busy] | neighbouring_channels | "
        "nan_stays_nan_in_every_dtype[direct-float16-bfloat16] | rounded_once_from_the_sum[direct-bfloat16-float32] | "
        "[direct-float32-channels reversed]"),
    "correlation/window.cuh": Tests((EMULATED,),
        "direct-window, stride | direct-one pixel | box-window, stride | box-windows apart | "
        "drawn_problems_equal_the_oracle[direct] | [rows beyond 32 bits] | direct-stride beyond | "
        "equals_the_oracle[direct-float16-rows]"),
    "common/image.cuh": Tests((EMULATED, LOOKUP),
        "direct-window, stride | 2_to_the_31_apart_are_reached[direct | equals_the_oracle[direct-float32-rows] | "
        "named_lookups_equal_the_oracle[many channels-busy]"),
    "correlation/forward_direct.cu": Tests((EMULATED,),
        "direct-template | direct-one pixel | equals_the_oracle[direct-float32-channels last] | direct-pwcnet-like-idle | "
        "direct-window, stride | direct-scale | over_many_terms[direct-channels-busy] | "
        "smaller_than_the_work_loops_over_the_rest[direct | 2_to_the_31_apart_are_reached[direct | beyond 32 bits] | "
        "equals_the_oracle[direct-float16-rows] | do_not_overflow[direct | direct-windows apart | "
        "fill_their_blocks_equal_the_oracle[direct | equals_the_oracle[box-float16-rows] | direct-flownet-like"),
    "correlation/gradient_direct.cu": Tests((EMULATED,),
        "direct-window, stride | direct-template | direct-one pixel | the_same_sums[float32-5000] | "
        "equals_the_oracle[direct-float16-channels last] | direct-pwcnet-like-busy | equals_the_oracle[direct-float64-rows] | "
        "puts_it[direct-float32 | over_many_terms[direct-displacements-busy] | 2_to_the_31_apart_are_reached[direct | "
        "pixel_read_by_many_outputs | gradients_are_scaled | smaller_than_the_work_loops_over_the_rest[direct | "
        "direct-one-sided stereo | equals_the_oracle[direct-float16-rows]"),
    "correlation/box_filter.cu": Tests((EMULATED,),
        "box-window, stride | box-one pixel | box-template | box-windows apart | box-scale | "
        "rounded_once_from_the_sum[box-float64-float16] | over_many_terms[box-taps of a row-busy] | sums_along_y | "
        "any_strides[box | box-window of many taps | cotangents_more_than_2_to_the_31_apart_are_reached[box | "
        "smaller_than_the_work_loops_over_the_rest[box"),
    "common/tile.cuh": Tests((FORWARD_TILED, GRADIENT_TILED, FORWARD_MMA, GRADIENT_MMA, *EITHER),
        "[3 columnwise] | [0 copied] | [3 channelwise] | [P 9-4 bytes | [P 9-8 bytes | [7-float32-every | [7-float16-every | "
        "[2-7-bfloat16] | [9-float16-1] | [9-float16-2]"),
    "common/sum_parts.cu": Tests((FORWARD_TILED, GRADIENT_TILED, FORWARD_MMA, GRADIENT_MMA, *EITHER),
        "in_parts_give_the_same_sums[3-float32] | smaller_than_the_work_loops_over_the_rest[idle] | "
        "that_fill_their_blocks_equal_the_oracle[tiled-idle | many_partial_sums_keep_the_error_bound"),
    "common/mma.cuh": Tests((FORWARD_MMA, GRADIENT_MMA, *MMA),
        "[1-float16-rows] | [1-bfloat16-rows] | [1-float32-rows] | nearest_tf32"),
    "correlation/forward_phases.cuh": Tests((FORWARD_TILED, FORWARD_MMA, *EITHER),
        "[0 copied] | [2 columnwise] | tiled-stride and step coprime | phases_of_outputs_and_of_patch_indices_are_told_apart | "
        "infinite_in_the_other[both phases-x1] | [window over two phases] | [strided window over two phases] | "
        "in_parts_give_the_same_sums[3-float32]"),
    "correlation/tile_loader.cuh": Tests((FORWARD_MMA, *MMA),
        "every_axis[0] | every_axis[17] | every_axis[8] | every_axis[22] | passes_over | 2_to_the_31_apart_are_reached | "
        "that_begin_anywhere | [1-7-float32] | told_apart_in_every_pass | rows-one phase-bfloat16"),
    "correlation/forward_tiled.cuh": Tests((FORWARD_TILED, *TILED),
        "[0 copied] | [2 columnwise] | [3 columnwise] | [3 channelwise] | [1 copied] | [8 copied] | tiled-template | "
        "in_parts_give_the_same_sums[3-float32] | infinite_in_the_other[one phase | tiled-stride and step coprime | "
        "[window over two phases] | smaller_than_the_work_loops_over_the_rest[tiled | flownetc_loads | "
        "rows_meet_nothing_load_nothing | 2_to_the_31_apart_are_reached[tiled | [11 channelwise] | [7-float32-1] | "
        "[coprime stride and step]"),
    "correlation/forward_tiled.cu": Tests((FORWARD_TILED, *TILED),
        "[0 copied] | [2 columnwise] | [3 columnwise] | [3 channelwise] | [8 copied] | tiled-stride and step coprime | "
        "[window over two phases] | smaller_than_the_work_loops_over_the_rest[tiled | 2_to_the_31_apart_are_reached[tiled | "
        "in_parts_give_the_same_sums[3-float32] | [coprime stride and step]"),
    "correlation/forward_mma.cuh": Tests((FORWARD_MMA, *MMA),
        "every_axis[0] | every_axis[17] | every_axis[2] | every_axis[5] | every_axis[8] | "
        "its_own_way_equal_the_oracle[rows-one phase-bfloat16] | passes_over | mma-stride and step coprime-busy | "
        "infinite_in_the_other | mma-pwcnet-like-idle | [1-7-float32] | [2-7-bfloat16] | "
        "that_leave_nothing_out[aligned] | no_further | told_apart_in_every_pass | whose_rows_meet_nothing | long_sums | "
        "smaller_than_the_work_loops_over_the_rest[mma | rounded_to_the_nearest_tf32 | counted_to_be_loaded_is_loaded[9"),
    "correlation/forward_mma.cu": Tests((FORWARD_MMA, *MMA),
        "every_axis[0] | every_axis[17] | every_axis[2] | every_axis[5] | every_axis[8] | passes_over | "
        "its_own_way_equal_the_oracle[rows-one phase-bfloat16] | mma-stride and step coprime-busy | mma-pwcnet-like-idle | "
        "that_leave_nothing_out[aligned] | smaller_than_the_work_loops_over_the_rest[mma | no_further"),
    "correlation/gradient_phases.cuh": Tests((GRADIENT_TILED, GRADIENT_MMA, *EITHER),
        "equals_the_oracle[float32-rows] | every phase has its outputs elsewhere-busy | seams[1 phases, 32 x 2 x 32, 9] | "
        "pwcnet-like-idle | one-sided stereo-idle | cotangents_more_than_2_to_the_31_apart_are_reached"),
    "correlation/gradient_tiled.cu": Tests((GRADIENT_TILED, *TILED),
        "equals_the_oracle[float32-rows] | seams[1 phases, 32 x 2 x 32, 9] | seams[2 phases, 64 x 4 x 32, 21] | "
        "equals_the_oracle[float32-channels last] | equals_the_oracle[float32-every other column] | "
        "seams[1 phases, 128 x 2 x 8, any 20] | puts_it[one phase | seams[1 phases, 64 x 4 x 32, 9] | "
        "smaller_than_the_work_loops_over_the_rest[busy] | larger_image_equal_the_oracle[float32-one phase] | bank_conflicts | "
        "16_bytes_at_a_time[pwcnet-like] | infinite_where_that_part | wide_problems | wide_rows_of_neighbouring_channels | "
        "2_to_the_31_apart_are_reached[batch]"),
    "correlation/gradient_mma.cu": Tests((GRADIENT_MMA, *MMA),
        "[bfloat16, 1 phases, 64 x 4 x 16, 9, | [bfloat16, 2 phases, 64 x 2 x 32, 21, | [bfloat16, 1 phases, 32 x 1 x 64, 73, | "
        "the_definition_puts_it[one phase-bfloat16-inf] | memory_order_equals_the_oracle[bfloat16-rows] | "
        "[bfloat16, 1 phases, 32 x 8 x 32, 25, | [float32, 1 phases, 64 x 2 x 16, 9, | "
        "the_definition_puts_it[cropped-bfloat16-inf] | memory_order_equals_the_oracle[bfloat16-every other column] | "
        "factors_of_32_bits | infinite_column_does_not_reach | sums_made_again_take | one_after_the_other[one row] | "
        "runs_of_channels_are_scaled | halves_do_not_overflow[busy] | 31_apart_are_reached[patch rows] | "
        "a_cotangent_may_have_any_strides"),
}
# fmt: on


def mutated_files() -> list[str]:
    """Return the files that have mutants: all but the one whose code for a device does not run here."""
    return [file for file in kernel_files("*.cu*") if file != "common/platform.cuh"]


def mutants(file: str) -> list[Mutant]:
    """Return all the mutants of a file."""
    text = text_of(file)
    return [*by_hand(file, text), *generated(file, text)]


def drawn(among: Iterable[Mutant], number: int, seed: int) -> list[Mutant]:
    """Draw some mutants by the hash of their names, so that a change elsewhere in the kernels leaves the draw as it is."""
    return sorted(among, key=lambda mutant: hashlib.sha256(f"{seed} {mutant}".encode()).digest())[:number]


# The process that runs the tests: pytest with this module as a plugin -----------------------------------------------------------


def run_pytest(arguments: list[str], printed: Path) -> None:
    """End this process as pytest ends; what it prints goes to a file."""
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    os.chdir(ROOT)
    with printed.open("wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.exit(int(pytest.main(arguments)))


def pytest_addoption(parser):
    parser.addoption("--kernels", type=Path, help="the folder in the place of kernels_cu")
    parser.addoption("--first", default="", help="parts of the names of the tests to run first, between bars")
    parser.addoption("--only-first", action="store_true", help="run no others")


def pytest_sessionstart(session):
    from hypothesis import Phase, settings

    source.folder = lambda: session.config.getoption("--kernels")
    # The first problem that fails will do: none is looked for that is smaller.
    settings.register_profile("mutants", settings.get_profile("suite"), phases=[Phase.explicit, Phase.generate])
    settings.load_profile("mutants")


def pytest_collection_modifyitems(config, items):
    first = config.getoption("--first").split(BAR)
    if missing := [part for part in first if not any(part in item.nodeid for item in items)]:
        raise pytest.UsageError(f"no test has {' or '.join(missing)} in its name")

    def rank(item) -> int:
        return next((number for number, part in enumerate(first) if part in item.nodeid), len(first))

    # Tests of sanitizers run the kernels in a process of their own, which would take them from where they are.
    items[:] = [item for item in items if "sanitizers" not in item.name]
    items.sort(key=rank)
    if config.getoption("--only-first"):
        items[:] = [item for item in items if rank(item) < len(first)]


# The process that starts it -----------------------------------------------------------------------------------------------------


def run_tests(kernels: Path, tests: Tests, *options: str) -> tuple[int, str]:
    """Run some tests on the kernels in a folder until one fails; return how pytest ended, and what it printed."""
    plugin = ("-p", "mutants", f"--kernels={kernels}", f"--first={tests.first}", *options)
    quiet = ("-q", "-x", "-rfE", "--tb=short", "--assert=plain", "-p", "no:cacheprovider", "-m", "")
    with tempfile.TemporaryDirectory() as place:
        printed = Path(place) / "printed"
        process = PROCESSES.Process(target=run_pytest, args=([*quiet, *plugin, *tests.selection], printed))
        process.start()
        process.join()
        return process.exitcode, printed.read_text("utf-8")


def attempt(mutant: Mutant, *options: str, tests: Tests | None = None) -> tuple[str, str, float]:
    """Run the tests on a copy of the kernels with a mutant in it; return its end, its killer and the seconds that it took.

    The tests are by default those in `TESTS`.
    """
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        copy = Path(shutil.copytree(source.folder(), Path(place) / "kernels_cu"))
        file = copy / mutant.file
        file.write_text(mutant.applied(file.read_text("utf-8")), "utf-8")
        end, killer = end_of(*run_tests(copy, tests or TESTS[mutant.file], *options))
    return end, killer, time.perf_counter() - begun


def end_of(code: int, printed: str) -> tuple[str, str]:
    """Return the end of a mutant, killed, survived or invalid, and the test or crash that killed it, from a run of the tests."""
    if code == 0:
        return "survived", ""
    if "g++ cannot build" in printed:
        return "invalid", ""
    if -code in CRASHES:
        return "killed", signal.Signals(-code).name
    failed = re.search(r"^(?:FAILED|ERROR) (\S+?::.+?)(?: - .*)?$", printed, re.MULTILINE)
    if not failed or not passes(failed[1]):
        raise RuntimeError(f"pytest ended with {code}, which no mutant explains:\n{printed}")
    return "killed", failed[1].partition("::")[2]


@cache
def passes(test: str) -> bool:
    """Return whether a test passes on the kernels as they are."""
    return run_tests(source.folder(), Tests((test,), ""))[0] == 0


def written(files: Iterable[str], name: str, pattern: str, after: str) -> Mutant:
    """Return a mutant written by hand: what a pattern matches in the code of the file with this name becomes ``after``."""
    (file,) = (file for file in files if file.endswith(f"/{name}"))
    (found,) = re.finditer(pattern, mutable(text_of(file)))
    return Mutant(file, f"by hand: {pattern}", *found.span(), found.expand(after))


def text_of(file: str) -> str:
    """Return the text of a file of kernels."""
    return (source.folder() / file).read_text("utf-8")


def assert_killed(among: Iterable[Mutant], tests: Tests | None = None) -> None:
    """Check that the tests that come first fail with the first mutant that builds."""
    for mutant in among:
        end, *_ = attempt(mutant, "--only-first", tests=tests)
        if end != "invalid":
            break
    assert end == "killed", f"{mutant} {end}: {changed_line(mutant)}"


def changed_line(mutant: Mutant) -> str:
    """Return the line that a mutant changes, with the change marked in it."""
    text = text_of(mutant.file)
    before, after = text[: mutant.begin].rpartition("\n")[2], text[mutant.end :].partition("\n")[0]
    return re.sub(r"\s+", " ", f"{before.lstrip()}[{text[mutant.begin : mutant.end]} -> {mutant.after}]{after}")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Try mutants of the kernels, and say which of them a test of the suite kills.")
    parser.add_argument("words", nargs="*", help="try those with one of these words in their name")
    parser.add_argument("--sample", type=int, help="draw as many of them")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw")
    parser.add_argument("--processes", type=int, default=2, help="number of mutants that are tried at once")
    parser.add_argument("--only-first", action="store_true", help="run only the tests that see most")
    parser.add_argument("--list", action="store_true", help="print the mutants, and try none")
    given = parser.parse_args(arguments)
    chosen = [mutant for file in mutated_files() for mutant in mutants(file)]
    chosen = [mutant for mutant in chosen if not given.words or any(word in str(mutant) for word in given.words)]
    chosen = drawn(chosen, given.sample, given.seed) if given.sample else chosen
    if given.list:
        print(*(f"{mutant}  {changed_line(mutant)}" for mutant in chosen), sep="\n")
        return 0
    begun, ends = time.perf_counter(), Counter()
    with ThreadPoolExecutor(given.processes) as pool:
        tried = {pool.submit(attempt, mutant, *["--only-first"] * given.only_first): mutant for mutant in chosen}
        for future in as_completed(tried):
            mutant, (end, killer, seconds) = tried[future], future.result()
            told = changed_line(mutant) if end == "survived" else f"by {killer}" if killer else ""
            print(f"{end:8}  {seconds:6.1f} s  {mutant}  {told}", flush=True)
            ends[end] += 1
    valid = ends["killed"] + ends["survived"]
    print(f"{ends['killed']} of {valid} mutants killed, {ends['invalid']} invalid, in {time.perf_counter() - begun:.0f} s")
    return 0 if ends["killed"] == valid > 0 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
