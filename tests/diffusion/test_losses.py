"""The loss: one quantity in many spaces; times; masks."""

from __future__ import annotations

import math

import pytest
import torch

from unfog.diffusion.denoisers import GaussianDenoiser, Preconditioned
from unfog.diffusion.losses import TIMES, WEIGHTS, LogitNormal, LogNormal, MinSNR, Space, Uniform, denoising_loss, stratified
from unfog.diffusion.noise import Noise
from unfog.diffusion.predictions import PREDICTIONS, Prediction
from unfog.diffusion.processes import Gaussian, expand
from unfog.diffusion.schedules import EDM, VP, Cosine, Linear
from unfog.errors import UserError


def batch(size: int = 8):
    generator = torch.Generator().manual_seed(1)
    x0, eps = (torch.randn(size, 3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    return x0, eps, torch.linspace(0.05, 0.95, size, dtype=torch.float64)


def same_denoiser_as(exact, process, prediction):
    """A network whose denoiser is `exact`: it inverts the affine map at each call."""

    def network(x_in, logsnr, cond):
        t = cond["t"]
        alpha, sigma = process.schedule.alpha(t), process.schedule.sigma(t)
        x_t = x_in / expand(prediction.c_in(alpha, sigma), x_in)
        c_skip, c_out, _, _ = prediction.affine(alpha, sigma)
        return (exact(x_t, t) - expand(c_skip, x_t) * x_t) / expand(c_out, x_t)

    return Preconditioned(network, process, prediction)


@pytest.mark.parametrize("schedule", [Cosine(), Linear(), VP(), EDM(sigma_max=5.0)], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("space", PREDICTIONS)
def test_all_predictions_have_the_same_loss_in_a_common_space(schedule, space):
    """One denoiser dressed as six networks: weighted into one space, all losses are one number."""
    x0, eps, t = batch()
    process = Gaussian(schedule)
    exact = GaussianDenoiser(process, torch.zeros(3, 4), std=0.8)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x_t = process.mix(x0, eps, t)
    # Independent statement: convert the exact x0 into the space through ε, then compare with the true target.
    guess = exact(x_t, t)
    guess_eps = (x_t - expand(alpha, x_t) * guess) / expand(sigma, x_t)
    spaced = Prediction(space)
    wrong = spaced.target(guess, guess_eps, alpha, sigma) - spaced.target(x0, eps, alpha, sigma)
    expected = (wrong**2).flatten(1).mean(1)
    for name in PREDICTIONS:
        denoiser = same_denoiser_as(exact, process, Prediction(name))
        loss = denoising_loss(denoiser, x0, {"t": t}, t, eps, space)
        torch.testing.assert_close(loss, expected, rtol=1e-8, atol=1e-10)
    plain = denoising_loss(same_denoiser_as(exact, process, spaced), x0, {"t": t}, t, eps)
    torch.testing.assert_close(plain, expected, rtol=1e-8, atol=1e-10)


def test_min_snr_is_right_for_each_prediction():
    """The published table: eps min(SNR, γ)/SNR, v min(SNR, γ)/(SNR + 1), x0 min(SNR, γ)."""
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    alpha, sigma = Cosine().alpha(t), Cosine().sigma(t)
    snr = torch.exp(Cosine().logsnr(t))
    capped = snr.clamp(max=5.0)
    for name, expected in {"eps": capped / snr, "v": capped / (snr + 1), "x0": capped}.items():
        torch.testing.assert_close(MinSNR(5.0)(Prediction(name), alpha, sigma), expected)


def test_edm_loss_is_the_published_one():
    """λ(σ)·|D − x0|² with λ = (σ² + s²)/(σs)²."""
    x0, eps, t = batch()
    process = Gaussian(EDM(sigma_max=20.0))
    denoiser = Preconditioned(lambda x, logsnr, cond: torch.tanh(x), process, Prediction("edm", 0.5))
    sigma = process.schedule.sigma(t)
    error = ((denoiser(process.mix(x0, eps, t), t) - x0) ** 2).flatten(1).mean(1)
    expected = (sigma**2 + 0.25) / (sigma * 0.5) ** 2 * error
    torch.testing.assert_close(denoising_loss(denoiser, x0, None, t, eps), expected)


@pytest.mark.parametrize("name", ["x0", "v", "flow", "edm"])
def test_finite_at_both_ends(name):
    x0, eps, _ = batch(2)
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    denoiser = Preconditioned(lambda x, logsnr, cond: 0.5 * x, Gaussian(Linear()), name)
    assert torch.isfinite(denoising_loss(denoiser, x0, None, t, eps)).all()
    assert torch.isfinite(denoising_loss(denoiser, x0, None, t, eps, Space("x0"))).all()


def test_limit_bounds_the_weight():
    t = torch.tensor([1e-4, 0.5])
    weight = Space("flow", limit=400.0)(Prediction("x0"), Linear().alpha(t), Linear().sigma(t))
    assert weight.tolist() == pytest.approx([400.0, 4.0])


def test_padding_changes_nothing():
    x0, eps, t = batch(2)
    denoiser = Preconditioned(lambda x, logsnr, cond: 0.3 * x, Gaussian(Cosine()), "v")
    plain = denoising_loss(denoiser, x0[:, :2], None, t, eps[:, :2])
    mask = torch.tensor([[True, True, False]]).expand(2, 3)
    padded = x0.clone()
    padded[:, 2] = math.nan
    torch.testing.assert_close(denoising_loss(denoiser, padded, {"mask": mask}, t, eps), plain)
    channel = torch.tensor([True, True, False, False]).expand(2, 1, 4)  # (B, 1, T), broadcast over channels
    short = denoising_loss(denoiser, x0[..., :2], None, t, eps[..., :2])
    torch.testing.assert_close(denoising_loss(denoiser, x0, {"mask": channel}, t, eps), short)
    mixed = torch.tensor([[True, False, False], [False, False, False]])
    loss = denoising_loss(denoiser, x0, {"mask": mixed}, t, eps)
    assert loss[1] == 0 and torch.isfinite(loss).all()


def test_gradients_reach_the_network():
    layer = torch.nn.Linear(4, 4)
    denoiser = Preconditioned(lambda x, logsnr, cond: layer(x), Gaussian(Cosine()), "v")
    x0, eps, t = (value.float() for value in batch())
    denoising_loss(denoiser, x0, None, t, eps, "min_snr").mean().backward()
    assert layer.weight.grad.abs().sum() > 0


def test_half_precision_network_has_float32_loss():
    network = torch.nn.Conv1d(3, 3, 1).bfloat16()

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = network

        def forward(self, x, logsnr, cond):
            assert x.dtype == torch.bfloat16 and logsnr.dtype == torch.float32
            assert cond["text"].dtype == torch.bfloat16 and cond["class"].dtype == torch.long
            return self.layer(x)

    x0, eps, t = (value.float() for value in batch())
    cond = {"text": torch.zeros(8, 2), "class": torch.zeros(8, dtype=torch.long)}
    assert denoising_loss(Preconditioned(Net(), Gaussian(Cosine()), "v"), x0, cond, t, eps).dtype == torch.float32


def test_time_distributions():
    u = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    torch.testing.assert_close(Uniform(0.2, 0.6).quantile(u, Cosine()), 0.2 + 0.4 * u)
    t = LogitNormal(0.5, 1.5).quantile(u, Linear())
    z = torch.logit(t)
    assert z.mean().item() == pytest.approx(0.5, abs=1e-3) and z.std().item() == pytest.approx(1.5, abs=2e-3)
    for schedule in (Cosine(), Linear(), EDM()):
        log_sigma = -0.5 * schedule.logsnr(LogNormal(-1.2, 1.2).quantile(u, schedule))
        assert log_sigma.mean().item() == pytest.approx(-1.2, abs=1e-3)
        assert log_sigma.std().item() == pytest.approx(1.2, abs=2e-3)
    torch.testing.assert_close(LogNormal(0.3, 0.8).quantile(u, Linear()), LogitNormal(0.3, 0.8).quantile(u, Linear()))
    narrow = torch.tensor([1e-9, 0.5, 1 - 6e-8])
    for build in TIMES.values():
        t = build().quantile(narrow, VP())
        assert t.dtype == torch.float32 and (t >= 0).all() and (t <= 1).all()


def test_stratified_fills_every_stratum_and_splits():
    u = Noise(range(32)).uniform((), stream=0)
    spread = stratified(u)
    assert sorted((spread * 32).floor().long().tolist()) == list(range(32))
    halves = torch.cat([stratified(u[:16], 0, 32), stratified(u[16:], 16, 32)])
    assert torch.equal(halves, spread)
    assert stratified(torch.full((1000,), 1 - 6e-8)).max() < 1


def test_unknown_weight():
    x0, eps, t = batch()
    denoiser = Preconditioned(lambda x, logsnr, cond: x, Gaussian(Cosine()), "v")
    with pytest.raises(UserError, match="min_snr"):
        denoising_loss(denoiser, x0, None, t, eps, "minsnr")
    for weight in WEIGHTS:
        assert torch.isfinite(denoising_loss(denoiser, x0, None, t, eps, weight)).all()


def test_min_snr_of_eps_at_pure_noise_is_its_limit():
    """diffusers#934: SNR 0 divided by SNR 0."""
    weight = WEIGHTS["min_snr"](Prediction("eps"), torch.tensor([0.0, 1e-4]), torch.tensor([1.0, 1.0]))
    torch.testing.assert_close(weight, torch.ones(2))
