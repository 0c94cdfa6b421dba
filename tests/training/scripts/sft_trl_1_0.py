"""Supervised fine-tuning as TRL 1.0 shows it (a loaded model, an adapter, evaluation), with three more lines.

python sft_trl_1_0.py MODEL ROWS OUTPUT_DIR
"""

import sys

from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from hf_select import DataSelectionCallback, online_scores  # 1


model, rows, output_dir = sys.argv[1:]
dataset = load_dataset("json", data_files=rows, split="train").train_test_split(test_size=8, seed=0)
trainer = SFTTrainer(
    model=AutoModelForCausalLM.from_pretrained(model, dtype="float32"),
    args=SFTConfig(
        output_dir=output_dir,
        num_train_epochs=2,
        per_device_train_batch_size=4,
        eval_strategy="epoch",
        gradient_checkpointing_kwargs={"use_reentrant": False},
        max_length=64,
        logging_steps=1,
        use_cpu=True,
        bf16=False,
        report_to="none",
    ),
    train_dataset=dataset["train"],
    eval_dataset=dataset["test"],
    processing_class=AutoTokenizer.from_pretrained(model),
    peft_config=LoraConfig(r=4, task_type="CAUSAL_LM", target_modules="all-linear"),
)
score = online_scores.GradientSimilarity(trainer.eval_dataset)  # 2
trainer.add_callback(DataSelectionCallback(trainer, score, fraction=0.5))  # 3
trainer.train()
trainer.save_model()
