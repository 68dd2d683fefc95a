"""Exact denoisers against quadrature and limits; what Preconditioned tells the network."""

from __future__ import annotations

import math

import pytest
import torch

from unfog.diffusion.denoisers import DataSetDenoiser, GaussianDenoiser, MixtureDenoiser, Preconditioned
from unfog.diffusion.processes import Gaussian, process_from_config
from unfog.diffusion.schedules import EDM, VP, Cosine, Linear, Shifted, Table
from unfog.errors import UserError

PROCESSES = [Gaussian(Cosine()), Gaussian(Linear()), Gaussian(EDM(sigma_max=20.0))]
processes = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p.schedule).__name__)


def quadrature(process, density, x_t: float, t: float) -> float:
    """E[x0 | x_t] by the midpoint rule over x0."""
    x0 = torch.linspace(-8, 8, 40001, dtype=torch.float64)
    alpha, sigma = process.schedule.alpha(t), process.schedule.sigma(t)
    log = density(x0) - 0.5 * ((x_t - alpha * x0) / sigma) ** 2
    weight = torch.softmax(log, 0)
    return (weight * x0).sum().item()


@processes
def test_mixture_against_quadrature(process):
    weights, means, stds = (torch.tensor([0.2, 0.5, 0.3]), torch.tensor([-1.5, 0.2, 2.0]), torch.tensor([0.3, 0.8, 0.1]))
    exact = MixtureDenoiser(process, weights, means[:, None], stds=stds)

    def density(x):
        part = -0.5 * ((x[:, None] - means) / stds) ** 2 - torch.log(stds) + torch.log(weights)
        return torch.logsumexp(part.double(), 1)

    for t in (0.05, 0.3, 0.7, 0.99):
        for value in (-2.0, 0.1, 1.4):
            got = exact(torch.tensor([[value]], dtype=torch.float64), t).item()
            assert got == pytest.approx(quadrature(process, density, value, t), rel=1e-6, abs=1e-7)


@processes
def test_full_covariance_by_conditioning_the_joint_gaussian(process):
    """(x0, x_t) is jointly normal: E[x0 | x_t] = μ + Cov(x0, x_t)·Var(x_t)⁻¹·(x_t − E x_t)."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    cov, mean = root @ root.T, torch.randn(3, generator=generator, dtype=torch.float64)
    exact = GaussianDenoiser(process, mean, cov=cov)
    x_t = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    for t in (0.01, 0.4, 0.9):
        alpha, sigma = process.schedule.alpha(t), process.schedule.sigma(t)
        total = alpha**2 * cov + sigma**2 * torch.eye(3, dtype=torch.float64)
        expected = mean + (alpha * cov @ torch.linalg.solve(total, (x_t - alpha * mean).T)).T
        torch.testing.assert_close(exact(x_t, t), expected)
    one = MixtureDenoiser(process, torch.ones(1), mean[None], covs=cov[None])
    torch.testing.assert_close(one(x_t, 0.4), exact(x_t, 0.4))


@processes
def test_diagonal_and_full_mixtures_agree(process):
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(2, 2, 2, generator=generator)
    stds = 0.2 + torch.rand(2, 2, 2, generator=generator, dtype=torch.float64)
    covs = torch.diag_embed(stds.flatten(1) ** 2)
    x_t = torch.randn(4, 2, 2, generator=generator, dtype=torch.float64)
    a = MixtureDenoiser(process, torch.tensor([0.4, 0.6]), means, stds=stds)
    b = MixtureDenoiser(process, torch.tensor([0.4, 0.6]), means, covs=covs)
    torch.testing.assert_close(a(x_t, 0.35), b(x_t, 0.35))


@processes
def test_data_set_is_the_limit_of_narrow_components(process):
    data = torch.randn(7, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    narrow = MixtureDenoiser(process, torch.ones(7), data, stds=torch.full((7,), 1e-6))
    exact = DataSetDenoiser(process, data)
    x_t = process.mix(data[:5], torch.randn(5, 3, generator=torch.Generator().manual_seed(3)).double(), 0.5)
    for t in (0.2, 0.5, 0.9):
        torch.testing.assert_close(exact(x_t, t), narrow(x_t, t), rtol=1e-5, atol=1e-6)
    times = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)
    whole = exact(x_t, times)
    for i in range(5):
        torch.testing.assert_close(whole[i : i + 1], exact(x_t[i : i + 1], times[i].item()))


@processes
def test_stable_at_every_noise_level(process):
    data = torch.randn(6, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    all_of_them = [
        DataSetDenoiser(process, data),
        MixtureDenoiser(process, torch.ones(6), data, stds=torch.full((6,), 0.1)),
        MixtureDenoiser(process, torch.ones(6), data, stds=torch.zeros(6)),
        GaussianDenoiser(process, data[0], std=0.5),
        GaussianDenoiser(process, data[0], cov=torch.zeros(4, 4)),
    ]
    for t in (0.0, 1e-12, 1e-6, 0.5, 1 - 1e-9, 1.0):
        x_t = process.mix(data, torch.ones_like(data), t)
        for exact in all_of_them:
            assert torch.isfinite(exact(x_t, t)).all()
    torch.testing.assert_close(all_of_them[0](data, 0.0), data)
    torch.testing.assert_close(all_of_them[3](data, 0.0), data)
    if process.schedule.alpha(1.0) == 0.0:
        noise = torch.randn(6, 4).double()
        torch.testing.assert_close(all_of_them[0](noise, 1.0), data.mean(0).expand(6, 4))


@processes
def test_per_item_times_equal_one_at_a_time(process):
    exact = MixtureDenoiser(process, torch.ones(2), torch.randn(2, 3), stds=torch.tensor([0.3, 0.4]))
    x_t, t = torch.randn(3, 3).double(), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    for i in range(3):
        torch.testing.assert_close(exact(x_t, t)[i : i + 1], exact(x_t[i : i + 1], t[i].item()))


class Recorder:
    def __init__(self):
        self.seen = []

    def __call__(self, x, logsnr, cond):
        self.seen.append((x.clone(), logsnr.clone()))
        return torch.zeros_like(x)


def test_network_hears_clamped_logsnr_as_float32():
    network = Recorder()
    denoiser = Preconditioned(network, Gaussian(Linear()), "v")
    x = torch.ones(2, 3, dtype=torch.float64)
    for t in (0.0, 0.5, 1.0, torch.tensor([0.0, 1.0])):
        denoiser(x, t)
    levels = [seen[1] for seen in network.seen]
    assert all(level.shape == (2,) and level.dtype == torch.float32 for level in levels)
    assert [level[0].item() for level in levels[:3]] == [20.0, pytest.approx(0.0), -20.0]
    assert levels[3].tolist() == [20.0, -20.0]


def test_network_hears_the_table_index():
    network = Recorder()
    table = Table.linear()
    denoiser = Preconditioned(network, Gaussian(table), "eps", noise_input="index")
    x = torch.ones(2, 3)
    denoiser(x, table.time_of(499))
    denoiser(x, torch.tensor([0.001, 1.0]))
    assert network.seen[0][1].tolist() == [499.0, 499.0]
    assert network.seen[1][1].tolist() == [0.0, 999.0]
    shifted = Shifted(table, 2.0)
    Preconditioned(network, Gaussian(shifted), "v", noise_input="index")(x, 0.5)
    heard = table.time_of(int(network.seen[2][1][0].item()))
    assert table.logsnr(heard) == pytest.approx(shifted.logsnr(0.5), abs=0.02)
    with pytest.raises(UserError, match="table"):
        Preconditioned(network, Gaussian(VP()), "eps", noise_input="index")


def test_input_scaling_only_where_asked():
    network = Recorder()
    x = torch.full((1, 3), 2.0)
    process = Gaussian(EDM())
    Preconditioned(network, process, "edm")(x, 0.7)
    Preconditioned(network, process, "v")(x, 0.7)
    sigma = process.schedule.sigma(0.7)
    assert network.seen[0][0][0, 0].item() == pytest.approx(2.0 / math.sqrt(1 + sigma**2), rel=1e-6)
    assert network.seen[1][0][0, 0].item() == 2.0


def test_maths_is_float32_around_a_half_network():
    network = torch.nn.Linear(3, 3).bfloat16()

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = network

        def forward(self, x, logsnr, cond):
            return self.layer(x)

    out = Preconditioned(Net(), Gaussian(Cosine()), "v")(torch.randn(2, 3).bfloat16(), 0.5)
    assert out.dtype == torch.float32


def test_wrong_shape_is_named():
    denoiser = Preconditioned(lambda x, logsnr, cond: x[:, :1], Gaussian(Cosine()), "v")
    with pytest.raises(ValueError, match="shape"):
        denoiser(torch.randn(2, 3), 0.5)


def test_process():
    process = Gaussian(EDM(), data_std=0.5)
    assert process.prior_std() == pytest.approx(math.sqrt(80.0**2 + 0.25))
    assert Gaussian(VP()).prior_std() == pytest.approx(1.0)
    assert process_from_config(process.config()) == process
    with pytest.raises(UserError):
        process_from_config({"name": "gaussian", "schedule": {"name": "linear"}, "std": 1.0})
    with pytest.raises(ValueError, match="one value an item"):
        process.mix(torch.zeros(3, 2), torch.zeros(3, 2), torch.tensor([0.1, 0.2]))


@processes
def test_below_its_training_a_network_is_asked_at_the_lowest_level_it_knows(process):
    """D(x_t, t) = D(x_t·α_min/α_t, t_min) for t < t_min; above, nothing changes; t as float and as (B,) agree."""
    asked = []

    def network(x, logsnr, cond):
        asked.append(logsnr)
        return torch.tanh(x) * (1.0 + 0.01 * logsnr[:, None])

    schedule, x = process.schedule, torch.randn(3, 4, dtype=torch.float64)
    plain, floored = Preconditioned(network, process, "x0"), Preconditioned(network, process, "x0", sigma_min=0.03)
    lowest = float(schedule.time(-2.0 * math.log(0.03)))
    below, above = 0.3 * lowest, min(2.0 * lowest, 1.0)
    assert torch.equal(floored(x, above), plain(x, above))
    moved = x * (schedule.alpha(lowest) / schedule.alpha(below))
    torch.testing.assert_close(floored(x, below), plain(moved, lowest), rtol=1e-12, atol=1e-12)
    assert float(asked[-2].max()) == pytest.approx(-2.0 * math.log(0.03), abs=1e-4)
    mixed = floored(x, torch.tensor([below, lowest, above], dtype=torch.float64))
    for i, t in enumerate((below, lowest, above)):
        torch.testing.assert_close(mixed[i], floored(x, t)[i], rtol=1e-6, atol=1e-7)
    noise = torch.ones(3, dtype=torch.float64)  # t = 1, where alpha may be 0
    torch.testing.assert_close(floored(x, noise), plain(x, noise), rtol=1e-12, atol=0.0)
    with pytest.raises(UserError, match="sigma_min"):
        Preconditioned(network, process, "x0", sigma_min=math.nan)
