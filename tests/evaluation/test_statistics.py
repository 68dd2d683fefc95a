"""Intervals that hold what they should: fixed draws from known distributions, and answers known beforehand."""

from __future__ import annotations

import numpy as np
import pytest

from unfog.errors import UserError
from unfog.evaluation.coverage import diversity, prdc
from unfog.evaluation.distances import Moments, frechet, kernel_distance, mind
from unfog.evaluation.estimates import ESTIMATES, estimates, frechet_estimate, mind_estimate, prdc_estimates
from unfog.evaluation.statistics import Estimate, differ, grouped, jackknifed, noise_floor, student


def pair(seed: int, n: int = 60, m: int = 50, d: int = 6, far: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    return draw.normal(size=(n, d)), draw.normal(size=(m, d)) * (1 + far) + far


@pytest.mark.parametrize("far, exact", [(0.0, 0.0), (0.3, 6 * 0.09 * 2)])
def test_intervals_of_a_frechet_distance_hold_the_exact_value(far: float, exact: float) -> None:
    found = [frechet_estimate(*pair(seed, far=far)) for seed in range(100)]
    assert np.mean([one.low <= exact <= one.high for one in found]) >= 0.9
    # what is printed elsewhere is all too high; the bias is gone to a tenth of it
    plain = np.mean([one.value for one in found]) - exact
    assert plain > 0.4
    assert abs(np.mean([one.corrected for one in found]) - exact) < plain / 8
    # and no wider than needed
    assert np.mean([one.high - one.low for one in found]) < 7 * np.std([one.corrected for one in found])


def test_intervals_hold_for_the_other_figures() -> None:
    exact = {"kernel": 0.0, "diversity": 1.0}
    for name, value in exact.items():
        found = [ESTIMATES[name](*pair(seed)) for seed in range(60)]
        assert np.mean([one.low <= value <= one.high for one in found]) >= 0.9, name
    sliced = [mind_estimate(*pair(seed), projections=20, seed=seed) for seed in range(60)]
    assert np.mean([one.low <= 0 <= one.high for one in sliced]) >= 0.9
    four = [prdc_estimates(*pair(seed, far=0.2)) for seed in range(60)]
    for name in ("precision", "recall", "density", "coverage"):
        mean = np.mean([one[name].value for one in four])
        assert np.mean([one[name].low <= mean <= one[name].high for one in four]) >= 0.9, name


def test_an_estimate_gives_the_plain_figure_too() -> None:
    x, y = pair(1, far=0.2)
    found = estimates(x, y)
    four = prdc(x, y)
    wanted = {
        "frechet": frechet(Moments.of(x), Moments.of(y)),
        "kernel": kernel_distance(x, y),
        "mind": mind(x, y),
        "diversity": diversity(y) / diversity(x),
        **{name: getattr(four, name) for name in ("precision", "recall", "density", "coverage")},
    }
    assert set(found) == set(wanted)
    for name, one in found.items():
        assert one.value == pytest.approx(wanted[name], rel=1e-9), name
        assert (one.name, one.n, one.m) == (name, 60, 50)
        assert one.low <= one.high
        assert (one.corrected == one.value) == (name in ("kernel", "precision", "recall", "density", "coverage")), name
    assert estimates(x, y, which=("kernel",)).keys() == {"kernel"}
    with pytest.raises(UserError, match="figure: 'frechett' is unknown; did you mean frechet"):
        estimates(x, y, which=("frechett",))


def test_groups_left_out_are_really_left_out() -> None:
    x, y = pair(2, far=0.2)
    labels = grouped(60, 50)
    one = {"kernel": kernel_distance, "mind": mind, "diversity": lambda a, b: diversity(b) / diversity(a)}
    for name, measure in (one | {"frechet": lambda a, b: frechet(Moments.of(a), Moments.of(b))}).items():
        left_out = np.array([measure(x[labels[0] != g], y[labels[1] != g]) for g in range(10)])
        found = ESTIMATES[name](x, y)
        np.testing.assert_allclose(found.pseudo, found.corrected - 9 * (left_out - left_out.mean()), rtol=1e-6)


def test_the_jackknife_of_a_mean_is_students_interval() -> None:
    x = np.random.default_rng(3).normal(size=10)
    left_out = [(x.sum() - v) / 9 for v in x]
    found = jackknifed("mean", float(x.mean()), left_out, 10, 10, bounds=(-np.inf, np.inf))
    reach = 2.262 * x.std(ddof=1) / np.sqrt(10)
    assert (found.low, found.high) == pytest.approx((x.mean() - reach, x.mean() + reach), rel=1e-9)


def test_the_jackknife_takes_a_bias_of_one_over_n_off_and_shows_what_is_left() -> None:
    n = 100

    def figure(samples: float) -> float:
        return 3 + 7 / samples + 40 / samples**2

    found = jackknifed("figure", figure(n), [figure(0.9 * n)] * 10, n, n, halves=[figure(n / 2)])
    assert found.corrected == pytest.approx(3, abs=0.006)
    assert found.corrected - found.slack == pytest.approx(3, abs=1e-9)
    assert found.low <= 3 <= found.high + 1e-9


def test_a_share_of_all_is_not_certain() -> None:
    found = jackknifed("precision", 1.0, [1.0] * 10, 50, 50, biased=False, bounds=(0, 1), answers=50)
    assert found.high == 1
    assert found.low == pytest.approx(50 / (50 + 1.96**2), rel=1e-9)  # Wilson's


def test_students_quantiles() -> None:
    assert [student(g) for g in (2, 10, 30)] == [12.706, 2.262, 2.045]
    assert student(41) == pytest.approx(2.021, abs=2e-3)
    assert student(1000) == pytest.approx(1.962, abs=2e-3)


def test_groups_are_even_and_the_same_for_the_same_counts() -> None:
    real, made = grouped(103, 57)
    assert set(np.bincount(real)) == {10, 11} and set(np.bincount(made)) == {5, 6}
    assert np.array_equal(grouped(99, 57)[1].shape, made.shape)
    again = grouped(103, 57)
    assert all(np.array_equal(a, b) for a, b in zip((real, made), again, strict=True))
    assert max(grouped(6, 100)[0]) == 2
    with pytest.raises(UserError, match="3 samples are too few"):
        grouped(3, 100)


def test_items_of_one_label_stay_together() -> None:
    labels = [f"concept {i % 12}" for i in range(60)], [f"concept {i % 15}" for i in range(90)]
    found = grouped(60, 90, clusters=labels)
    groups = {}
    for whose, numbers in zip(labels, found, strict=True):
        for label, number in zip(whose, numbers.tolist(), strict=True):
            assert groups.setdefault(label, number) == number
    assert len(set(groups.values())) == 10
    with pytest.raises(UserError, match="one label"):
        grouped(5, 5, clusters=(["a"] * 5, ["a"] * 5))
    with pytest.raises(UserError, match="label each one"):
        grouped(5, 5, clusters=(["a"] * 4, ["a"] * 5))


def test_repeated_items_spread_as_the_few_that_they_are_only_if_labelled() -> None:
    apart, together = [], []
    for seed in range(10):
        x, y = (np.repeat(z, 4, 0) for z in pair(seed, 60, 60, far=0.5))
        labels = [i // 4 for i in range(240)], [1000 + i // 4 for i in range(240)]
        apart.append(np.std(frechet_estimate(x, y).pseudo))
        together.append(np.std(frechet_estimate(x, y, clusters=labels).pseudo))
    assert np.mean(together) == pytest.approx(2 * np.mean(apart), rel=0.25)


def test_models_that_are_alike_rarely_differ_and_others_do() -> None:
    seen: dict[str, list[bool]] = {"alike": [], "unlike": [], "wider": [], "wider, paired": []}
    for seed in range(50):
        draw = np.random.default_rng([seed, 5])
        real, a, b, c = draw.normal(size=(4, 80, 4)) + 0.3
        first = frechet_estimate(real - 0.3, a)
        for name, made in {"alike": b, "unlike": 2 * b, "wider": 1.3 * c, "wider, paired": 1.3 * a}.items():
            seen[name].append(differ(first, frechet_estimate(real - 0.3, made)).real)
        assert differ(first, first).value == 0 and not differ(first, first).real
    share = {name: np.mean(found) for name, found in seen.items()}
    assert share["alike"] <= 0.05
    assert share["unlike"] > 0.8
    # what two models share row by row cancels, so that less is needed to tell them apart
    assert share["wider, paired"] > share["wider"] + 0.2


def test_what_cannot_be_compared_is_refused() -> None:
    x, y = pair(6)
    a, b = frechet_estimate(x, y), prdc_estimates(x, y[:40])["recall"]
    with pytest.raises(UserError, match="frechet and recall"):
        differ(a, b)
    with pytest.raises(UserError, match="recall changes with the sample size, here 50 and 40"):
        differ(prdc_estimates(x, y)["recall"], b)
    assert "no difference" in str(differ(a, a))


def test_noise_floor_is_what_equal_sets_give() -> None:
    x, y = pair(7, 200, 150)

    def measure(a: np.ndarray, b: np.ndarray) -> float:
        return frechet(Moments.of(a), Moments.of(b))

    halves, held_out = noise_floor(measure, x, size=60), noise_floor(measure, x, y, size=60)
    assert (halves.n, held_out.n, halves.repeats) == (60, 60, 10)
    # the bias of a Fréchet distance at this size, D(D + 1)/4·(2/n) and a little more for the means
    for floor in (halves, held_out):
        assert floor.low <= floor.mean <= floor.high
        assert floor.mean == pytest.approx(6 * 7 / 4 * 2 / 60 + 2 * 6 / 60, rel=0.35)
    assert noise_floor(measure, x).n == 100
    with pytest.raises(UserError, match="noise floor: 2 samples are too few"):
        noise_floor(measure, x[:2])


def test_every_size_gives_an_interval_or_one_line() -> None:
    for n in range(1, 20):
        x, y = pair(9, n, 40, 2)
        for which in (*ESTIMATES, "prdc"):
            try:
                found = estimates(x, y, which=(which,), force=True)
            except UserError as error:
                assert "too few" in str(error) and "\n" not in str(error) and n < 10
            else:
                assert all(np.isfinite([one.value, one.low, one.high]).all() for one in found.values())


def test_sets_without_any_variety() -> None:
    x, flat = pair(10)[0], np.full((50, 6), 2.0)
    found = estimates(x, flat)
    assert found["diversity"].value == 0
    # of the mean and of the real spread alone, as the other has none
    wanted = ((x.mean(0) - 2) ** 2).sum() + np.trace(np.cov(x.T))
    assert found["frechet"].value == pytest.approx(wanted, rel=1e-9)
    assert estimates(flat, flat, which=("frechet", "kernel", "mind"))["frechet"].value == 0
    with pytest.raises(UserError, match="the real items are all alike"):
        estimates(flat, x, which=("diversity",))


def test_too_few_samples_are_refused_unless_forced() -> None:
    x, y = pair(8, 20, 20, 30)
    with pytest.raises(UserError, match="20 samples are too few for 30 dimensions"):
        estimates(x, y)
    forced = estimates(x, y, force=True)["frechet"]
    assert np.isfinite([forced.value, forced.low, forced.high]).all()
    assert isinstance(forced, Estimate)
