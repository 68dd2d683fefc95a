"""The outline of a series, and series like another: against exact answers."""

from dataclasses import replace

import numpy as np
import pytest

from unfog.modalities.series.outline import damped, drift, seasonal, since, smooth
from unfog.modalities.series.space import varied
from unfog.modalities.series.table import Clock, Table


def test_smoothing_is_its_recursion():
    z = np.array([[3.0, 5.0, np.nan, 4.0, 6.0, 7.0, 2.0, np.nan]])
    found = smooth(z)
    level, errors = z[0, np.isfinite(z[0])][:3].mean(), []
    level = np.nanmean(z[0, :4])
    for t, value in enumerate(z[0]):
        if np.isfinite(value):
            errors.append(value - level)
            level += found.alpha[0] * (value - level)
        assert found.level[0, t] == pytest.approx(level)
    assert np.array_equal(np.isnan(found.error[0]), [True, False, True, False, False, False, False, True])
    assert found.error[0, 6] == pytest.approx(errors[-1])


def test_a_straight_line_is_continued():
    z = np.full((1, 40), np.nan)
    z[0, :30] = 3.0 * np.arange(30) + 5
    level, slope, _ = damped(z)
    assert drift(z)[0] == pytest.approx(3.0)
    assert level[0] == pytest.approx(92, rel=0.03) and 1.5 < slope[0] < 3.2  # the trend is damped


@pytest.mark.parametrize("times", [True, False])
def test_two_seasons_follow_the_last_days(times):
    """A day's shape that changed ten days ago is followed; a weekend keeps its own; a gap is no harm. Exact up to the fading."""
    t, rng = np.arange(24 * 7 * 8), np.random.default_rng(0)
    day, weekend = np.sin(2 * np.pi * t / 24), np.where(t // 24 % 7 >= 5, -0.3, 0.0)
    late = np.where(t >= 24 * 7 * 5 + 96, 0.4 * np.cos(4 * np.pi * t / 24), 0.0)
    z = 2 + t / 500 + 0.3 * (day + late) + weekend
    y = np.exp(z) if times else z
    y = y * (1 + 1e-3 * rng.normal(size=len(t)))
    y[100:110] = np.nan
    end = 24 * 7 * 7
    found = seasonal(y[:end], (24, 168), len(t))
    assert found.times == times
    flat = (np.log(y / found.index) if times else y - found.index)[end - 48 : end + 48] - t[end - 48 : end + 48] / 500
    assert flat.std() < 0.1 * (0.3 * (day + late) + weekend).std()


@pytest.mark.parametrize("times", [False, True])
def test_seasons_are_found_and_noise_has_none(times):
    rng, t = np.random.default_rng(0), np.arange(120)
    shape = 1 + 0.4 * np.sin(2 * np.pi * np.arange(12) / 12)
    y = (100 + t) * shape[t % 12] if times else 100 + t * 2 + 80 * (shape[t % 12] - 1)
    found = seasonal(y + rng.normal(size=120) * 0.2, (12,), 140)
    assert found.times == times and found.strength[0] > 0.99 and len(found.index) == 140
    wanted = shape if times else 80 * (shape - 1)
    assert np.allclose(found.index[:12], wanted, atol=0.03 * np.abs(wanted).max())
    none = seasonal(rng.normal(size=400) + 50, (12,), 400)
    assert none.strength[0] < 0.6 and np.abs(none.index - none.times).max() < 0.5


def test_steps_since_the_last_known():
    assert since(np.array([[False, True, False, False, True]])).tolist() == [[6, 0, 1, 2, 0]]


def test_a_varied_series_keeps_seasons_and_spectrum():
    t, rng = np.arange(28 * 8), np.random.default_rng(1)
    exact = 10 + np.sin(2 * np.pi * t / 4) + np.cos(2 * np.pi * t / 28)
    noise = np.convolve(rng.normal(size=len(t) + 9), np.ones(10), "valid")
    for shift in (0, -40):  # not positive: nothing is stretched, so the spectrum is the same
        table = Table("t", (exact + 0.1 * noise + shift)[:, None], ("x",), Clock("second", 0, 3600), (4, 28))
        found = varied(table, rng)
        assert found.clock == table.clock and found.values.shape == table.values.shape
        assert np.corrcoef(found.values[:, 0], table.values[:, 0])[0, 1] < 0.999
        if shift:
            usual = [np.array([v.values[k::28, 0].mean() for k in range(28)]) for v in (found, table)]
            rest = [v.values[:, 0] - u[t % 28] for v, u in zip((found, table), usual, strict=True)]
            assert abs(rest[0].std() / rest[1].std() - 1) < 0.2 and np.abs(usual[0] - usual[1]).max() < 0.5 * np.ptp(usual[1])
            spectra = [np.abs(np.fft.rfft(v.values[:, 0])) for v in (found, table)]
            off = np.arange(len(spectra[0])) % 8 != 0  # seasons are at every eighth
            assert np.allclose(spectra[0][off], spectra[1][off])
        else:
            assert found.values.min() > 0
    pure = Table("t", (exact - 40)[:, None], ("x",), Clock("second", 0, 3600), (4, 28))
    assert np.allclose(varied(pure, rng).values, pure.values)  # nothing is left over, nothing changes
    short = replace(pure, values=pure.values[:50])
    assert varied(short, rng) is short
