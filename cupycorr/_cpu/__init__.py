"""Threads, scratch memory, BLAS limits and LLVM register tiles, for the CPU side of every operator. Knows no operator."""
