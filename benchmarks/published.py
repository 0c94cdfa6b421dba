"""How our cheap scores agree with selections that papers published for Alpaca.

    python benchmarks/published.py --model PATH_OR_ID --pool ALPACA.jsonl.gz --selections SELECTIONS.jsonl.gz \\
        --scores FOLDER

For each published selection of n rows: the share of it in our n best by a score, what chance gives (n / pool), and the
AUC of the score for being in the selection (0.5 = no agreement).
"""

import argparse
from pathlib import Path

import numpy as np
from damage import auc, read
from datasets import Dataset

from hf_select import IFD, Length, Perplexity, TopK, score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "pool", "selections", "scores"):
        parser.add_argument(f"--{name}", required=True)
    args = parser.parse_args()

    pool = read(args.pool)
    place = {row["id"]: i for i, row in enumerate(pool)}
    data = Dataset.from_list([{"prompt": row["prompt"], "completion": row["completion"]} for row in pool])
    scorers = {
        "length of response": Length(of="response"),
        "ifd": IFD(args.model, max_length=1024),
        "ifd_ppl": IFD(args.model, "ppl_ratio", max_length=1024),
        "perplexity": Perplexity(args.model, max_length=1024),
    }
    print("| selection | rows | chance |" + "".join(f" {name}: overlap, AUC |" for name in scorers))
    print("| --- | --- | --- |" + " --- |" * len(scorers))
    columns = {}
    for name, scorer in scorers.items():
        columns[name] = score(data, scorer, Path(args.scores) / name.replace(" ", "_"))
    for selection in read(args.selections):
        rows = np.array([place[row_id] for row_id in selection["alpaca_ids"] if row_id in place])
        inside = np.zeros(len(pool), dtype=bool)
        inside[rows] = True
        cells = []
        for name, scorer in scorers.items():
            column = f"score_{scorer.name}"
            bound = {"at_most": 1.0} if scorer.name == "ifd" else {}
            best = TopK(column, **bound)(columns[name], k=len(rows)).indices
            values = np.array(columns[name][column], dtype=np.float64)
            there = ~np.isnan(values)
            cells.append(f"{inside[best].mean():.3f}, {auc(values[inside & there], values[~inside & there]):.3f}")
        print(f"| {selection['id']} | {len(rows)} | {len(rows) / len(pool):.3f} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
