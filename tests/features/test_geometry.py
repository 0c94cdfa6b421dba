"""Laws of centring and whitening, on vectors written here."""

import numpy as np
import pytest

from hf_select.features.featurizer import unit
from hf_select.features.geometry import Geometry, Moments


def drawn(rows: int, dimensions: int, seed: int = 0) -> np.ndarray:
    """Vectors with a large mean and unequal variances, as hidden states have."""
    rng = np.random.default_rng(seed)
    spread = np.geomspace(1, 20, dimensions)
    return (rng.normal(size=(rows, dimensions)) * spread + 30 * rng.normal(size=dimensions)).astype(np.float32)


def moments(vectors: np.ndarray, parts: int = 1) -> Moments:
    return Moments.of([vectors], parts, covariance=True)


@pytest.mark.parametrize("seed", range(5))
def test_moments_are_those_of_all_rows_in_any_blocks_and_order(seed):
    rng = np.random.default_rng(seed)
    vectors = drawn(57, 6, seed)
    cuts = np.sort(rng.choice(np.arange(1, 57), 4, replace=False))
    blocks = np.split(rng.permutation(vectors), cuts)
    found = Moments.of([blocks[0], np.empty((0, 6), dtype=np.float32), *blocks[1:]], parts=2, covariance=True)
    whole = vectors.astype(np.float64).reshape(57, 2, 3)
    np.testing.assert_allclose(found.mean, whole.mean(axis=0), rtol=1e-12)
    for part in range(2):
        np.testing.assert_allclose(found.covariance[part], np.cov(whole[:, part].T, bias=True), rtol=1e-10)
    assert found.rows == 57 and Moments.of(blocks, 2, covariance=False).covariance is None


def test_moments_survive_a_file(tmp_path):
    for covariance in (False, True):
        found = Moments.of([drawn(9, 4)], 2, covariance)
        found.save(tmp_path / "moments.npz")
        again = Moments.load(tmp_path / "moments.npz")
        np.testing.assert_array_equal(again.mean, found.mean)
        assert again.rows == 9 and (again.covariance is None) == (not covariance)


def test_one_vector_has_no_mean_to_centre_by():
    with pytest.raises(ValueError, match="1 row of the pool has a vector"):
        Moments.of([drawn(1, 4)], 1, covariance=False)


def test_a_hand_worked_case():
    pool = np.array([[3, 1], [1, 1], [2, 3], [2, -1]], dtype=np.float32)  # mean (2, 1), variances 1/2 and 2
    centred = Geometry.by(moments(pool), whiten=0)(np.array([[3, 1], [2, 9], [3, 3]], dtype=np.float32))
    np.testing.assert_allclose(centred, [[1, 0], [0, 1], [1 / 5**0.5, 2 / 5**0.5]], atol=1e-7)
    # (1, 2) times variance^(-1/2) is (2^.5, 2^.5), and times variance^(-1/4) is proportional to (1, 2^.5).
    for whiten, expected in ((1.0, [1, 1]), (0.5, [1, 2**0.5])):
        whitened = Geometry.by(moments(pool), whiten)(np.array([[3, 3]], dtype=np.float32))
        np.testing.assert_allclose(whitened, unit(np.array([expected])), atol=1e-6)


@pytest.mark.parametrize("whiten", [0.0, 0.5, 1.0])
def test_an_isotropic_pool_changes_nothing(whiten):
    pool = 3 * np.concatenate([np.eye(5), -np.eye(5)]).astype(np.float32)  # mean 0, variance 9/5 in all directions
    vectors = drawn(7, 5)
    np.testing.assert_allclose(Geometry.by(moments(pool), whiten)(vectors), unit(vectors), atol=1e-6)


@pytest.mark.parametrize("whiten", [0.0, 0.5, 1.0])
def test_a_vector_added_to_all_rows_and_another_scale_change_nothing(whiten):
    pool, vectors, shift = drawn(200, 6), drawn(8, 6, seed=1), 100 * drawn(1, 6, seed=2)
    expected = Geometry.by(moments(pool), whiten)(vectors)
    shifted = Geometry.by(moments(pool + shift), whiten)(vectors + shift)
    np.testing.assert_allclose(shifted, expected, atol=2e-3)  # float32 holds the sums to 1e-7 of some 1e4
    for scale in (1e-12, 1e12):
        scaled = Geometry.by(moments(pool * np.float32(scale)), whiten)(vectors * np.float32(scale))
        np.testing.assert_allclose(scaled, expected, atol=1e-5)


def test_full_whitening_gives_all_directions_one_variance():
    pool = drawn(500, 6)
    geometry = Geometry.by(moments(pool), whiten=1.0)
    whitened = (pool - geometry.mean[0]) @ geometry.whitening[0]
    covariance = np.cov(whitened.T)
    np.testing.assert_allclose(covariance / covariance[0, 0], np.eye(6), atol=1e-4)


def test_fewer_rows_than_dimensions_give_finite_directions():
    directions = Geometry.by(moments(drawn(4, 40)), whiten=1.0)(drawn(9, 40, seed=1))
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1, atol=1e-6)


def test_the_product_of_two_is_the_mean_of_the_cosines_of_their_parts():
    pool, vectors = drawn(100, 12), drawn(10, 12, seed=1)
    for whiten in (0.0, 0.5):
        together = Geometry.by(moments(pool, parts=3), whiten)(vectors)
        alone = [Geometry.by(moments(pool[:, at]), whiten)(vectors[:, at]) for at in np.split(np.arange(12), 3)]
        np.testing.assert_allclose(together @ together.T, np.mean([a @ a.T for a in alone], axis=0), atol=1e-6)


def test_a_row_equal_to_the_mean_is_similar_to_nothing():
    pool = np.tile(drawn(1, 8), (50, 1))
    for whiten in (0.0, 1.0):
        assert not Geometry.by(moments(pool), whiten)(pool[:3]).any()
