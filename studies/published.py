"""How our cheap scores agree with selections that papers published for Alpaca.

    python studies/published.py --model PATH_OR_ID --pool ALPACA.jsonl.gz --selections SELECTIONS.jsonl.gz \\
        --scores FOLDER

For each published selection of n rows: the share of it in our n best by a score, what chance gives (n / pool), and the
AUC of the score for being in the selection (0.5 = no agreement).
"""

import argparse
from pathlib import Path

import numpy as np
from damage import auc
from datasets import Dataset
from targeted import read

from hf_select import IFD, Length, score
from hf_select.selection.ranking import rank


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "pool", "selections", "scores"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--every", type=int, default=1, help="take every n-th row of the pool")
    args = parser.parse_args()

    pool = read(args.pool)[:: args.every]
    place = {row["id"]: i for i, row in enumerate(pool)}
    data = Dataset.from_list([{"prompt": row["prompt"], "completion": row["completion"]} for row in pool])
    lengths = score(data, Length(of="response"), Path(args.scores) / "length")["score_length"]
    measured = score(data, IFD(args.model, max_length=1024), Path(args.scores) / "ifd")
    given, alone = (np.array(measured[f"ifd_{part}"], dtype=np.float64) for part in ("given_prompt", "alone"))
    scores = {
        "length of response": np.array(lengths, dtype=np.float64),
        "ifd": given / alone,
        "ifd_ppl": np.exp(given - alone),
        "perplexity of response": given,
    }
    print("| selection | rows | chance |" + "".join(f" {name}: overlap, AUC |" for name in scores))
    print("| --- | --- | --- |" + " --- |" * len(scores))
    for selection in read(args.selections):
        rows = np.array([place[row_id] for row_id in selection["alpaca_ids"] if row_id in place])
        inside = np.zeros(len(pool), dtype=bool)
        inside[rows] = True
        cells = []
        for name, values in scores.items():
            there = ~np.isnan(values)
            eligible = np.where(there & (values <= 1), values, -np.inf) if name.startswith("ifd") else values
            best = rank(np.where(np.isnan(eligible), -np.inf, eligible))[: len(rows)]
            cells.append(f"{inside[best].mean():.3f}, {auc(values[inside & there], values[~inside & there]):.3f}")
        print(f"| {selection['id']} | {len(rows)} | {len(rows) / len(pool):.3f} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
