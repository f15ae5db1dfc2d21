"""The best or the mean displacement at every position, computed from the fixed-grid correlation without its volume."""
