"""What test_rft_distributed.py launches: one RFT run of two stages, which may kill itself on the way and whose
processes write down what they saw."""

import json
import os
import signal
import sys
from pathlib import Path

from datasets import Dataset
from launching import report, surroundings
from transformers import TrainerCallback

from hf_select import demo
from hf_select.training.reward_learning.demonstration_reward import DemonstrationReward
from hf_select.training.reward_learning.rft_config import RFTConfig
from hf_select.training.reward_learning.rft_trainer import RFTTrainer
from hf_select.training.reward_learning.stage_folder import StageFolder


class Dying(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 9:
            os.kill(os.getpid(), signal.SIGKILL)


def kill_at(where: str) -> list[TrainerCallback]:
    """generation: when a part of the second stage has been written. reward: after its fourth step in the second stage.
    training: after the third update of the second stage, of which the second was saved."""
    if where == "generation":
        write = StageFolder.write

        def write_and_die(self, shard, answers, ended):
            write(self, shard, answers, ended)
            if self.folder.name == "stage-01":
                os.kill(os.getpid(), signal.SIGKILL)

        StageFolder.write = write_and_die
    elif where == "reward":
        save = DemonstrationReward.save_state

        def save_and_die(self, folder, further=None):
            save(self, folder, further)
            if "stage-01" in str(folder) and further is not None and further["done"] == 4:
                os.kill(os.getpid(), signal.SIGKILL)

        DemonstrationReward.save_state = save_and_die
    return [Dying()] if where == "training" else []


def main(folder: str, base: str, where: str = "", **settings) -> None:
    callbacks = kill_at(where)
    root, world = Path(folder), int(os.environ.get("WORLD_SIZE", 1))
    rows = [{"prompt": row["prompt"], "completion": row["completion"]} for row in demo.make_pool(24, 0.0, seed=5)]
    args = RFTConfig(
        str(root / "run"),
        num_stages=2,
        per_device_train_batch_size=4 // world,
        learning_rate=1e-3,
        reward_learning_rate=1e-2,
        reward_batch_size=3,
        reward_epochs=2,
        max_length=128,
        max_completion_length=40,
        generation_tokens_per_batch=300,
        rows_per_shard=2,
        logging_steps=1,
        save_steps=2,
        activation_checkpointing=False,
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        **settings,
    )
    trainer = RFTTrainer(base, args=args, train_dataset=Dataset.from_list(rows), callbacks=callbacks)
    trainer.train(resume_from_checkpoint=True)
    history = trainer.state.log_history
    words = {
        **surroundings(trainer),
        "begun_at": trainer._initial_global_step,
        "course": [[entry["reward"], entry["kl"], entry["grad_norm"]] for entry in history if "loss" in entry],
        "learnt": [entry["stage/reward_loss"] for entry in history if "stage/reward_loss" in entry],
        "gaps": [entry["stage/reward_gap_after"] for entry in history if "stage/reward_loss" in entry],
        "reward": sum(p.double().abs().sum().item() for p in trainer.reward.model.parameters()),
    }
    report(trainer, root, words)


if __name__ == "__main__":
    folder, base, where, settings = sys.argv[1:]
    main(folder, base, where, **json.loads(settings))
