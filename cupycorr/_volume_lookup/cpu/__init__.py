"""The lookup in a volume on the CPU."""
