"""CUDA C to running kernels through CuPy: source, compilation, launch, plans and costs. Knows no operator."""
