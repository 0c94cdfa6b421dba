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
from hf_select.selection.matching_pursuit import matching_pursuit


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


def some_target(seed: int, d: int = 12) -> np.ndarray:
    return unit(np.random.default_rng(100 + seed).standard_normal((1, d)))[0] * 0.8


def plain_pursuit(vectors: np.ndarray, target: np.ndarray, k: int, orthogonal: bool) -> list[int]:
    """One pass, in float64; the orthogonal residual by least squares over all chosen rows at every step."""
    exact, residual, chosen = vectors.astype(np.float64), target.astype(np.float64), []
    while len(chosen) < k:
        products = {
            i: exact[i] @ residual for i in range(len(exact)) if np.isfinite(exact[i]).all() and i not in chosen
        }
        best = max(products.values())
        if best < 2e-4 * np.linalg.norm(residual):
            break
        chosen.append(min(i for i, value in products.items() if value >= best - 1e-6 * np.linalg.norm(residual)))
        if orthogonal:
            residual = left_by(exact[chosen], target)
        else:
            residual = residual - products[chosen[-1]] * exact[chosen[-1]]
    return chosen


def left_by(rows: np.ndarray, target: np.ndarray) -> np.ndarray:
    """What the span of rows leaves of the target."""
    rows, target = rows.astype(np.float64), target.astype(np.float64)
    return target - rows.T @ np.linalg.lstsq(rows.T, target, rcond=None)[0]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("orthogonal", [False, True])
def test_it_is_the_plain_rule(seed, orthogonal):
    vectors, target = some_vectors(seed), some_target(seed)
    expected = plain_pursuit(vectors, target, 8, orthogonal)
    rows, _, gains = matching_pursuit(vectors, [target], len(expected), orthogonal)
    assert rows.tolist() == expected and len(expected) >= 6
    assert (gains > 0).all() and gains.sum() <= 1 + 1e-9
    cosines = np.nan_to_num(vectors @ target, nan=-1)
    assert rows[0] == np.argmax(cosines), "the first row has the largest cosine to the target"


@pytest.mark.parametrize("seed", range(4))
def test_the_orthogonal_residual_is_orthogonal_to_all_rows_and_the_gains_are_its_length(seed):
    vectors, target = some_vectors(seed), some_target(seed)
    rows, _, gains = matching_pursuit(vectors, [target], 8, orthogonal=True)
    lengths = [float(target @ target)]
    for m in range(1, 9):
        residual = left_by(vectors[rows[:m]], target)
        lengths.append(residual @ residual)
        assert 1 - lengths[m] / lengths[0] == pytest.approx(gains[:m].sum(), abs=1e-6)
    assert all(after <= before for before, after in zip(lengths, lengths[1:], strict=False))
    rows, _, gains = matching_pursuit(vectors, [target], 4)
    residual = left_by(vectors[rows], target)
    assert residual @ residual <= lengths[0] * (1 - gains.sum()) + 1e-6, "of the same rows a projection leaves less"


def test_nearly_dependent_rows_keep_the_basis_orthonormal():
    from hf_select.selection.matching_pursuit import _Residual

    rng = np.random.default_rng(0)
    rows = unit(rng.standard_normal(40) + 1e-3 * rng.standard_normal((30, 40)))
    residual = _Residual(rng.standard_normal(40), orthogonal=True)
    for row in rows:
        residual.take(row)
    basis = residual.basis[: residual.size]
    assert residual.size == 30 and np.abs(basis @ basis.T - np.eye(30)).max() < 1e-12
    assert np.abs(rows.astype(np.float64) @ residual.vector).max() < 1e-10


def test_by_hand():
    # Target (0.6, 0.8, 0). Cosines: row 0 0.96, row 1 0.6, row 2 0.8, row 3 is opposite, row 4 is row 0 again.
    vectors = np.array([[0.8, 0.6, 0], [1, 0, 0], [0, 1, 0], [-0.6, -0.8, 0], [0.8, 0.6, 0]], dtype=np.float32)
    target = np.array([0.6, 0.8, 0])
    # Residual (0.6 - 0.768, 0.8 - 0.576) = (-0.168, 0.224), of squared length 0.0784: only row 2 has a positive
    # product with it, 0.224, and leaves (-0.168, 0): row 3, which is opposite to the target, is then the nearest.
    rows, _, gains = matching_pursuit(vectors, [target], 3)
    assert rows.tolist() == [0, 2, 3]
    np.testing.assert_allclose(gains, [0.96**2, 0.224**2, (0.6 * 0.168) ** 2], rtol=1e-5)
    # Rows 0 and 2 span the plane, so nothing is left. The second pass takes the copy of row 0, then row 1 (its product
    # with (-0.168, 0.224) is negative) by a third; row 3 has a negative product with the target and is last.
    rows, _, gains = matching_pursuit(vectors, [target], 5, orthogonal=True)
    assert rows.tolist() == [0, 2, 4, 1, 3]
    np.testing.assert_allclose(gains, [0.96**2, 1 - 0.96**2, 0.96**2, 0.36, 0], rtol=1e-5, atol=1e-9)
    dataset = Dataset.from_dict({"x": range(5)})
    selection = MatchingPursuit(vectors, {"math": target[None]}, orthogonal=True)(dataset, k=5)
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


def test_copies_are_left_while_others_add_something():
    vectors = some_vectors(0)
    copied = np.concatenate([vectors, vectors, vectors])
    alone, several = (matching_pursuit(v, [some_target(0)], 8, orthogonal=True)[0].tolist() for v in (vectors, copied))
    assert several == alone, "copies of a row came before rows that add something"


def test_several_tasks_take_turns_and_a_row_is_taken_once():
    vectors = unit(np.random.default_rng(1).standard_normal((40, 6)))
    targets = [some_target(seed, d=6) for seed in range(3)]
    rows, of_target, _ = matching_pursuit(vectors, [*targets, targets[0]], 12)
    assert of_target.tolist() == [0, 1, 2, 3] * 3 and len(set(rows.tolist())) == 12
    assert rows[0] == np.argmax(vectors @ targets[0]) and rows[3] == np.argsort(-(vectors @ targets[0]))[1]
    # A target's rows depend on the others only by the rows that they have taken.
    alone = matching_pursuit(np.delete(vectors, rows[of_target != 1], axis=0), [targets[1]], 3)[0]
    assert np.delete(np.arange(40), rows[of_target != 1])[alone].tolist() == rows[of_target == 1].tolist()


@pytest.mark.parametrize("orthogonal", [False, True])
def test_the_order_of_the_rows_does_not_matter(orthogonal):
    vectors = unit(np.random.default_rng(2).standard_normal((60, 8)))
    targets = [some_target(seed, d=8) for seed in range(2)]
    turned = np.random.default_rng(3).permutation(60)
    rows, of_target, gains = matching_pursuit(vectors, targets, 60, orthogonal)
    again = matching_pursuit(vectors[turned], targets, 60, orthogonal)
    assert turned[again[0]].tolist() == rows.tolist() and again[1].tolist() == of_target.tolist()
    np.testing.assert_allclose(again[2], gains, rtol=1e-4, atol=1e-7)
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
        rows, _, gains = matching_pursuit(vectors, [target], 3, orthogonal=True)
        assert set(rows.tolist()) == set(np.flatnonzero(theirs.coef_))
        left = target - vectors.T @ theirs.coef_
        assert gains.sum() == pytest.approx(1 - left @ left / (target @ target), rel=1e-5)
        agreed += 1
    assert agreed >= 10


@pytest.mark.parametrize("orthogonal", [False, True])
@pytest.mark.parametrize("tasks", [1, 3])
def test_it_keeps_the_laws_of_selectors(orthogonal, tasks):
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((30, 5))
    vectors[::5] = np.nan
    targets = {f"task {i}": rng.standard_normal((2, 5)) for i in range(tasks)}
    dataset = Dataset.from_dict({"num_tokens": list(range(10, 40)), "v": [row.tolist() for row in vectors]})
    check_selector(lambda: MatchingPursuit(vectors, targets, orthogonal), dataset, unscored=set(range(0, 30, 5)))
    by_rows = MatchingPursuit(vectors * rng.uniform(0.1, 9, (30, 1)), targets, orthogonal)(dataset, k=9)
    assert MatchingPursuit("v", targets, orthogonal)(dataset, k=9).indices.tolist() == by_rows.indices.tolist()
    spent = np.cumsum([dataset["num_tokens"][i] for i in by_rows.indices])
    by_tokens = MatchingPursuit(vectors, targets, orthogonal)(dataset, tokens=100)
    assert by_tokens.indices.tolist() == by_rows.indices.tolist()[: np.searchsorted(spent, 100, side="right")]
    first = MatchingPursuit(vectors, targets, orthogonal)(dataset, k=12)
    later = first.then(MatchingPursuit(vectors, targets, orthogonal), dataset, k=4)
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
    assert main([*argv, "code=code_index", "--orthogonal"]) == 0
    selection = Selection.load("s.jsonl.selection.parquet")
    targets = {task: PoolIndex.open(f"{task}_index") for task in ("math", "code")}
    pool = Dataset.from_list([row for row in rows if row["completion"]])
    expected = MatchingPursuit(PoolIndex.open("pool_index"), targets, orthogonal=True)(pool, k=6)
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
