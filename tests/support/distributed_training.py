"""What test_distributed.py launches: one training run with selection, whose processes write down what they saw."""

import os
import sys
from pathlib import Path

import torch
from launching import report, surroundings
from selection_training import Collator, pool
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from hf_select import DataSelectionCallback
from hf_select.training import online_scores


def main(kind: str, folder: str, score: str, resume: str = "") -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=128, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    )
    if kind == "fsdp2":
        from transformers.distributed import DistributedConfig

        model.save_pretrained(Path(folder) / f"model-{os.environ['RANK']}")
        model = LlamaForCausalLM.from_pretrained(
            Path(folder) / f"model-{os.environ['RANK']}", distributed_config=DistributedConfig(fsdp_size=2)
        )
    world = int(os.environ.get("WORLD_SIZE", 1))
    args = TrainingArguments(
        str(Path(folder) / "run"),
        num_train_epochs=3,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        gradient_accumulation_steps=4 // world,
        learning_rate=1e-2,
        max_grad_norm=0.0,
        logging_steps=1,
        save_strategy="no" if kind == "fsdp2" else "steps",
        save_steps=1,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    collator, scoring = Collator(), Collator()
    trainer = Trainer(model, args, train_dataset=pool(), data_collator=collator)
    scores = {
        "loss": online_scores.loss,
        "gradients": online_scores.GradientSimilarity(pool().select(range(1, 12, 2))),
    }
    callback = DataSelectionCallback(trainer, scores[score], rows=32)
    measure = callback._by_online_score

    def apart(rows):
        trainer.data_collator = scoring
        try:
            return measure(rows)
        finally:
            trainer.data_collator = collator

    callback._by_online_score = apart
    trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=resume or None)
    words = {
        **surroundings(trainer),
        "seen": collator.seen,
        "scored": sum(map(len, scoring.seen)),
        "selected": callback.sampler.selected.tolist(),
    }
    report(trainer, Path(folder), words)


if __name__ == "__main__":
    main(*sys.argv[1:])
