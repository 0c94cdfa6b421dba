"""Cost of RFT beside SFT on the same demonstrations: processor time of each phase of a stage, and peak memory.

    python benchmarks/rft.py --model PATH [--rows 64] [--batch 8]

Time is that of this process alone, which other programs on the machine do not enter; the phases of a stage (answers,
reward, alignment) and SFT take turns, and what is told are ratios. SFT and the alignment make the same number of
updates with as many sequences each. Memory is the peak of a process of its own for each kind of run, over what it had
before it loaded a model.
"""

import argparse
import json
import statistics
import tempfile
import threading
import time

import psutil
import torch
from datasets import Dataset
from irft import demonstrations, print_peaks

from hf_select.training.reward_learning import staged_training
from hf_select.training.reward_learning.rft_config import RFTConfig
from hf_select.training.reward_learning.rft_trainer import RFTTrainer
from hf_select.training.reward_learning.sft_baseline import SFTBaselineConfig, SFTBaselineTrainer


def settings(folder: str, batch: int) -> dict:
    return {
        "output_dir": folder,
        "per_device_train_batch_size": batch,
        "learning_rate": 1e-6,
        "activation_checkpointing": False,
        "save_strategy": "no",
        "logging_steps": 1000,
        "max_length": 256,
        "max_completion_length": 64,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
    }


def rft(path: str, folder: str, data: Dataset, batch: int, **further) -> RFTTrainer:  # noqa: ANN003
    args = RFTConfig(**settings(folder, batch), num_stages=1, num_generations=2, reward_batch_size=batch, **further)
    return RFTTrainer(path, args=args, train_dataset=data)


def sft(path: str, folder: str, data: Dataset, batch: int, passes: int = 1, **further) -> SFTBaselineTrainer:  # noqa: ANN003
    args = SFTBaselineConfig(**settings(folder, batch), num_train_epochs=passes, **further)
    return SFTBaselineTrainer(path, args=args, train_dataset=data)


def spent(work) -> float:  # noqa: ANN001
    begin = time.process_time()
    work()
    return time.process_time() - begin


def one_round(path: str, data: Dataset, batch: int) -> dict[str, float]:
    """Processor seconds of a stage's phases and of SFT with as many updates of as many sequences."""
    with tempfile.TemporaryDirectory() as folder:
        trainer, phases = rft(path, folder + "/rft", data, batch), {}

        def timed(name: str, work):  # noqa: ANN001, ANN202
            def run(*args, **kwargs):  # noqa: ANN002, ANN003, ANN202
                begin = time.process_time()
                try:
                    return work(*args, **kwargs)
                finally:
                    phases[name] = phases.get(name, 0.0) + time.process_time() - begin

            return run

        before = staged_training.answer_all
        staged_training.answer_all = timed("answers", before)
        trainer.reward.fit = timed("reward", trainer.reward.fit)
        trainer._generate = timed("policy's own answers", trainer._generate)
        try:
            whole = spent(trainer.train)
        finally:
            staged_training.answer_all = before
        # As many updates: two answers to each prompt make twice as many as SFT's pass over the rows.
        other = sft(path, folder + "/sft", data, batch, passes=2)
        plain = spent(other.train)
        assert other.state.global_step == trainer.state.global_step
    rest = whole - sum(phases.values())
    return {**phases, "alignment and the rest": rest, "whole stage": whole, "SFT": plain}


KINDS = ("SFT", "RFT", "RFT, LoRA for policy and reward")


def memory(path: str, kind: str) -> dict[str, float]:
    """MB at the peak over what the process had before, and of the weights; run in a process of its own."""
    from peft import LoraConfig

    now = psutil.Process().memory_info
    data, before, seen, over = demonstrations(8), now().rss, [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            seen.append(now().rss)

    threading.Thread(target=watch, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        if kind == "SFT":
            trainer = sft(path, folder, data, 2)
        elif kind == "RFT":
            trainer = rft(path, folder, data, 2)
        else:
            lora = {"r": 8, "target_modules": ["q_proj", "v_proj"]}
            args = RFTConfig(
                **settings(folder, 2), num_stages=1, num_generations=2, reward_batch_size=2, reward_lora=lora
            )
            peft_config = LoraConfig(**lora, task_type="CAUSAL_LM")
            trainer = RFTTrainer(path, args=args, train_dataset=data, peft_config=peft_config)
        weights = sum(p.numel() * p.element_size() for p in trainer.model.parameters()) / 2**20
        trainer.train()
    over.set()
    return {"MB": (max(seen) - before) / 2**20, "weights": weights}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", choices=KINDS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.memory:
        print(json.dumps(memory(args.model, args.memory)))
        return
    found = [one_round(args.model, demonstrations(args.rows), args.batch) for _ in range(args.repeats)]
    for name in found[0]:
        seconds = statistics.median(run[name] for run in found)
        ratio = statistics.median(run[name] / run["SFT"] for run in found)
        print(f"{name}: {seconds:.1f} s, {ratio:.2f} times SFT", flush=True)
    print_peaks(__file__, KINDS, args.model)


if __name__ == "__main__":
    main()
