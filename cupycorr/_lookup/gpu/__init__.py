"""The lookup on GPUs: one planner for each kernel in ``kernels_cu/lookup``, under the same name."""
