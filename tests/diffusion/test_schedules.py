"""Schedules: inverses, ends, kinds of numbers, known values, configuration."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from unfog.diffusion.schedules import EDM, SCHEDULES, VP, Cosine, Linear, Shifted, Table, schedule_from_config
from unfog.errors import UserError

ALL = {
    "cosine": Cosine(),
    "linear": Linear(),
    "vp": VP(),
    "edm": EDM(),
    "edm_karras": EDM(rho=7.0),
    "table_linear": Table.linear(),
    "table_scaled": Table.scaled_linear(),
    "table_cosine": Table.cosine(),
    "table_zero": Table.scaled_linear().zero_terminal_snr(),
    "shifted_flow": Shifted(Linear(), 3.0),
    "shifted_vp": Shifted(VP(), 2.0),
    "shifted_table": Shifted(Table.linear(50), 0.5),
}
schedules = pytest.mark.parametrize("schedule", ALL.values(), ids=ALL.keys())


@schedules
def test_time_inverts_logsnr(schedule):
    t = np.concatenate([np.linspace(0.0, 1.0, 2001), [1e-9, 1e-5, 1 - 1e-6]])
    np.testing.assert_allclose(schedule.time(schedule.logsnr(t)), t, rtol=1e-9, atol=1e-13)
    small = torch.linspace(0.001, 0.999, 999)
    torch.testing.assert_close(schedule.time(schedule.logsnr(small)), small, rtol=0, atol=1e-5)


@schedules
def test_logsnr_falls_strictly_and_agrees_with_alpha_and_sigma(schedule):
    t = np.linspace(0.0, 1.0, 2001)
    logsnr = schedule.logsnr(t)
    assert not np.isnan(logsnr).any()
    assert (np.diff(logsnr) < 0).all()
    inner = t[1:-1]
    ratio = 2 * (np.log(schedule.alpha(inner)) - np.log(schedule.sigma(inner)))
    np.testing.assert_allclose(ratio, logsnr[1:-1], rtol=1e-9, atol=1e-9)


@schedules
def test_ends_are_exact(schedule):
    assert schedule.sigma(0.0) == 0.0
    assert schedule.alpha(0.0) == pytest.approx(1.0, abs=1e-12)
    assert schedule.logsnr(0.0) == math.inf
    assert schedule.time(math.inf) == 0.0
    if schedule.alpha(1.0) == 0.0:
        assert schedule.logsnr(1.0) == -math.inf
        assert schedule.time(-math.inf) == 1.0
    else:
        assert schedule.time(-math.inf) == math.inf  # beyond every level that it has
        assert math.isfinite(schedule.logsnr(1.0))


@schedules
def test_every_kind_of_number_gives_the_same_value(schedule):
    for function in (schedule.alpha, schedule.sigma, schedule.logsnr):
        number = function(0.3)
        assert type(number) is float
        array = function(np.array([0.3, 0.7]))
        assert isinstance(array, np.ndarray) and array.dtype == np.float64 and array[0] == number
        wide = function(torch.tensor([0.3, 0.7], dtype=torch.float64))
        assert wide.dtype == torch.float64 and wide[0].item() == number
        narrow = function(torch.tensor([0.3, 0.7]))
        assert narrow.dtype == torch.float32 and narrow[0].item() == pytest.approx(number, rel=1e-5)
        assert function(torch.tensor([0.3]).bfloat16()).dtype == torch.float32


@schedules
def test_config_round_trip_through_json(schedule):
    again = schedule_from_config(json.loads(json.dumps(schedule.config())))
    assert again == schedule
    assert again.logsnr(0.37) == schedule.logsnr(0.37)


def test_known_values():
    assert Linear().alpha(0.25) == 0.75 and Linear().sigma(0.25) == 0.25
    assert Cosine().alpha(0.5) == pytest.approx(math.sqrt(0.5))
    assert EDM().sigma(1.0) == pytest.approx(80.0)
    assert EDM(rho=7.0).sigma(1.0) == pytest.approx(80.0)
    # The middle of EDM's log-linear range is the geometric mean, but for the shift that puts σ(0) at 0.
    assert EDM().sigma(0.5) == pytest.approx(math.sqrt(80.0 * 0.002) - 0.002, rel=1e-4)


def test_vp_is_the_limit_of_the_ddpm_table():
    """A DDPM table with N betas of β(t)/N tends to the SDE with the same β (here to Σβ²/4 = 0.0017)."""
    t = np.linspace(0.1, 1.0, 10)
    table = Table(tuple((0.1 + (20.0 - 0.1) * (np.arange(20000) + 0.5) / 20000) / 20000))
    np.testing.assert_allclose(table.alpha(t), VP().alpha(t), rtol=2e-3)


def test_table_stands_on_its_own_products():
    betas = np.linspace(1e-4, 0.02, 1000)
    bar = 1.0
    table = Table.linear()
    for n, beta in enumerate(betas):
        bar *= 1.0 - beta
        if n in (0, 1, 17, 500, 998, 999):
            assert table.alpha(table.time_of(n)) ** 2 == pytest.approx(bar, rel=1e-11)
            assert table.sigma(table.time_of(n)) ** 2 == pytest.approx(1.0 - bar, rel=1e-9)
            assert table.index(table.time_of(n)) == n
            assert table.index(table.time(table.logsnr(table.time_of(n)))) == n
    assert table.index(torch.tensor([0.001, 1.0])).tolist() == [0, 999]
    assert table.index(np.array([0.0, 0.5])).tolist() == [0, 499]


def test_latent_diffusion_table_has_its_known_range():
    """σ/α of 14.6146 and 0.0292 at the two ends are the widely printed values for this table."""
    table = Table.scaled_linear()
    assert math.exp(-0.5 * table.logsnr(1.0)) == pytest.approx(14.6146, rel=1e-4)
    assert math.exp(-0.5 * table.logsnr(0.001)) == pytest.approx(0.0292, rel=2e-3)


def test_what_a_table_remembers_is_what_it_computes(monkeypatch):
    monkeypatch.setattr("unfog.diffusion.schedules.REMEMBERED", 8)
    table, times = Table.scaled_linear(), np.linspace(0.01, 0.99, 40)
    for _ in range(2):
        for t in times.tolist():
            for name in ("alpha", "sigma", "logsnr"):
                assert getattr(table, name)(t) == getattr(table, name)(np.array([t]))[0], name
            assert table.time(table.logsnr(t)) == table.time(np.array([table.logsnr(t)]))[0]
    assert len(table._found) <= 8
    assert table == Table.scaled_linear() and table.alpha(1) == table.alpha(1.0)


def test_zero_terminal_snr_moves_only_what_it_must():
    before = Table.scaled_linear()
    after = before.zero_terminal_snr()
    assert after.betas[-1] == 1.0
    assert after.alpha(1.0) == 0.0 and after.sigma(1.0) == 1.0
    assert after.alpha(0.001) == pytest.approx(before.alpha(0.001), rel=1e-12)
    root = np.array([after.alpha(after.time_of(n)) for n in range(1000)])
    old = np.array([before.alpha(before.time_of(n)) for n in range(1000)])
    # An affine map of √ᾱ: second differences keep one ratio.
    ratio = np.diff(root)[:-1] / np.diff(old)[:-1]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-6)


def test_shift_on_flow_is_the_published_time_map():
    t = np.linspace(0.0, 1.0, 101)
    np.testing.assert_allclose(Shifted(Linear(), 3.0).sigma(t), 3.0 * t / (1.0 + 2.0 * t), atol=1e-14)
    twice = Shifted(Shifted(Cosine(), 2.0), 3.0)
    np.testing.assert_allclose(twice.logsnr(t[1:]), Shifted(Cosine(), 6.0).logsnr(t[1:]), atol=1e-9)


@pytest.mark.parametrize(
    "config",
    [
        {"name": "cosin"},
        {"name": "edm", "sigma": 3.0},
        {"name": "edm", "sigma_min": 5.0, "sigma_max": 1.0},
        {"name": "vp", "beta_min": -1.0},
        {"name": "table", "betas": [0.1, 1.0, 0.1]},
        {"name": "table"},
        {"name": "shifted", "base": {"name": "linear"}, "shift": 0.0},
        {},
        None,
    ],
)
def test_bad_configs_are_one_line(config):
    with pytest.raises(UserError) as error:
        schedule_from_config(config)
    assert "\n" not in str(error.value)


def test_unknown_name_states_the_nearest():
    with pytest.raises(UserError, match="did you mean cosine"):
        schedule_from_config({"name": "cosin"})


def test_every_registered_schedule_builds():
    options = {"table": {"betas": [0.1, 0.2, 0.3]}, "shifted": {"base": {"name": "linear"}, "shift": 2.0}}
    for name in SCHEDULES:
        schedule = schedule_from_config({"name": name, **options.get(name, {})})
        assert schedule.logsnr(0.2) > schedule.logsnr(0.8)


def test_gradients_reach_t():
    t = torch.tensor([0.3, 0.6], dtype=torch.float64, requires_grad=True)
    for schedule in ALL.values():
        (slope,) = torch.autograd.grad(schedule.logsnr(t).sum(), t)
        assert (slope < 0).all()
