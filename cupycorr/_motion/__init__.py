"""Block matching: the parts of `match`."""
