"""Thresholds, verdicts, duplicates and the loss gap, against answers known beforehand."""

import math

import numpy as np
import pytest

from tests.evaluation.test_copies import shapes
from unfog.evaluation.copies import Found, Known
from unfog.evaluation.membership import compare_losses
from unfog.evaluation.memorisation import calibrate, curve, duplicates, memorisation, threshold_of
from unfog.evaluation.shares import Share, exact_interval


@pytest.mark.parametrize("hits, n", [(0, 50), (1, 50), (7, 120), (49, 50), (50, 50), (9, 904)])
def test_the_interval_is_clopper_and_pearsons(hits, n):
    def tail(p, counts):
        return math.fsum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in counts)

    low, high = exact_interval(hits, n)
    # as seldom as 2.5 %, so many or more under the lower end, so many or fewer under the upper one
    assert low == 0 if hits == 0 else tail(low, range(hits, n + 1)) == pytest.approx(0.025, rel=1e-6)
    assert high == 1 if hits == n else tail(high, range(hits + 1)) == pytest.approx(0.025, rel=1e-6)


def test_a_threshold_is_exceeded_by_at_most_the_stated_share():
    scores = np.random.default_rng(0).normal(size=1_000)
    for stated in (0.0, 0.01, 0.05, 0.5):
        above = (scores > threshold_of(scores, stated)).mean()
        assert stated - 0.0011 <= above <= stated
    assert (np.ones(10) > threshold_of(np.ones(10), 0.3)).sum() == 0  # equal scores are all let through
    with pytest.raises(ValueError, match="unseen"):
        threshold_of([])


def test_measured_false_positives_are_those_of_the_other_half():
    rng, rates = np.random.default_rng(1), []
    for seed in range(60):
        found = calibrate(rng.normal(size=400), seed=seed)
        assert found.enough and found.measured.n == 400
        rates.append(found.measured.value)
    assert np.mean(rates) == pytest.approx(2 / 201, abs=0.003)  # the second highest of 200 scores
    assert not calibrate(rng.normal(size=50)).enough


def test_pictures_of_one_group_stay_in_one_half():
    """Pairs of equal scores: apart, each would be the other's witness, and nothing would exceed a threshold of zero."""
    scores = np.repeat(np.random.default_rng(2).normal(size=200), 2)
    together = calibrate(scores, np.repeat(np.arange(200), 2).tolist(), stated=0.0)
    assert together.measured.value > 0  # the highest pair exceeds all of the other half
    assert together.measured.value * 400 % 2 == 0


def test_a_curve_goes_from_none_to_all():
    unseen = Found(np.arange(100, dtype=np.float32), np.zeros(100, np.int64), np.zeros(100, np.float32))
    copies = Found(np.arange(50, 150, dtype=np.float32), np.zeros(100, np.int64), np.zeros(100, np.float32))
    found = curve(unseen, {"shifted": copies})
    assert found.thresholds == sorted(found.thresholds)
    assert found.false_positives[-1] == 0 and found.false_positives[0] == 0.99
    assert found.recall["shifted"][-1] == 0.5 and found.recall["shifted"][0] == 1
    assert all(np.diff(found.recall["shifted"]) <= 0) and all(np.diff(found.false_positives) < 0)


def test_duplicates_are_grouped():
    pictures = shapes(30)
    near = np.clip(pictures[:2].astype(int) + np.random.default_rng(0).integers(-3, 4, pictures[:2].shape), 0, 255)
    pictures = np.concatenate([pictures, pictures[:3], near.astype(np.uint8)])
    names = [f"{i}.png" for i in range(35)]
    found = duplicates(Known.of([pictures]), names)
    assert (found.groups, found.largest, found.n) == (3, 3, 35)
    assert sorted(map(sorted, found.examples)) == [
        ["0.png", "30.png", "33.png"],
        ["1.png", "31.png", "34.png"],
        ["2.png", "32.png"],
    ]
    assert found.share == 8 / 35 and found.spare == 5 / 35
    assert duplicates(Known.of([shapes(30)]), names[:30]).groups == 0


def test_the_gap_covers_what_was_put_in_and_is_none_where_there_is_none():
    rng, covered, spotted = np.random.default_rng(0), 0, 0
    for _ in range(20):
        seen, unseen = (rng.gamma(4, 0.25 * scale, size=(60, 6)) for scale in (1.0, 1.2))
        found = compare_losses(seen, unseen).levels[0]
        covered += found.low <= 0.2 <= found.high
        spotted += found.auc_low <= _auc_of_gammas() <= found.auc_high
    assert covered >= 16 and spotted >= 16
    same = compare_losses(seen, seen).overall
    assert same.gap == 0 and same.auc == 0.5 and same.low < 0 < same.high


def _auc_of_gammas() -> float:
    """P(a < b) for gammas of shape 4 with scales 1 and 1.2: a/(a + b/1.2) is Beta(4, 4), whose law is the binomial's tail."""
    x = 1.2 / 2.2
    return sum(math.comb(7, k) * x**k * (1 - x) ** (7 - k) for k in range(4, 8))


def test_a_model_that_copies_is_told_from_one_that_does_not():
    train, heldout = shapes(80), shapes(60, seed=5)
    fresh, rng = shapes(25, seed=6), np.random.default_rng(0)
    noisy = np.clip(train[:25] + rng.normal(0, 6, train[:25].shape) * (train[:25, ..., 3:] > 0), 0, 255).astype(np.uint8)
    copying, clear = (memorisation(None, made, train, heldout, plants=4) for made in (noisy, fresh))
    assert copying.verdict == "copies" and copying.alarms.value > 0.9
    assert clear.verdict in ("clear", "unclear") and clear.alarms.value <= 0.1
    assert {int(copy.original) - copy.sample for copy in copying.copies} == {0}
    assert copying.nearest_generated < copying.nearest_real
    assert "copies its training pictures" in str(copying) and "false positives" in str(clear)
    assert type(copying).model_validate_json(copying.model_dump_json()) == copying


def test_without_held_out_pictures_training_ones_stand_in():
    train = shapes(60)
    found = memorisation(None, shapes(10, seed=6), train, None, plants=2)
    assert found.unseen == "training" and found.membership is None and found.alarms.value <= 0.1
    with pytest.raises(ValueError, match="samples"):
        memorisation(None, train[:0], train, None)


def test_a_share_prints_its_interval():
    assert str(Share.of([True] + [False] * 99)) == "1.0 % [0.0, 5.4] n=100"
