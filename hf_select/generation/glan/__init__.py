"""GLAN: instructions from a taxonomy (arXiv:2402.13064)."""
