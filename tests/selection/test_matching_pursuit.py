"""Matching pursuit: against its definition written out plainly, least squares, and scikit-learn's."""

import json
from pathlib import Path

import numpy as np
import pytest
from contracts import check_selector
from datasets import Dataset
from sklearn.linear_model import OrthogonalMatchingPursuit

from hf_select import MatchingPursuit, PoolIndex, Selection
from hf_select.cli.main import main
from hf_select.selection.matching_pursuit import _Projection, _Residual, matching_pursuit


MODES = ["projection", "orthogonal", "plain"]


def unit(vectors) -> np.ndarray:
    vectors = np.asarray(vectors, dtype=np.float32)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms == 0, 1, norms)


def some_vectors(seed: int, n: int = 80, d: int = 12) -> np.ndarray:
    """Clustered unit vectors with a zero vector, copies and rows that have none."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((5, d))[rng.integers(0, 5, n)] + 0.7 * rng.standard_normal((n, d))
    vectors[n // 2 : n // 2 + 10] = vectors[:10]
    vectors[7] = 0
    vectors = unit(vectors)
    vectors[[3, 41]] = np.nan
    return vectors


def some_queries(seed: int, q: int = 1, d: int = 12) -> np.ndarray:
    around = np.random.default_rng(100 + seed).standard_normal((1, d))
    return unit(around + 0.6 * np.random.default_rng(200 + seed).standard_normal((q, d)))


def plain_pursuit(vectors: np.ndarray, queries: np.ndarray, k: int, mode: str) -> list[int]:
    """One pass, in float64; what is left by least squares over all chosen rows at every step."""
    exact, chosen = vectors.astype(np.float64), []
    rows = [i for i in range(len(exact)) if np.isfinite(exact[i]).all()]
    target = queries.mean(axis=0, dtype=np.float64)
    residual = target
    while len(chosen) < k:
        open_rows = [i for i in rows if i not in chosen]
        if mode == "projection":
            before, mean = left_by(exact[chosen], queries), left_by(exact[chosen], target[None])[0]
            gains = [
                ((before**2).sum() - (left_by(exact[[*chosen, i]], queries) ** 2).sum()) / len(queries)
                if exact[i] @ mean > 0 and (left_by(exact[chosen], exact[i][None]) ** 2).sum() > 1e-3
                else -1
                for i in open_rows
            ]
            enough, margin = 1e-4, 1e-5 * max(gains)
        else:
            length = np.linalg.norm(residual)
            gains, enough, margin = [exact[i] @ residual / length for i in open_rows], 2e-4, 1e-6
        if max(gains) < enough:
            break
        chosen.append(next(i for i, gain in zip(open_rows, gains, strict=True) if gain >= max(gains) - margin))
        if mode == "plain":
            residual = residual - (exact[chosen[-1]] @ residual) * exact[chosen[-1]]
        else:
            residual = left_by(exact[chosen], target[None])[0]
    return chosen


def left_by(rows: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """What the span of rows leaves of targets (t, d)."""
    rows, targets = rows.astype(np.float64), targets.astype(np.float64)
    return targets - (rows.T @ np.linalg.lstsq(rows.T, targets.T, rcond=None)[0]).T if len(rows) else targets


@pytest.mark.parametrize("q", [1, 5])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("mode", MODES)
def test_it_is_the_plain_rule(seed, mode, q):
    vectors, queries = some_vectors(seed), some_queries(seed, q)
    expected = plain_pursuit(vectors, queries, 8, mode)
    rows, _, gains = matching_pursuit(vectors, [queries], len(expected), mode)
    assert rows.tolist() == expected and len(expected) >= 4
    assert (gains > 0).all() and gains.sum() <= 1 + 1e-6
    if q == 1 or mode != "projection":
        cosines = np.nan_to_num(vectors @ queries.mean(axis=0), nan=-1)
        assert rows[0] == np.argmax(cosines), "the first row has the largest cosine to the target"


@pytest.mark.parametrize("seed", range(4))
def test_the_gains_are_what_a_projection_takes_off_the_target(seed):
    vectors, queries = some_vectors(seed), some_queries(seed, 5)
    for mode, targets in (("orthogonal", queries.mean(axis=0, keepdims=True)), ("projection", queries)):
        k = len(plain_pursuit(vectors, queries, 8, mode))
        rows, _, gains = matching_pursuit(vectors, [queries], k, mode)
        lengths = [float((left_by(vectors[rows[:m]], targets) ** 2).sum()) for m in range(k + 1)]
        np.testing.assert_allclose(1 - np.array(lengths[1:]) / lengths[0], np.cumsum(gains), atol=1e-6)
        assert (np.diff(lengths) <= 0).all()
    k = len(plain_pursuit(vectors, queries, 4, "plain"))
    rows, _, gains = matching_pursuit(vectors, [queries], k, "plain")
    mean = queries.mean(axis=0, keepdims=True)
    left = (left_by(vectors[rows], mean) ** 2).sum() / (mean**2).sum()
    assert left <= 1 - gains.sum() + 1e-6, "of the same rows a projection leaves less"


@pytest.mark.parametrize("seed", range(3))
def test_the_projection_reconstructs_more_than_the_nearest_rows(seed):
    vectors, queries = some_vectors(seed), some_queries(seed, 5)
    rows = matching_pursuit(vectors, [queries], 4)[0]
    nearest = np.argsort(-np.nan_to_num(vectors @ queries.mean(axis=0), nan=-1))[:4]
    assert (left_by(vectors[rows], queries) ** 2).sum() < (left_by(vectors[nearest], queries) ** 2).sum()


@pytest.mark.parametrize("kind", [_Residual, _Projection])
def test_what_is_left_is_orthogonal_to_all_rows_also_to_nearly_dependent_ones(kind):
    rng = np.random.default_rng(0)
    rows, queries = unit(rng.standard_normal(40) + 1e-3 * rng.standard_normal((30, 40))), unit(rng.random((3, 40)))
    pursuit = _Residual(rows, queries, "orthogonal") if kind is _Residual else _Projection(rows, queries)
    for place in range(30):
        pursuit.take(place)
    basis = pursuit.basis.directions[: pursuit.basis.size]
    assert pursuit.basis.size == 30 and np.abs(basis @ basis.T - np.eye(30)).max() < 1e-12
    left = pursuit.vector if isinstance(pursuit, _Residual) else pursuit.residuals.T
    assert np.abs(rows.astype(np.float64) @ left).max() < 1e-10


def test_by_hand():
    # Target (0.6, 0.8, 0). Cosines: row 0 0.96, row 1 0.6, row 2 0.8, row 3 is opposite, row 4 is row 0 again.
    vectors = np.array([[0.8, 0.6, 0], [1, 0, 0], [0, 1, 0], [-0.6, -0.8, 0], [0.8, 0.6, 0]], dtype=np.float32)
    target = np.array([[0.6, 0.8, 0]])
    # Residual (0.6 - 0.768, 0.8 - 0.576) = (-0.168, 0.224): only row 2 has a positive product with it, 0.224, and
    # leaves (-0.168, 0): row 3, which is opposite to the target, is then the nearest.
    rows, _, gains = matching_pursuit(vectors, [target], 3, "plain")
    assert rows.tolist() == [0, 2, 3]
    np.testing.assert_allclose(gains, [0.96**2, 0.224**2, (0.6 * 0.168) ** 2], rtol=1e-5)
    # Rows 0 and 2 span the plane, so nothing is left. The second pass takes the copy of row 0; row 1 has a negative
    # product with (-0.168, 0.224) and waits for the third; row 3 has one with the target and is last.
    for mode in ("orthogonal", "projection"):
        rows, _, gains = matching_pursuit(vectors, [target], 5, mode)
        assert rows.tolist() == [0, 2, 4, 1, 3], mode
        np.testing.assert_allclose(gains, [0.96**2, 1 - 0.96**2, 0.96**2, 0.36, 0], rtol=1e-5, atol=1e-9)
    dataset = Dataset.from_dict({"x": range(5)})
    selection = MatchingPursuit(vectors, {"math": target})(dataset, k=5)
    assert selection.reasons == [
        "adds 0.9216 of target math",
        "adds 0.0784 of target math",
        "adds 0.9216 of target math, pass 2",
        "adds 0.3600 of target math, pass 3",
        "adds nothing to target math",
    ]
    step = selection.chain[0]
    assert step["reconstructed"]["math"] == pytest.approx(1) and step["taken_for"] == {"math": 5}
    assert step["passes"] == 3 and step["targets"] == {"math": "vectors of shape (1, 3)"}
    json.dumps(selection.chain)


def test_the_projection_by_hand():
    # Queries are two axes. Row 0 between them has |Q x|^2 = 0.64 + 0.36 and so has each row; ties go to the lower.
    # Then R = Q - Q x x'; row 2 has the rest of the plane for itself, and row 1 all but what lies out of it.
    vectors = unit([[0.8, 0.6, 0], [0, 0.6, 0.8], [0.6, 0.8, 0], [0, 0, 1]])
    rows, _, gains = matching_pursuit(vectors, [np.eye(3)[:2]], 4)
    assert rows.tolist() == [0, 2, 1, 3]
    np.testing.assert_allclose(gains[:2], [0.5, 0.5], rtol=1e-5)


@pytest.mark.parametrize("mode", ["orthogonal", "projection"])
def test_copies_are_left_while_others_add_something(mode):
    vectors, queries = some_vectors(0), some_queries(0, 4)
    k = len(plain_pursuit(vectors, queries, 8, mode))
    copied = np.concatenate([vectors, vectors, vectors])
    alone, several = (matching_pursuit(v, [queries], k, mode)[0].tolist() for v in (vectors, copied))
    assert several == alone, "copies of a row came before rows that add something"


@pytest.mark.parametrize("mode", MODES)
def test_several_tasks_take_turns_and_a_row_is_taken_once(mode):
    vectors = unit(np.random.default_rng(1).standard_normal((40, 6)))
    targets = [some_queries(seed, d=6) for seed in range(3)]
    rows, of_target, _ = matching_pursuit(vectors, [*targets, targets[0]], 12, mode)
    assert of_target.tolist() == [0, 1, 2, 3] * 3 and len(set(rows.tolist())) == 12
    assert rows[0] == np.argmax(vectors @ targets[0][0]) and rows[3] == np.argsort(-(vectors @ targets[0][0]))[1]
    # A target's rows depend on the others only by the rows that they have taken.
    others = rows[of_target != 1]
    alone = matching_pursuit(np.delete(vectors, others, axis=0), [targets[1]], 3, mode)[0]
    assert np.delete(np.arange(40), others)[alone].tolist() == rows[of_target == 1].tolist()


@pytest.mark.parametrize("mode", MODES)
def test_the_order_of_the_rows_does_not_matter(mode):
    vectors = unit(np.random.default_rng(2).standard_normal((60, 30)))
    targets = [some_queries(seed, 3, d=30) for seed in range(2)]
    turned = np.random.default_rng(3).permutation(60)
    rows, of_target, gains = matching_pursuit(vectors, targets, 60, mode)
    again = matching_pursuit(vectors[turned], targets, 40, mode)
    assert turned[again[0]].tolist() == rows.tolist()[:40] and again[1].tolist() == of_target.tolist()[:40]
    np.testing.assert_allclose(again[2], gains[:40], rtol=1e-4, atol=1e-7)
    assert sorted(rows.tolist()) == list(range(60)), "every row once"


def test_it_agrees_with_scikit_learn_where_coefficients_are_positive():
    agreed = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        vectors = unit(np.abs(rng.standard_normal((12, 30))))
        target = np.abs(rng.standard_normal(3)) @ vectors[:3] + 0.02 * rng.standard_normal(30)
        theirs = OrthogonalMatchingPursuit(n_nonzero_coefs=3, fit_intercept=False).fit(vectors.T, target)
        if not (theirs.coef_ >= 0).all():
            continue
        rows, _, gains = matching_pursuit(vectors, [target[None]], 3, "orthogonal")
        assert set(rows.tolist()) == set(np.flatnonzero(theirs.coef_))
        left = target - vectors.T @ theirs.coef_
        assert gains.sum() == pytest.approx(1 - left @ left / (target @ target), rel=1e-5)
        agreed += 1
    assert agreed >= 10


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tasks", [1, 3])
def test_it_keeps_the_laws_of_selectors(mode, tasks):
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((30, 5))
    vectors[::5] = np.nan
    targets = {f"task {i}": rng.standard_normal((2, 5)) for i in range(tasks)}
    dataset = Dataset.from_dict({"num_tokens": list(range(10, 40)), "v": [row.tolist() for row in vectors]})
    check_selector(lambda: MatchingPursuit(vectors, targets, mode), dataset, unscored=set(range(0, 30, 5)))
    by_rows = MatchingPursuit(vectors * rng.uniform(0.1, 9, (30, 1)), targets, mode)(dataset, k=9)
    assert MatchingPursuit("v", targets, mode)(dataset, k=9).indices.tolist() == by_rows.indices.tolist()
    spent = np.cumsum(np.array(dataset["num_tokens"][:])[by_rows.indices])
    by_tokens = MatchingPursuit(vectors, targets, mode)(dataset, tokens=100)
    assert by_tokens.indices.tolist() == by_rows.indices.tolist()[: np.searchsorted(spent, 100, side="right")]
    first = MatchingPursuit(vectors, targets, mode)(dataset, k=12)
    later = first.then(MatchingPursuit(vectors, targets, mode), dataset, k=4)
    assert set(later.indices) <= set(first.indices)


def test_wrong_targets_are_refused():
    dataset, vectors = Dataset.from_dict({"x": [1, 2]}), np.eye(2)
    for targets, message in (
        ({}, "at least one task"),
        (np.ones((1, 2)), "at least one task"),
        ({"a": np.ones(2)}, r'target "a" has vectors of shape \(2,\)'),
        ({"a": np.ones((0, 2))}, r"shape \(0, 2\)"),
        ({"a": np.ones((1, 3))}, "3 dimensions, the rows of 2"),
        ({"a": np.array([[1, 0], [np.nan, 1]])}, 'query 1 of target "a" has no vector'),
        ({"a": np.array([[1, 0], [-1, 0]])}, 'mean of the queries of target "a" is zero'),
        ({"a": "folder"}, 'is the text "folder"'),
    ):
        with pytest.raises(ValueError, match=message):
            MatchingPursuit(vectors, targets)(dataset, k=1)


def test_from_the_command_line(rows, model_path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, some in (("pool", rows), ("math", rows[:4]), ("code", rows[20:22])):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some if row["completion"]))
        index = ("index", "--scorer", "rds", "--model", model_path, "--dataset", f"{name}.jsonl")
        assert main([*index, "--output-dir", f"{name}_index"]) == 0
    select = ("select", "--scores", "pool.jsonl", "--selector", "matching_pursuit", "--k", "6", "--output", "s.jsonl")
    argv = (*select, "--vectors", "pool_index", "--targets", "math=math_index")
    assert main([*argv, "code=code_index", "--mode", "orthogonal"]) == 0
    selection = Selection.load("s.jsonl.selection.parquet")
    targets = {task: PoolIndex.open(f"{task}_index") for task in ("math", "code")}
    pool = Dataset.from_list([row for row in rows if row["completion"]])
    expected = MatchingPursuit(PoolIndex.open("pool_index"), targets, "orthogonal")(pool, k=6)
    assert selection.indices.tolist() == expected.indices.tolist()
    assert selection.reasons[1].startswith("adds 0.") and "target code" in selection.reasons[1]
    other = ("index", "--scorer", "rds", "--model", model_path, "--dataset", "math.jsonl", "--text-format", "tulu")
    assert main([*other, "--output-dir", "other_index"]) == 0
    for more, message in (
        ((*select, "--vectors", "pool_index"), "needs --targets"),
        ((*argv[:-1], "math=other_index", "--overwrite"), "was made with another"),
        ((*argv[:-1], "math=math.jsonl", "--overwrite"), 'no index in "math.jsonl"'),
    ):
        capsys.readouterr()
        assert main(list(more)) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-select: error: ")]
        assert message in line
