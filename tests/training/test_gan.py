"""The GAN's penalties and losses against independent arithmetic, and training: loss falls, seeds decide, runs stay apart."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from unfog.diffusion.denoisers import Preconditioned
from unfog.diffusion.losses import LogNormal
from unfog.diffusion.processes import Gaussian
from unfog.diffusion.schedules import Cosine
from unfog.networks.adversarial import Critic, Generator
from unfog.networks.mlp import MLP
from unfog.training.gan import Adam, Adversary, Settings, critic_loss, generator_loss, scale_at, slope, train_denoiser, train_gan


def spots(n, generator):
    """Two spots in the plane, at (1, 1) and (−1, −1)."""
    return (torch.randint(2, (n, 1), generator=generator) * 2.0 - 1) + 0.05 * torch.randn(n, 2, generator=generator)


@pytest.fixture
def smooth():
    """A critic in float64 without kinks, whose slope differences can find."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def differences(critic, points, step=1e-5):
    """|∇D|² by central differences, (B,)."""
    total = np.zeros(len(points))
    for axis in range(points.shape[1]):
        move = torch.zeros_like(points)
        move[:, axis] = step
        with torch.no_grad():
            total += ((critic(points + move) - critic(points - move))[:, 0].numpy() / (2 * step)) ** 2
    return total


def test_slope_against_differences(smooth):
    points = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    found = slope(smooth(points), points)
    np.testing.assert_allclose(found.detach().numpy(), differences(smooth, points.detach()), rtol=1e-6)


def test_slope_of_a_linear_critic_is_its_weight():
    critic = nn.Linear(3, 1).double()
    points = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    expected = float(critic.weight.detach().square().sum())
    np.testing.assert_allclose(slope(critic(points), points).detach().numpy(), expected, rtol=1e-12)


def test_penalty_reaches_the_weights(smooth):
    """d/dw of the whole critic loss, penalties included, by differences of the loss."""
    real, fake = torch.randn(5, 2, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    gamma, weight = torch.full((5,), 0.7, dtype=torch.float64), smooth[0].weight

    def loss():
        return critic_loss(smooth, real, fake, gamma, True, 3.0).mean()

    (gradient,) = torch.autograd.grad(loss(), weight)
    for place in ((0, 0), (3, 1), (7, 0)):
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                weight[place] += sign * 1e-6
            ends.append(float(loss().detach()))
            with torch.no_grad():
                weight[place] -= sign * 1e-6
        assert float(gradient[place]) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("relativistic", [True, False])
def test_losses_by_hand(smooth, relativistic):
    real, fake = torch.randn(5, 2, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    gamma = torch.linspace(0.1, 2, 5, dtype=torch.float64)
    with torch.no_grad():
        a, b = smooth(real)[:, 0].numpy(), smooth(fake)[:, 0].numpy()
    apart = np.log1p(np.exp(b - a)) if relativistic else np.log1p(np.exp(-a)) + np.log1p(np.exp(b))
    both = differences(smooth, real) + differences(smooth, fake)
    found = critic_loss(smooth, real, fake, gamma, relativistic).detach().numpy()
    np.testing.assert_allclose(found, apart + gamma.numpy() / 2 * both, rtol=1e-6)
    without = critic_loss(smooth, real, fake, gamma, relativistic, 0.0).detach().numpy()
    np.testing.assert_allclose(without, apart, rtol=1e-12)
    wanted = np.log1p(np.exp(a - b)) if relativistic else np.log1p(np.exp(-b))
    np.testing.assert_allclose(generator_loss(smooth, real, fake, relativistic).detach().numpy(), wanted, rtol=1e-12)


def test_adam_is_torchs():
    mine, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(mine.state_dict())
    ours, reference = Adam(mine, [0.01], (0.0, 0.99)), torch.optim.Adam(theirs.parameters(), 0.01, (0.0, 0.99))
    x = torch.randn(8, 3)
    for _ in range(5):
        ours.step(mine(x).square().mean(), 1.0)
        reference.zero_grad()
        theirs(x).square().mean().backward()
        reference.step()
    for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_learning_rate_falls():
    settings = Settings(100, 4, (1e-3,), (0,), fall=0.5)
    assert scale_at(settings, 0) == scale_at(settings, 50) == 1.0
    assert scale_at(settings, 75) == pytest.approx(0.5) and 0 < scale_at(settings, 99) <= 0.02


def gan_of(seeds, rates, steps=30, relativistic=True):
    generator, critic = MLP(4, 2, list(seeds), 16, 2), MLP(2, 1, [s + 100 for s in seeds], 16, 2, bands=2)
    settings = Settings(steps, 32, tuple(rates), tuple(seeds))
    return train_gan(generator, critic, spots, settings, Adversary((0.1,) * len(seeds), 4, relativistic))


def points_of(found, runs):
    noise = torch.randn(64, 4, generator=torch.Generator().manual_seed(5)).repeat(runs, 1)
    with torch.no_grad():
        return found.network(noise).reshape(runs, 64, 2)


def test_a_seed_decides_and_another_differs():
    one, same, other = (points_of(gan_of([seed], [1e-3]), 1) for seed in (3, 3, 4))
    assert torch.equal(one, same) and not torch.allclose(one, other, atol=1e-2)


def test_runs_side_by_side_are_the_runs_alone():
    together = points_of(gan_of([3, 4], [1e-3, 3e-3], 10), 2)
    for i, (seed, rate) in enumerate(((3, 1e-3), (4, 3e-3))):
        torch.testing.assert_close(together[i], points_of(gan_of([seed], [rate], 10), 1)[0], rtol=1e-3, atol=1e-4)


def test_a_broken_run_stays_alone():
    found = gan_of([3, 4], [math.nan, 1e-3], 10)
    broken, sound = points_of(found, 2)
    assert torch.isnan(broken).all() and torch.isfinite(sound).all()


@pytest.mark.parametrize("relativistic", [True, False])
def test_the_generator_moves_to_the_data(relativistic):
    """Two far spots: after some steps samples are nearer to them than before."""

    def far(n, generator):
        return spots(n, generator) * 0.2 + 3

    def distance(network):
        with torch.no_grad():
            return float((network(torch.randn(256, 4, generator=torch.Generator().manual_seed(1))).mean(0) - 3).norm())

    generator, critic = MLP(4, 2, [0], 16, 2), MLP(2, 1, [1], 16, 2)
    before = distance(generator)
    found = train_gan(generator, critic, far, Settings(150, 32, (5e-3,), (0,)), Adversary((0.1,), 4, relativistic))
    assert distance(found.network) < 0.4 * before


def test_the_denoiser_s_loss_falls():
    network = MLP(2, 2, [0], 32, 2, bands=3, time=16)
    settings = Settings(150, 64, (5e-3,), (0,))
    curve = train_denoiser(Preconditioned(network, Gaussian(Cosine()), "v"), spots, settings, [LogNormal(-1.0, 1.0)]).curve
    assert np.mean([p[1] for p in curve[-5:]]) < 0.7 * np.mean([p[1] for p in curve[:5]])


def test_one_rate_a_seed():
    with pytest.raises(ValueError, match="learning rates"):
        gan_of([0, 1], [1e-3])


def test_picture_networks_mirror_each_other():
    generator, critic = Generator(8, 16, 4, 2, (4, 8)), Critic(16, 4, 2, (4, 8))
    pictures = generator(torch.randn(3, 8))
    assert pictures.shape == (3, 4, 16, 16) and critic(pictures).shape == (3, 1)
    settings = Settings(3, 4, (1e-3,), (0,))

    def data(n, source):
        return torch.randn(n, 4, 16, 16, generator=source)

    found = train_gan(generator, critic, data, settings, Adversary((1.0,), 8, every=2))
    assert all(math.isfinite(p[1]) for p in found.curve) and len(found.curve) == 3
