"""Precision, recall, density, coverage and diversity against their definitions, point by point."""

from __future__ import annotations

import numpy as np
import pytest

from unfog.errors import UserError
from unfog.evaluation import coverage
from unfog.evaluation.coverage import PRDC, diversity, prdc, prdc_without


def sets(n: int = 61, m: int = 47, d: int = 4) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    return draw.normal(size=(n, d)), draw.normal(size=(m, d)) * 1.3 + 0.8


def by_hand(real: np.ndarray, made: np.ndarray, k: int) -> PRDC:
    def radius(z: np.ndarray) -> np.ndarray:
        return np.array([sorted(np.linalg.norm(z - p, axis=1))[k] for p in z])

    a, b = radius(real), radius(made)
    between = np.array([[np.linalg.norm(x - y) for y in made] for x in real])
    held = between < a[:, None]
    return PRDC(held.any(0).mean(), (between < b[None]).any(1).mean(), held.sum(0).mean() / k, held.any(1).mean())


@pytest.mark.parametrize("k", [1, 3, 5])
def test_prdc_is_its_definition(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = sets()
    wanted = by_hand(x, y, k)
    assert 0 < wanted.precision < 1 and 0 < wanted.recall < 1
    for block in (512, 10):
        monkeypatch.setattr(coverage, "BLOCK", block)
        found = prdc(x, y, k)
        for name in ("precision", "recall", "density", "coverage"):
            assert getattr(found, name) == pytest.approx(getattr(wanted, name), rel=1e-12), name


def test_prdc_agrees_with_its_authors() -> None:
    theirs = pytest.importorskip("prdc")
    x, y = sets(200, 150, 8)
    wanted, found = theirs.compute_prdc(x, y, 5), prdc(x, y, 5)
    for name, value in wanted.items():
        assert getattr(found, name) == pytest.approx(float(value), rel=1e-9), name


def test_prdc_of_the_same_and_of_strangers() -> None:
    x, _ = sets()
    assert prdc(x, x) == PRDC(1.0, 1.0, 1.0, 1.0)
    assert prdc(x + 1e4, x + 1e4) == PRDC(1.0, 1.0, 1.0, 1.0)
    assert prdc(x, x + 100) == PRDC(0.0, 0.0, 0.0, 0.0)


def test_a_mode_left_out_costs_recall_and_coverage_only() -> None:
    draw = np.random.default_rng(1)
    real = draw.normal(size=(400, 2)) + np.repeat([[0, 0], [50, 0]], 200, 0)
    one = prdc(real, draw.normal(size=(400, 2)))
    assert one.precision > 0.95
    assert one.recall == pytest.approx(0.5, abs=0.03)
    assert one.coverage == pytest.approx(0.5, abs=0.03)


def test_copies_of_points_with_many_duplicates_are_inside() -> None:
    x, _ = sets()
    repeated = np.concatenate([np.repeat(x[:3], 9, 0), x[3:]])
    found = prdc(repeated, np.repeat(x[:3], 10, 0), k=5)
    assert found.precision == 1
    assert found.coverage >= 27 / len(repeated)


def test_prdc_without_a_group_is_that_of_the_rest() -> None:
    x, y = sets(120, 90)
    draw = np.random.default_rng(2)
    labels = draw.permutation(120) % 4, draw.permutation(90) % 4
    # one group may be all neighbours of a point, so that its list of the nearest is not long enough
    labels[0][np.linalg.norm(x - x[0], axis=1).argsort()[:50]] = 3
    for g, found in enumerate(prdc_without(x, y, labels)):
        assert found == prdc(x[labels[0] != g], y[labels[1] != g])


def test_diversity_is_the_mean_over_pairs() -> None:
    x, _ = sets(30)
    wanted = np.mean([np.linalg.norm(a - b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    assert diversity(x) == pytest.approx(wanted, rel=1e-12)
    assert diversity(np.repeat(x[:1], 5, 0)) == 0
    assert diversity(3 * x + 1e3) == pytest.approx(3 * wanted, rel=1e-9)


def test_bad_sets_are_one_line() -> None:
    x, y = sets()
    for pair, said in (
        ((x, y[:5]), "made set: 5 samples are too few here; give 6 or more"),
        ((x[:0], y), "real set: the set is empty"),
        ((x, y[:, :3]), "the sets have 4 and 3 numbers a sample"),
        ((x * np.nan, y), "61 of 61 rows"),
    ):
        with pytest.raises(UserError, match=said):
            prdc(*pair)
    with pytest.raises(UserError, match="k must be a whole number"):
        prdc(x, y, k=0)
    with pytest.raises(UserError, match="1 sample has no variety"):
        diversity(x[:1])
