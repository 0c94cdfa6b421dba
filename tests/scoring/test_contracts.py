"""Every scorer through the shared laws."""

from pathlib import Path

import pytest
from adapters import train_adapter
from contracts import check_scorer
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_select import (
    DEITA,
    DSIR,
    IFD,
    LESS,
    TFIDF,
    Embedding,
    Length,
    Perplexity,
    RDSPlus,
    Reward,
    SelectIT,
    demo,
)


def less(model: str, **settings) -> LESS:
    rows = [{"prompt": f"Name {n} fruits.", "completion": "Figs."} for n in range(16)]
    checkpoints = train_adapter(model, Path(model).parent / "contract_less", rows)
    return LESS(model, checkpoints, **settings).fit(QUERIES)


QUERIES = {
    "a": Dataset.from_list([{"prompt": "Name three fruits.", "completion": "Figs, plums and pears."}]),
    "b": Dataset.from_list([{"prompt": "What is the capital of Peru?", "completion": "Lima."}]),
}
POOL = Dataset.from_list([{"prompt": f"Name {n} fruits of the capital.", "completion": "Lima."} for n in range(9)])


def rds(model: str, **settings) -> RDSPlus:
    return RDSPlus(model, **settings).fit(QUERIES)


def embedding(model: str, **settings) -> Embedding:
    pytest.importorskip("sentence_transformers", reason='needs the extra: pip install "hf-select[embed]"')
    folder = Path(model).parent / "encoder"
    if not folder.exists():
        demo.save_encoder(Path(model), folder)
    return Embedding(str(folder), **settings).fit(QUERIES["a"])


def reward(model: str, pads: bool, **settings) -> Reward:
    folder = Path(model).parent / f"reward_{pads}"
    if not folder.exists():
        classifier = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1)
        if not pads:
            classifier.config.pad_token_id = None
        classifier.save_pretrained(folder)
        AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return Reward(str(folder), **settings)


SCORERS = {
    "dsir": lambda model: DSIR(buckets=64).fit(QUERIES, pool=POOL),
    "dsir_one": lambda model: DSIR(per_ngram=True).fit(QUERIES["a"], pool=POOL),
    "tfidf": lambda model: TFIDF().fit(QUERIES, pool=POOL),
    "deita": lambda model: DEITA(model),
    "deita_two": lambda model: DEITA(model, quality_model=model, ratings=4),
    "embedding": lambda model: embedding(model),
    "embedding_instruction": lambda model: embedding(model, query_instruction="Find: ", per_query=True),
    "ifd": lambda model: IFD(model),
    "ifd_alpaca": lambda model: IFD(model, text_format="alpaca", ratio="ppl_ratio"),
    "ifd_repo": lambda model: IFD(model, text_format="plain", mode="repo", max_length=256),
    "length": lambda model: Length(),
    "length_tokens": lambda model: Length(tokenizer=model, of="response"),
    "less": lambda model: less(model),
    "less_dense": lambda model: less(model, projection="dense", dimensions=100),
    "less_factored": lambda model: less(model, projection="factored", dimensions=100, per_query=True),
    "less_sgd_factored": lambda model: less(model, form="sgd", projection="factored", dimensions=64),
    "less_sgd": lambda model: less(model, form="sgd", text_format="tulu"),
    "perplexity": lambda model: Perplexity(model),
    "perplexity_response": lambda model: Perplexity(model, scope="response", text_format="tulu"),
    "rds": lambda model: rds(model),
    "rds_tulu_response": lambda model: rds(model, text_format="tulu", scope="response", layers=[1]),
    "reward": lambda model: reward(model, pads=True),
    "reward_no_pad": lambda model: reward(model, pads=False, tokens_per_batch=100),
    "selectit": lambda model: SelectIT(model),
    "selectit_token": lambda model: SelectIT(model, level="token", seed=3),
    "selectit_repo": lambda model: SelectIT(model, mode="repo", details=True),
    "selectit_last": lambda model: SelectIT(model, rating_position="last"),
    "selectit_models": lambda model: SelectIT([model, model], details=True),
}


@pytest.mark.parametrize("name", SCORERS)
def test_scorer_keeps_the_laws(name, model_path, rows):
    check_scorer(lambda: SCORERS[name](model_path), rows)
