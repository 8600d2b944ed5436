"""One side of a diagnosis: what a run, an adapter or a configuration shows, read by itself."""
