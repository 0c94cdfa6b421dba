"""Which representation of a real model finds the rows of a target? Layers, centring, whitening, words, an encoder.

    python studies/representations.py --model PATH_OR_ID --data ../shared/data --work FOLDER --layers 6 9 12 15 -1

A stratified sample of the targeted pool (every row of the six small tasks, the same share of each source), ranked for
each of 12 query sets by the similarity to the nearest query (max) and by the mean over queries. A row is a hit if its
source or task is among the query's `relevant_strict`. P@k with k = min(500, relevant). The rows are encoded once, all
layers in one pass, into an index in FOLDER; a killed run resumes.
"""

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datasets import Dataset
from targeted import read

from hf_select import TFIDF, CausalLM, Embedding, PoolIndex
from hf_select.data.conversation import conversations
from hf_select.features.featurizer import Feature, Featurizer
from hf_select.features.geometry import Geometry, Moments
from hf_select.features.hidden_states import HiddenStates


# name -> (layers, None for all that were read; center; whiten)
Variant = tuple[list[int] | None, bool, float]


def dataset(rows: list[dict]) -> Dataset:
    return Dataset.from_list([{"prompt": row["prompt"], "completion": row["completion"]} for row in rows])


def sample(labels: list[dict], queries: list[dict], size: int) -> list[int]:
    """Row numbers: all rows of the queries' small tasks, and equal shares of every source."""
    small = {task for query in queries for task in query["relevant_strict"].get("task", [])}
    chosen = {i for i, label in enumerate(labels) if label.get("task") in small}
    sources: dict[str, list[int]] = {}
    for i, label in enumerate(labels):
        if i not in chosen:
            sources.setdefault(label["source"], []).append(i)
    share = (size - len(chosen)) / (len(labels) - len(chosen))
    rng = random.Random(0)
    for rows in sources.values():
        rng.shuffle(rows)
        chosen |= set(rows[: round(share * len(rows))])
    return sorted(chosen)


def precision(scores: np.ndarray, relevant: np.ndarray) -> tuple[float, float]:
    """(P@k, R-precision) of a ranking, ties to the lower row."""
    order, total = np.argsort(-scores, kind="stable"), int(relevant.sum())
    return float(relevant[order[: min(500, total)]].mean()), float(relevant[order[:total]].mean())


def encoded(featurizer: Featurizer, rows: Dataset, targets: Dataset, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of the pool (n, p, d) and of the queries (q, p, d), of their own length."""
    found = []
    for name, some in (("pool", rows), ("queries", targets)):
        index = PoolIndex.build(some, featurizer, folder / name, stored_dtype="float32", chunk_rows=500)
        found.append(vectors_of(index.read(range(len(index))), featurizer.parts))
    return found[0], found[1]


def vectors_of(features: list, parts: int) -> np.ndarray:
    assert all(isinstance(feature, Feature) for feature in features), "a row has no vector"
    return np.stack([feature.vector for feature in features]).reshape(len(features), parts, -1)


def similarities(pool: np.ndarray, queries: np.ndarray, center: bool, whiten: float) -> np.ndarray:
    """(n, q) in the geometry of the pool, of vectors (n, p, d) and (q, p, d)."""
    parts = pool.shape[1]
    flat, asked = pool.reshape(len(pool), -1), queries.reshape(len(queries), -1)
    geometry = Geometry(parts)
    if center:
        geometry = Geometry.by(Moments.of([flat], parts, covariance=whiten > 0), whiten)
    return geometry(flat) @ geometry(asked).T


def variants(layers: list[int]) -> dict[str, Variant]:
    found: dict[str, Variant] = {"RDS+": ([-1], False, 0.0)}
    each = {"last" if layer == -1 else str(layer): [layer] for layer in layers}
    pairs = {f"{layer} and last": [layer, -1] for layer in layers if layer != -1}
    for name, some in (each | pairs | {"all": layers}).items():
        for center, whiten, how in ((False, 0.0, "as is"), (True, 0.0, "centred"), (True, 0.5, "half-whitened")):
            if (some, center) != ([-1], False):
                found[f"{name}, {how}"] = (some, center, whiten)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--layers", type=int, nargs="+", default=[-1])
    parser.add_argument("--encoder", help="a sentence-transformers model")
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--measure", type=int, default=0, choices=[0, 1], help="0: P@k, 1: R-precision")
    args = parser.parse_args()

    known = args.data / "known_truth"
    pool, labels, asked = (read(str(known / f"targeted_pool{part}.jsonl.gz")) for part in ("", ".labels", ".queries"))
    chosen = sample(labels, asked, args.rows)
    rows, targets = dataset([pool[i] for i in chosen]), dataset(asked)
    sets: dict[str, list[int]] = {}
    for i, query in enumerate(asked):
        sets.setdefault(query["query_set"], []).append(i)
    found: dict[str, np.ndarray] = dict(all_similarities(args, rows, targets))

    names = list(found)
    for pooled, how in ((np.max, "max over queries"), (np.mean, "mean over queries")):
        cells = {}
        for name, members in sets.items():
            field, wanted = next(iter(asked[members[0]]["relevant_strict"].items()))
            hit = np.array([labels[i][field] in wanted for i in chosen])
            cells[name] = [hit.mean()] + [
                precision(pooled(matrix[:, members], axis=1), hit)[args.measure] for matrix in found.values()
            ]
        print(f"\n{how}\n\n| query set | {' | '.join(['chance', *names])} |\n| --- |{' --- |' * (len(names) + 1)}")
        for name, values in cells.items():
            print(f"| {name} | {' | '.join(f'{value:.3f}' for value in values)} |")
        values = np.array(list(cells.values()))
        print(f"| mean | {' | '.join(f'{value:.3f}' for value in values.mean(axis=0))} |")
        wins = [(values[:, i + 1] >= values[:, 1 + names.index("TF-IDF")]).sum() for i in range(len(names))]
        print(f"| at least TF-IDF | | {' | '.join(str(n) for n in wins)} |")


def all_similarities(args: argparse.Namespace, rows: Dataset, targets: Dataset) -> Iterator[tuple[str, np.ndarray]]:
    words = TFIDF(per_query=True).fit(targets, pool=rows)
    yield "TF-IDF", words.similarities(conversations(rows[:]))[0]
    lm = CausalLM(args.model, dtype=args.dtype)
    states = HiddenStates(lm, layers=args.layers, text_format="tulu", max_length=args.max_length)
    pool, queries = encoded(states, rows, targets, args.work / "states")
    for name, (layers, center, whiten) in variants(args.layers).items():
        places = [args.layers.index(layer) for layer in layers or args.layers]
        yield name, similarities(pool[:, places], queries[:, places], center, whiten)
    if args.encoder:
        featurizer = Embedding(args.encoder).featurizer
        assert featurizer is not None
        pool, queries = encoded(featurizer, rows, targets, args.work / "sentences")
        for center, whiten, how in ((False, 0.0, ""), (True, 0.0, ", centred"), (True, 0.5, ", half-whitened")):
            yield f"encoder{how}", similarities(pool, queries, center, whiten)


if __name__ == "__main__":
    main()
