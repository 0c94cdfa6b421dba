"""What the installed releases of transformers and TRL can do, for tests of what older ones cannot."""

import inspect
from dataclasses import fields
from typing import Any

import pytest
import transformers
from transformers import Trainer, TrainingArguments

from hf_select.training import _compat


def has_setting(config: type, name: str) -> bool:
    """Whether a trainer's configuration has this setting."""
    return name in {field.name for field in fields(config)}


def sampling(strategy: str) -> dict[str, Any]:
    """The setting of a sampling strategy: `train_sampling_strategy`, or `group_by_length` in transformers 4.57."""
    if has_setting(TrainingArguments, "train_sampling_strategy"):
        return {"train_sampling_strategy": strategy}
    if strategy == "group_by_length":
        return {"group_by_length": True}
    pytest.skip(f'transformers {transformers.__version__} has no train_sampling_strategy="{strategy}"')


def needs_fused_head() -> None:
    """Skip the test where TRL has no fused head."""
    if not _compat.offers_fused_head():
        pytest.skip(f"trl {trl_version()} has no fused head (add_fused_lm_head)")


def needs_fsdp2() -> None:
    """Skip the test where `from_pretrained` cannot shard a model (transformers 5.23: `DistributedConfig`)."""
    from transformers.distributed import DistributedConfig

    if not has_setting(DistributedConfig, "fsdp_size"):
        pytest.skip(f"transformers {transformers.__version__} has no DistributedConfig(fsdp_size=...)")


def needs_optimizer_on_cpus(stderr: str) -> None:
    """Skip the test where Trainer cannot load its optimizer in several processes on a CPU (transformers 4.57 and 5.5
    load it to "cpu:0", which torch 2.13 does not know)."""
    if "_load_optimizer_and_scheduler" in stderr and "(tagged with cpu:0)" in stderr:
        pytest.skip(f"transformers {transformers.__version__} cannot resume several processes on a CPU")


def needs_irft() -> None:
    """Skip the test where TRL is older than IRFT and RFT need."""
    from trl import DPOTrainer  # pyright: ignore[reportPrivateImportUsage]

    if "quantization_config" not in inspect.signature(DPOTrainer.__init__).parameters:
        pytest.skip(f"trl {trl_version()} is older than IRFTTrainer needs")


def needs_rft() -> None:
    """Skip the test where TRL is older than RFT needs, or its RLOOTrainer needs Triton."""
    needs_irft()
    needs_dpo()


def needs_dpo() -> None:
    """Skip the test where DPOTrainer and RLOOTrainer need Triton to train, and it is missing (trl 1.15)."""
    if _compat.lacks_triton():
        pytest.skip(f"the trainers of trl {trl_version()} need Triton")


def ends_answers_at_several_tokens() -> bool:
    """Whether RLOOTrainer ends answers at other tokens than the tokenizer's EOS (since trl 1.15)."""
    from trl import RLOOTrainer  # pyright: ignore[reportPrivateImportUsage]

    return "eos_token_ids" in inspect.getsource(RLOOTrainer.__init__)


def leaves_out_long_prompts(trainer: type) -> bool:
    """Whether this trainer of TRL leaves out rows whose prompt fills max_length; SFTTrainer, DPOTrainer and KTOTrainer
    of trl 0.24 and 1.0 cut them instead."""
    return ".filter(" in inspect.getsource(trainer._prepare_dataset)  # type: ignore[attr-defined]


def trl_version() -> str:
    """The installed release of TRL."""
    import trl

    return trl.__version__


def preference_inputs(batch: Any) -> dict[str, Any]:
    """Inputs of a causal LM for the answers of a batch of DPOTrainer, chosen ones first: trl 0.24 collates prompts and
    answers apart, later releases in one sequence."""
    import torch

    if "input_ids" in batch:
        ids, mask, answer = batch["input_ids"], batch["attention_mask"], batch["completion_mask"]
    else:
        prompt = batch["prompt_input_ids"], batch["prompt_attention_mask"]
        rows = [[], [], []]
        for name in ("chosen", "rejected"):
            for number, mask in enumerate(batch[f"{name}_attention_mask"]):
                kept, given = mask.bool(), prompt[1][number].bool()
                tokens = batch[f"{name}_input_ids"][number][kept]
                rows[0].append(torch.cat([prompt[0][number][given], tokens]))
                rows[1].append(torch.ones_like(rows[0][-1]))
                rows[2].append(torch.cat([torch.zeros_like(prompt[0][number][given]), torch.ones_like(tokens)]))
        ids, mask, answer = (torch.nn.utils.rnn.pad_sequence(part, batch_first=True) for part in rows)
    labels = ids.masked_fill(answer == 0, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def hub_calls(monkeypatch: pytest.MonkeyPatch, repo: Any, upload_folder: Any) -> None:
    """Let Trainer create this repository and upload with this function (transformers 4.57 calls two functions of
    huggingface_hub, 5.23 the methods of a client)."""
    from types import SimpleNamespace

    home = inspect.getmodule(Trainer)
    if hasattr(home, "hf_api"):
        api = SimpleNamespace(upload_folder=upload_folder, create_repo=lambda *_, **__: repo)
        monkeypatch.setattr(home, "hf_api", lambda: api)
    else:
        monkeypatch.setattr(home, "upload_folder", upload_folder)
        monkeypatch.setattr(home, "create_repo", lambda *_, **__: repo)
