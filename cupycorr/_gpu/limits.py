"""Numbers of CUDA devices, and bounds that plans keep to. Each has its home here; knows no operator."""

from __future__ import annotations

# Hardware.
WARP = 32  # threads
SECTOR_BYTES = 32  # the smallest part of global memory that is moved
VECTOR_BYTES = 16  # the widest access of a thread
REGISTERS, REGISTERS_OF_A_THREAD = 65536, 255  # of a multiprocessor, and the most of a thread; they have 32 bits
LARGEST_GRID = 2**31 - 1  # blocks of a launch along x; kernels loop over the blocks beyond it
LARGEST_GRID_YZ = 65535  # blocks of a launch along y or z

# Bounds of 32-bit integers.
SAFE_INDEX = 2**30  # the sum of two integers below it fits into 32 bits
SAFE_POSITION = 2**29  # the sum of two positions below it, and of a tile's width, fits into 32 bits

# Memory that a plan may take beside its arrays.
# The most bytes of an algorithm's volumes in the workspace (more if one plane needs more), and of gradients' partial sums beyond
# the fewest splits.
WORKSPACE_BYTES = 256 * 2**20
# The most bytes of partial sums of the forward pass (split-K). Where one row of a volume needs more, the next algorithm is tried.
PARTIAL_SUMS_BYTES = 64 * 2**20
ALIGNMENT = 256  # bytes; every volume in the workspace begins at a multiple of it
