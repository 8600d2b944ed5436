"""Generators of the bundled task data: `instruct`, `tables` and `reviews`."""
