"""Rows -> vectors. A featurizer is a callable: list of conversations -> for each a float32 vector (d,), or why it has none."""
