"""Parity with the authors' own code on a tiny model (outputs made once; see the README beside them). Not part of the
project.
"""

import hashlib
import json

import numpy as np
import pytest
from datasets import Dataset

from hf_select import IFD, LESS, CausalLM, Perplexity, RDSPlus, RoundRobin, SelectIT, TopK
from hf_select.data.bad_rows import BadRow
from hf_select.data.chat_template import FALLBACK_TEMPLATE
from hf_select.data.conversation import conversations
from hf_select.data.encoding import encode
from hf_select.features.hidden_states import HiddenStates
from hf_select.scoring.rating import rating_probabilities, rating_token_ids


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
    assert set(pool[i]["row_id"] for i in chosen.indices.tolist()) == set(order[:19])


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


@pytest.fixture(scope="module")
def alpaca(golden) -> Dataset:
    lines = (golden / "pool_alpaca.jsonl").read_text(encoding="utf-8").split("\n")
    return Dataset.from_list([json.loads(line) for line in lines if line])


def without_start_token(golden) -> CausalLM:
    from tokenizers import processors
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(golden / "model")
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    assert len(tokenizer("a")["input_ids"]) == 1
    return CausalLM(str(golden / "model"), tokenizer=tokenizer)


def test_perplexity_and_its_sets_are_the_references(golden, pool):
    expected = read(golden / "ppl" / "ppl.json")
    scored = pool.map(Perplexity(str(golden / "model"), text_format="tulu"), batched=True)
    nll = np.array([expected["mean_token_nll"][row_id] for row_id in pool["row_id"]])
    np.testing.assert_allclose(scored["score_perplexity"], nll, atol=1e-5)
    for name, ids in expected["selections"].items():
        which = {"top": "best", "mid": "middle"}[name.partition("/")[0]]
        chosen = TopK("score_perplexity", which=which)(scored, k=len(ids))
        assert list(scored.select(chosen.indices)["row_id"]) == ids, name


@pytest.mark.parametrize("start_token", [True, False])
def test_cherry_ratios_selection_and_skips_are_the_references(golden, alpaca, start_token):
    expected = read(golden / "ifd" / ("cherry.json" if start_token else "cherry_no_bos.json"))
    model = str(golden / "model") if start_token else without_start_token(golden)
    scorer = IFD(model, text_format="alpaca", mode="repo", max_length=512)
    scored = alpaca.map(scorer, batched=True, load_from_cache_file=False)
    reasons = read(golden / "ifd" / "cherry_skip_reasons.json")["cherry" if start_token else "cherry_no_bos"]["rows"]
    for row in scored:
        there = expected["rows"][row["row_id"]]
        why = reasons[row["row_id"]]["reason"]
        if row["score_ifd"] is None:
            assert there["ratio"] is None and why not in (None, "ratio_above_1"), (row["row_id"], why)
            continue
        if there["ratio"] is None:  # measured, then dropped by the script for its ratio
            assert why == "ratio_above_1" and row["score_ifd"] > 1
            continue
        assert row["score_ifd"] == pytest.approx(there["ratio"], rel=1e-5)
        assert row["ifd_given_prompt"] == pytest.approx(there["mean_loss_conditional"], abs=1e-5)
        assert row["ifd_alone"] == pytest.approx(there["mean_loss_direct"], abs=1e-5)
    kept = [row for row in scored if row["score_ifd"] is not None and row["score_ifd"] <= 1]
    assert {row["row_id"] for row in kept} == set(expected["kept_by_script"])
    for rate, ids in expected["selected"].items():
        chosen = TopK("score_ifd", at_most=1.0)(scored, k=int(len(kept) * float(rate)))
        assert set(scored.select(chosen.indices)["row_id"]) == set(ids), rate


@pytest.mark.parametrize(
    ("case", "start_token"), [("with_bos_512", True), ("no_bos_512", False), ("no_bos_1024", False)]
)
def test_superfiltering_ratios_and_order_are_the_references(golden, alpaca, case, start_token):
    expected = read(golden / "ifd" / "superfiltering.json")[case]
    model = str(golden / "model") if start_token else without_start_token(golden)
    scorer = IFD(model, "ppl_ratio", text_format="plain", mode="repo", max_length=expected["max_length"])
    scored = alpaca.map(scorer, batched=True, load_from_cache_file=False)
    for row in scored:
        there = expected["rows"][row["row_id"]]
        if there["ifd_ppl"] is None:
            assert row["score_ifd"] is None and row["ifd_reason"]
            continue
        assert row["score_ifd"] == pytest.approx(there["ifd_ppl"], rel=5e-5), row["row_id"]
        assert row["ifd_given_prompt"] == pytest.approx(there["loss_conditional"], abs=1e-5)
    below = sum(score is not None and score < 1 for score in scored["score_ifd"])
    chosen = TopK("score_ifd", at_most=1.0)(scored, k=below)
    ordered = list(scored.select(chosen.indices)["row_id"])
    for ids in expected["selected"].values():
        assert ordered[: len(ids)] == ids


@pytest.mark.parametrize("step", [10, 20])
def test_less_gradients_and_cosines_are_the_references(golden, step):
    import torch
    from safetensors.torch import load_file

    from hf_select.features.adam import Adam
    from hf_select.features.gradient_reducers import Cosines, FullGradients
    from hf_select.features.gradients import adapter_layers, row_gradients

    folder = golden / "less"
    expected, own = np.load(folder / "gradients.npz"), np.load(folder / "derived_fp64.npz")
    lm = CausalLM(str(golden / "model"), adapter=str(folder / f"checkpoint-{step}"))
    names = [
        p["name"].removeprefix("base_model.model.").removesuffix(".weight")
        for p in read(folder / "influence.json")["parameter_order"]
    ]
    layers = adapter_layers(lm.load().model)
    assert set(names) == set(layers)
    saved = load_file(folder / f"checkpoint-{step}" / "adam_moments.safetensors")
    moments = {
        name: tuple(saved[f"base_model.model.{name}.weight.{kind}"] for kind in ("exp_avg", "exp_avg_sq"))
        for name in names
    }

    def ragged(file):
        stored = np.load(folder / file)
        values = next(stored[k] for k in stored if k not in ("keys", "offsets"))
        offsets = stored["offsets"]
        return [values[a:b].tolist() for a, b in zip(offsets, offsets[1:], strict=False)]

    pool, labels, queries = ragged("pool_token_ids.npz"), ragged("pool_labels.npz"), ragged("query_token_ids.npz")
    spans = [[(t, t + 1) for t, label in enumerate(row) if label != -100] for row in labels]
    there = [i for i, some in enumerate(spans) if some]
    assert [expected["row_ids"][i] for i in range(96) if i not in there] == ["row-011-0034711a"]
    marker = lm.load().tokenizer("<|assistant|>\n", add_special_tokens=False)["input_ids"]
    query_spans = []
    for ids in queries:  # one exchange each: all after the assistant's header
        start = next(t for t in range(len(ids), 0, -1) if ids[t - len(marker) : t] == marker)
        query_spans.append([(start, len(ids))])

    def vectors(sequences, some, transform=None):
        return torch.stack(row_gradients(lm, sequences, some, lambda rows: FullGradients(rows, names, transform)))

    repo = Adam(moments, step, mode="repo")
    plain = vectors([pool[i] for i in there], [spans[i] for i in there])
    gamma = vectors([pool[i] for i in there], [spans[i] for i in there], repo)
    asked = vectors(queries, query_spans)

    def close(found, reference, limit):
        np.testing.assert_allclose(np.asarray(found), reference, rtol=limit)

    close(plain.norm(dim=1), expected[f"gradient_norm_{step}"][there], 1e-5)
    close(gamma.norm(dim=1), expected[f"gamma_norm_{step}"][there], 1e-5)
    close(asked.norm(dim=1), expected[f"query_gradient_norm_{step}"], 1e-5)
    for found, name in (
        (plain, "gradient_first_rows"),
        (gamma, "gamma_first_rows"),
        (asked, "query_gradient_first_rows"),
    ):
        reference = expected[f"{name}_{step}"]
        assert np.abs(found[: len(reference)].numpy() - reference).max() <= 1e-5 * np.abs(reference).max()
    sizes = [layers[name].weight.numel() for name in names]
    split = dict(zip(names, asked.split(sizes, dim=1), strict=True))
    for adam, reference in (
        (repo, expected[f"cosine_gamma_query_{step}"]),
        (Adam(moments, step), own[f"cosine_paper_form_query_{step}"]),
    ):
        found = row_gradients(
            lm,
            [pool[i] for i in there],
            [spans[i] for i in there],
            lambda rows, a=adam: Cosines(rows, split, asked.norm(dim=1), a),
        )
        np.testing.assert_allclose(np.stack(found), reference[there], atol=2e-6)


@pytest.mark.parametrize("adam_mode", ["repo", "paper"])
def test_less_scores_and_orders_are_the_references(golden, pool, adam_mode):
    folder = golden / "less"
    expected, own = read(folder / "influence.json"), np.load(folder / "derived_fp64.npz")
    scorer = LESS(
        str(golden / "model"),
        [str(folder / f"checkpoint-{step}") for step in (10, 20)],
        learning_rates=expected["checkpoint_weights"],
        adam_mode=adam_mode,
        query_mode="repo",
        text_format="tulu",
        max_length=512,
    )
    queries = {}
    for task in ("arithmetic", "code"):
        lines = (golden / f"queries_{task}.jsonl").read_text(encoding="utf-8").split("\n")
        rows = [json.loads(line) for line in lines if line]
        queries[task] = Dataset.from_list([{k: row[k] for k in ("messages", "subtask")} for row in rows])
    scorer.fit(queries, subtask_column="subtask")
    ids = np.load(folder / "pool_token_ids.npz")
    encoded = scorer._gradients.encode(conversations(pool[:]))
    for i, item in enumerate(encoded):
        if not isinstance(item, BadRow):
            there = ids["ids"][ids["offsets"][i] : ids["offsets"][i + 1]].tolist()
            assert item[0].input_ids == there, pool[i]["row_id"]
    scored = pool.map(scorer, batched=True, load_from_cache_file=False)
    unscored = [row["row_id"] for row in scored if row["score_less"] is None]
    assert unscored == expected["rows_without_labels"]
    for task in queries:
        found = np.array(scored[f"score_less_{task}"], dtype=np.float64)
        if adam_mode == "paper":
            labelled = ~np.isnan(found)  # the reference scores the row without labels by momentum alone
            np.testing.assert_allclose(found[labelled], own[f"score_paper_form_{task}"][labelled], atol=2e-6)
            continue
        there = [np.nan if x is None else x for x in (expected["score"][task][row_id] for row_id in pool["row_id"])]
        np.testing.assert_allclose(found, there, atol=2e-6)
        chosen = TopK(f"score_less_{task}")(scored, k=95).indices
        places = {row_id: place for place, row_id in enumerate(expected["order"][task])}
        swapped = [abs(places[pool[int(i)]["row_id"]] - place) for place, i in enumerate(chosen)]
        assert max(swapped) <= 1, "rows within the limit of each other may swap, no more"
