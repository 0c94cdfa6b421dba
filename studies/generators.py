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

from hf_select.evaluation.generator_comparison import describe, ranking_agreement, score_answers
from hf_select.evaluation.model_answers import Answers
from hf_select.features.hidden_states import HiddenStates
from hf_select.reports.generators import generators_markdown


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
    result = describe(answers, featurizer)
    preferred = {model: score.mean for model, score in score_answers(answers, "preference").items()}
    measures = {f"consensus, {name}": agreement.consensus for name, agreement in result.agreement.items()}
    of_models = {
        model: {
            **{"words": of.words, "refusals": of.refusals},
            **{kind: of.markup[kind] for kind in ("headings", "lists", "bold", "code")},
            **{f"distinct_{n}": share for n, share in enumerate(of.distinct, 1)},
        }
        for model, of in result.statistics.items()
    }
    for name in ("words", "headings", "lists", "bold", "code", "refusals", "distinct_1", "distinct_2", "distinct_3"):
        measures[name] = {model: values[name] for model, values in of_models.items()}
    correlations = {
        name: ranking_agreement(values, preferred) for name, values in measures.items() if len({*values.values()}) > 1
    }
    print(generators_markdown(result))
    print(
        "\n## What ranks the models as the judge does\n\n"
        "| measure | Spearman | p | Kendall | p |\n|---|---|---|---|---|"
    )
    for name, line in correlations.items():
        cells = " | ".join(f"{line[key]:+.3f}" for key in ("spearman", "spearman_p", "kendall", "kendall_p"))
        print(f"| {name} | {cells} |")
    print("\n| model | mean preference | words | ROUGE-L to the others |\n|---|---|---|---|")
    for model in sorted(preferred, key=lambda model: -preferred[model]):
        alike = measures["consensus, rouge_l"][model]
        print(f"| {model} | {np.round(preferred[model], 4)} | {result.statistics[model].words:.0f} | {alike:.3f} |")


if __name__ == "__main__":
    main()
