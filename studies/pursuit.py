"""What does matching pursuit take, compared with the nearest rows? Precision and coverage on a pool of known sources.

    python studies/pursuit.py --model PATH_OR_ID --data ../shared/data --work FOLDER

The sample of the targeted pool and the index in FOLDER are those of `studies/representations.py`. Of each of 12 query
sets a random half is the target and the other half is held back; k = min(100, relevant / 2) rows are selected. A row
is a hit if its source or task is among the query's `relevant_strict`. Precision: the share of hits. Coverage: the mean
over the held-back queries of their cosine to the nearest selected row. @2k and @4k: among the 2k or 4k rows nearest to
the mean of the target.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
from representations import dataset, encoded, sample
from targeted import read

from hf_select import CausalLM
from hf_select.features.geometry import Geometry, Moments
from hf_select.features.hidden_states import HiddenStates
from hf_select.selection.matching_pursuit import Mode, matching_pursuit
from hf_select.selection.round_robin import round_robin


def selections(
    pool: np.ndarray, queries: np.ndarray, k: int, rng: np.random.Generator
) -> Iterator[tuple[str, np.ndarray]]:
    """(method, k rows) by unit vectors (n, d) and (q, d)."""
    nearest = np.argsort(-(pool @ queries.mean(axis=0)), kind="stable")
    yield "nearest to the mean", nearest[:k]
    yield "round robin over queries", round_robin(list(np.ascontiguousarray((pool @ queries.T).T)), k)[0]
    for mode in get_args(Mode):
        yield mode, matching_pursuit(pool, [queries], k, mode)[0]
    for times in (2, 4):
        among = nearest[: times * k]
        yield f"random @{times}k", rng.permutation(among)[:k]
        for mode in get_args(Mode):
            yield f"{mode} @{times}k", among[matching_pursuit(pool[among], [queries], k, mode)[0]]


def measured(
    pool: np.ndarray, queries: np.ndarray, sets: dict[str, list[int]], hits: dict[str, np.ndarray], splits: int
) -> dict[str, np.ndarray]:
    """Method -> precision and coverage, means over the query sets, of each split (splits, 2)."""
    found: dict[str, list[list[float]]] = {}
    for split in range(splits):
        rng, values = np.random.default_rng(split), {}
        for name, members in sets.items():
            shuffled = rng.permutation(members)
            target, held_back = np.array_split(shuffled, 2)
            k = min(100, int(hits[name].sum()) // 2)
            for method, rows in selections(pool, queries[target], k, rng):
                coverage = (pool[rows] @ queries[held_back].T).max(axis=0).mean()
                values.setdefault(method, []).append([hits[name][rows].mean(), coverage])
        for method, value in values.items():
            found.setdefault(method, []).append(np.mean(value, axis=0).tolist())
    return {method: np.array(value) for method, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--layers", type=int, nargs="+", default=[-1], help="those of the index in WORK")
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--splits", type=int, default=5)
    args = parser.parse_args()

    known = args.data / "known_truth"
    pool, labels, asked = (read(str(known / f"targeted_pool{part}.jsonl.gz")) for part in ("", ".labels", ".queries"))
    chosen = sample(labels, asked, args.rows)
    lm = CausalLM(args.model)
    states = HiddenStates(lm, layers=args.layers, text_format="tulu", max_length=512)
    rows, queries = encoded(states, dataset([pool[i] for i in chosen]), dataset(asked), args.work / "states")
    for place, layer in enumerate(args.layers):
        report(f"layer {layer}", rows[:, place], queries[:, place], labels, asked, chosen, args.splits)


def report(
    name: str,
    rows: np.ndarray,
    queries: np.ndarray,
    labels: list[dict],
    asked: list[dict],
    chosen: list[int],
    splits: int,
) -> None:
    """Print a table for vectors (n, d) and (q, d) as they are, and one for centred ones."""
    sets: dict[str, list[int]] = {}
    for i, query in enumerate(asked):
        sets.setdefault(query["query_set"], []).append(i)
    hits = {}
    for query_set, members in sets.items():
        field, wanted = next(iter(asked[members[0]]["relevant_strict"].items()))
        hits[query_set] = np.array([labels[i][field] in wanted for i in chosen])
    for how, geometry in (("", Geometry()), (", centred", Geometry.by(Moments.of([rows], 1, covariance=False), 0.0))):
        print(f"\n{name}{how}\n\n| method | precision | coverage |\n| --- | --- | --- |")
        for method, values in measured(geometry(rows), geometry(queries), sets, hits, splits).items():
            cells = [f"{mean:.3f} ± {sd:.3f}" for mean, sd in zip(values.mean(0), values.std(0, ddof=1), strict=True)]
            print(f"| {method} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
