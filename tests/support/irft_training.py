"""What test_irft_distributed.py launches: one IRFT run of two stages, which may kill itself on the way and whose
processes write down what they saw."""

import json
import os
import signal
import sys
from pathlib import Path

from datasets import Dataset
from launching import report, surroundings
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from hf_select import demo
from hf_select.training.reward_learning.irft_config import IRFTConfig
from hf_select.training.reward_learning.irft_trainer import IRFTTrainer
from hf_select.training.reward_learning.stage_folder import StageFolder


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(where: str) -> None:
    """generation: the last process dies when it has written a part of the second stage. reference: between the answers
    and the references of the second stage. training: after the first update of the second stage."""
    last = os.environ.get("RANK", "0") == str(int(os.environ.get("WORLD_SIZE", 1)) - 1)
    if where == "generation":
        write = StageFolder.write

        def write_and_die(self, shard, answers, ended):
            write(self, shard, answers, ended)
            if last and self.folder.name == "stage-01":
                die()

        StageFolder.write = write_and_die
    elif where == "reference":
        measure = IRFTTrainer._reference_log_probabilities

        def die_second(self, pairs):
            if self.state.global_step >= 3:
                die()
            return measure(self, pairs)

        IRFTTrainer._reference_log_probabilities = die_second
    elif where == "training":

        class Dying(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                if state.global_step == 5 and last:
                    die()

        init = IRFTTrainer.__init__
        IRFTTrainer.__init__ = lambda self, *a, **k: init(self, *a, callbacks=[Dying()], **k)


def main(kind: str, folder: str, base: str, where: str = "", **settings) -> None:
    kill_at(where)
    root = Path(folder)
    if kind == "fsdp2":
        from transformers.distributed import DistributedConfig

        model = AutoModelForCausalLM.from_pretrained(base, distributed_config=DistributedConfig(fsdp_size=2))
    else:
        model = base
    world = int(os.environ.get("WORLD_SIZE", 1))
    rows = [{"prompt": row["prompt"], "completion": row["completion"]} for row in demo.make_pool(24, 0.0, seed=5)]
    args = IRFTConfig(
        str(root / "run"),
        num_stages=2,
        per_device_train_batch_size=4 // world,
        per_device_eval_batch_size=2,
        learning_rate=1e-2,
        max_length=128,
        max_completion_length=40,
        generation_tokens_per_batch=300,
        rows_per_shard=2,
        max_grad_norm=0.0,
        logging_steps=1,
        save_strategy="no" if kind == "fsdp2" else "steps",
        save_steps=2,
        activation_checkpointing=False,
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        **settings,
    )
    tokenizer = AutoTokenizer.from_pretrained(base)
    trainer = IRFTTrainer(model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer.train(resume_from_checkpoint=kind != "fsdp2")
    words = {
        **surroundings(trainer),
        "begun_at": trainer._initial_global_step,
        "margins": [entry["rewards/margins"] for entry in trainer.state.log_history if "loss" in entry],
    }
    report(trainer, root, words)


if __name__ == "__main__":
    kind, folder, base, where, settings = sys.argv[1:]
    main(kind, folder, base, where, **json.loads(settings))
