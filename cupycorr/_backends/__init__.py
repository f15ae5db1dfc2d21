"""How an answer is computed: each module here is one way, taking a `Problem` and checked arrays."""
