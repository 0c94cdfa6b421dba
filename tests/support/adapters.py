"""A short LoRA run through the stock Trainer: a checkpoint an epoch, with the state of its optimizer."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset


def train_adapter(model_path: str, folder: Path, rows: list[dict[str, Any]], epochs: int = 2) -> list[str]:
    """Paths of the checkpoints, oldest first; trained once a folder."""
    if not folder.exists():
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

        tokenizer = AutoTokenizer.from_pretrained(model_path)
        encoded = tokenizer([f"{row['prompt']} {row['completion']}" for row in rows])["input_ids"]
        data = Dataset.from_dict({"input_ids": [(ids * 40)[:40] for ids in encoded]})
        data = data.map(lambda row: {"labels": row["input_ids"]})
        torch.manual_seed(0)
        config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], lora_dropout=0.1)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(model_path), config)
        settings = TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=epochs,
            per_device_train_batch_size=8,
            learning_rate=3e-2,
            logging_steps=1,
            save_strategy="epoch",
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
        )
        Trainer(model, settings, train_dataset=data).train()
    return [str(path) for path in sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))]
