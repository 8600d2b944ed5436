"""Generators of the pretraining corpus: one small file per genre, all seeded."""
