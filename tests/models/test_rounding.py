"""How far a score depends on its batch: by rounding alone, and with batch_invariant not at all."""

from pathlib import Path

import numpy as np
import pytest
from adapters import train_adapter
from datasets import Dataset

from hf_select import DEITA, IFD, LESS, CausalLM, Perplexity, RDSPlus, SelectIT


QUERIES = Dataset.from_list([{"prompt": "Name three fruits.", "completion": "Figs, plums and pears."}])


def less(lm: CausalLM) -> LESS:
    rows = [{"prompt": f"Name {n} fruits.", "completion": "Figs."} for n in range(16)]
    checkpoints = train_adapter(lm.model, Path(lm.model).parent / "rounding_less", rows)
    return LESS(lm, checkpoints[:1]).fit(QUERIES)


SCORERS = {
    "deita": DEITA,
    "ifd": IFD,
    "less": less,
    "perplexity": Perplexity,
    "rds": lambda lm: RDSPlus(lm).fit(QUERIES),
    "selectit": SelectIT,
    "selectit_last": lambda lm: SelectIT(lm, rating_position="last"),
}
# Largest difference alone and in a batch, as a share of the standard deviation over rows.
# Seen: up to 2e-6 in float32; in bfloat16 up to 0.01, and 0.07 for SelectIT (0.19 on Gemma 3 270M).
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.2}


def alone_and_together(scorer, rows) -> tuple[np.ndarray, np.ndarray]:
    column = f"score_{scorer.name}"
    whole = scorer({name: [row[name] for row in rows] for name in rows[0]})[column]
    alone = [scorer({name: [value] for name, value in row.items()})[column][0] for row in rows]
    there = [i for i, value in enumerate(whole) if value is not None]
    return np.array([alone[i] for i in there]), np.array([whole[i] for i in there])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", SCORERS)
def test_a_batch_invariant_model_gives_a_row_one_score_to_the_last_bit(model_path, rows, name, dtype):
    rows = rows[:8]
    scorer = SCORERS[name](CausalLM(model_path, dtype=dtype, batch_invariant=True))
    alone, together = alone_and_together(scorer, rows)
    assert len(alone) >= 6 and alone.std() > 0
    assert alone.tolist() == together.tolist()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", SCORERS)
def test_otherwise_a_score_depends_on_its_batch_by_the_rounding_of_its_type(model_path, rows, name, dtype):
    alone, together = alone_and_together(SCORERS[name](CausalLM(model_path, dtype=dtype)), rows[:8])
    assert np.abs(alone - together).max() <= TOLERANCE[dtype] * alone.std()
