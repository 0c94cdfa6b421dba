"""Mixtures of several sources in one dataset."""
