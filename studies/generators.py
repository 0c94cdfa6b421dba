"""Fourteen models' answers to AlpacaEval's 805 prompts: statistics, agreement, and whether any of it says which model
a strong judge prefers.

    python studies/generators.py alpaca_eval_14models.jsonl.gz [--lm path/of/a/causal/lm]

The file has a line a prompt: prompt, responses {model: text}, preference_vs_gpt4_turbo {model: 0 to 1}. Each statistic
ranks the models by its value; the ranking is compared with that of the mean preferences (Spearman, Kendall). The
ranking that was called ours before looking is the consensus: mean ROUGE-L of a model's answers with those of the
others. With --lm answers are embedded, too: mean hidden states of the first 256 tokens.
"""

import argparse
import gzip
import json
from pathlib import Path

import numpy as np
from datasets import Dataset

from hf_select.evaluation.generator_comparison import Answers, as_markdown, described, ranking_agreement, scored
from hf_select.features.hidden_states import HiddenStates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--lm")
    args = parser.parse_args()
    rows = []
    with gzip.open(args.file, "rt", encoding="utf-8") as file:
        for line in file:
            item = json.loads(line)
            rows += [
                {
                    "conversation": item["id"],
                    "prompt": item["prompt"],
                    "completion": text,
                    "model": model,
                    "preference": item["preference_vs_gpt4_turbo"][model],
                }
                for model, text in item["responses"].items()
            ]
    answers = Answers(Dataset.from_list(rows))
    featurizer = HiddenStates(args.lm, pooling="mean", text_format="tulu", max_length=256) if args.lm else None
    result = described(answers, featurizer)
    preferred = {model: line["mean"] for model, line in scored(answers, "preference").items()}
    measures = {f"consensus, {name}": table["consensus"] for name, table in result["agreement"].items()}
    for name in ("words", "headings", "lists", "bold", "code", "refusals", "distinct_1", "distinct_2", "distinct_3"):
        measures[name] = {model: line[name] for model, line in result["statistics"].items()}
    found = {
        name: ranking_agreement(values, preferred) for name, values in measures.items() if len({*values.values()}) > 1
    }
    print(as_markdown(result))
    print(
        "\n## What ranks the models as the judge does\n\n"
        "| measure | Spearman | p | Kendall | p |\n|---|---|---|---|---|"
    )
    for name, line in found.items():
        cells = " | ".join(f"{line[key]:+.3f}" for key in ("spearman", "spearman_p", "kendall", "kendall_p"))
        print(f"| {name} | {cells} |")
    print("\n| model | mean preference | words | ROUGE-L to the others |\n|---|---|---|---|")
    for model in sorted(preferred, key=lambda model: -preferred[model]):
        line = result["statistics"][model]
        alike = measures["consensus, rouge_l"][model]
        print(f"| {model} | {np.round(preferred[model], 4)} | {line['words']:.0f} | {alike:.3f} |")


if __name__ == "__main__":
    main()
