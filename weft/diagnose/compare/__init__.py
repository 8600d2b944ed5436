"""Two sides beside each other: what belongs to what, how far apart it is, and how far noise is."""
