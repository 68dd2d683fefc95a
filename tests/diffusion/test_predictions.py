"""Predictions: each target and its conversion back say the same, and stay finite at the ends."""

from __future__ import annotations

import math

import pytest
import torch

from unfog.diffusion.denoisers import Preconditioned
from unfog.diffusion.predictions import PREDICTIONS, Prediction, prediction_from_config
from unfog.diffusion.processes import Gaussian, expand
from unfog.diffusion.schedules import EDM, Cosine, Linear, Table
from unfog.errors import UserError

SCHEDULES = [Cosine(), Linear(), EDM(sigma_max=10.0), Table.linear()]
names = pytest.mark.parametrize("name", PREDICTIONS)


def pair(batch: int = 6):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(batch, 2, 5, generator=generator, dtype=torch.float64) for _ in range(2)]


@names
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_a_perfect_network_gives_back_x0(name, schedule):
    x0, eps = pair()
    prediction = Prediction(name, data_std=0.7)
    t = torch.tensor([0.02, 0.1, 0.3, 0.5, 0.8, 0.97], dtype=torch.float64)
    process = Gaussian(schedule)
    target = prediction.target(x0, eps, schedule.alpha(t), schedule.sigma(t))
    denoiser = Preconditioned(lambda x, logsnr, cond: target, process, prediction)
    torch.testing.assert_close(denoiser(process.mix(x0, eps, t), t), x0, rtol=1e-9, atol=1e-9)
    for i, time in enumerate(t.tolist()):  # python floats take the same road
        one = Preconditioned(lambda x, logsnr, cond, i=i: target[i : i + 1], process, prediction)
        x_t = process.mix(x0[i : i + 1], eps[i : i + 1], time)
        torch.testing.assert_close(one(x_t, time), x0[i : i + 1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["x0", "v", "flow", "edm"])
@pytest.mark.parametrize("schedule", [Cosine(), Linear()], ids=["cosine", "linear"])
@pytest.mark.parametrize("time", [0.0, 1.0])
def test_finite_at_both_ends(name, schedule, time):
    x0, eps = pair()
    prediction = Prediction(name)
    alpha, sigma = schedule.alpha(time), schedule.sigma(time)
    assert all(math.isfinite(value) for value in prediction.affine(alpha, sigma))
    assert torch.isfinite(prediction.target(x0, eps, alpha, sigma)).all()
    process = Gaussian(schedule)
    x_t = process.mix(x0, eps, time)
    target = prediction.target(x0, eps, alpha, sigma)
    out = Preconditioned(lambda x, logsnr, cond: target, process, prediction)(x_t, time)
    torch.testing.assert_close(out, x0)


def test_eps_at_zero_snr_is_an_error_not_nan():
    denoiser = Preconditioned(lambda x, logsnr, cond: x, Gaussian(Linear()), "eps")
    with pytest.raises(UserError, match="alpha is 0"):
        denoiser(torch.randn(2, 3), 1.0)


def test_definitions():
    """v = αε − σx0, flow = ε − x0, score = −ε/σ."""
    x0, eps = pair()
    alpha, sigma = 0.6, 0.8
    expected = {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0, "flow": eps - x0, "score": -eps / sigma}
    for name, value in expected.items():
        torch.testing.assert_close(Prediction(name).target(x0, eps, alpha, sigma), value)


def test_edm_normalises_input_and_target():
    """Unit variance of c_in·x_t and of the target for data of the stated deviation."""
    generator = torch.Generator().manual_seed(0)
    x0 = 0.5 * torch.randn(200_000, 1, generator=generator, dtype=torch.float64)
    eps = torch.randn(200_000, 1, generator=generator, dtype=torch.float64)
    for schedule, time in [(EDM(), 0.3), (EDM(), 0.9), (Cosine(), 0.4)]:
        prediction = Prediction("edm", data_std=0.5)
        alpha, sigma = schedule.alpha(time), schedule.sigma(time)
        x_t = alpha * x0 + sigma * eps
        assert (prediction.c_in(alpha, sigma) * x_t).std().item() == pytest.approx(1.0, abs=0.01)
        assert prediction.target(x0, eps, alpha, sigma).std().item() == pytest.approx(1.0, abs=0.01)


def test_edm_with_alpha_one_is_the_published_table():
    sigma, data = 1.7, 0.5
    c_skip, c_out, _, _ = Prediction("edm", data_std=data).affine(1.0, sigma)
    assert c_skip == pytest.approx(data**2 / (sigma**2 + data**2))
    assert c_out == pytest.approx(sigma * data / math.sqrt(sigma**2 + data**2))


@names
def test_no_coefficient_mixes_items(name):
    """(B,) coefficients broadcast over items, also when B equals another dimension."""
    alpha, sigma = torch.tensor([0.9, 0.5, 0.1]), torch.tensor([0.2, 0.6, 0.9])
    x0, eps = torch.randn(3, 3, 3), torch.randn(3, 3, 3)
    whole = Prediction(name).target(x0, eps, alpha, sigma)
    for i in range(3):
        one = Prediction(name).target(x0[i : i + 1], eps[i : i + 1], alpha[i : i + 1], sigma[i : i + 1])
        torch.testing.assert_close(whole[i : i + 1], one)
    assert expand(alpha, x0).shape == (3, 1, 1)


def test_config_and_errors():
    assert prediction_from_config(Prediction("edm", 0.5).config()) == Prediction("edm", 0.5)
    assert prediction_from_config("v") == Prediction("v")
    for bad in ("epsilon", {"name": "v", "std": 1.0}, {"data_std": 1.0}, 3):
        with pytest.raises(UserError):
            prediction_from_config(bad)
    with pytest.raises(UserError, match="did you mean eps"):
        Prediction("epsilon")
