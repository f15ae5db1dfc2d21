"""Matching on the CPU."""
