"""RE-WILD, the SFT mixture of WildChat-50M (Feuer and Hegde 2025, arXiv:2501.18511), as data.

source     | rows    | what
---------- | ------- | ----------------------------------------------------------------------
wildchat   | 246,750 | WildChat-1M answered by Qwen2.5-72B-Instruct: the first 25 % of its rows
mmlu       |  99,800 | auxiliary training questions of MMLU
algebra    |  20,000 | intermediate algebra problems of Tulu 3's personas
           | 366,550 |

The Hub ids are those of the authors' training configuration; whether they still exist was not checked. Their MMLU rows
were written as a quiz show's clues with answers that begin with "what is" (axolotl's `jeopardy` format); here they are
questions with choices and their answers, unless `quiz` is set.

Left out: their packing and training settings. The published counts do not mention copies, so none are removed.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hf_select.mixtures.mixture import Mixture
from hf_select.mixtures.source import Source


REWILD: dict[str, Source] = {
    "wildchat": Source(
        "penfever/allenai_WildChat-1M-Full-Qwen_Qwen2.5-72B-Instruct",
        weight=246_750,
        rename={"conversation": "messages"},
        take="first",
    ),
    "mmlu": Source("penfever/mmlu-it", weight=99_800, split="auxiliary_train", reads="question", take="first"),
    "algebra": Source("penfever/tulu-3-tulu_v3.9_personahub_math_interm_algebra_20k", weight=20_000, take="first"),
}
ROWS = 366_550


def rewild(
    sources: Mapping[str, Source | str] | None = None, rows: int = ROWS, quiz: bool = False, **settings: Any
) -> Mixture:
    """The mixture, at its published size or at another of the same proportions.

    Args:
        sources: data in place of the published ids: a Hub id or file that is read as the published one with plain
            columns (`messages`, or question, choices and answer), or a Source, whose weight is replaced by the
            published one.
        rows: rows of the mixture.
        quiz: MMLU in the published format of a quiz show.
        settings: of Mixture; by default copies stay, as published.
    Raises: ValueError for a source that is not one of the three.
    """
    mixed = dict(REWILD)
    for name, source in (sources or {}).items():
        if name not in mixed:
            raise ValueError(f'RE-WILD has no source "{name}"; its sources are {", ".join(mixed)}.')
        published = replace(mixed[name], data=source, split="train", rename=None)
        mixed[name] = replace(source, weight=published.weight) if isinstance(source, Source) else published
    if quiz:
        mixed["mmlu"] = replace(mixed["mmlu"], reads="quiz")
    return Mixture(mixed, rows=rows, **{"dedup": "none", **settings})
