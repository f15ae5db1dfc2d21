"""The lookup on the CPU."""
