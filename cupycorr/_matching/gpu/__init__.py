"""Matching on a GPU."""
