"""Validations of scores: exact on linear losses, honest intervals, the same subsets for all, resumable."""

import json
import random
import threading
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from hf_select import Recipe, demo, validate_scores
from hf_select.cli.main import main
from hf_select.evaluation import validate_scores as module
from hf_select.evaluation.lds import (
    RowScores,
    Undefined,
    detectable_correlation,
    draw_subsets,
    loss_signal,
    predicted_gains,
    random_correlations,
    reliability_of,
    resampled_correlation,
    score_results,
)
from hf_select.evaluation.training_runs import compute_missing
from hf_select.reports.validation_result import LENGTH, MEAN, TFIDF


PERSONS = ("Ada", "Bo", "Cem", "Dina", "Emil", "Fay", "Gus", "Hana")


def made_rows(count: int, seed: int) -> list[dict]:
    rng = random.Random(seed)
    return [
        {
            "prompt": f"What does {rng.choice(PERSONS)} carry in bag {i}?",
            "completion": f"{rng.choice(PERSONS)} carries {' and '.join(rng.choices(PERSONS, k=rng.randint(1, 6)))}.",
        }
        for i in range(count)
    ]


@pytest.fixture
def pool() -> Dataset:
    """40 rows with the true effect of each row on two held-out sets, and scores that know them or do not."""
    rng = np.random.default_rng(0)
    effects = rng.normal(size=(2, 40))
    rows = [
        {**row, "score_true_a": a, "score_true_b": b, "score_true": a, "harm": -a, "constant": 0.1, "nothing": None}
        for row, a, b in zip(made_rows(40, 0), *effects.tolist(), strict=True)
    ]
    return Dataset.from_list(rows).cast_column("nothing", Dataset.from_dict({"x": [0.5]}).features["x"])


@pytest.fixture
def held_out() -> dict[str, Dataset]:
    return {"a": Dataset.from_list(made_rows(3, 1)), "b": Dataset.from_list(made_rows(2, 2))}


@pytest.fixture
def trained(monkeypatch, pool):
    """The runs that were trained, by a trainer whose losses are sums of the effects of the rows."""
    runs: list[module.Run] = []
    effects = {name: np.array(pool[f"score_true_{name}"]) for name in "ab"}

    def run_of(self, run):
        runs.append(run)
        noise = 0.1 * np.random.default_rng([run.subset, run.again]).normal() * getattr(self, "noise", 0)
        rows = self.members[run.subset]
        values = {name: [9.0 - float(effects[name][rows].sum()) + noise] * 2 for name in self.held_out}
        cost = {"tokens": 10, "seconds": 0.5, "flops": 1e6}
        return {**run._asdict(), "rows": self._digest(run), "by": "test", **cost, "values": values}

    monkeypatch.setattr(module.ValidationRun, "_run_of", run_of)
    return runs


SCORES = {"true": "score_true", "harm": "harm", "constant": "constant", "nothing": "nothing"}
SETTINGS = {"subsets": 20, "repeats": 5}


def test_the_true_effects_have_an_lds_of_one_and_their_negation_of_minus_one(
    pool, held_out, trained, model_path, tmp_path
):
    result = validate_scores(pool, SCORES, held_out, Recipe(model_path), tmp_path / "v", **SETTINGS)
    on_a, on_b = result.results["a"], result.results["b"]
    assert on_a["true"].lds.value == on_b["true"].lds.value == result.results[MEAN]["true"].lds.value == 1.0
    assert on_a["harm"].lds.value == -1.0 and on_a["harm"].verdict.startswith("predicts the opposite")
    assert abs(on_b["harm"].lds.value) < 0.9, "it knows the effects on the other set only"
    assert (on_a["true"].column, on_b["true"].column) == ("score_true_a", "score_true_b")
    assert on_a["true"].differences[TFIDF].value == pytest.approx(1 - on_a[TFIDF].lds.value)
    assert on_a["true"].differences[LENGTH].low > 0 and "better than tf-idf and length" in on_a["true"].verdict
    for name, reason in (("constant", "every row has the same score"), ("nothing", "no row has a score")):
        assert on_a[name].lds is None and on_a[name].reason == reason and not on_a[name].differences
        assert result.results[MEAN][name].reason == f"on a: {reason}"
    assert on_a["nothing"].without_score == 40 and on_a["true"].without_score == 0
    assert result.signals["a"].reliability.value == 1.0 and result.signals["a"].warning == ""
    assert (result.cost.runs, result.cost.tokens) == (25, 250) and (result.subset_rows, result.pool_rows) == (20, 40)
    written = (tmp_path / "v" / "validation.json").read_text()
    assert json.loads(written) == json.loads(json.dumps(result.to_dict(), allow_nan=False))
    text = (tmp_path / "v" / "validation.md").read_text()
    assert (
        "| true | 1.00 " in text and "none: every row has the same score" in text and "](pictures/lds_a.png)" in text
    )
    assert "Do the scores predict" in (tmp_path / "v" / "validation.html").read_text()


def test_lower_is_better_turns_a_score_around(pool, held_out, trained, model_path, tmp_path):
    one = {"a": held_out["a"]}
    result = validate_scores(
        pool, SCORES, one, Recipe(model_path), tmp_path / "v", **SETTINGS, lower_is_better=["harm"]
    )
    assert list(result.results) == ["a"] and result.results["a"]["harm"].lds.value == 1.0


def test_every_score_is_validated_on_the_same_subsets_in_any_order(pool, held_out, trained, model_path, tmp_path):
    forth = validate_scores(pool, SCORES, held_out, Recipe(model_path), tmp_path / "v", **SETTINGS)
    back = dict(reversed(SCORES.items()))
    again = validate_scores(pool, back, held_out, Recipe(model_path), tmp_path / "w", **SETTINGS)
    alone = validate_scores(pool, {"harm": "harm"}, held_out, Recipe(model_path), tmp_path / "x", **SETTINGS)
    assert forth.results == again.results and forth.chance == again.chance == alone.chance
    assert all(alone.results[name]["harm"] == forth.results[name]["harm"] for name in forth.results)
    runs = [{p.name: json.loads(p.read_text()) for p in (tmp_path / v / "runs").iterdir()} for v in "vwx"]
    assert runs[0] == runs[1] == runs[2]


def test_subsets_are_halves_and_more_of_them_continue_the_draws():
    few, more = draw_subsets(41, 12, 0.5, 3), draw_subsets(41, 30, 0.5, 3)
    assert few.shape == (12, 20) and (few == more[:12]).all()
    assert all(len(set(rows)) == 20 and 0 <= min(rows) and max(rows) < 41 for rows in more.tolist())
    assert len({tuple(rows) for rows in more.tolist()}) == 30 and (draw_subsets(41, 12, 0.5, 4) != few).any()


def test_a_killed_validation_resumes_and_later_scores_train_nothing(
    pool, held_out, trained, model_path, tmp_path, monkeypatch
):
    recipe, folder = Recipe(model_path), tmp_path / "v"
    whole = module.ValidationRun._run_of

    def killed(self, run):
        if len(trained) == 7:
            raise KeyboardInterrupt
        return whole(self, run)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module.ValidationRun, "_run_of", killed)
        validate_scores(pool, {"true": "score_true"}, held_out, recipe, folder, **SETTINGS)
    assert (
        len(trained) == len(list((folder / "runs").glob("*.json"))) == 7 and not (folder / "validation.json").exists()
    )
    resumed = validate_scores(pool, {"true": "score_true"}, held_out, recipe, folder, **SETTINGS)
    assert len(trained) == len(set(trained)) == 25, "a run that was finished was trained again"
    longer = validate_scores(pool, SCORES, held_out, recipe, folder, subsets=22, repeats=6)
    assert trained[25:] == [module.Run(20), module.Run(21), module.Run(5, True)]
    assert longer.subsets == 22 and set(longer.results["a"]) > set(resumed.results["a"])
    validate_scores(pool, SCORES, held_out, recipe, folder, **SETTINGS)
    assert len(trained) == 28
    for other, said in (({"passes": 3.0}, "passes 2.0 there, 3.0 here"), ({"fraction": 0.25}, "fraction 0.5 there")):
        with pytest.raises(ValueError, match=f"holds a validation of another run .*{said}"):
            validate_scores(pool, SCORES, held_out, recipe, folder, **SETTINGS, **other)
    with pytest.raises(ValueError, match="of another run .*pool"):
        validate_scores(pool.select(range(30)), SCORES, held_out, recipe, folder, **SETTINGS)


def test_processes_share_the_runs(tmp_path):
    computed: list[int] = []

    def work():
        compute_missing(
            range(40),
            lambda run: tmp_path / f"{run}.json",
            lambda run: (tmp_path / f"{run}.json").exists(),
            lambda run: computed.append(run) or {"run": run},
            "test",
        )

    both = [threading.Thread(target=work) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join()
    assert sorted(computed) == list(range(40)) == sorted(int(path.stem) for path in tmp_path.glob("*.json"))
    assert not list(tmp_path.glob("*.lock"))


def test_what_cannot_be_validated_is_refused_before_the_training(pool, held_out, trained, model_path, tmp_path):
    recipe, folder = Recipe(model_path), tmp_path / "v"

    def refused(match, scores=SCORES, sets=held_out, rows=pool, **settings):
        with pytest.raises(ValueError, match=match) as error:
            validate_scores(rows, scores, sets, recipe, folder, **{**SETTINGS, **settings})
        assert "\n" not in str(error.value)

    refused('score "x": column "score_tru" is missing.*Did you mean "score_true"', {"x": "score_tru"})
    refused('score "x": column "prompt" holds string, not numbers', {"x": "prompt"})
    refused("give at least one score column", {})
    refused('"tf-idf" is the name of a yardstick', {"tf-idf": "harm"})
    refused("subsets is 9; a correlation needs at least 10", subsets=9)
    refused("repeats is 3; give 0, or 5 to 20", repeats=3)
    refused("repeats is 21; give 0, or 5 to 20", repeats=21)
    refused("fraction is 1.0", fraction=1.0)
    refused("fraction 0.01 of 40 rows is no subset", fraction=0.01)
    refused("rows can only be selected from a datasets.Dataset", rows=pool.to_iterable_dataset())
    refused("passes is 0", passes=0)
    refused('lower_is_better names "tru"; the scores are true, harm', lower_is_better=["tru"])
    refused("give at least one held-out set", sets={})
    refused('held-out set "empty": .*has no rows', sets={"empty": pool.select([])})
    refused("is the name of the mean over held-out sets", sets={MEAN: held_out["a"]})
    assert not folder.exists() and not trained
    (tmp_path / "mine" / "pictures").mkdir(parents=True)
    with pytest.raises(ValueError, match="belongs to no earlier validation.html"):
        validate_scores(pool, SCORES, held_out, recipe, tmp_path / "mine", **SETTINGS)
    assert not trained


def test_the_lds_of_four_subsets_by_hand():
    """Sums of scores 5, 7, 6, 3 rank as 2, 4, 3, 1; the gains rank as 2, 3, 4, 1."""
    subsets = np.array([[0, 3], [1, 3], [2, 3], [0, 2]])
    predicted = predicted_gains(subsets, np.array([1.0, 3.0, 2.0, 4.0]))
    assert np.argsort(np.argsort(predicted)).tolist() == [1, 3, 2, 0]
    losses = np.array([0.8, 0.7, 0.5, 0.9])
    lds = resampled_correlation(predicted, -losses, 0).value
    assert lds == pytest.approx(1 - 6 * (0 + 1 + 1 + 0) / (4 * 15)), "1 - 6 sum of d^2 / (s (s^2 - 1))"


def test_a_row_without_a_score_counts_as_the_mean_of_the_others():
    rng = np.random.default_rng(0)
    subsets, scores = draw_subsets(30, 12, 0.5, 0), rng.normal(size=30)
    filled, scores[[3, 8]], scores[20] = scores.copy(), np.nan, np.inf
    filled[[3, 8, 20]] = np.mean(np.delete(filled, [3, 8, 20]))
    assert (predicted_gains(subsets, scores) == predicted_gains(subsets, filled)).all()
    result, _ = score_results({"a": {"x": RowScores(scores)}}, {"a": rng.normal(size=12)}, subsets, 0)
    assert result["a"]["x"].without_score == 3


def test_a_score_is_validated_up_to_its_unit_and_equal_sums_are_ties():
    rng = np.random.default_rng(1)
    subsets, scores, loss = draw_subsets(30, 25, 0.5, 0), rng.integers(0, 3, 30) / 10, rng.normal(size=25)

    def lds(values):
        return resampled_correlation(predicted_gains(subsets, values), -loss, 0).value

    assert len(set(predicted_gains(subsets, scores))) == len({int(round(10 * scores[rows].sum())) for rows in subsets})
    assert lds(scores) == lds(3 + 7 * scores) == -lds(-scores)
    with pytest.raises(Undefined, match="every subset has the same sum"):
        predicted_gains(np.array([[0, 1], [2, 3]]), np.array([1.0, 2.0, 1.0, 2.0]))


def test_the_interval_covers_the_true_correlation():
    """Bivariate normal series with correlation r have Spearman's rho 6 / pi arcsin(r / 2)."""
    rng = np.random.default_rng(0)
    for r in (0.0, 0.6, 0.9):
        true, covered = 6 / np.pi * np.arcsin(r / 2), 0
        for draw in range(300):
            a = rng.normal(size=40)
            b = r * a + np.sqrt(1 - r * r) * rng.normal(size=40)
            interval = resampled_correlation(a, b, draw).estimate()
            covered += interval.low <= true <= interval.high
        assert 0.91 <= covered / 300 <= 0.985, f"the 95 % interval covers {true:.2f} in {covered} of 300"


def test_the_detectable_correlation_is_found_in_four_of_five_studies():
    rng = np.random.default_rng(5)
    rho = detectable_correlation(60)
    r, found = 2 * np.sin(np.pi * rho / 6), 0
    for draw in range(300):
        a = rng.normal(size=60)
        b = r * a + np.sqrt(1 - r * r) * rng.normal(size=60)
        found += resampled_correlation(a, b, draw).estimate().low > 0
    assert 0.73 <= found / 300 <= 0.87, f"found {found} of 300"
    assert detectable_correlation(400) < rho == pytest.approx(0.3645, abs=0.0005)


def test_the_reliability_covers_the_truth_and_the_ceiling_is_reached():
    rng = np.random.default_rng(2)
    covered, reached, ceilings = 0, [], []
    for draw in range(400):
        effect = rng.normal(size=60)
        first, again = effect + 0.5 * rng.normal(size=60), 3 + effect[:15] + 0.5 * rng.normal(size=15)
        signal = loss_signal(first, again, 5, 0)
        covered += signal.reliability.low <= 0.8 <= signal.reliability.high
        reached.append(resampled_correlation(effect, first, draw).value)
        ceilings.append(signal.ceiling)
    assert covered / 400 >= 0.92, f"the interval covers 0.8 in {covered} of 400"
    assert np.mean(reached) == pytest.approx(np.mean(ceilings), abs=0.03)
    assert reliability_of(1.0, 0.5, 10, 20).value == 0.0 and reliability_of(0.0, 0.5, 10, 20).low == 1.0


def test_losses_that_hardly_differ_are_a_warning():
    rng = np.random.default_rng(3)
    noisy = loss_signal(1 + 0.01 * rng.normal(size=60), 1 + 0.01 * rng.normal(size=15), 5, 0)
    assert "noise of training" in noisy.warning and noisy.ceiling < 0.8
    equal = loss_signal(np.full(20, 0.1), np.full(5, 0.1), 5, 0)
    assert "the same after every subset" in equal.warning and equal.reliability is None
    unknown = loss_signal(rng.normal(size=20), np.array([]), 5, 0)
    assert unknown.noise is None and unknown.ceiling is None and unknown.warning == ""
    subsets = draw_subsets(30, 20, 0.5, 0)
    results, chance = score_results({"a": {"x": RowScores(rng.normal(size=30))}}, {"a": np.full(20, 0.1)}, subsets, 0)
    assert results["a"]["x"].reason == "the loss is the same for every subset" and chance == {}


def test_random_scores_have_no_lds_and_their_band_is_that_of_chance():
    rng = np.random.default_rng(4)
    lds = random_correlations(draw_subsets(80, 60, 0.5, 0), 80, rng.normal(size=60), 0)
    assert abs(lds.mean()) < 0.02 and lds.std() == pytest.approx(1 / np.sqrt(59), abs=0.015)


@pytest.fixture
def planted(tmp_path):
    """(pool half of which has random words for answers, held-out rows with right answers, recipe)"""
    rng = random.Random(0)
    rows = []
    for i in range(48):
        name, thing = rng.choice(PERSONS), rng.choice(("hat", "cat", "pen", "cup"))
        right = f"the {thing} of {name}"
        words = rng.sample(PERSONS, 4)
        rows.append({"prompt": f"{name} has a {thing}", "completion": right if i % 2 else " ".join(words)})
    tokenizer = demo.train_tokenizer([f"{row['prompt']} {row['completion']}" for row in rows] * 3, 300)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    demo.tiny_model(tokenizer, **sizes).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    recipe = Recipe(str(tmp_path / "base"), learning_rate=3e-3, rows_per_step=4, max_length=64)
    pool = Dataset.from_list([{**row, "right": float(i % 2)} for i, row in enumerate(rows[:40])])
    return pool, Dataset.from_list([row for i, row in enumerate(rows[40:]) if i % 2]), recipe


@pytest.mark.slow
def test_training_finds_a_planted_score(planted, tmp_path):
    pool, held_out, recipe = planted
    result = validate_scores(
        pool, {"right": "right"}, {"d": held_out}, recipe, tmp_path / "v", subsets=12, repeats=5, passes=4.0
    )
    assert result.results["d"]["right"].lds.low > 0, result.results["d"]["right"]
    assert result.signals["d"].reliability.value > 0.5 and result.signals["d"].noise > 0
    records = [json.loads(path.read_text()) for path in (tmp_path / "v" / "runs").iterdir()]
    assert {record["steps"] for record in records} == {20} and {round(r["passes"], 9) for r in records} == {4.0}


def test_a_run_that_diverged_is_named(planted, tmp_path):
    pool, held_out, recipe = planted
    wild = Recipe(**{**vars(recipe), "learning_rate": 1e38})
    with pytest.raises(ValueError, match='the loss on "d" after training on subset 0.*diverged'):
        validate_scores(pool, {"right": "right"}, {"d": held_out}, wild, tmp_path / "v", subsets=10, repeats=0)


def test_the_command_joins_scores_by_row_id(pool, held_out, trained, model_path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    order = np.random.default_rng(0).permutation(40).tolist()
    rows = pool.add_column("row_id", [f"r{i}" for i in range(40)])
    rows.to_json("pool.jsonl")
    # Scores of the rows in another order, and of more rows.
    more = Dataset.from_list([{**row, "row_id": f"m{i}"} for i, row in enumerate(made_rows(5, 9))])
    text = ["prompt", "completion", "row_id"]
    Path("scored.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [*more, *rows.select(order).select_columns(text)])
    )
    made_rows_other = Dataset.from_list([{**row, "row_id": f"r{i}"} for i, row in enumerate(made_rows(40, 7))])
    made_rows_other.to_json("other.jsonl")
    for name, rows_held_out in held_out.items():
        rows_held_out.to_json(f"{name}.jsonl")
    queries = ["--queries", "a=a.jsonl", "c=b.jsonl"]
    for name, source in (("t", "scored"), ("o", "other")):
        score = ["score", "--scorer", "tfidf", *queries, "--dataset", f"{source}.jsonl", "--output-dir", name]
        assert main(score) == 0
    command = ["validate-scores", "--model", model_path, "--dataset", "pool.jsonl", "--held-out", "a=a.jsonl"]
    command += ["b=b.jsonl", "--subsets", "12", "--repeats", "0", "--output-dir", "v", "--scores"]

    def fails(*scores: str) -> str:
        capsys.readouterr()
        assert main([*command, *scores]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-select: error: ")]
        return line

    assert 'score "x": row_id \'r0\' is another row in "o" than in the dataset' in fails("x=o")
    assert 'score "x": there is no folder "nowhere" of hf-select score, nor a column' in fails("x=nowhere")
    assert 'score "x": column "score_ifd" is missing' in fails("x=t:score_ifd")
    assert not Path("v").exists()
    assert main([*command, "words=t", "max=t:score_tfidf_c", "true=score_true"]) == 0
    out = capsys.readouterr().out
    assert "mean of the sets" in out and "  true: predicts the gain" in out and "validation.html" in out
    result = json.loads(Path("v/validation.json").read_text())
    on_a, on_b = result["results"]["a"], result["results"]["b"]
    assert on_a["words"]["column"] == "words:score_tfidf_a" and on_b["words"]["column"] == "words:score_tfidf"
    assert on_a["max"]["column"] == "max:score_tfidf_c" and on_a["true"]["lds"]["value"] == 1.0
    Path("half.jsonl").write_text("".join(Path("scored.jsonl").read_text().splitlines(keepends=True)[:30]))
    assert main(["score", "--scorer", "length", "--dataset", "half.jsonl", "--output-dir", "h"]) == 0
    assert '15 of 40 rows of the dataset have no row_id in "h"' in fails("x=h")
    Path("h/summary.json").unlink()
    assert 'score "x": scoring in "h" has not finished' in fails("x=h")
