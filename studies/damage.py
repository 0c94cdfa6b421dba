"""Does a score rank damaged rows low? AUC per kind of damage on a pool with an answer key, for every scorer that fits.

    python studies/damage.py --model PATH_OR_ID --pool POOL.jsonl.gz --labels LABELS.jsonl.gz --scores FOLDER

AUC = the probability that an untouched row scores above a damaged one (ties count half). Rows without a score count as
lowest. Rows with a natural defect are left out of both sides; off-by-one answers are judged among arithmetic rows. The
sign in front of a score says which end is taken for good; it was chosen by hand, once, for all kinds together.
"""

import argparse
from pathlib import Path

import numpy as np
from datasets import Dataset
from scipy.stats import rankdata
from targeted import read

from hf_select import DEITA, IFD, Dedup, Length, Perplexity, SelectIT, score
from hf_select.data.conversation import conversations
from hf_select.selection.ranking import percentile_ranks
from hf_select.selection.without_length import length_residual


KINDS = ("duplicate_instruction", "off_by_one", "shuffled_response", "truncated_response", "wrong_language_or_garbage")


def auc(good: np.ndarray, bad: np.ndarray) -> float:
    ranks = rankdata(np.concatenate([good, bad]))
    return (ranks[: len(good)].sum() - len(good) * (len(good) + 1) / 2) / (len(good) * len(bad))


def row_of(values: np.ndarray, labels: list[dict]) -> list[float]:
    """AUC of each kind, then of all damage together."""
    values = np.where(np.isnan(values), -np.inf, values)
    sound = np.array([not label["natural_defect"] for label in labels])
    kind = np.array([label["label"] for label in labels])
    arithmetic = np.array([label["arithmetic"] for label in labels])
    clean = sound & (kind == "clean")
    found = []
    for name in KINDS:
        good = clean & arithmetic if name == "off_by_one" else clean
        found.append(auc(values[good], values[sound & (kind == name)]))
    return [*found, auc(values[clean], values[sound & (kind != "clean")])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "pool", "labels", "scores"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--limit", type=int)
    args = parser.parse_args()

    whole, key = read(args.pool), read(args.labels)
    assert [row["id"] for row in whole] == [label["id"] for label in key]
    pool, labels = whole[: args.limit], key[: args.limit]
    data = _dataset(pool)
    scorers = {
        "length": Length(),
        "perplexity": Perplexity(args.model, max_length=1024),
        "ifd": IFD(args.model, max_length=1024),
        "selectit": SelectIT(args.model, level="token", max_length=1024),
        "deita": DEITA(args.model, ratings=5, max_length=1024),
    }
    values = {}
    for name, scorer in scorers.items():
        scored = score(data, scorer, Path(args.scores) / name)
        for column in (f"score_{scorer.name}", "ifd_given_prompt", "ifd_alone"):
            if column in scored.column_names:
                values[column.removeprefix("score_")] = np.array(scored[column], dtype=np.float64)
    values["perplexity_response"] = values["ifd_given_prompt"]
    values["ifd_ppl"] = np.exp(values["ifd_given_prompt"] - values["ifd_alone"])
    lengths = values["length"]

    dedup = Dedup(of="prompt")
    dedup(_dataset(whole))  # copies are looked for in the whole pool
    removed = np.array([row in dedup.removed_ for row in range(len(whole))])
    copies = removed[: len(pool)]
    ends = np.array([_ends_well(row.messages[-1]["content"]) for row in conversations(data[:])], dtype=np.float64)
    signed = {
        "+ length": lengths,
        "- perplexity": -values["perplexity"],
        "- perplexity_response": -values["perplexity_response"],
        "- perplexity_response without length": length_residual(-values["perplexity_response"], lengths),
        "- ifd": -values["ifd"],
        "- ifd without length": length_residual(-values["ifd"], lengths),
        "+ ifd (the papers' end)": values["ifd"],
        "- ifd_ppl": -values["ifd_ppl"],
        "+ selectit (token level)": values["selectit"],
        "+ deita (untrained rater)": values["deita"],
        "not a copy (dedup of prompts)": (~copies).astype(np.float64),
    }
    parts = {"a": signed["- ifd"], "b": ends, "c": (~copies).astype(np.float64)}
    ranks = [percentile_ranks(np.where(np.isnan(v), -np.inf, v)) for v in parts.values()]
    signed["ends with punctuation"] = ends
    signed["combined: equal ranks of - ifd, punctuation, not a copy"] = np.sum(ranks, axis=0)

    print(f"{len(data)} rows\n\n| score | {' | '.join(KINDS)} | all |\n|{' --- |' * (len(KINDS) + 2)}")
    for name, value in signed.items():
        print(f"| {name} | {' | '.join(f'{x:.3f}' for x in row_of(value, labels))} |")

    place = {label["alpaca_id"]: i for i, label in enumerate(key) if label["label"] == "clean"}
    pairs = [(i, place.get(label["detail"].get("duplicate_of"))) for i, label in enumerate(key)]
    broken = [removed[i] != removed[j] for i, j in pairs if j is not None]
    print(f"\nof {len(broken)} planted pairs dedup removes exactly one row in {np.mean(broken):.1%}")


def _dataset(rows: list[dict]) -> Dataset:
    return Dataset.from_list([{"prompt": row["prompt"], "completion": row["completion"]} for row in rows])


def _ends_well(text: str) -> bool:
    return text.rstrip().endswith((".", "!", "?", '"', "'", ")", "]", "}", "`", ":", ";"))


if __name__ == "__main__":
    main()
