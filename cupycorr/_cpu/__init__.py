"""Worker threads, scratch memory, BLAS limits and register tiles, for the CPU side of every operator; it knows none of them."""
