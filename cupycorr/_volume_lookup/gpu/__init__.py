"""The lookup in a volume on GPUs: one planner for each kernel in ``kernels_cu/volume_lookup``, under the same name."""
