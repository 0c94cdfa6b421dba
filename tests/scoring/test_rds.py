"""RDS+: pooling, similarity, streaming, and what is said about queries that cannot be used."""

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_select import CausalLM, RDSPlus
from hf_select.data.conversation import conversations
from hf_select.data.encoding import encode
from hf_select.features.featurizer import unit
from hf_select.features.hidden_states import HiddenStates, position_weights
from hf_select.scoring.similarity import BestRows, max_by_task


@pytest.mark.parametrize(("length", "weights"), [(1, [1]), (2, [1 / 3, 2 / 3]), (4, [0.1, 0.2, 0.3, 0.4])])
def test_position_weights(length, weights):
    np.testing.assert_allclose(position_weights(length), weights)


@pytest.mark.parametrize("scope", ["all", "prompt", "response"])
@pytest.mark.parametrize("pooling", ["weighted_mean", "mean", "last_token"])
def test_pooling_by_hand_one_row_at_a_time(model_path, rows, pooling, scope):
    lm = CausalLM(model_path)
    found = HiddenStates(lm, pooling=pooling, scope=scope)([c for c in conversations(as_batch(rows[:8]))])
    for row, feature in zip(conversations(as_batch(rows[:8])), found, strict=True):
        encoded = encode(row, lm.load().tokenizer)
        (start, end) = encoded.responses[0]
        where = {"all": range(len(encoded.input_ids)), "prompt": range(start), "response": range(start, end)}[scope]
        with torch.no_grad():
            h = lm.load().model.model(torch.tensor([encoded.input_ids])).last_hidden_state[0].numpy()[list(where)]
        weights = np.arange(1, len(h) + 1) if pooling == "weighted_mean" else np.ones(len(h))
        expected = h[-1] if pooling == "last_token" else (weights[:, None] * h).sum(0) / weights.sum()
        np.testing.assert_allclose(feature.vector, expected, rtol=1e-4, atol=1e-5)


def test_an_earlier_layer_ends_the_forward_pass_there(model_path, rows):
    lm = CausalLM(model_path)
    found = HiddenStates(lm, layers=[1])(conversations(as_batch(rows[:4])))
    loaded = lm.load()
    for row, feature in zip(conversations(as_batch(rows[:4])), found, strict=True):
        ids = encode(row, loaded.tokenizer).input_ids
        with torch.no_grad():
            h = loaded.model.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[1][0].numpy()
        np.testing.assert_allclose(feature.vector, position_weights(len(ids)) @ h, rtol=1e-4, atol=1e-5)
    ran = []
    handle = loaded.layers[1].register_forward_hook(lambda *_: ran.append(1))
    HiddenStates(lm, layers=[1])(conversations(as_batch(rows[:4])))
    handle.remove()
    assert not ran, "the second layer ran although the first was asked for"
    with pytest.raises(ValueError, match="decoder layers 1 to 2"):
        HiddenStates(lm, layers=[3])(conversations(as_batch(rows[:1])))


def test_rows_are_cut_on_the_right_and_say_so(model_path, rows):
    scorer = RDSPlus(model_path, max_length=10).fit(Dataset.from_list(rows[:2]))
    out = scorer(as_batch(rows))
    assert all(reason.endswith("cut to 10 tokens") for reason in out["rds_reason"])
    long = {"prompt": ["x"], "completion": ["word " * 700]}
    whole = RDSPlus(model_path, max_length=None).fit(Dataset.from_list(rows[:2]))(long)
    assert whole["score_rds"] == [None] and "context of 512" in whole["rds_reason"][0]
    no_prompt = RDSPlus(model_path, scope="prompt").fit(Dataset.from_list(rows[:2]))({"text": ["Once upon a time."]})
    assert no_prompt["score_rds"][0] is not None, "the start token stands before the text"


def test_scores_are_cosines_to_the_nearest_query(model_path, rows):
    data = Dataset.from_list(rows)
    tasks = {"a": data.select(range(5)), "b": data.select(range(5, 8))}
    scorer = RDSPlus(model_path, per_query=True).fit(tasks)
    out = scorer(data[:])
    similarity = np.array(out["rds_similarities"])
    vectors = unit(np.stack([f.vector for f in HiddenStates(model_path)(conversations(data[:]))]))
    np.testing.assert_allclose(similarity, vectors @ vectors[:8].T, atol=2e-6)
    np.testing.assert_allclose(out["score_rds_a"], similarity[:, :5].max(1), atol=1e-7)
    np.testing.assert_allclose(out["score_rds_b"], similarity[:, 5:].max(1), atol=1e-7)
    np.testing.assert_allclose(out["score_rds"], similarity.max(1), atol=1e-7)
    assert out["rds_query"][:8] == list(range(8)), "a query is nearest to itself"


def test_a_task_column_and_a_mapping_of_tasks_are_the_same(model_path, rows):
    data = Dataset.from_list(rows[:6]).add_column("task", list("aabbab"))
    by_column = RDSPlus(model_path).fit(data, task_column="task")
    by_mapping = RDSPlus(model_path).fit({"a": data.select([0, 1, 4]), "b": data.select([2, 3, 5])})
    assert by_column.tasks_ == by_mapping.tasks_ == ["a", "b"]
    np.testing.assert_allclose(by_column.queries_, by_mapping.queries_, atol=1e-6)


def test_other_queries_are_another_scorer_to_the_datasets_cache(model_path, rows):
    from datasets.fingerprint import Hasher

    data = Dataset.from_list(rows)
    one, same = (RDSPlus(model_path).fit(data.select(range(3))) for _ in range(2))
    assert Hasher.hash(one) == Hasher.hash(same)
    assert Hasher.hash(one) != Hasher.hash(RDSPlus(model_path).fit(data.select(range(1, 4))))


def test_best_rows_in_one_pass_are_those_of_the_whole_matrix():
    rng = np.random.default_rng(0)
    matrix = rng.integers(0, 40, size=(500, 6)).astype(np.float32)  # many ties
    matrix[rng.random(500) < 0.1] = np.nan
    for m in (1, 7, 60):
        best, start = BestRows(6, m), 0
        for size in (3, 100, 250, 147):
            best.update(matrix[start : start + size], start)
            start += size
        expected = np.argsort(-np.nan_to_num(matrix, nan=-1), axis=0, kind="stable")[:m].T
        assert (best.rows == expected).all()
        np.testing.assert_array_equal(best.similarities, np.take_along_axis(matrix.T, expected, 1))


def test_best_rows_of_a_dataset_follow_the_scorer(model_path, rows):
    data = Dataset.from_list(rows)
    scorer = RDSPlus(model_path, per_query=True).fit(data.select(range(4)))
    best = scorer.best_rows(data, m=5, batch_size=7)
    matrix = np.array(scorer(data[:])["rds_similarities"]).T
    np.testing.assert_allclose(best.similarities, -np.sort(-matrix, axis=1)[:, :5], atol=2e-6)
    streamed = scorer.best_rows(data.to_iterable_dataset(), m=5, batch_size=9)
    np.testing.assert_allclose(streamed.similarities, best.similarities, atol=2e-6)


def test_max_by_task_and_unit():
    similarities = np.array([[0.1, 0.9, 0.5]])
    np.testing.assert_array_equal(max_by_task(similarities, np.array([0, 1, 1]), 2), [[0.1, 0.9]])
    np.testing.assert_array_equal(unit(np.array([[3.0, 4.0], [0.0, 0.0]])), np.float32([[0.6, 0.8], [0, 0]]))


def test_queries_that_cannot_be_used_are_errors(model_path, rows):
    data = Dataset.from_list(rows)
    with pytest.raises(ValueError, match="call fit"):
        RDSPlus(model_path)(as_batch(rows[:1]))
    with pytest.raises(ValueError, match="query set is empty"):
        RDSPlus(model_path).fit(data.select([]))
    with pytest.raises(ValueError, match="query set is empty"):
        RDSPlus(model_path).fit({})
    with pytest.raises(ValueError, match='task "b" has no queries'):
        RDSPlus(model_path).fit({"a": data, "b": data.select([])})
    with pytest.raises(ValueError, match='query 1 of task "queries" cannot be used: completion is null'):
        RDSPlus(model_path).fit(Dataset.from_dict({"prompt": ["a", "b"], "completion": ["x", None]}))
    with pytest.raises(ValueError, match="longer than the model's context"):
        long = Dataset.from_dict({"prompt": ["a"], "completion": ["word " * 700]})
        RDSPlus(model_path, max_length=None).fit(long)
    with pytest.raises(ValueError, match="taks.*Did you mean"):
        RDSPlus(model_path).fit(data.add_column("task", ["a"] * len(rows)), task_column="taks")
    with pytest.raises(ValueError, match="pooling"):
        RDSPlus(model_path, pooling="max")


def as_batch(rows):
    return {name: [row[name] for row in rows] for name in rows[0]}


# ---------------------------------------------------------------------------------------------- rows that are queries


def test_rows_that_repeat_a_query_are_told_and_left_out_on_request(model_path):
    lakes = "Name the three largest lakes of the northern country."
    query = {"prompt": lakes, "completion": "They are A, B and C, all of them deep."}
    pool = [
        query,
        {"prompt": lakes.upper().replace(" OF", " -- of"), "completion": "I do not know."},
        {"prompt": lakes, "completion": "They are A, B and C, all of them very deep."},
        {"prompt": "Name the three largest rivers.", "completion": "They are D, E and F."},
        {"prompt": "", "completion": "They are A."},
    ]
    data = Dataset.from_list(pool)
    reported = RDSPlus(model_path).fit(data.select([0]))(data[:])
    assert reported["rds_reason"] == [*["has the prompt of query 0"] * 3, "", ""]
    assert None not in reported["score_rds"]
    strict = RDSPlus(model_path, query_overlap="null").fit(data.select([0]))
    removed = strict(data[:])
    assert [score is None for score in removed["score_rds"]] == [True, True, True, False, False]
    assert removed["rds_reason"] == reported["rds_reason"]
    assert sorted(strict.best_rows(data, m=4).rows[0].tolist()) == [-1, -1, 3, 4]


def test_near_repeats_are_found_by_their_word_runs():
    from hf_select.data.conversation import Conversation
    from hf_select.scoring.overlap import QueryOverlap

    def row(prompt: str, reply: str) -> Conversation:
        return Conversation([{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}])

    long = " ".join(f"word{i}" for i in range(60))
    overlap = QueryOverlap([row("Another", "thing"), row("Tell me", long)])
    assert overlap(row("Tell us", long)) == "nearly repeats query 1"  # all but the first runs are common
    assert overlap(row("Tell us", " ".join(f"word{i}" for i in range(30)))) == ""  # half of the runs
    assert overlap(row("", "")) == ""
    assert overlap(Conversation([], text="Another thing")) == "nearly repeats query 0"
    # A query that holds the whole row and much more has as many runs in common, and comes first.
    inside = QueryOverlap([row("Go on", f"{long} {long.upper().replace('WORD', 'other')}"), row("Tell me", long)])
    assert inside(row("Tell us", long)) == "nearly repeats query 1"


# ---------------------------------------------------------------------------------------------------------- embeddings


def test_embeddings_are_those_of_the_sentence_encoder(model_path, rows, tmp_path):
    pytest.importorskip("sentence_transformers", reason='needs the extra: pip install "hf-select[embed]"')
    from sentence_transformers import SentenceTransformer

    from hf_select import Embedding, demo
    from hf_select.features.sentence_embeddings import tulu_text

    demo.save_encoder(Path(model_path), tmp_path / "encoder")
    data = Dataset.from_list(rows)
    scorer = Embedding(str(tmp_path / "encoder"), query_instruction="Find: ", per_query=True)
    scorer.fit(data.select(range(3)))
    texts = [tulu_text(row) for row in conversations(data[:])]
    assert texts[0] == f"<|user|>\n{rows[0]['prompt']}\n<|assistant|>\n{rows[0]['completion']}"
    encoder = SentenceTransformer(str(tmp_path / "encoder"), device="cpu")
    alone = unit(np.stack([encoder.encode(text) for text in texts]))
    asked = unit(np.stack([encoder.encode("Find: " + text) for text in texts[:3]]))
    np.testing.assert_allclose(scorer(data[:])["embedding_similarities"], alone @ asked.T, atol=1e-5)
    before = scorer.usage()
    long = scorer({"prompt": ["x"], "completion": ["word " * 400]})
    assert long["embedding_reason"] == ["cut to 256 tokens"]
    # What is cut off costs nothing, and a table of token vectors is not multiplied with.
    module = encoder[0].auto_model
    weights = sum(p.numel() for p in module.parameters()) - module.get_input_embeddings().weight.numel()
    assert scorer.usage()["tokens"] - before["tokens"] == 256
    assert scorer.usage()["flops"] - before["flops"] == 2 * weights * 256


def test_a_query_that_is_cut_is_said(model_path, caplog):
    RDSPlus(model_path, max_length=5).fit(Dataset.from_list([{"prompt": "Name three fruits.", "completion": "Figs."}]))
    assert "1 of 1 queries carry a note (1 x cut to 5 tokens)" in caplog.text
