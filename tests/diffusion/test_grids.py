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
@pytest.mark.parametrize("name", ["uniform", "logsnr", "karras"])
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
    np.testing.assert_allclose(
        (flow.sigma(grid) / flow.alpha(grid).clip(1e-300))[1:-1], expected[1:], rtol=1e-9
    )


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
    for bad in (
        [1.0, 0.5, 0.5, 0.0],
        [1.0, 0.0],
        [0.9, 0.5, 0.1, 0.0],
        [1.0, 0.5, 0.2, 0.1],
        [1.0, math.nan, 0.1, 0.0],
    ):
        with pytest.raises(UserError):
            make_grid("custom", Linear(), 3, times=bad)


@pytest.mark.parametrize(
    ("name", "steps", "options"),
    [
        ("karas", 5, {}),
        ("uniform", 0, {}),
        ("uniform", 2.5, {}),
        ("uniform", True, {}),
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
