"""LESS's warm-up: a short LoRA run of TRL's SFTTrainer on a random share of the pool.

Xia et al. 2024 (arXiv:2402.04333), section 3 and appendix: the checkpoints provide the adapter of the gradients and
Adam's moments. Rows, templates and response tokens are those that LESS measures.
"""

import copy
import logging
import os
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from datasets import Dataset

from hf_select.extras import require
from hf_select.jobs.run_folder import claim_run_folder
from hf_select.models.causal_lm import CausalLM
from hf_select.models.responses import tokenize_with_labels
from hf_select.models.template_day import began_on
from hf_select.selection.baselines import Random
from hf_select.training.lora import lora_config
from hf_select.training.resuming import last_whole_checkpoint
from hf_select.validation import check_choices


if TYPE_CHECKING:
    from transformers import Trainer
    from trl import SFTConfig  # pyright: ignore[reportPrivateImportUsage]

    from hf_select.models.loaded_model import LoadedModel


logger = logging.getLogger(__name__)


@dataclass
class WarmUp:
    """Settings of the run; the defaults are the paper's.

    Args:
        model: Hub id, path or CausalLM of the base model.
        fraction: share of the pool that is trained on.
        seed: of the share, the adapter and the order of rows.
        epochs: passes over the share; one checkpoint each.
        learning_rate: peak rate; linear warm-up over 3 % of the steps, then linear decay.
        rows_per_step: rows per optimizer step.
        rows_per_batch: rows per forward pass; a step accumulates several.
        lora_r: rank of the adapter.
        lora_alpha: its scale, times the rank.
        lora_dropout: its dropout.
        target_modules: names of the layers with an adapter; by default PEFT's for the model.
        text_format: chat is the model's own template; tulu the layout of the authors' code.
        max_length: tokens kept of a row; a longer one is cut on the right.
    """

    model: str | CausalLM
    fraction: float = 0.05
    seed: int = 0
    epochs: int = 4
    learning_rate: float = 2e-5
    rows_per_step: int = 128
    rows_per_batch: int = 1
    lora_r: int = 128
    lora_alpha: int = 512
    lora_dropout: float = 0.1
    target_modules: list[str] | None = None
    text_format: Literal["chat", "tulu"] = "chat"
    max_length: int | None = 2048

    def __post_init__(self) -> None:
        check_choices(self)
        if self.text_format != "chat" and isinstance(self.model, CausalLM):
            self.model.refuse_template(f"text_format {self.text_format} is a layout of its own")

    def run(self, dataset: Dataset, output_dir: str | os.PathLike) -> list[str]:
        """Train, or resume a killed run; returns the checkpoints, one per epoch.

        Raises: ValueError if no row of the share has response tokens, or if the folder holds a run of other rows or
            settings. ImportError without trl or peft.
        """
        require("a warm-up", "trl", "peft")
        from trl import SFTTrainer  # pyright: ignore[reportPrivateImportUsage]

        from hf_select.training.clock import Clock

        folder = Path(output_dir).expanduser()
        # A copy, since training adds the adapter to the model.
        lm = self.model.fresh() if isinstance(self.model, CausalLM) else CausalLM(self.model)
        lm.begin_on(began_on(folder / "warm_up.json"))
        settings = {f.name: getattr(self, f.name) for f in fields(self)}
        claim_run_folder(folder / "warm_up.json", {**settings, "model": lm.identity()}, "a warm-up", dataset)
        loaded = lm.load()
        share = dataset.select(sorted(Random(self.seed)(dataset, fraction=self.fraction).indices))
        rows, bad, notes = tokenize_with_labels(lm, share, self.text_format, self.max_length)
        _warn_reasons(bad, "left out", len(share))
        _warn_reasons(notes, "shortened", len(share))
        if not len(rows):
            raise ValueError(f"none of the {len(share)} rows drawn has a response to train on.")
        tokenizer = copy.copy(loaded.tokenizer)
        tokenizer.chat_template = lm.dated.own_template  # checkpoints keep the model's template, without the date
        trainer = SFTTrainer(
            loaded.model,
            args=self._config(folder, loaded),
            train_dataset=rows,
            processing_class=tokenizer,
            peft_config=lora_config(
                r=self.lora_r,
                lora_alpha=self.lora_alpha,
                lora_dropout=self.lora_dropout,
                target_modules=self.target_modules,
            ),
            callbacks=[Clock()],
        )
        trainer.train(resume_from_checkpoint=last_whole_checkpoint(folder))
        if _steps_per_epoch(trainer) < 2:
            logger.warning(
                "warm-up: an epoch has less than two steps; raise fraction, or lower rows_per_step (%d).",
                self.rows_per_step,
            )
        return [str(path) for path in sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))]

    def _config(self, folder: Path, loaded: "LoadedModel") -> "SFTConfig":
        from trl import SFTConfig  # pyright: ignore[reportPrivateImportUsage]

        from hf_select.training import _compat

        return SFTConfig(
            output_dir=str(folder),
            num_train_epochs=self.epochs,
            per_device_train_batch_size=self.rows_per_batch,
            gradient_accumulation_steps=max(1, self.rows_per_step // self.rows_per_batch),
            learning_rate=self.learning_rate,
            lr_scheduler_type="linear",
            **_compat.warmup_share(SFTConfig, 0.03),
            max_length=None,  # rows are cut already
            **_compat.checkpointing(SFTConfig, True),
            save_strategy="epoch",
            logging_steps=1,
            seed=self.seed,
            bf16=str(loaded.model.dtype) == "torch.bfloat16",
            use_cpu=loaded.device.type == "cpu",
            report_to="none",
        )


def _steps_per_epoch(trainer: "Trainer") -> float:
    return trainer.state.max_steps / max(1, trainer.args.num_train_epochs)


def _warn_reasons(reasons: Counter[str], change: str, total: int) -> None:
    """Warn of the rows that were left out or shortened, with the most frequent reasons."""
    if reasons:
        listed = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(3))
        verb = "is" if reasons.total() == 1 else "are"
        logger.warning("warm-up: %d of the %d sampled rows %s %s (%s).", reasons.total(), total, verb, change, listed)
