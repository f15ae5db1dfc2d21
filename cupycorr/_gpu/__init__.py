"""The GPU side of every operator: sources, compilation, launches, plans and costs of kernels through CuPy. Knows no operator."""
