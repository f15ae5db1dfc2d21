"""The fixed-grid operator: spatial correlation over a grid of displacements."""
