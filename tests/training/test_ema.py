"""The power-function average against its closed form."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from unfog.errors import UserError
from unfog.training.averages import keep, kept, reconstruct
from unfog.training.ema import WIDTHS, PowerEMA, exponent, overlap
from unfog.training.ema import shares as parts_of


def averaged(sequence, sigma_rel):
    """The average after each value of a sequence of one weight was shown: a float."""
    network = nn.Linear(1, 1, bias=False).double()
    ema = PowerEMA(network, sigma_rel)
    for step, value in enumerate(sequence, 1):
        with torch.no_grad():
            network.weight.fill_(value)
        ema.update(network, step)
    return float(ema.network.weight)


def shares(n, gamma):
    """What w_k weighs after n steps: the integral of the profile τ^γ over its share of the time."""
    return [(k / n) ** (gamma + 1) - ((k - 1) / n) ** (gamma + 1) for k in range(1, n + 1)]


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.25])
def test_average_of_a_known_sequence(sigma_rel):
    sequence = [math.sin(3 * k) + k / 7 for k in range(1, 41)]
    expected = sum(w * s for w, s in zip(sequence, shares(40, exponent(sigma_rel)), strict=True))
    assert math.isclose(averaged(sequence, sigma_rel), expected, rel_tol=1e-12)


@pytest.mark.parametrize("sigma_rel", [0.03, 0.05, 0.1, 0.2, 0.27])
def test_the_profile_has_the_asked_width(sigma_rel):
    n = 2000
    parts = shares(n, exponent(sigma_rel))
    mean = sum(p * (k - 0.5) / n for k, p in enumerate(parts, 1))
    variance = sum(p * ((k - 0.5) / n - mean) ** 2 for k, p in enumerate(parts, 1))
    assert math.isclose(math.sqrt(variance), sigma_rel, rel_tol=1e-3)


def test_constant_weights_stay_bit_for_bit():
    network = nn.Linear(5, 4)
    ema = PowerEMA(network, 0.1)
    for step in range(1, 20):
        ema.update(network, step)
    assert all(torch.equal(a, b) for a, b in zip(ema.network.parameters(), network.parameters(), strict=True))


def test_the_first_step_forgets_the_start():
    assert averaged([3.0], 0.1) == 3.0


def test_the_average_is_a_copy_without_gradients():
    network = nn.Linear(2, 2).train()
    ema = PowerEMA(network, 0.1)
    assert not ema.network.training and not any(p.requires_grad for p in ema.network.parameters())
    assert ema.network.weight.data_ptr() != network.weight.data_ptr()


def profile(t, gamma, tau):
    return np.where(tau < t, (gamma + 1) * np.power(tau / t, gamma) / t, 0.0)


@pytest.mark.parametrize(("one", "other"), [((1.0, 16.9), (0.6, 6.9)), ((0.3, 6.9), (0.3, 16.9)), ((0.5, 3.0), (1.0, 6.9))])
def test_overlap_of_two_profiles_is_their_integral(one, other):
    tau = (np.arange(400_000) + 0.5) / 400_000
    integral = (profile(*one, tau) * profile(*other, tau)).mean()
    assert math.isclose(float(overlap(*map(np.float64, (*one, *other)))), integral, rel_tol=1e-6)


@pytest.mark.parametrize("sigma_rel", [*WIDTHS, 0.03, 0.07, 0.15, 0.2, 0.25])
def test_shares_are_the_least_squares_of_profiles(sigma_rel):
    """No other weights (that sum to 1) come nearer; and the kept averages themselves are found again."""
    steps, gammas = np.repeat(np.arange(1, 17) * 1.0, 2), np.tile([exponent(w) for w in WIDTHS], 16)
    found = parts_of(steps, gammas, 16.0, sigma_rel)
    tau = (np.arange(16_000) + 0.5) / 1000
    profiles = np.array([profile(t, g, tau) for t, g in zip(steps, gammas, strict=True)])
    wanted = profile(16.0, exponent(sigma_rel), tau)
    error = lambda s: math.sqrt(((s @ profiles - wanted) ** 2).sum() / (wanted**2).sum())  # noqa: E731
    assert math.isclose(found.sum(), 1.0, abs_tol=1e-6)
    limit = {0.03: 0.04, 0.05: 1e-4, 0.07: 0.004, 0.1: 1e-4, 0.15: 0.01, 0.2: 0.025, 0.25: 0.08}
    assert error(found) < limit[sigma_rel]
    rng = np.random.default_rng(0)
    for _ in range(20):
        other = rng.standard_normal(len(found))
        assert error(found + 1e-2 * (other - other.mean())) > error(found)


def test_an_average_of_any_width_and_moment_is_found_afterwards(tmp_path):
    """Against averages of those widths that were tracked all along, on weights that wander."""
    torch.manual_seed(0)
    network = nn.Linear(40, 40)
    averages = [PowerEMA(network, width) for width in WIDTHS]
    wanted = {(width, at): PowerEMA(network, width) for width in (0.07, 0.15) for at in (400, 800)}
    start = network.weight.detach().clone()
    for step in range(1, 801):
        with torch.no_grad():
            network.weight.add_(torch.randn(40, 40), alpha=0.02)
        for average in averages:
            average.update(network, step)
        for (_, at), average in wanted.items():
            if step <= at:
                average.update(network, step)
        if step % 50 == 0:
            keep(tmp_path, step, averages)
    assert kept(tmp_path) == list(range(50, 801, 50))
    for (width, at), average in wanted.items():
        step, weights = reconstruct(tmp_path, width, at)
        moved = float((average.network.weight - start).norm())
        nearest = min(float((a.network.weight - average.network.weight).norm()) for a in averages)
        off = float((weights["weight"] - average.network.weight).norm())
        assert step == at and off < 0.01 * moved
        assert at < 800 or off < 0.1 * nearest  # far nearer than the kept ones are
    assert reconstruct(tmp_path, 0.07)[0] == 800


def test_averages_that_cannot_be(tmp_path):
    with pytest.raises(UserError, match="no averages were kept there"):
        reconstruct(tmp_path, 0.1)
    keep(tmp_path, 100, [PowerEMA(nn.Linear(2, 2), 0.1)])
    for at in (50, 101):
        with pytest.raises(UserError, match="--at: averages were kept from step 100 to 100"):
            reconstruct(tmp_path, 0.1, at)
    path = tmp_path / "averages" / "0000100.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="0000100.safetensors: damaged"):
        reconstruct(tmp_path, 0.1)
    (tmp_path / "averages" / "0000100.json").write_text("{}")
    with pytest.raises(UserError, match="0000100.json: cannot be read"):
        reconstruct(tmp_path, 0.1)
