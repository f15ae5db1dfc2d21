"""The CPU side of every operator: worker threads, scratch memory, BLAS limits and register tiles. Knows no operator."""
