"""Parity with the authors' own code on a tiny model (outputs made once; see the README beside them). Not part of the
project.
"""

import hashlib
import json

import numpy as np
import pytest
from datasets import Dataset

from hf_select import CausalLM, RDSPlus, RoundRobin, SelectIT, TopK
from hf_select.features.hidden_states import HiddenStates
from hf_select.formats import FALLBACK_TEMPLATE, conversations, encode
from hf_select.scoring.selectit import rating_probabilities, rating_token_ids


@pytest.fixture(scope="module")
def pool(golden) -> Dataset:
    rows = [json.loads(line) for line in (golden / "pool.jsonl").read_text(encoding="utf-8").split("\n") if line]
    return Dataset.from_list([{"row_id": row["row_id"], "messages": row["messages"]} for row in rows])


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def scorer(golden, **settings) -> SelectIT:
    return SelectIT(str(golden / "model"), **{"rating_prompts": str(golden / "rating_prompts.txt"), **settings})


def test_selectit_prompts_and_token_ids_are_the_references(golden, pool):
    measured: list[list[int]] = []
    selectit = scorer(golden)
    lm = selectit._models[0]
    original = CausalLM.next_token_logits

    def record(prompts, token_ids):
        measured.extend(prompts)
        return original(lm, prompts, token_ids)

    lm.next_token_logits = record
    out = selectit(pool[:])
    expected = read(golden / "selectit" / "prompts.json")
    stored = np.load(golden / "selectit" / "probabilities.npz")
    assert rating_token_ids(lm, "x\nThe answer is: \n", 5) == stored["digit_ids"].tolist()
    assert len(measured) == 480 and None not in out["score_selectit"]
    for j in range(5):
        for i, row_id in enumerate(pool["row_id"]):
            ids = np.array(measured[j * 96 + i], dtype="<i4")
            assert hashlib.sha256(ids.tobytes()).hexdigest() == expected[row_id]["ids_sha256"][j], (row_id, j)
    lm.next_token_logits = original.__get__(lm)
    logits = [lm.next_token_logits(measured[j * 96 : (j + 1) * 96], stored["digit_ids"].tolist()) for j in range(5)]
    p = rating_probabilities(np.stack([np.stack(column) for column in logits], axis=1))
    reference = stored["p"] / stored["p"].sum(axis=-1, keepdims=True)
    assert stored["row_ids"].tolist() == pool["row_id"][:]
    np.testing.assert_allclose(p, reference, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("mode", "limit"), [("paper", 5e-5), ("repo", 2e-5)])
def test_selectit_scores_and_order_are_the_references(golden, pool, mode, limit):
    out = scorer(golden, mode=mode, details=True)(pool[:])
    expected = read(golden / "selectit" / "scores.json")
    score = np.array(out["score_selectit"])
    np.testing.assert_allclose(score, [expected[r][f"sentence_{mode}"] for r in pool["row_id"]], rtol=0, atol=limit)
    assert out["selectit_ratings"] == [expected[r]["rating"] for r in pool["row_id"]]
    tokens = np.array(out["selectit_ratings"]) * (1 - np.array(out["selectit_uncertainty"]))
    np.testing.assert_allclose(tokens, [expected[r][f"token_{mode}"] for r in pool["row_id"]], rtol=0, atol=limit)
    order = read(golden / "selectit" / "orders.json")[f"sentence_{mode}"]
    same_order(score, pool["row_id"][:], order, limit)
    chosen = TopK("score_selectit")(pool.add_column("score_selectit", list(score)), fraction=0.2)
    assert set(pool[i]["row_id"] for i in chosen.indices) == set(order[:19])


def test_selectit_with_three_ratings_has_the_quirk_of_the_code(golden, pool):
    out = scorer(golden, mode="repo", k=3)(pool[:])
    expected = read(golden / "selectit" / "orders.json")["sentence_repo_k3"]["scores"]
    np.testing.assert_allclose(out["score_selectit"], [expected[r] for r in pool["row_id"]], rtol=0, atol=2e-5)


@pytest.mark.parametrize("line", range(1, 7))
def test_selectit_token_level_line_by_line(golden, pool, line):
    """Line 6 is the file's last and has no line break of its own: one break less in the prompt."""
    lines = (golden / "rating_prompts.txt").read_text(encoding="utf-8").split("\n")
    prompt = lines[line - 1] + ("\n" if line < 6 else "")
    out = scorer(golden, mode="repo", level="token", rating_prompts=[prompt])(pool[:])
    order = read(golden / "selectit" / "orders.json")["token_level_runs"][f"line_{line}"]["order"]
    same_order(np.array(out["score_selectit"]), pool["row_id"][:], order, 2e-5)


def test_selectit_model_level_is_the_references(golden, pool):
    model = str(golden / "model")
    models = [CausalLM(model), *(CausalLM(model, adapter=str(golden / "less" / f"checkpoint-{n}")) for n in (10, 20))]
    prompts = str(golden / "rating_prompts.txt")
    out = SelectIT(models, mode="repo", sizes=[7, 13, 70], rating_prompts=prompts)(pool[:])
    order = read(golden / "selectit" / "orders.json")["model_level"]["repo_weights_order"]
    same_order(np.array(out["score_selectit"]), pool["row_id"][:], order, 4e-5)


# ------------------------------------------------------------------------------------------------------------- RDS+


def queries(golden) -> dict[str, Dataset]:
    found = {}
    for task in ("arithmetic", "code"):
        lines = (golden / f"queries_{task}.jsonl").read_text(encoding="utf-8").split("\n")
        found[task] = Dataset.from_list([{"messages": json.loads(line)["messages"]} for line in lines if line])
    return found


def test_rds_token_ids_are_the_references(golden, pool):
    stored = np.load(golden / "rds" / "pool_token_ids.npz")
    labels = np.load(golden / "rds" / "pool_labels.npz")
    assert stored["keys"].tolist() == pool["row_id"][:]
    tokenizer = CausalLM(str(golden / "model")).load().tokenizer
    for i, row in enumerate(conversations(pool[:])):
        encoded = encode(row, tokenizer, FALLBACK_TEMPLATE)
        span = slice(stored["offsets"][i], stored["offsets"][i + 1])
        assert encoded.input_ids[:2048] == stored["ids"][span].tolist(), pool["row_id"][i]
        response = np.full(len(encoded.input_ids), False)
        for start, end in encoded.responses:
            response[start:end] = True
        expected = labels["ids"][span] != -100 if "ids" in labels else labels["labels"][span] != -100
        # The reference also trains on the line break after an EOS within a conversation.
        differing = np.flatnonzero(response[:2048] != expected)
        assert all(tokenizer.decode([encoded.input_ids[t]]) == "\n" for t in differing), pool["row_id"][i]


def test_rds_embeddings_and_cosines_are_the_references(golden, pool):
    model = str(golden / "model")
    stored = np.load(golden / "rds" / "embeddings.npz")
    vectors = np.stack([f.vector for f in HiddenStates(model, text_format="tulu")(conversations(pool[:]))])
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(unit, stored["pool"], rtol=0, atol=2e-6)
    cosine = np.load(golden / "rds" / "cosine.npz")
    for pooling, name in (("weighted_mean", ""), ("mean", "_uniform_mean"), ("last_token", "_last_token")):
        scorer = RDSPlus(model, pooling=pooling, text_format="tulu", per_query=True).fit(queries(golden))
        found = np.array(scorer(pool[:])["rds_similarities"]).T
        np.testing.assert_allclose(found, cosine[f"cosine{name}"], rtol=0, atol=2e-6)


def test_rds_selections_are_the_references_in_order(golden, pool):
    scorer = RDSPlus(str(golden / "model"), text_format="tulu", per_query=True).fit(queries(golden))
    scored = pool.map(scorer, batched=True)
    similarity = np.array(scored["rds_similarities"])
    task = {"arithmetic": similarity[:, :8], "code": similarity[:, 8:], "both": similarity}
    expected = read(golden / "rds" / "selections.json")
    checked = 0
    for n, selections in expected.items():
        for name, ids in selections.items():
            mode, _, which = name.partition("/")
            if mode in ("round_robin", "global_max"):
                data = scored.select_columns(["row_id"]).add_column("s", task[which].tolist())
                chosen = RoundRobin("s", mode=mode)(data, k=int(n))
            elif mode in ("task_round_robin", "mean_max"):
                columns = [f"score_rds_{part}" for part in which.split("+")]
                how = "round_robin" if mode == "task_round_robin" else mode
                chosen = RoundRobin(columns, mode=how)(scored, k=int(n))
            else:  # single_task_mean, which the script writes worst first: the mean over queries is a plain score
                mean = task[which].astype(np.float64).mean(axis=1)
                data = scored.select_columns(["row_id"]).add_column("mean", mean.tolist())
                chosen = TopK("mean")(data, k=int(n))
                found = dict(zip(pool["row_id"], mean, strict=True))
                assert set(chosen.row_ids) == set(ids), (n, name)
                assert np.diff([found[row_id] for row_id in ids]).min() >= -1e-6, (n, name)
                continue
            assert chosen.row_ids == ids, (n, name)
            checked += 1
    assert checked == 27


def same_order(scores, row_ids, expected, limit):
    """The reference's order, but rows closer than the limit may swap (it breaks ties towards the higher row)."""
    by_id = dict(zip(row_ids, scores, strict=True))
    found = [by_id[row_id] for row_id in expected]
    assert sorted(expected) == sorted(row_ids)
    rises = np.diff(found).max()
    assert rises <= limit, f"a row stands {rises:.2g} above one that the reference puts before it"
