"""Supervised fine-tuning as TRL 0.24 shows it (model by name, SFTConfig, SFTTrainer), with three more lines.

python sft_trl_0_24.py MODEL ROWS OUTPUT_DIR
"""

import sys

from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

from hf_select import DataSelectionCallback, online_scores  # 1


model, rows, output_dir = sys.argv[1:]
trainer = SFTTrainer(
    model=model,
    args=SFTConfig(
        output_dir=output_dir,
        num_train_epochs=2,
        per_device_train_batch_size=4,
        gradient_checkpointing=True,
        max_length=64,
        logging_steps=1,
        use_cpu=True,
        bf16=False,
        report_to="none",
    ),
    train_dataset=load_dataset("json", data_files=rows, split="train"),
)
callback = DataSelectionCallback(trainer, online_scores.loss, fraction=0.5)  # 2
trainer.add_callback(callback)  # 3
trainer.train()
trainer.save_model()
