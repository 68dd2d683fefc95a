"""The power-function average against its closed form."""

import math

import pytest
import torch
from torch import nn

from unfog.training.ema import PowerEMA, exponent


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
