"""Rows as vectors: one featurizer a file, and the index that stores the vectors of a pool."""
