"""Supervised fine-tuning as TRL 1.16 shows it (TrlParser, the model by name, resuming, `trainer.end()`), with three
more lines.

    python sft_trl_1_16.py --model_name_or_path MODEL --dataset_name FOLDER --output_dir OUTPUT_DIR ...
"""

from datasets import load_dataset
from trl import (
    ModelConfig,
    ScriptArguments,
    SFTConfig,
    SFTTrainer,
    TrlParser,
    get_peft_config,
    get_quantization_config,
)

from hf_select import DataSelectionCallback, online_scores  # 1


parser = TrlParser((ScriptArguments, SFTConfig, ModelConfig))
script_args, training_args, model_args = parser.parse_args_and_config()
dataset = load_dataset(script_args.dataset_name)
trainer = SFTTrainer(
    model=model_args.model_name_or_path,
    args=training_args,
    train_dataset=dataset[script_args.dataset_train_split],
    eval_dataset=dataset[script_args.dataset_test_split] if training_args.eval_strategy != "no" else None,
    quantization_config=get_quantization_config(model_args),
    peft_config=get_peft_config(model_args),
)
callback = DataSelectionCallback(trainer, online_scores.loss, fraction=0.5)  # 2
trainer.add_callback(callback)  # 3
trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
trainer.save_model(training_args.output_dir)
trainer.end()
