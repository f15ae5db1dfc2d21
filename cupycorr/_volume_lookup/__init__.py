"""The lookup in a given correlation volume: small windows around coordinates, one in the slice of each query."""
