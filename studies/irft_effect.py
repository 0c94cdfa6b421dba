"""Does IRFT do more with the same demonstrations than SFT? A task whose truth can be checked, at equal updates.

    python studies/irft_effect.py --output runs.jsonl            # pretrains, chooses settings, runs three seeds
    python studies/irft_effect.py --output runs.jsonl --table

A Llama of a third of a million parameters is pretrained from nothing on sums of two numbers below 100, where 40 % of
the answers are wrong and half of them are given in other words than asked for. The demonstrations are 2,048 sums, all
right and all in one form. SFT and IRFT start from the same weights, see the same demonstrations and make the same
number of updates with the same batch; SFT is also run with twice the updates, which cost about as much as IRFT's two
sequences a pair. Each method's learning rate (and beta) is chosen on problems of its own with a seed of its own; what
is reported is on 1,000 problems that no part of it has seen. Results are added to --output line by line; a killed run
goes on.
"""

import argparse
import json
import random
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from scipy.stats import t as student
from trl import SFTConfig, SFTTrainer

from hf_select import demo
from hf_select.data.encoding import response_end
from hf_select.models.sampling import Sampling
from hf_select.training.reward_learning.demonstrations import (
    CHOSEN,
    PROMPT,
    as_labels,
    encode_demonstrations,
    stream_seed,
)
from hf_select.training.reward_learning.irft_config import IRFTConfig
from hf_select.training.reward_learning.irft_trainer import IRFTTrainer
from hf_select.training.reward_learning.sampling import answers


DEMONSTRATIONS, BATCH, PASSES, TEST = 2048, 32, 2, 1000
METHODS = {
    "SFT": {"rate": (1e-4, 3e-4, 1e-3, 3e-3)},
    "SFT, twice the updates": {"rate": (1e-4, 3e-4, 1e-3, 3e-3)},
    "IRFT, T = 1": {"rate": (3e-5, 1e-4, 3e-4, 1e-3), "beta": (0.1, 1.0)},
    "IRFT, T = 4": {"rate": (3e-5, 1e-4, 3e-4, 1e-3), "beta": (0.1, 1.0)},
}
# The papers begin where SFT has ended: --start sft does so too, with smaller rates.
AFTER_SFT = {
    "SFT": {"rate": (1e-4, 1e-3)},
    "IRFT, T = 1": {"rate": (1e-5, 1e-4), "beta": (0.1, 1.0)},
    "IRFT, T = 4": {"rate": (1e-5, 1e-4), "beta": (0.1, 1.0)},
}
CHOOSING, SEEDS = 100, (0, 1, 2)


def problems() -> dict[str, list[tuple[int, int]]]:
    """Disjoint sets of pairs of numbers."""
    everything = [(a, b) for a in range(100) for b in range(100)]
    random.Random(0).shuffle(everything)
    return {
        "test": everything[:TEST],
        "choosing": everything[TEST : 2 * TEST],
        "demonstrations": everything[2 * TEST : 2 * TEST + DEMONSTRATIONS],
        "pretraining": everything[2 * TEST :],
    }


def ask(a: int, b: int) -> str:
    return f"{a}+{b}"


def right(a: int, b: int) -> str:
    return f"{a}+{b}={a + b}."


def loose(a: int, b: int, rng: random.Random) -> str:
    """An answer as pretraining has them."""
    total = a + b if rng.random() < 0.6 else max(0, a + b + rng.choice([-11, -10, -9, -2, -1, 1, 2, 9, 10, 11]))
    forms = (f"{a}+{b}={total}.", f"It is {total}.", f"{total}")
    return forms[rng.choice([0, 0, 1, 2])]


def rows(pairs: list[tuple[int, int]], answer) -> Dataset:  # noqa: ANN001
    return Dataset.from_list([{"prompt": ask(a, b), "completion": answer(a, b)} for a, b in pairs])


def pretrained(folder: Path, steps: int) -> None:
    """A model of a quarter of a million parameters from nothing, by a plain loop."""
    rng = random.Random(1)
    pairs = problems()["pretraining"]
    data = rows(pairs * 4, lambda a, b: loose(a, b, rng))
    texts = [row["prompt"] + " " + row["completion"] for row in data.select(range(2000))]
    tokenizer = demo.train_tokenizer([*texts, *["user\n", "assistant\n"] * 2000], 320)
    sizes = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
    model = demo.tiny_model(tokenizer, seed=1, max_position_embeddings=128, **sizes)
    encoded = data.map(encode_demonstrations, batched=True, fn_kwargs=limits(tokenizer))
    ids = [torch.tensor(p + c) for p, c in zip(encoded[PROMPT], encoded[CHOSEN], strict=True)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        batch = [ids[i] for i in torch.randint(len(ids), (128,), generator=generator).tolist()]
        inputs = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=tokenizer.pad_token_id)
        labels = inputs.masked_fill(inputs == tokenizer.pad_token_id, -100)
        loss = model(input_ids=inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(step + 1, round(loss.item(), 3), flush=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def limits(tokenizer) -> dict:  # noqa: ANN001
    return {"tokenizer": tokenizer, "max_length": 96, "max_completion_length": 32}


def common(folder: Path, rate: float, seed: int) -> dict:
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": BATCH,
        "learning_rate": rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0.1,
        "num_train_epochs": PASSES,
        "activation_checkpointing": False,
        "save_strategy": "no",
        "logging_steps": 16,
        "seed": seed,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
    }


def run(
    base: Path, method: str, rate: float, beta: float | None, seed: int, which: str, save: Path | None = None
) -> dict:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    pairs = problems()["demonstrations"]
    data = rows(pairs, right).shuffle(seed=seed)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        settings = common(Path(folder), rate, seed)
        if method.startswith("SFT"):
            encoded = data.map(encode_demonstrations, batched=True, fn_kwargs=limits(tokenizer))
            settings["num_train_epochs"] = PASSES * (2 if "twice" in method else 1)
            args = SFTConfig(**settings, max_length=None)
            kept = encoded.select_columns([PROMPT, CHOSEN])
            trainer = SFTTrainer(model, args=args, train_dataset=as_labels(kept), processing_class=tokenizer)
        else:
            stages = int(method[-1])
            args = IRFTConfig(
                **settings, num_stages=stages, beta=beta, max_length=96, max_completion_length=32, rows_per_shard=1024
            )
            trainer = IRFTTrainer(model, args=args, train_dataset=data, processing_class=tokenizer)
        trainer.train()
        if save is not None:
            trainer.save_model(str(save))
        updates = trainer.state.global_step
        history = [entry for entry in trainer.state.log_history if any(name.startswith("stage/") for name in entry)]
    seconds = time.perf_counter() - begin
    return {
        "method": method,
        "rate": rate,
        "beta": beta,
        "seed": seed,
        "which": which,
        "updates": updates,
        "seconds": seconds,
        **measured(model, tokenizer, problems()[which]),
        "history": history,
    }


def measured(model, tokenizer, pairs: list[tuple[int, int]]) -> dict:  # noqa: ANN001
    """Shares of answers that are right (the sum, in any words), in the form asked for, and both; of the likeliest
    answer and of one drawn at temperature 1."""
    model.eval()
    encoded = rows(pairs, right).map(encode_demonstrations, batched=True, fn_kwargs=limits(tokenizer))
    prompts, stop = list(encoded[PROMPT]), [response_end(tokenizer), tokenizer.eos_token_id]
    found = {}
    for name, temperature in (("greedy", 0.0), ("drawn", 1.0)):
        seeds = [stream_seed("measured", i) for i in range(len(prompts))]
        ids = answers(
            model,
            prompts,
            seeds,
            [32] * len(prompts),
            Sampling(temperature=temperature, max_new_tokens=32),
            stop,
            32768,
        )
        texts = [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
        texts = [text.removesuffix("<|im_end|>") for text in texts]
        sums = [re.findall(r"\d+", text) for text in texts]
        correct = [bool(s) and int(s[-1]) == a + b for s, (a, b) in zip(sums, pairs, strict=True)]
        form = [re.fullmatch(rf"{a}\+{b}=\d+\.", t) is not None for t, (a, b) in zip(texts, pairs, strict=True)]
        found[name] = {
            "right": float(np.mean(correct)),
            "form": float(np.mean(form)),
            "both": float(np.mean(np.array(correct) & np.array(form))),
            "examples": texts[:3],
        }
    return found


def table(lines: list[dict], methods: Sequence[str]) -> None:
    print("| method | rate | beta | updates | seconds | drawn: right | drawn: form | greedy: right | greedy: form |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for method in ("pretrained", *methods):
        some = [line for line in lines if line["method"] == method and line["which"] == "test"]
        if not some:
            continue
        cells = [method, str(some[0]["rate"]), str(some[0]["beta"] or ""), str(some[0]["updates"])]
        cells.append(f"{np.mean([line['seconds'] for line in some]):.0f}")
        for how, what in (("drawn", "right"), ("drawn", "form"), ("greedy", "right"), ("greedy", "form")):
            values = 100 * np.array([line[how][what] for line in some])
            spread = ""
            if len(values) > 1:
                half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
                spread = f" ± {half:.1f}"
            cells.append(f"{values.mean():.1f}{spread}")
        print("| " + " | ".join(cells) + " |")
    print("\n± is the half width of a 95 % Student interval over the seeds.")


def read(output: Path) -> list[dict]:
    return [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []


def kept(output: Path, lines: list[dict], base: Path, run: Callable[..., dict]) -> Callable[..., dict]:
    """Makes a run that is wanted, or gives the line of one that was made."""

    def done(**wanted) -> dict:  # noqa: ANN003
        for line in lines:
            if all(line[name] == value for name, value in wanted.items()):
                return line
        if wanted["method"] == "pretrained":
            from transformers import AutoModelForCausalLM, AutoTokenizer

            model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
            found = {**wanted, "updates": 0, "seconds": 0.0, **measured(model, tokenizer, problems()[wanted["which"]])}
        else:
            found = run(base, **wanted)
        with output.open("a") as file:
            file.write(json.dumps(found) + "\n")
        lines.append(found)
        print(json.dumps({name: v for name, v in found.items() if name not in ("history", "course")}), flush=True)
        return found

    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True)
    parser.add_argument("--base", default="irft_effect_base", help="folder of the pretrained model")
    parser.add_argument("--steps", type=int, default=3000, help="of pretraining")
    parser.add_argument("--start", choices=("pretrained", "sft"), default="pretrained")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    output, base = Path(args.output), Path(args.base)
    lines = read(output)
    if args.table:
        return table(lines, list(METHODS))
    torch.set_num_threads(1)
    if not (base / "model.safetensors").exists():
        pretrained(base, args.steps)
    methods = METHODS
    if args.start == "sft":
        methods, first = AFTER_SFT, base.with_name(base.name + "_sft")
        if not (first / "model.safetensors").exists():
            run(base, "SFT", 1e-3, None, 0, "test", save=first)
        base = first

    done = kept(output, lines, base, run)
    done(method="pretrained", rate=0.0, beta=None, seed=0, which="test")
    for method, grid in methods.items():
        tried = [
            done(method=method, rate=rate, beta=beta, seed=CHOOSING, which="choosing")
            for rate in grid["rate"]
            for beta in grid.get("beta", (None,))
        ]
        best = max(tried, key=lambda line: line["drawn"]["both"])
        for seed in SEEDS:
            done(method=method, rate=best["rate"], beta=best["beta"], seed=seed, which="test")
    table(lines, list(METHODS))


if __name__ == "__main__":
    main()
