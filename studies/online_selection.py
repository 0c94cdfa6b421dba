"""Selection while training on a damaged pool: held-out loss on clean rows after equal tokens, and what scoring costs.

    python studies/online_selection.py effect --model PATH --data KNOWN_TRUTH_FOLDER --output runs.jsonl
    python studies/online_selection.py overhead --model PATH --data KNOWN_TRUTH_FOLDER
    python studies/online_selection.py table --output runs.jsonl

effect: SFTTrainer with DataSelectionCallback on --pool-rows of the 20,000 Alpaca rows of which 30 % are damaged; every
run is stopped after --tokens trained tokens. 400 clean rows are held out and 64 others are the queries; neither is in
the pool. A seed gives the pool, the order and the draws, the same for all methods. Lines are added to --output one by
one; a killed study goes on.
overhead: what the callback and its sampler take of the time of steps in which they have nothing to do.
"""

import argparse
import gzip
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportPrivateImportUsage]

from hf_select import IFD, CausalLM, DataSelectionCallback, TopK
from hf_select.training import online_scores


HELD_OUT, QUERIES = 400, 64


class UntilTokens(TrainerCallback):
    """Ends a run after its tokens; until then the rate falls from its highest to zero with the tokens that are left.
    Which rows it will read is not known beforehand, as it is in hf_select.training.equal_tokens."""

    def __init__(self, tokens: int):
        self.tokens, self.seen = tokens, 0

    def on_step_begin(self, args, state, control, **kwargs):
        for group in kwargs["optimizer"].param_groups:
            group["lr"] = args.learning_rate * max(0.0, 1 - self.seen / self.tokens)

    def on_step_end(self, args, state, control, **kwargs):
        self.seen = state.num_input_tokens_seen
        control.should_training_stop = self.seen >= self.tokens


def read(path: Path) -> list[dict]:
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in file]


def datasets(folder: Path, seed: int, pool_rows: int) -> tuple[Dataset, Dataset, Dataset]:
    """(pool, held-out clean rows, clean queries); `clean` is the answer key, which only the oracle reads."""
    rows = read(folder / "alpaca_corrupted_20k.jsonl.gz")
    labels = read(folder / "alpaca_corrupted_20k.labels.jsonl.gz")
    clean = [label["label"] == "clean" for label in labels]
    order = np.random.default_rng(seed).permutation(len(rows))
    apart = [i for i in order if clean[i]][: HELD_OUT + QUERIES]
    pool = [i for i in order if i not in set(apart)][:pool_rows]

    def dataset(places: list[int]) -> Dataset:
        turns = [(("user", rows[i]["prompt"]), ("assistant", rows[i]["completion"])) for i in places]
        messages = [[{"role": role, "content": content} for role, content in turn] for turn in turns]
        labelled = [labels[i]["label"] for i in places]
        return Dataset.from_dict({"messages": messages, "label": labelled, "clean": [float(clean[i]) for i in places]})

    return dataset(pool), dataset(apart[:HELD_OUT]), dataset(apart[HELD_OUT:])


def make(args: argparse.Namespace, folder: str, seed: int) -> tuple[SFTTrainer, Dataset]:
    pool, held_out, queries = datasets(args.data, seed, args.pool_rows)
    config = SFTConfig(
        folder,
        num_train_epochs=1000,
        per_device_train_batch_size=8,
        per_device_eval_batch_size=32,
        learning_rate=args.learning_rate,
        lr_scheduler_type="constant",  # UntilTokens sets the rate
        weight_decay=0.0,
        max_length=args.max_length,
        assistant_only_loss=True,
        include_num_input_tokens_seen="non_padding",
        save_strategy="no",
        logging_steps=1000,
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
        bf16=True,
        gradient_checkpointing=False,
        disable_tqdm=True,
        seed=seed,
    )
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    trainer = SFTTrainer(
        model,
        config,
        train_dataset=pool,
        eval_dataset={"held_out": held_out, "queries": queries},
        processing_class=tokenizer,
        callbacks=[UntilTokens(args.tokens)],
    )
    return trainer, pool


def negated_loss(model, batch):
    return -online_scores.loss(model, batch)


def callback(method: str, trainer: SFTTrainer, args: argparse.Namespace) -> DataSelectionCallback:
    few = {"rows": args.round_rows, "max_candidates": args.candidates or None, "source_column": "label"}
    every = {**few, "max_candidates": None, "warmup": 1}
    if method == "random":
        return DataSelectionCallback(trainer, online_scores.loss, **{**few, "warmup": 10**6})
    if method == "high loss":
        return DataSelectionCallback(trainer, online_scores.loss, **few)
    if method == "low loss":
        return DataSelectionCallback(trainer, negated_loss, **few)
    if method == "middle loss":
        return DataSelectionCallback(trainer, online_scores.loss, TopK("score", which="middle"), **few)
    if method == "loss change":
        return DataSelectionCallback(trainer, online_scores.LossChange(), **every)
    if method in ("gradients", "gradient products"):
        queries = trainer.eval_dataset["queries"]
        score = online_scores.GradientSimilarity(queries, cosine=method == "gradients")
        return DataSelectionCallback(trainer, score, **few)
    if method == "low IFD":
        scorer = IFD(CausalLM(trainer.model, tokenizer=trainer.processing_class))
        return DataSelectionCallback(trainer, scorer, TopK("score", which="worst"), **few)
    assert method == "clean rows", method
    return DataSelectionCallback(trainer, "clean", **few)


def held_out_loss(trainer: SFTTrainer) -> float:
    """Mean over the held-out rows of their mean response NLL, in nats."""
    rows = trainer.eval_dataset["held_out"]
    kept = rows.remove_columns([name for name in rows.column_names if name in ("messages", "label", "clean")])
    trainer.model.eval()
    with torch.no_grad():
        parts = [
            online_scores.loss(trainer.model, trainer.data_collator([kept[i] for i in some.tolist()]))
            for some in torch.arange(len(kept)).split(32)
        ]
    return float(torch.cat(parts).nanmean())


def run(args: argparse.Namespace, method: str, seed: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        trainer, _ = make(args, folder, seed)
        before = held_out_loss(trainer)
        trainer.add_callback(callback(method, trainer, args))
        begin = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - begin
        log = [entry for entry in trainer.state.log_history if "selection/round" in entry]
        # The last round may have been cut short; the shares are of what was selected.
        selected = sum(entry["selection/rows"] for entry in log)
        kept = {
            label: sum(e.get(f"selection/rows/{label}", 0) for e in log) / selected
            for label in set(trainer.train_dataset["label"])
        }
        return {
            "method": method,
            "seed": seed,
            "candidates": args.candidates,
            "tokens": trainer.state.num_input_tokens_seen,
            "steps": trainer.state.global_step,
            "rounds": len(log),
            "before": before,
            "after": held_out_loss(trainer),
            "seconds": seconds,
            "scoring": sum(entry["selection/seconds"] for entry in log),
            "selected": kept,
        }


def effect(args: argparse.Namespace) -> None:
    there = [json.loads(line) for line in args.output.read_text().splitlines()] if args.output.exists() else []
    done = {(line["method"], line["seed"], line["candidates"]) for line in there}
    for seed, method in itertools.product(range(args.seeds), args.methods):
        if (method, seed, args.candidates) in done:
            continue
        line = run(args, method, seed)
        with args.output.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


def table(args: argparse.Namespace) -> None:
    """Mean over seeds of the held-out loss and of its difference to random, with 95 % intervals (t over seeds)."""
    from scipy.stats import t

    lines = [json.loads(line) for line in args.output.read_text().splitlines()]
    cases = dict.fromkeys((line["method"], line["candidates"]) for line in lines)
    random = {line["seed"]: line["after"] for line in lines if line["method"] == "random"}
    print(
        "| method | candidates | seeds | held-out loss | difference to random | damaged | scoring / run |\n"
        "|---|---|---|---|---|---|---|"
    )
    for method, candidates in cases:
        of = [line for line in lines if (line["method"], line["candidates"]) == (method, candidates)]
        apart = np.array([line["after"] - random[line["seed"]] for line in of if line["seed"] in random])
        half = t.ppf(0.975, len(apart) - 1) * apart.std(ddof=1) / len(apart) ** 0.5 if len(apart) > 1 else np.nan
        damaged = statistics.mean(1 - line["selected"].get("clean", 0.0) for line in of)
        cost = statistics.mean(line["scoring"] / line["seconds"] for line in of)
        after = statistics.mean(line["after"] for line in of)
        print(
            f"| {method} | {candidates or 'all'} | {len(of)} | {after:.4f} | {apart.mean():+.4f} +- {half:.4f} | "
            f"{damaged:.3f} | {cost:.2f} |"
        )


def overhead(args: argparse.Namespace) -> None:
    """Seconds that the callback's events and its sampler take between the steps of a round, beside the steps."""
    spent: list[float] = []

    def clocked(function):
        def timed(*given, **named):
            begin = time.perf_counter()
            try:
                return function(*given, **named)
            finally:
                spent.append(time.perf_counter() - begin)

        return timed

    with tempfile.TemporaryDirectory() as folder:
        trainer, _ = make(args, folder, 0)
        trainer.args.max_steps = args.steps
        watched = DataSelectionCallback(trainer, "clean", fraction=1)
        for name in ("on_step_begin", "on_pre_optimizer_step", "on_optimizer_step", "on_substep_end", "on_step_end"):
            setattr(watched, name, clocked(getattr(watched, name)))
        rows = watched.sampler.__iter__

        def drawn():
            order = rows()
            while (row := clocked(lambda: next(order, None))()) is not None:
                yield row

        type(watched.sampler).__iter__ = lambda self: drawn()
        trainer.add_callback(watched)
        begin = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - begin
    share = sum(spent) / seconds
    print(f"{args.steps} steps in {seconds:.1f} s; of these {sum(spent) * 1e3:.2f} ms in the callback: {share:.2e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("effect", "overhead", "table"))
    parser.add_argument("--model")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--methods", nargs="+", default=["random", "clean rows", "high loss", "gradients"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=150_000)
    parser.add_argument("--pool-rows", type=int, default=4096)
    parser.add_argument("--round-rows", type=int, default=256)
    parser.add_argument("--candidates", type=int, default=1024, help="0 for all")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args()
    {"effect": effect, "overhead": overhead, "table": table}[args.what](args)


if __name__ == "__main__":
    main()
