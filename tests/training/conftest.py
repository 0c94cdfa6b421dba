"""Fixtures of tests that train."""

import pytest


@pytest.fixture(autouse=True)
def _precision_of_one_test(monkeypatch):
    """transformers 4.57 keeps the precision of a TrainingArguments in the environment, for all that follow."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
