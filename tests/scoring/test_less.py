"""LESS on checkpoints that the stock Trainer wrote: what is read from them, how scores are put together, what is
refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from adapters import train_adapter
from datasets import Dataset
from safetensors.torch import load_file

from hf_select import LESS, Length, PoolIndex, score
from hf_select.data.bad_rows import BadRow
from hf_select.data.conversation import conversations
from hf_select.features import adapter_gradients as gradients_module
from hf_select.features.adam import mean_learning_rate
from hf_select.features.adapter_gradients import AdapterGradients
from hf_select.features.featurizer import Feature, Featurizer
from hf_select.features.gradients import adapter_layers
from hf_select.scoring.score import whole_cost
from hf_select.training.warmup import WarmUp


MODES = ("paper", "repo")


@pytest.fixture(scope="module")
def checkpoints(model_path, rows) -> list[str]:
    return train_adapter(model_path, Path(model_path).parent / "less", rows)


@pytest.fixture
def queries(rows) -> dict[str, Dataset]:
    return {"a": Dataset.from_list(rows[20:23]), "b": Dataset.from_list(rows[30:32])}


def batch(rows: list[dict]) -> dict[str, list]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def test_trainers_moments_are_read_in_its_own_order(model_path, checkpoints):
    """Trainer numbers its parameters; read by hand they must be the moments of the layer of that name."""
    gradients = AdapterGradients(model_path, checkpoints)
    gradients.load()
    state = torch.load(Path(checkpoints[1]) / "optimizer.pt", weights_only=True)
    layers = adapter_layers(gradients.lm.load().model, "checkpoint_1")
    adam = gradients._adams[1]
    assert adam is not None and adam.step == 10 and len(layers) == 2 * 3 * 2
    for number, name in enumerate(layers):
        assert torch.equal(adam.moments[name][0], state["state"][number]["exp_avg"])
    # The first moment follows the last gradients: of the layer it belongs to, not of one of the same shape.
    first, second = (adam.moments[f"model.layers.{i}.self_attn.q_proj.lora_A.checkpoint_1"][0] for i in (0, 1))
    assert first.shape == second.shape and not torch.equal(first, second)


def test_a_score_is_the_weighted_sum_over_checkpoints_of_mean_cosines(model_path, checkpoints, rows, queries):
    settings = {"learning_rates": [3.0, 1.0], "per_query": True, "query_mode": "repo"}
    scorer = LESS(model_path, checkpoints, **settings).fit(queries)
    out = scorer(batch(rows[:6]))
    gradients = AdapterGradients(model_path, checkpoints)
    whole = [item[0] for item in gradients.encode(conversations(batch(rows[:6])))]
    asked = [item[0] for some in queries.values() for item in gradients.encode(conversations(some[:]))]
    similarity = np.zeros((6, 5))
    for checkpoint, weight in ((0, 0.75), (1, 0.25)):
        of_queries = torch.stack(gradients.full_gradients(asked, checkpoint))
        similarity += weight * np.stack(gradients.cosines(whole, checkpoint, of_queries))
    there = [i for i in range(6) if out["score_less"][i] is not None]
    assert len(there) >= 5
    np.testing.assert_allclose(np.array([out["less_similarities"][i] for i in there]), similarity[there], atol=1e-6)
    for i in there:
        a, b = similarity[i, :3].mean(), similarity[i, 3:].mean()
        assert out["score_less_a"][i] == pytest.approx(a, abs=1e-6)
        assert out["score_less"][i] == pytest.approx(max(a, b), abs=1e-6)
    assert np.ptp(similarity) > 0.02
    assert scorer.usage()["flops"] > 0 and scorer.usage()["processed_tokens"] >= scorer.usage()["tokens"]


def test_subtasks_are_means_and_a_task_the_largest_of_them(model_path, checkpoints, rows):
    asked = Dataset.from_list([{**row, "part": part} for row, part in zip(rows[20:23], "xyx", strict=True)])
    scorer = LESS(model_path, checkpoints[:1], per_query=True, query_mode="repo").fit(asked, subtask_column="part")
    out = scorer(batch(rows[:3]))
    for value, (x, y, x2) in zip(out["score_less"], out["less_similarities"], strict=True):
        assert value == pytest.approx(max((x + x2) / 2, y), abs=1e-6)
    with pytest.raises(ValueError, match='"nothing" is missing'):
        LESS(model_path, checkpoints[:1]).fit(asked, subtask_column="nothing")


def test_queries_of_a_subtask_are_averaged_before_the_cosine_as_in_the_paper(model_path, checkpoints, rows, queries):
    settings = {"learning_rates": [3.0, 1.0], "form": "sgd"}
    paper = LESS(model_path, checkpoints, **settings).fit(queries)
    out = paper(batch(rows[:6]))
    gradients = AdapterGradients(model_path, checkpoints, form="sgd")
    whole = [item[0] for item in gradients.encode(conversations(batch(rows[:6]))) if not isinstance(item, BadRow)]
    asked = [item[0] for item in gradients.encode(conversations(queries["a"][:]))]
    expected = np.zeros(len(whole))
    for checkpoint, weight in ((0, 0.75), (1, 0.25)):
        mean = torch.stack(gradients.full_gradients(asked, checkpoint)).mean(0)
        of_rows = torch.stack(gradients.full_gradients(whole, checkpoint))
        expected += weight * torch.cosine_similarity(of_rows, mean[None]).numpy()
    found = [score for score in out["score_less_a"] if score is not None]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    repo = LESS(model_path, checkpoints, query_mode="repo", **settings).fit(queries)(batch(rows[:6]))
    assert np.abs(np.subtract(found, [s for s in repo["score_less_a"] if s is not None])).max() > 1e-3
    # A query alone is its own mean.
    one = {name: some.select([0]) for name, some in queries.items()}
    both = [LESS(model_path, checkpoints, query_mode=mode, **settings).fit(one)(batch(rows[:6])) for mode in MODES]
    assert both[0]["score_less"] == pytest.approx(both[1]["score_less"], abs=1e-6)


def test_projected_queries_are_averaged_with_their_lengths(model_path, checkpoints, rows, queries):
    settings = {"projection": "factored", "dimensions": 300}
    scorer = LESS(model_path, checkpoints[:1], **settings).fit(queries)
    out = scorer(batch(rows[:6]))
    featurizer = AdapterGradients(model_path, checkpoints[:1], **settings)
    asked = np.stack([f.vector for f in featurizer(conversations(queries["a"][:]), queries=True)])
    assert np.ptp(np.linalg.norm(asked, axis=1)) > 0
    mean = asked.mean(0) / np.linalg.norm(asked.mean(0))
    of_rows = [f.vector for f in featurizer(conversations(batch(rows[:6]))) if isinstance(f, Feature)]
    found = [score for score in out["score_less_a"] if score is not None]
    np.testing.assert_allclose(found, np.stack(of_rows) @ mean, atol=1e-6)


def test_learning_rates_come_from_the_log(model_path, checkpoints):
    rates = [mean_learning_rate(path) for path in checkpoints]
    assert rates[0] == pytest.approx(3e-2 * np.mean([1, 0.9, 0.8, 0.7, 0.6]), rel=1e-6)
    assert rates[1] == pytest.approx(3e-2 * np.mean([0.5, 0.4, 0.3, 0.2, 0.1]), rel=1e-6)
    np.testing.assert_allclose(LESS(model_path, checkpoints)._weights, np.array(rates) / sum(rates))


def test_an_only_checkpoint_counts_whatever_rate_was_logged(model_path, checkpoints, tmp_path):
    """Trainer logs 0 for a warm-up of one step whose rate decays."""
    only = tmp_path / "checkpoint-1"
    shutil.copytree(checkpoints[0], only)
    state = json.loads((only / "trainer_state.json").read_text())
    state["log_history"] = [{"learning_rate": 0.0, "step": 1}]
    (only / "trainer_state.json").write_text(json.dumps({**state, "global_step": 1}))
    np.testing.assert_array_equal(LESS(model_path, [str(only)])._weights, [1])
    with pytest.raises(ValueError, match="learning_rates are"):
        LESS(model_path, [str(only)], learning_rates=[0.0])


def test_a_row_without_response_tokens_keeps_its_place(model_path, checkpoints, rows, queries):
    scorer = LESS(model_path, checkpoints[:1], max_length=150).fit(queries)
    long = {"prompt": "Say it. " * 100, "completion": "Yes."}
    out = scorer(batch([rows[0], long, rows[1]]))
    assert out["score_less"][1] is None and "no token of the response" in out["less_reason"][1]
    alone = scorer(batch([rows[1]]))
    assert out["score_less"][2] == pytest.approx(alone["score_less"][0], abs=1e-6)


def test_checkpoints_that_cannot_be_used_are_refused(model_path, checkpoints, queries, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(checkpoints[0], bare)
    (bare / "optimizer.pt").unlink()
    with pytest.raises(ValueError, match="no optimizer state.*form=sgd"):
        LESS(model_path, [str(bare)]).fit(queries)
    assert LESS(model_path, [str(bare)], form="sgd").fit(queries).queries_ is not None
    (bare / "trainer_state.json").unlink()
    with pytest.raises(ValueError, match="give learning_rates"):
        LESS(model_path, [str(bare), checkpoints[0]], form="sgd")
    with pytest.raises(ValueError, match="1 learning_rates for 2"):
        LESS(model_path, checkpoints, learning_rates=[1.0])
    with pytest.raises(ValueError, match="not an adapter checkpoint"):
        LESS(model_path, [str(tmp_path)]).fit(queries)
    with pytest.raises(ValueError, match="checkpoints is empty"):
        LESS(model_path, [])
    state = torch.load(Path(checkpoints[0]) / "optimizer.pt", weights_only=True)
    state["param_groups"][0]["params"] = state["param_groups"][0]["params"][:-1]
    torch.save(state, bare / "optimizer.pt")
    with pytest.raises(ValueError, match="not the state of Adam over this adapter"):
        LESS(model_path, [str(bare)]).fit(queries)
    config = json.loads((bare / "adapter_config.json").read_text())
    (bare / "adapter_config.json").write_text(json.dumps({**config, "r": 2}))
    with pytest.raises(ValueError, match="does not fit the model"):
        LESS(model_path, [str(bare)]).fit(queries)


@pytest.fixture(scope="module")
def warm_up(model_path, rows, tmp_path_factory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("warm_up") / "run"
    settings = {"fraction": 0.5, "epochs": 2, "rows_per_step": 8, "rows_per_batch": 4, "learning_rate": 1e-2}
    run = WarmUp(model_path, lora_r=4, lora_alpha=16, **settings)
    return folder, run.run(Dataset.from_list(rows), folder)


def test_the_warm_up_leaves_a_checkpoint_an_epoch_that_less_reads(model_path, warm_up, rows, queries):
    folder, checkpoints = warm_up
    assert [Path(path).parent for path in checkpoints] == [folder] * 2
    scorer = LESS(model_path, [str(folder)]).fit(queries)
    assert scorer.checkpoints == checkpoints
    out = scorer(batch(rows[:4]))
    assert sum(score is not None for score in out["score_less"]) >= 3
    adams = scorer._gradients._adams
    assert all(adam is not None and adam.step > 0 for adam in adams) and adams[1].step == 2 * adams[0].step
    assert scorer._weights[0] > scorer._weights[1], "the rate falls"


def test_scores_cost_the_warm_up_and_the_queries_too(model_path, warm_up, checkpoints, rows, queries, tmp_path):
    _, both = warm_up
    pool = Dataset.from_list(rows[:4])
    score(pool, LESS(model_path, both[::-1]).fit(queries), tmp_path / "o")
    summary = json.loads((tmp_path / "o" / "summary.json").read_text())
    last = json.loads((Path(both[1]) / "trainer_state.json").read_text())
    spent = summary["preparation_cost"]
    assert spent["warm-up"] == {"flops": last["total_flos"], "seconds": last["log_history"][-1]["seconds"]}
    assert spent["queries"]["flops"] > 0 < spent["warm-up"]["seconds"]
    whole = whole_cost(tmp_path / "o")["flops"]
    assert whole == summary["cost"]["flops"] + spent["queries"]["flops"] + last["total_flos"]
    assert LESS(model_path, both[:1]).preparation_cost()["warm-up"]["flops"] == pytest.approx(
        last["total_flos"] / 2, 0.2
    )
    # Whoever trained the adapter: Trainer counts FLOPs, only our warm-up keeps the seconds.
    assert set(LESS(model_path, checkpoints).preparation_cost()["warm-up"]) == {"flops"}
    assert Length().preparation_cost() == {}


def test_a_warm_up_that_was_killed_goes_on(model_path, warm_up, rows, tmp_path):
    folder, checkpoints = warm_up
    shutil.copytree(folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / Path(checkpoints[1]).name)
    first = tmp_path / "run" / Path(checkpoints[0]).name / "adapter_model.safetensors"
    stamp = first.stat().st_mtime_ns
    settings = {"fraction": 0.5, "epochs": 2, "rows_per_step": 8, "rows_per_batch": 4, "learning_rate": 1e-2}
    again = WarmUp(model_path, lora_r=4, lora_alpha=16, **settings).run(Dataset.from_list(rows), tmp_path / "run")
    assert [Path(path).name for path in again] == [Path(path).name for path in checkpoints]
    assert first.stat().st_mtime_ns == stamp, "the first epoch was trained again"
    log = json.loads((Path(again[1]) / "trainer_state.json").read_text())["log_history"]
    seconds = [entry["seconds"] for entry in log if "loss" in entry]
    assert seconds == sorted(seconds) and seconds[0] > 0, "the clock began anew"
    ours, theirs = (load_file(Path(run[1]) / "adapter_model.safetensors") for run in (again, checkpoints))
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name])


def test_a_pool_without_responses_cannot_warm_up(model_path, tmp_path):
    empty = Dataset.from_list([{"messages": [{"role": "user", "content": "Hello."}]}] * 4)
    with pytest.raises(ValueError, match="none of the 4 rows drawn has a response"):
        WarmUp(model_path, fraction=1.0).run(empty, tmp_path / "run")


def test_scoring_leaves_a_model_that_others_use_as_it_was(model_path, checkpoints, rows, queries):
    from hf_select import CausalLM, Perplexity

    lm = CausalLM(model_path)
    before = Perplexity(lm)(batch(rows[:4]))["score_perplexity"]
    LESS(lm, checkpoints[:1]).fit(queries)(batch(rows[:4]))
    assert Perplexity(lm)(batch(rows[:4]))["score_perplexity"] == before
    loaded = lm.load()
    with pytest.raises(ValueError, match="loaded model would be changed"):
        LESS(CausalLM(loaded.model, tokenizer=loaded.tokenizer), checkpoints)


def test_a_run_folder_with_its_final_model_is_still_its_checkpoints(model_path, checkpoints, tmp_path):
    run = tmp_path / "run"
    for path in checkpoints:
        shutil.copytree(path, run / Path(path).name)
    for file in Path(checkpoints[1]).glob("adapter_*"):
        shutil.copy(file, run)
    (run / "checkpoint-best").mkdir()
    assert [Path(path).name for path in LESS(model_path, [str(run)]).checkpoints] == [
        Path(path).name for path in checkpoints
    ]


def test_a_checkpoint_at_rate_0_counts_nothing(model_path, checkpoints):
    np.testing.assert_array_equal(LESS(model_path, checkpoints, learning_rates=[0.0, 1e-3])._weights, [0, 1])
    for bad in ([0.0, 0.0], [-1.0, 2.0], [float("nan"), 1.0]):
        with pytest.raises(ValueError, match="learning_rates are"):
            LESS(model_path, checkpoints, learning_rates=bad)


def test_a_warm_up_of_other_rows_or_settings_is_refused(model_path, warm_up, rows, tmp_path):
    folder, _ = warm_up
    settings = {"epochs": 2, "rows_per_step": 8, "rows_per_batch": 4, "learning_rate": 1e-2, "lora_r": 4}
    with pytest.raises(ValueError, match="fraction 0.5 there, 0.4 here"):
        WarmUp(model_path, fraction=0.4, lora_alpha=16, **settings).run(Dataset.from_list(rows), folder)
    with pytest.raises(ValueError, match="pool .* there"):
        WarmUp(model_path, fraction=0.5, lora_alpha=16, **settings).run(Dataset.from_list(rows[:-1]), folder)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="holds other files"):
        WarmUp(model_path, fraction=0.5).run(Dataset.from_list(rows), tmp_path)
    with pytest.raises(ValueError, match="text_format"):
        WarmUp(model_path, text_format="tulo")


@pytest.mark.parametrize("form", ["adam", "sgd"])
@pytest.mark.parametrize("projection", ["dense", "factored"])
def test_projected_scores_are_near_the_whole_ones(model_path, checkpoints, rows, queries, projection, form):
    exact = LESS(model_path, checkpoints, form=form, per_query=True).fit(queries)(batch(rows))
    settings = {"projection": projection, "dimensions": 1024, "form": form, "per_query": True}
    found = LESS(model_path, checkpoints, **settings).fit(queries)(batch(rows))
    there = [i for i, score in enumerate(exact["score_less"]) if score is not None]
    assert [i for i, score in enumerate(found["score_less"]) if score is not None] == there
    a, b = (np.array([out["less_similarities"][i] for i in there]) for out in (exact, found))
    assert 0 < np.sqrt(((a - b) ** 2).mean()) < 1.5 / np.sqrt(1024)


def test_an_index_of_projected_gradients_gives_their_scores(model_path, checkpoints, rows, queries, tmp_path):
    pool = Dataset.from_list(rows)
    settings = {"projection": "factored", "dimensions": 1001, "per_query": True}
    direct = LESS(model_path, checkpoints, **settings).fit(queries)(batch(rows))
    there = [i for i, score in enumerate(direct["score_less"]) if score is not None]
    expected = np.array([direct["less_similarities"][i] for i in there])
    bytes_a_row = {"float32": 4, "float16": 2, "int8": 1, "1bit": 1 / 8}
    for stored_dtype, limit in {"float32": 1e-6, "float16": 2e-4, "int8": 2e-3, "1bit": 0.2}.items():
        scorer = LESS(model_path, checkpoints, **settings).fit(queries)
        folder = tmp_path / stored_dtype
        index = PoolIndex.build(pool, scorer.featurizer, folder, stored_dtype=stored_dtype, chunk_rows=25)
        out = score(pool, scorer, tmp_path / f"scores_{stored_dtype}", index=index)
        assert [i for i, value in enumerate(out["score_less"]) if value is not None] == there
        found = np.array([out["less_similarities"][i] for i in there])
        np.testing.assert_allclose(found, expected, atol=limit, rtol=0)
        assert stored_dtype != "1bit" or np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.9
        width = pa.ipc.open_stream(str(folder / "vectors" / "part-00000.arrow")).schema.field("vector").type
        assert width.list_size * width.value_type.bit_width / 8 == np.ceil(2 * 1001 * bytes_a_row[stored_dtype])
    np.testing.assert_allclose(np.linalg.norm(index.to_numpy()[there], axis=1), 1, atol=1e-6)

    moved = [shutil.copytree(path, tmp_path / "moved" / Path(path).name) for path in checkpoints]
    index.check(pool, LESS(model_path, [str(path) for path in moved], **settings).featurizer)
    with pytest.raises(ValueError, match="another model"):
        index.check(pool, LESS(model_path, checkpoints[:1] * 2, **settings).featurizer)
    with pytest.raises(ValueError, match="seed 0 there, 1 here"):
        index.check(pool, LESS(model_path, checkpoints, seed=1, **settings).featurizer)


def test_a_zero_vector_has_no_signs_to_store(rows, tmp_path):
    class Zeros(Featurizer):
        def __call__(self, rows, queries=False):
            return [Feature(np.zeros(5, dtype=np.float32) + (n > 0)) for n in range(len(rows))]

        def identity(self):
            return {}

        def described(self):
            return {}

        def details(self):
            return {"dimensions": 5, "model": "zeros", "dtype": "float32"}

    index = PoolIndex.build(Dataset.from_list(rows[:3]), Zeros(), tmp_path / "i", stored_dtype="1bit")
    first, second = index.read(range(2))
    assert isinstance(first, BadRow) and "zero" in str(first)
    np.testing.assert_allclose(second.vector, np.ones(5), rtol=1e-6)  # of its own length
    np.testing.assert_allclose(index.to_numpy()[1], np.full(5, 5**-0.5))


def test_gradients_that_do_not_fit_in_memory_are_refused_before_they_are_taken(
    model_path, checkpoints, queries, monkeypatch
):
    monkeypatch.setattr(gradients_module, "free_memory", lambda device: 30_000)
    with pytest.raises(ValueError, match=r"gradients of 3 queries take .* GiB .*projection=factored"):
        LESS(model_path, checkpoints).fit(queries)
    with pytest.raises(ValueError, match=r"gradients of 3 rows take .* lower dimensions"):
        LESS(model_path, checkpoints, projection="dense", dimensions=1600).fit(queries)
    with pytest.raises(ValueError, match="the adapter has .* weights"):
        LESS(model_path, checkpoints, projection="dense", dimensions=10**6).fit(queries)


def test_deepspeeds_pieces_are_refused_with_the_cure(model_path, checkpoints, queries, tmp_path):
    from accelerate.utils.deepspeed import HfDeepSpeedConfig
    from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

    config = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})
    set_hf_deepspeed_config(config)
    try:
        with pytest.raises(ValueError, match=r"ZeRO-3 configuration is active.*device_map=auto.*quantization=4bit"):
            LESS(model_path, checkpoints).fit(queries)
    finally:
        unset_hf_deepspeed_config()
    folder = tmp_path / "checkpoint-5"
    shutil.copytree(checkpoints[0], folder)
    (folder / "optimizer.pt").unlink()
    (folder / "global_step5").mkdir()
    with pytest.raises(ValueError, match="in DeepSpeed files.*form=sgd"):
        LESS(model_path, [str(folder)]).fit(queries)


def test_a_folder_may_be_given_alone(model_path, checkpoints, queries):
    assert LESS(model_path, str(Path(checkpoints[0]).parent)).checkpoints == checkpoints
