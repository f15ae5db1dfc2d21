"""CUDA C to running kernels through CuPy: its source, its compilation, its launch, and facts about devices.

Knows nothing of correlation: a kernel here is a file, an entry point, macros and a list of arguments.
"""
