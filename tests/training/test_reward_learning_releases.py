"""Releases of TRL and transformers that IRFT and RFT work with, and what they say on others."""

from importlib.metadata import version

import pytest
from releases import needs_irft
from trl import DPOTrainer

from hf_select.training.reward_learning import releases


@pytest.mark.parametrize("installed", ["0.24.0", "1.0.0", "1.13.2"])
def test_an_old_trl_is_refused_in_one_line(monkeypatch, installed):
    monkeypatch.setattr(releases, "version", lambda package: installed)
    message = f'^IRFT and RFT need trl>=1.14, and trl {installed} is installed: pip install "trl>=1.14"$'
    with pytest.raises(ImportError, match=message):
        releases.check_trl()


@pytest.mark.parametrize("installed", ["1.14.0", "1.14.2.dev0", "1.16.0", "1.40.1", "2.0.0", "2.1.0rc1"])
def test_a_newer_trl_is_not_refused(monkeypatch, installed):
    monkeypatch.setattr(releases, "version", lambda package: installed)
    releases.check_trl()


def test_the_installed_trl_is_refused_where_the_trainers_are_imported():
    import hf_select

    if releases._numbers(version("trl")) >= (1, 14):
        assert hf_select.IRFTTrainer and hf_select.RFTTrainer and hf_select.IRFTConfig and hf_select.RFTConfig
        return
    for name in ("IRFTTrainer", "RFTTrainer", "IRFTConfig", "RFTConfig"):
        with pytest.raises(ImportError, match="IRFT and RFT need trl>=1.14"):
            getattr(hf_select, name)
    assert hf_select.DataSelectionCallback and hf_select.DemonstrationReward


@pytest.mark.parametrize("name", ["IRFTTrainer", "RFTTrainer"])
def test_the_methods_of_the_installed_releases_are_as_expected(name):
    needs_irft()
    import hf_select

    releases.check_overridden_methods(getattr(hf_select, name))


def test_a_changed_method_is_named_with_the_tested_releases(monkeypatch, tmp_path, model_path, sixteen):
    needs_irft()
    from hf_select import IRFTConfig, IRFTTrainer

    def other(self, rows, processing_class, args, dataset_name):
        return rows

    monkeypatch.setattr(DPOTrainer, "_prepare_dataset", other)
    config = IRFTConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    with pytest.raises(RuntimeError) as refusal:
        IRFTTrainer(model_path, args=config, train_dataset=sixteen)
    message = str(refusal.value)
    assert (
        "IRFTTrainer does not work with the installed trl" in message and "_prepare_dataset is not there or" in message
    )
    assert 'Tested are trl 1.14 to 1.16 and transformers 5.5 to 5.24: pip install "trl==1.16.*"' in message
    monkeypatch.delattr(DPOTrainer, "_prepare_dataset")
    with pytest.raises(RuntimeError, match="_prepare_dataset is not there"):
        releases.check_overridden_methods(IRFTTrainer)


def test_a_further_parameter_changes_nothing(monkeypatch):
    needs_irft()
    from hf_select import IRFTTrainer

    def longer(self, dataset, processing_class, args, dataset_name, further=None):
        return dataset

    monkeypatch.setattr(DPOTrainer, "_prepare_dataset", longer)
    releases.check_overridden_methods(IRFTTrainer)
