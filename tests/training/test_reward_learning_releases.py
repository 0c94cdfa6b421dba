"""Releases of TRL and transformers that IRFT and RFT work with, and what they say on others."""

from importlib.metadata import version

import pytest
from releases import needs_dpo, needs_irft
from trl import DPOTrainer

from hf_select.training import _compat
from hf_select.training.reward_learning import releases


@pytest.mark.parametrize("installed", ["0.24.0", "1.0.0", "1.13.2"])
def test_an_old_trl_is_refused_in_one_line(monkeypatch, installed):
    monkeypatch.setattr(releases, "version", lambda package: installed)
    message = f'^IRFT and RFT need trl>=1.14, and trl {installed} is installed: pip install "trl>=1.14"$'
    with pytest.raises(ImportError, match=message):
        releases.check_trl()


@pytest.mark.parametrize("installed", ["1.14.0", "1.14.2.dev0", "1.16.0", "1.40.1", "2.0.0", "1.14rc1", "2.1.0rc1"])
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
    with pytest.raises(ImportError) as refusal:
        IRFTTrainer(model_path, args=config, train_dataset=sixteen)
    message = str(refusal.value)
    assert (
        "IRFTTrainer does not work with the installed trl" in message and "_prepare_dataset is not there or" in message
    )
    assert 'Tested are trl 1.14 to 1.16 and transformers 5.5 to 5.24: pip install "trl==1.16.*"' in message
    monkeypatch.delattr(DPOTrainer, "_prepare_dataset")
    with pytest.raises(ImportError, match="_prepare_dataset is not there"):
        releases.check_overridden_methods(IRFTTrainer)


def test_a_missing_attribute_is_named_with_the_tested_releases(monkeypatch, tmp_path, model_path, sixteen):
    needs_irft()
    from hf_select import IRFTConfig, IRFTTrainer

    construct = DPOTrainer.__init__

    def without_metrics(self, *args, **kwargs):
        construct(self, *args, **kwargs)
        del self._metrics

    monkeypatch.setattr(DPOTrainer, "__init__", without_metrics)
    config = IRFTConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    with pytest.raises(ImportError, match=r"it has no _metrics\. Tested are trl 1.14 to 1.16 and .*, or report it$"):
        IRFTTrainer(model_path, args=config, train_dataset=sixteen)


def test_an_old_transformers_is_named_where_it_is_the_reason(monkeypatch):
    needs_irft()
    from hf_select import IRFTTrainer

    monkeypatch.delattr(DPOTrainer, "_prepare_dataset")
    monkeypatch.setattr(releases, "version", lambda package: {"trl": "1.16.0", "transformers": "4.57.6"}[package])
    with pytest.raises(ImportError) as refusal:
        releases.check_overridden_methods(IRFTTrainer)
    assert str(refusal.value) == (
        'IRFTTrainer needs transformers>=5.5, and transformers 4.57.6 is installed: pip install "transformers>=5.5"'
    )


@pytest.mark.parametrize("name", ["IRFTTrainer", "RFTTrainer"])
def test_every_overridden_private_method_is_checked(name):
    needs_irft()
    import hf_select

    trainer = getattr(hf_select, name)
    ours = [cls for cls in trainer.__mro__ if cls.__module__.startswith("hf_select.")]
    theirs = [cls for cls in trainer.__mro__ if cls.__module__.partition(".")[0] in ("trl", "transformers")]
    overridden = {
        method
        for cls in ours
        for method, value in vars(cls).items()
        if callable(value) and method[0] == "_" != method[1] and any(method in vars(base) for base in theirs)
    }
    assert overridden and overridden <= releases._OVERRIDDEN.keys()


@pytest.mark.parametrize("method", ["irft", "rft"])
def test_the_command_refuses_an_old_trl_before_it_reads_rows(monkeypatch, capsys, tmp_path, method):
    from hf_select.cli.main import main

    monkeypatch.setattr(releases, "version", lambda package: "1.0.0")
    words = ["--model", "missing", "--dataset", "missing", "--output-dir", str(tmp_path / "o")]
    assert main(["train", method, *words]) == 2
    line = 'hf-select: error: IRFT and RFT need trl>=1.14, and trl 1.0.0 is installed: pip install "trl>=1.14"\n'
    assert capsys.readouterr().err == line
    assert not (tmp_path / "o").exists()


def test_a_release_that_hashes_no_weights_is_not_changed(monkeypatch):
    needs_irft()
    from trl.trainer import dpo_trainer

    monkeypatch.delattr(dpo_trainer, "hash_module")
    with _compat.unhashed_weights():
        assert not hasattr(dpo_trainer, "hash_module")
    assert not hasattr(dpo_trainer, "hash_module")


def test_a_further_parameter_changes_nothing(monkeypatch):
    needs_irft()
    from hf_select import IRFTTrainer

    def longer(self, dataset, processing_class, args, dataset_name, further=None):
        return dataset

    monkeypatch.setattr(DPOTrainer, "_prepare_dataset", longer)
    releases.check_overridden_methods(IRFTTrainer)


def test_a_learned_reward_works_in_the_stock_trainers_of_every_release(tmp_path, model_path, sixteen):
    """Below trl 1.14, too, where IRFT and RFT do not run: it learns, its metrics are logged, and it is saved."""
    needs_dpo()
    from transformers import AutoModelForSequenceClassification
    from trl import GRPOConfig, GRPOTrainer

    from hf_select import DemonstrationReward

    reward = DemonstrationReward(model_path, batch_size=4, learning_rate=1e-3, dtype="float32", bf16=False)
    args = GRPOConfig(
        str(tmp_path / "out"),
        max_steps=2,
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=8,
        logging_steps=1,
        use_cpu=True,
        bf16=False,
        report_to="none",
        **_compat.checkpointing(GRPOConfig, False),
    )
    trainer = GRPOTrainer(
        model_path,
        reward_funcs=[reward],
        callbacks=[reward],
        args=args,
        train_dataset=sixteen.rename_column("completion", "demonstration"),
    )
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 2
    assert all(any("demonstration_reward/" in name for name in entry) for entry in logged), logged[0].keys()
    reward.save_pretrained(tmp_path / "reward")
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").config.num_labels == 1


@pytest.mark.parametrize(("kernel", "lacking"), [({"_ChunkedLogProbFunction": None}, True), ({}, False)])
def test_only_a_release_that_could_not_import_triton_is_refused_for_it(monkeypatch, kernel, lacking):
    """A later release may call its kernel by another name."""
    from trl.trainer import utils

    monkeypatch.delattr(utils, "_ChunkedLogProbFunction", raising=False)
    for name, value in kernel.items():
        monkeypatch.setattr(utils, name, value, raising=False)
    assert _compat.lacks_triton() == lacking
