"""SFT, IRFT and RFT side by side at equal updates, on the task of irft_effect.py, with cost and what the reward says.

    python studies/rft_effect.py --output runs.jsonl          # pretrains if need be, chooses settings, three seeds
    python studies/rft_effect.py --output runs.jsonl --table

Model, demonstrations, problems, batch (32 sequences an update) and number of updates (128) are those of
irft_effect.py. RFT draws 32 answers an update, two to a prompt, so one pass over the 2,048 prompts; its reward begins
as the same model and takes one pass over the pairs of each stage. SFT and IRFT run with the settings that
irft_effect.py chose; RFT's rate and beta are chosen here, on problems and a seed of their own. Results are added to
--output line by line; a killed run goes on.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from irft_effect import (
    BATCH,
    CHOOSING,
    SEEDS,
    common,
    kept,
    measured,
    pretrained,
    problems,
    read,
    right,
    rows,
    run,
)
from irft_effect import table as side_by_side

from hf_select.training.reward_learning.rft_config import RFTConfig
from hf_select.training.reward_learning.rft_trainer import RFTTrainer


CHOSEN_BEFORE = {
    "SFT": {"rate": 1e-3, "beta": None},
    "SFT, twice the updates": {"rate": 1e-3, "beta": None},
    "IRFT, T = 1": {"rate": 3e-4, "beta": 1.0},
    "IRFT, T = 4": {"rate": 3e-4, "beta": 1.0},
}
REWARD_RATE = 1e-3
GRID = [(3e-4, 0.1), (1e-3, 0.1), (1e-4, 0.1), (3e-4, 0.5)]
STAGES = {"RFT, T = 1": 1, "RFT, T = 4": 4}


def run_rft(base: Path, method: str, rate: float, beta: float, seed: int, which: str) -> dict:
    data = rows(problems()["demonstrations"], right).shuffle(seed=seed)
    begin, processor = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        settings = {**common(Path(folder), rate, seed), "num_train_epochs": 1, "logging_steps": 8}
        args = RFTConfig(
            **settings,
            num_stages=STAGES[method],
            beta=beta,
            num_generations=2,
            reward_learning_rate=REWARD_RATE,
            reward_batch_size=BATCH,
            max_length=96,
            max_completion_length=32,
            rows_per_shard=1024,
        )
        held_out = rows(problems()["choosing"][:256], right)
        trainer = RFTTrainer(str(base), args=args, train_dataset=data, eval_dataset=held_out)
        trainer.train()
        updates, log = trainer.state.global_step, trainer.state.log_history
    seconds, processor = time.perf_counter() - begin, time.process_time() - processor
    names = ("reward", "kl", "completions/mean_length")
    return {
        "method": method,
        "rate": rate,
        "beta": beta,
        "seed": seed,
        "which": which,
        "updates": updates,
        "seconds": seconds,
        "processor_seconds": processor,
        **measured(trainer.model, trainer._tokenizer, problems()[which]),
        "history": [entry for entry in log if any(name.startswith("stage/") for name in entry)],
        "course": [{"step": e["step"], **{n: e[n] for n in names}} for e in log if "kl" in e],
    }


def table(lines: list[dict]) -> None:
    side_by_side(lines, [*CHOSEN_BEFORE, *STAGES])
    print()
    for line in lines:
        if line["method"] in STAGES and line["which"] == "test":
            first, last = line["course"][0], line["course"][-1]
            gaps = [round(e["stage/held_out_gap"], 2) for e in line["history"] if "stage/held_out_gap" in e]
            right_pairs = [
                round(e["stage/held_out_accuracy"], 2) for e in line["history"] if "stage/held_out_gap" in e
            ]
            print(
                f"{line['method']}, seed {line['seed']}: reward {first['reward']:.2f} -> {last['reward']:.2f}, KL a "
                f"token {first['kl']:.3f} -> {last['kl']:.3f} nats; held-out gaps {gaps}, accuracies {right_pairs}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True)
    parser.add_argument("--base", default="irft_effect_base", help="folder of the pretrained model")
    parser.add_argument("--steps", type=int, default=3000, help="of pretraining")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    output, base = Path(args.output), Path(args.base)
    lines = read(output)
    if args.table:
        return table(lines)
    torch.set_num_threads(1)
    if not (base / "model.safetensors").exists():
        pretrained(base, args.steps)

    def made(base: Path, method: str, **wanted) -> dict:  # noqa: ANN003
        return (run_rft if method in STAGES else run)(base, method, **wanted)

    done = kept(output, lines, base, made)
    done(method="pretrained", rate=0.0, beta=None, seed=0, which="test")
    tried = [done(method="RFT, T = 1", rate=r, beta=b, seed=CHOOSING, which="choosing") for r, b in GRID]
    best = max(tried, key=lambda line: line["drawn"]["both"])
    # Four stages take the settings of one, and come last: they cost the most.
    first = {"SFT": CHOSEN_BEFORE["SFT"], "IRFT, T = 1": CHOSEN_BEFORE["IRFT, T = 1"], "RFT, T = 1": best}
    then = {**CHOSEN_BEFORE, "RFT, T = 4": best}
    for methods in (first, {name: found for name, found in then.items() if name not in first}):
        for seed in SEEDS:
            for method, found in methods.items():
                done(method=method, rate=found["rate"], beta=found["beta"], seed=seed, which="test")
    table(lines)


if __name__ == "__main__":
    main()
