"""Modules that import IRFT's and RFT's trainers are skipped, with the reason, where TRL is older than these need."""

from pathlib import Path

import pytest

from hf_select.training.reward_learning.releases import check_trl


NEED_TRAINERS = ("test_irft.py", "test_irft_distributed.py", "test_rft.py", "test_rft_distributed.py")


class _TooOld(pytest.Module):
    reason = ""

    def collect(self):
        pytest.skip(self.reason)


def pytest_pycollect_makemodule(module_path: Path, parent) -> pytest.Module | None:
    if module_path.name not in NEED_TRAINERS:
        return None
    try:
        check_trl()
    except ImportError as error:
        module = _TooOld.from_parent(parent, path=module_path)
        module.reason = str(error)
        return module
    return None


@pytest.fixture(autouse=True)
def _precision_of_one_test(monkeypatch):
    """transformers 4.57 keeps the precision of a TrainingArguments in the environment, for all that follow."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
