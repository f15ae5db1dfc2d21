"""The fixed-grid operator on GPUs: one planner for each kernel in ``kernels_cu/correlation``, under the same name."""
