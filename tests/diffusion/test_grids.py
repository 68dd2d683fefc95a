"""Grids: ends, order, published spacings, errors."""

from __future__ import annotations

import math

import numpy as np
import pytest

from unfog.diffusion.grids import GRIDS, check_grid, make_grid
from unfog.diffusion.schedules import EDM, VP, Cosine, Linear, Shifted, Table
from unfog.errors import UserError

CONTINUOUS = [Cosine(), Linear(), VP(), EDM(), Shifted(Linear(), 3.0), Table.linear()]


@pytest.mark.parametrize("schedule", CONTINUOUS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("name", ["uniform", "logsnr", "karras", "exponential", "flow", "beta", "ays"])
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_ends_are_exact_and_times_fall(schedule, name, steps):
    for start, end in ((1.0, 0.0), (0.8, 0.0), (0.9, 0.2)):
        grid = make_grid(name, schedule, steps, start=start, end=end)
        assert grid.dtype == np.float64 and grid.shape == (steps + 1,)
        assert grid[0] == start and grid[-1] == end
        assert (np.diff(grid) < 0).all()
        assert (np.diff(schedule.logsnr(grid)) > 0).all()


def test_logsnr_is_equidistant_inside():
    grid = make_grid("logsnr", Linear(), 11, logsnr_min=-8.0, logsnr_max=8.0)
    inner = Linear().logsnr(grid[1:-1])
    np.testing.assert_allclose(np.diff(inner), 16.0 / 11, rtol=1e-9)
    assert inner[0] == pytest.approx(-8.0 + 16.0 / 11)
    vp = VP().logsnr(make_grid("logsnr", VP(), 10, end=0.01, logsnr_min=-12.0))
    np.testing.assert_allclose(np.diff(vp), np.diff(vp)[0], rtol=1e-9)


def test_karras_is_the_published_list():
    """EDM table 1 for 18 steps, written from its equation."""
    i = np.arange(18)
    expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    schedule = EDM()
    sigma = schedule.sigma(make_grid("karras", schedule, 18))
    np.testing.assert_allclose(sigma[:-1], expected, rtol=1e-11)
    assert sigma[-1] == 0.0
    flow = Linear()
    grid = make_grid("karras", flow, 18)
    np.testing.assert_allclose((flow.sigma(grid) / flow.alpha(grid).clip(1e-300))[1:-1], expected[1:], rtol=1e-9)


def level(schedule, grid):
    return schedule.sigma(grid) / schedule.alpha(grid)


def test_exponential_is_geometric():
    schedule = VP()
    levels = level(schedule, make_grid("exponential", schedule, 12, sigma_min=0.01, sigma_max=50.0)[:-1])
    np.testing.assert_allclose(levels[1:], np.geomspace(50.0, 0.01, 12)[1:], rtol=1e-9)  # the first is t = 1 itself


def test_flow_shift_moves_the_log_snr_by_a_constant():
    """A shift s of flow time is log-SNR − 2·ln s, on any schedule."""
    for schedule in (Linear(), VP(), Cosine()):
        plain = schedule.logsnr(make_grid("flow", schedule, 10))[1:-1]
        shifted = schedule.logsnr(make_grid("flow", schedule, 10, shift=3.0))[1:-1]
        if schedule.alpha(1.0) < 1e-9:  # else both start at the schedule's own lowest log-SNR
            np.testing.assert_allclose(shifted, plain - 2.0 * math.log(3.0), rtol=1e-9)
    np.testing.assert_allclose(make_grid("flow", Linear(), 10), np.linspace(1.0, 0.0, 11), atol=1e-12)
    published = 3.0 * np.linspace(1.0, 0.0, 11) / (1.0 + 2.0 * np.linspace(1.0, 0.0, 11))  # SD3, eq. 23
    np.testing.assert_allclose(make_grid("flow", Linear(), 10, shift=3.0), published, atol=1e-12)
    part = make_grid("flow", Linear(), 5, shift=3.0, start=float(published[5]))
    np.testing.assert_allclose(part, published[5:], atol=1e-12)


def test_flow_shift_from_the_number_of_tokens():
    for tokens, mu in ((256, 0.5), (4096, 1.15), (1024, 0.63)):
        by_rule = make_grid("flow", Linear(), 7, tokens=tokens)
        np.testing.assert_allclose(by_rule, make_grid("flow", Linear(), 7, shift=math.exp(mu)), atol=1e-12)


def test_beta_quantiles():
    np.testing.assert_allclose(make_grid("beta", VP(), 9, a=1.0, b=1.0), np.linspace(1.0, 0.0, 10), atol=1e-5)
    arcsine = np.sin(0.5 * math.pi * np.linspace(1.0, 0.0, 10)) ** 2  # Beta(½, ½) in closed form
    np.testing.assert_allclose(make_grid("beta", VP(), 9, a=0.5, b=0.5), arcsine, atol=1e-5)
    np.testing.assert_allclose(make_grid("beta", VP(), 9, a=1.0, b=2.0), 1 - np.sqrt(np.linspace(0, 1, 10)), atol=1e-5)


def test_ays_is_the_published_table():
    table = Table.scaled_linear()
    indices = [table.index(t) for t in make_grid("ays", table, 10)[:-1].tolist()]
    published = [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]
    assert max(abs(a - b) for a, b in zip(indices, published, strict=True)) <= 1  # they print both, each rounded
    twenty = level(table, make_grid("ays", table, 19)[:-1])
    np.testing.assert_allclose(twenty[2::2], level(table, make_grid("ays", table, 10)[:-1])[1:], rtol=1e-6)
    with pytest.raises(UserError, match="sdxl"):
        make_grid("ays", table, 10, model="sdxx")


def test_a_list_of_levels():
    schedule = EDM()
    grid = make_grid("custom", schedule, 3, levels=[10.0, 1.0, 0.1, 0.0])
    np.testing.assert_allclose(schedule.sigma(grid), [10.0, 1.0, 0.1, 0.0], rtol=1e-9)
    for wrong in ({"levels": [1.0, 2.0, 0.0]}, {"levels": [1.0, -1.0]}, {}, {"levels": [1.0, 0.0], "times": [1.0, 0.0]}):
        with pytest.raises(UserError):
            make_grid("custom", schedule, max(len(wrong.get("levels", "xx")) - 1, 1), **wrong)


def test_table_spacings():
    table = Table.linear()

    def visited(name, steps, **options):
        return [table.index(t) for t in make_grid(name, table, steps, **options)[:-1].tolist()]

    assert visited("trailing", 5) == [999, 799, 599, 399, 199]
    assert visited("leading", 5) == [800, 600, 400, 200, 0]
    assert visited("leading", 5, offset=1) == [801, 601, 401, 201, 1]
    assert visited("linspace", 5) == [999, 749, 500, 250, 0]
    assert visited("trailing", 3) == [999, 666, 332]
    assert len(visited("trailing", 1000)) == 1000
    assert visited("trailing", 5, start=0.5) == [499, 399, 299, 199, 99]
    for name in ("trailing", "leading", "linspace"):
        assert make_grid(name, table, 7)[-1] == 0.0
        with pytest.raises(UserError, match="fall strictly"):
            make_grid(name, table, 1001)
        with pytest.raises(UserError, match="table indices"):
            make_grid(name, VP(), 5)


def test_custom_is_used_as_it_is():
    times = [1.0, 0.7, 0.1, 0.0]
    assert make_grid("custom", Linear(), 3, times=times).tolist() == times
    for bad in ([1.0, 0.5, 0.5, 0.0], [1.0, 0.0], [0.9, 0.5, 0.1, 0.0], [1.0, 0.5, 0.2, 0.1], [1.0, math.nan, 0.1, 0.0]):
        with pytest.raises(UserError):
            make_grid("custom", Linear(), 3, times=bad)


@pytest.mark.parametrize(
    ("name", "steps", "options"),
    [
        ("karas", 5, {}),
        ("uniform", 0, {}),
        ("uniform", 2.5, {}),
        ("uniform", True, {}),
        ("uniform", 10**9, {}),
        ("karras", 5, {"rho": "7"}),
        ("auto", 5, {"dimension": -3}),
        ("auto", 5, {"dimension": "many"}),
        ("uniform", 5, {"rho": 3.0}),
        ("uniform", 5, {"start": 0.2, "end": 0.5}),
        ("uniform", 5, {"start": 1.5}),
        ("karras", 5, {"sigma_min": 90.0}),
        ("karras", 5, {"rho": -1.0}),
        ("logsnr", 5, {"logsnr_min": 4.0, "logsnr_max": 3.0}),
        ("custom", 5, {}),
    ],
)
def test_bad_requests(name, steps, options):
    with pytest.raises(UserError) as error:
        make_grid(name, Cosine(), steps, **options)
    assert "\n" not in str(error.value)


def test_check_grid_rejects_what_is_not_a_grid():
    for bad in ([1.0], [[1.0, 0.0]], [0.0, 1.0], [1.2, 0.0], [1.0, -0.1]):
        with pytest.raises(UserError):
            check_grid(bad)
    assert set(GRIDS) >= {"uniform", "logsnr", "karras", "trailing", "leading", "linspace", "custom"}
