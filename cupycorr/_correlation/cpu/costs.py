"""The constants of the cost model of the CPU: estimates in seconds of one thread, from which plans and engines are chosen.

They were fitted to a Zen 4 processor of about 3 GHz. They are constants and not measured at run time, so that the same plan, and
with it the same bits, is chosen on every machine.
"""

# Plans: overheads in Python and NumPy.
TASK = 80e-6  # a task, apart from its products
BLOCK = 150e-6  # a block
COPY = 10e-6  # a rectangle that is packed
LOOP = 15e-9  # an innermost loop of a copy in NumPy
ELEMENT = 0.8e-9  # a float32 value that is copied or added in memory
COPIED = 0.3e-9  # a float32 value that a kernel copies
COPY_CALL = 10e-6  # a call of such a kernel
NUMPY_CALL = 3e-6  # an addition or copy in NumPy, apart from its elements

# Register tiles.
CYCLE = 0.4e-9  # a cycle of the processor
KERNEL_CALLS = 50e-6  # all calls of compiled kernels that one task makes
ENTRY_CYCLES = 60  # an entry of a kernel's table, apart from its products
ADDITION_CYCLES = 6  # the addition of a vector of sums to memory

# Images that are not packed, but read in place. Like those of tasks, which they are compared with, these are about twice as long
# as measured on the processor named above.
UNPACKED_CALL = 20e-6  # the call of the kernel, apart from its products
ROW_CYCLES = 60  # a row of a displacement, apart from its products
TERM_CYCLES = 18  # a product of vectors in a chain of sums

# Row groups.
GROUP_CALL = 35e-6  # a call, apart from its packing and products
SPACED = 1.5e-9  # a value that is copied from or to memory apart from its neighbours
GROUP_CYCLES = 200  # a row group and a search row, apart from its products

# Gradients of windows with a large stride.
STRIDED_CALL = 200e-6  # a call, apart from its sums and products
STRIDED_COLUMN = 4  # a column of the sums over windows takes the time of so many values that a kernel copies
STRIDED_TERM_CYCLES = 3  # a product of vectors

# BLAS.
PRODUCT_RATE = 4e10  # float32 operations per second in a matrix product
PRODUCT_CALL = 8e-6  # a call of a matrix product or einsum, apart from its operations
BAND_VALUE = 1.5e-9  # a value that is copied out of a band
SHIFTED_VALUE = 1.5e-9  # a product of shifted rows, without BLAS
