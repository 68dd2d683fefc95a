"""Distances of feature sets against closed forms, brute force and scipy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from unfog.errors import UserError
from unfog.evaluation import distances
from unfog.evaluation.distances import Moments, directions, frechet, kernel_blocks, kernel_distance, mind, shortage


def sets(n: int = 90, m: int = 70, d: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    return draw.normal(size=(n, d)) @ draw.normal(size=(d, d)), draw.exponential(size=(m, d)) + 0.3


@pytest.mark.parametrize("cuts", [[], [1], [2, 3, 50], [30, 60]])
def test_moments_do_not_depend_on_how_the_set_comes(cuts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "BLOCK", 17)
    x, _ = sets()
    x = (x + 1e4).astype(np.float32)  # far from 0, where sums of squares would lose every digit
    found = Moments.of(part for part in np.split(x, cuts))
    assert found.n == 90
    np.testing.assert_allclose(found.mean, x.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.cov, np.cov(x.astype(np.float64).T), rtol=1e-8)


def test_moments_merge_and_come_apart() -> None:
    x, _ = sets()
    a, b, both = Moments.of(x[:40]), Moments.of(x[40:]), Moments.of(x)
    for found, wanted in ((a.merge(b), both), (both.without(b), a)):
        assert found.n == wanted.n
        np.testing.assert_allclose(found.mean, wanted.mean, atol=1e-12)
        np.testing.assert_allclose(found.cov, wanted.cov, atol=1e-12)


def test_frechet_of_known_gaussians() -> None:
    a = Moments(100, np.array([1.0, 2, 0]), np.diag([1.0, 4, 9]))
    b = Moments(100, np.array([0.0, 2, 2]), np.diag([4.0, 4, 1]))
    assert frechet(a, b) == pytest.approx(1 + 4 + (1 - 2) ** 2 + 0 + (3 - 1) ** 2, rel=1e-12)


def test_frechet_is_scipys() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    x, y = sets()
    a, b = np.cov(x.T), np.cov(y.T)
    step = x.mean(0) - y.mean(0)
    wanted = step @ step + np.trace(a) + np.trace(b) - 2 * np.trace(linalg.sqrtm(a @ b)).real
    assert frechet(Moments.of(x), Moments.of(y)) == pytest.approx(wanted, rel=1e-9)


def test_frechet_of_singular_covariances_is_exact() -> None:
    draw = np.random.default_rng(1)
    u = draw.normal(size=(2, 40))
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    # two lines in 40 dimensions: tr √(AB) = √a·√b·|u·v|
    lines = [Moments(100, np.zeros(40), s * np.outer(v, v)) for s, v in zip((4.0, 9.0), u, strict=True)]
    assert frechet(*lines) == pytest.approx(4 + 9 - 2 * 2 * 3 * abs(u[0] @ u[1]), rel=1e-12)
    assert frechet(lines[0], lines[0]) == pytest.approx(0, abs=1e-12)


def test_frechet_of_fewer_samples_than_dimensions() -> None:
    draw = np.random.default_rng(2)
    x, y = draw.normal(size=(12, 50)), draw.normal(size=(15, 50)) + 0.1
    a, b = Moments.of(x), Moments.of(y)
    with pytest.raises(UserError, match="12 samples are too few for 50 dimensions.*51 or more"):
        frechet(a, b)
    # the same by the samples' own products, in 12 × 15
    left, right = ((z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (x, y))
    shared = np.linalg.svd(left @ right.T, compute_uv=False).sum()
    step = a.mean - b.mean
    wanted = step @ step + np.trace(a.cov) + np.trace(b.cov) - 2 * shared
    assert frechet(a, b, force=True) == pytest.approx(wanted, rel=1e-10)
    assert frechet(a, a, force=True) == pytest.approx(0, abs=1e-9)


def test_frechet_of_features_that_never_change() -> None:
    x, y = sets()
    flat = [np.concatenate([z, np.full((len(z), 3), 0.7)], 1) for z in (x, y)]
    assert frechet(*(Moments.of(z) for z in flat)) == pytest.approx(frechet(Moments.of(x), Moments.of(y)), rel=1e-9)


def test_shortage() -> None:
    assert shortage(51, 50) is None
    assert "\n" not in str(shortage(50, 50))


def test_kernel_distance_is_the_double_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = sets(9, 7, 3)

    def mean(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
        return float(np.mean([(a @ b / 3 + 1) ** 3 for a, b in pairs]))

    wanted = (
        mean(list(itertools.permutations(x, 2)))
        + mean(list(itertools.permutations(y, 2)))
        - 2 * mean(list(itertools.product(x, y)))
    )
    assert kernel_distance(x, y) == pytest.approx(wanted, rel=1e-12)
    monkeypatch.setattr(distances, "BLOCK", 4)
    assert kernel_distance(x, y) == pytest.approx(wanted, rel=1e-12)


def test_kernel_distance_has_no_bias() -> None:
    draw = np.random.default_rng(3)
    found = [kernel_distance(*draw.normal(size=(2, 12, 4))) for _ in range(3000)]
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(len(found))


def test_kernel_subsets_of_the_whole_set_are_the_whole_distance() -> None:
    x, y = sets(60, 60)
    mean, spread = kernel_blocks(x, y, subsets=3, size=60)
    assert mean == pytest.approx(kernel_distance(x, y), rel=1e-12)
    assert spread == pytest.approx(0, abs=1e-12)
    assert kernel_blocks(x, y, subsets=3, size=30)[1] > 1e-6
    with pytest.raises(UserError, match="too few"):
        kernel_blocks(x, y, size=61)


def test_mind_of_a_shift_and_of_brute_force() -> None:
    x, _ = sets(40, 1, 5)
    step = np.arange(5.0)
    u = np.concatenate(list(directions(5, 300, 2020)), 1)
    assert u.shape == (5, 300)
    np.testing.assert_allclose(np.linalg.norm(u, axis=0), 1, rtol=1e-12)
    assert mind(x, x + step, projections=300) == pytest.approx(15 * ((step @ u) ** 2).mean(), rel=1e-9)
    assert mind(x, x[::-1], projections=10) == pytest.approx(0, abs=1e-20)
    # the best of all 120 matchings, direction by direction
    a, b = np.random.default_rng(4).normal(size=(2, 5, 3))
    best = [
        min(((a @ v - b[list(order)] @ v) ** 2).mean() for order in itertools.permutations(range(5)))
        for v in np.concatenate(list(directions(3, 8, 1)), 1).T
    ]
    assert mind(a, b, projections=8, seed=1) == pytest.approx(9 * np.mean(best), rel=1e-9)


def test_mind_of_unequal_sets_is_that_of_their_repetitions() -> None:
    x, y = sets(4, 6, 3)
    assert mind(x, y, 20) == pytest.approx(mind(np.repeat(x, 3, 0), np.repeat(y, 2, 0), 20), rel=1e-9)


@pytest.mark.parametrize(
    "bad, said",
    [
        (np.zeros((0, 6)), "the set is empty"),
        (np.zeros(6), r"must be rows \(N, D\), got shape \(6,\)"),
        (np.full((20, 6), np.nan), "20 of 20 rows have NaN or infinite"),
        (np.where(np.arange(120).reshape(20, 6) == 7, np.inf, 1.0), "1 of 20 rows have NaN or infinite"),
        (np.zeros((20, 5)), "the sets have .* numbers a sample"),
        ([["a"]], "not numbers"),
    ],
)
def test_bad_sets_are_one_line(bad: np.ndarray, said: str) -> None:
    x, _ = sets()
    for measure in (kernel_distance, mind, lambda a, b: frechet(Moments.of([a]), Moments.of([b]))):
        for pair in ((x, bad), (bad, x)):
            with pytest.raises(UserError, match=said) as caught:
                measure(*pair)
            assert "\n" not in str(caught.value)


def test_one_sample_is_too_few() -> None:
    x, _ = sets()
    with pytest.raises(UserError, match="too few|covariance"):
        kernel_distance(x[:1], x)
    with pytest.raises(UserError, match="1 sample has no covariance"):
        Moments.of(x[:1])
    with pytest.raises(UserError, match="empty"):
        Moments.of([])
