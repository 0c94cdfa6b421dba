"""Do influence scores foretell what training does? The linear datamodelling score on a small pool.

    python studies/retraining.py --model PATH --warm-up RUN --pool POOL.jsonl.gz --queries Q.jsonl.gz

Random halves of the pool each train a LoRA adapter, and the queries' mean response NLL is measured after it. A method
foretells a half by the sum of its rows' scores; Spearman between the two over all halves is the score (Park et al.
2023, arXiv:2303.14186), for each query set by itself. Halves and the order of their rows are the same for all methods.
Results are added to --output line by line; a killed run goes on.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from scipy.stats import spearmanr
from targeted import read

from hf_select import LESS, TFIDF, CausalLM, RDSPlus
from hf_select.data.bad_rows import BadRow
from hf_select.data.conversation import conversations
from hf_select.models.causal_lm import predicted
from hf_select.models.responses import encode_responses


def losses(lm: CausalLM, sets: dict[str, Dataset], max_length: int) -> dict[str, float]:
    """Mean over a set's queries of their mean response NLL."""
    found = {}
    for name, rows in sets.items():
        there = encoded(lm, rows, max_length)
        nll = lm.response_nll([e.input_ids for e in there], [e.responses for e in there])
        found[name] = float(np.mean([np.mean(row) for row in nll]))
    return found


def encoded(lm: CausalLM, rows: Dataset, max_length: int) -> list:
    found = encode_responses(lm, conversations(rows[:]), "chat", max_length)
    return [e[0] for e in found if not isinstance(e, BadRow)]


def trained(args: argparse.Namespace, rows: Dataset) -> CausalLM:
    """The model with an adapter trained on the rows, two epochs, the same start and the same order every time."""
    from peft import LoraConfig, get_peft_model

    lm = CausalLM(args.model)
    loaded = lm.load()
    torch.manual_seed(0)
    config = LoraConfig(r=8, lora_alpha=32, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    model = get_peft_model(loaded.model, config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0)
    batches = 2 * [some for some in torch.arange(len(rows)).split(16)]
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, len(batches))
    there = encoded(lm, rows, args.max_length)
    for batch in batches:
        some = [there[i] for i in batch if i < len(there)]
        hidden = loaded.backbone(input_ids=lm.pad([e.input_ids for e in some]), use_cache=False).last_hidden_state
        positions = [predicted(e.responses) for e in some]
        row = np.repeat(np.arange(len(some)), [len(p) for p in positions])
        target = np.concatenate([np.array(e.input_ids)[p] for e, p in zip(some, positions, strict=True)])
        logits = loaded.head(hidden[row, np.concatenate(positions) - 1])
        nll = torch.nn.functional.cross_entropy(logits, torch.from_numpy(target), reduction="none")
        weight = np.repeat([1 / len(p) / len(some) for p in positions], [len(p) for p in positions])
        (nll * torch.from_numpy(weight).float()).sum().backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return lm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "warm-up", "pool", "queries", "output"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--queries-a-set", type=int, default=20)
    parser.add_argument("--halves", type=int, default=60)
    parser.add_argument("--max-length", type=int, default=1024)
    args = parser.parse_args()

    rng = np.random.default_rng(0)
    rows = read(args.pool)
    chosen = [rows[i] for i in rng.choice(len(rows), args.rows, replace=False)]
    pool = Dataset.from_list([{name: row[name] for name in ("prompt", "completion")} for row in chosen])
    sets: dict[str, list] = {}
    for query in read(args.queries):
        sets.setdefault(query["query_set"], []).append({name: query[name] for name in ("prompt", "completion")})
    targets = {name: Dataset.from_list(some[: args.queries_a_set]) for name, some in sets.items() if len(some) >= 50}

    output = Path(args.output)
    done = [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []
    for number in range(args.halves):
        half = np.sort(np.random.default_rng(1000 + number).permutation(len(pool))[: len(pool) // 2])
        if number < len(done):
            continue
        lm = trained(args, pool.select(half))
        done.append({"half": half.tolist(), **losses(lm, targets, args.max_length)})
        with output.open("a") as file:
            file.write(json.dumps(done[-1]) + "\n")
        print(number, {name: round(value, 4) for name, value in done[-1].items() if name != "half"}, flush=True)

    shared = {"max_length": args.max_length, "per_query": True}
    methods = {
        "LESS": LESS(args.model, [args.warm_up], **shared),
        "LESS, sgd": LESS(args.model, [args.warm_up], form="sgd", **shared),
        "RDS+": RDSPlus(args.model, **shared),
        "TF-IDF": TFIDF(per_query=True),
    }
    halves = np.zeros((len(done), len(pool)))
    for number, one in enumerate(done):
        halves[number, one["half"]] = 1
    print(
        f"\n{len(done)} halves of {len(pool)} rows; spread of the loss over halves (standard deviation), then Spearman"
    )
    print(f"| | {' | '.join(targets)} | mean |\n| --- |{' --- |' * (len(targets) + 1)}")
    after = {name: np.array([one[name] for one in done]) for name in targets}
    print(f"| spread, nats | {' | '.join(f'{loss.std():.4f}' for loss in after.values())} | |")
    lengths = np.array([len(row["completion"]) for row in chosen], dtype=float)
    for name, method in methods.items():
        method.fit(targets, pool=pool) if isinstance(method, TFIDF) else method.fit(targets)
        similar = np.nan_to_num(method.similarities(conversations(pool[:]))[0])
        means = np.stack([similar[:, method.task_of_query_ == task].mean(1) for task in range(len(targets))])
        report(name, halves @ means.T, after)
    report("length of the response", np.repeat((halves @ lengths)[:, None], len(targets), axis=1), after)
    draws = [halves @ rng.normal(size=(len(pool), len(targets))) for _ in range(200)]
    spread = np.std([np.mean(scores(draw, after)) for draw in draws])
    print(f"| random scores | {' | '.join('0' for _ in after)} | 0 +- {spread:.3f} |")


def scores(foretold: np.ndarray, after: dict[str, np.ndarray]) -> list[float]:
    return [float(spearmanr(foretold[:, task], -loss)[0]) for task, loss in enumerate(after.values())]


def report(name: str, foretold: np.ndarray, after: dict[str, np.ndarray]) -> None:
    found = scores(foretold, after)
    print(f"| {name} | {' | '.join(f'{score:.3f}' for score in found)} | {np.mean(found):.3f} |")


if __name__ == "__main__":
    main()
