"""Cost of IRFT: a training step beside TRL's DPO step, generation of a stage beside one prompt at a time, peak memory.

    python benchmarks/irft.py --model PATH [--prompts 64] [--steps 12]

Steps of the two trainers alternate on the same pairs, weights and cached references, and what is compared is the
processor time of this process, which other programs on the machine do not enter. Memory is the peak of a process of
its own for each kind of run, over what it had before it loaded the model.
"""

import argparse
import copy
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from hf_select import demo
from hf_select.models.sampling import Sampling
from hf_select.training.reward_learning.demonstrations import CHOSEN, PROMPT, REJECTED, stream_seed
from hf_select.training.reward_learning.irft_config import IRFTConfig
from hf_select.training.reward_learning.irft_trainer import IRFTTrainer
from hf_select.training.reward_learning.sampling import answers


def settings(folder: str, batch: int) -> dict:
    return {
        "output_dir": folder,
        "per_device_train_batch_size": batch,
        "learning_rate": 1e-6,
        "activation_checkpointing": False,
        "save_strategy": "no",
        "logging_steps": 1000,
        "max_length": 256,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
    }


def demonstrations(count: int) -> Dataset:
    rows = demo.make_pool(count, 0.0, seed=3)
    return Dataset.from_list([{"prompt": row["prompt"], "completion": row["completion"]} for row in rows])


def steps(path: str, count: int, batch: int) -> dict[str, float]:
    """Processor seconds of a step (forward, loss, backward, metrics) of each trainer and their ratio, medians."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path)
    with tempfile.TemporaryDirectory() as folder:
        args = IRFTConfig(**settings(folder + "/irft", batch), num_stages=1, max_completion_length=64)
        irft = IRFTTrainer(
            copy.deepcopy(model), args=args, train_dataset=demonstrations(64), processing_class=tokenizer
        )
        args = DPOConfig(**settings(folder + "/dpo", batch), precompute_ref_log_probs=True)
        rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 2
        dpo = DPOTrainer(model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
        pairs = [
            {
                PROMPT: row[PROMPT],
                CHOSEN: row[CHOSEN],
                REJECTED: row[CHOSEN][::-1],
                "ref_chosen_logps": -50.0,
                "ref_rejected_logps": -90.0,
            }
            for row in irft.train_dataset
        ]
        times: dict[str, list[float]] = {"IRFT": [], "DPO": []}
        for step in range(count + 2):
            some = [pairs[(step * batch + i) % len(pairs)] for i in range(batch)]
            turns = [("IRFT", irft), ("DPO", dpo)]
            for name, trainer in turns if step % 2 else turns[::-1]:
                inputs = trainer.data_collator(some)
                trainer.current_gradient_accumulation_steps = 1  # what the loop of Trainer sets
                begin = time.process_time()
                trainer.training_step(trainer.model, inputs)
                if step >= 2:
                    times[name].append(time.process_time() - begin)
                trainer.model.zero_grad()
    ratios = [ours / theirs for ours, theirs in zip(times["IRFT"], times["DPO"], strict=True)]
    return {name: statistics.median(values) for name, values in times.items()} | {"ratio": statistics.median(ratios)}


def generation(path: str, count: int) -> dict[str, float]:
    """Processor seconds of an answer, in batches and one prompt at a time; the answers are the same."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    from hf_select.data.encoding import response_end
    from hf_select.training.reward_learning.demonstrations import usable_demonstrations

    limits = IRFTConfig("unused", max_length=256, max_completion_length=64, use_cpu=True, bf16=False)
    rows = usable_demonstrations(demonstrations(count), tokenizer, limits, "train")
    prompts, stop = list(rows[PROMPT]), [response_end(tokenizer)]
    seeds, limits = [stream_seed(0, i) for i in range(len(prompts))], [64] * len(prompts)
    found, times = {}, {}
    for name, tokens in (("in batches", 32768), ("one at a time", 1)):
        begin = time.process_time()
        found[name] = answers(model, prompts, seeds, limits, Sampling(max_new_tokens=64), stop, tokens)
        times[name] = (time.process_time() - begin) / len(prompts)
    same = sum(a == b for a, b in zip(*found.values(), strict=True)) / len(prompts)
    return {**times, "share of answers that are the same": same}


KINDS = ("loaded", "IRFT, LoRA", "IRFT, all weights", "DPO with a reference model, all weights")


def memory(path: str, kind: str) -> dict[str, float]:
    """MB at the peak over what the process had before, and of the weights; run in a process of its own."""
    from peft import LoraConfig

    tokenizer = AutoTokenizer.from_pretrained(path)
    now = psutil.Process().memory_info
    before, seen, over = now().rss, [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            seen.append(now().rss)

    threading.Thread(target=watch, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        model = AutoModelForCausalLM.from_pretrained(path)
        weights = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
        assert all(p.isfinite().all() for p in model.parameters())  # reads them: files are mapped, not loaded
        if kind.startswith("IRFT"):
            lora = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
            args = IRFTConfig(**settings(folder, 2), num_stages=2, max_completion_length=16, optim="sgd")
            trainer = IRFTTrainer(
                model,
                args=args,
                train_dataset=demonstrations(8),
                processing_class=tokenizer,
                peft_config=lora if "LoRA" in kind else None,
            )
            trainer.train()
        elif kind.startswith("DPO"):
            rows = demonstrations(8).rename_column("completion", "chosen").add_column("rejected", ["no"] * 8)
            args = DPOConfig(**settings(folder, 2), optim="sgd")
            DPOTrainer(model, args=args, train_dataset=rows, processing_class=tokenizer).train()
    over.set()
    return {"MB": (max(seen) - before) / 2**20, "weights": weights}


def larger(folder: Path, tokenizer) -> str:  # noqa: ANN001
    """A random model whose weights outweigh everything else in the process."""
    sizes = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8, "num_attention_heads": 8}
    demo.tiny_model(tokenizer, **sizes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def print_peaks(script: str, kinds: Sequence[str], tokenizer: str) -> None:
    """Peak memory of each kind of run of a script, in a process of its own (its option --memory)."""
    with tempfile.TemporaryDirectory() as folder:
        model = larger(Path(folder), AutoTokenizer.from_pretrained(tokenizer))
        for kind in kinds:
            command = [sys.executable, script, "--model", model, "--memory", kind]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            told = json.loads(done.stdout.splitlines()[-1])
            copies = told["MB"] / told["weights"]
            print(
                f"{kind}: peak {told['MB']:.0f} MB, {copies:.2f} times the weights ({told['weights']:.0f} MB)",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--memory", choices=KINDS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.memory:
        print(json.dumps(memory(args.model, args.memory)))
        return
    found = steps(args.model, args.steps, args.batch)
    print(f"a step of {args.batch} pairs, medians of {args.steps}: {json.dumps(found)}", flush=True)
    found = generation(args.model, args.prompts)
    ratio = found["one at a time"] / found["in batches"]
    print(f"an answer: {json.dumps(found)}, one at a time takes {ratio:.1f} times as long", flush=True)
    print_peaks(__file__, KINDS, args.model)


if __name__ == "__main__":
    main()
