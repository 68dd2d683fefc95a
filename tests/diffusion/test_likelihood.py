"""Likelihood: known densities on every schedule, error bars that cover, dequantisation, the variational bound."""

import math

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal

from unfog.diffusion.denoisers import GaussianDenoiser, MixtureDenoiser, Preconditioned
from unfog.diffusion.likelihood import bits_per_dim, log_likelihood, student, variational_bound
from unfog.diffusion.noise import Noise
from unfog.diffusion.processes import Gaussian
from unfog.diffusion.schedules import EDM, VP, Cosine, Linear, Shifted, Table
from unfog.errors import UserError

SCHEDULES = {
    "linear": Linear(),
    "cosine": Cosine(),
    "vp": VP(),
    "edm": EDM(),
    "table": Table.scaled_linear(),
    "zero_snr": Table.linear().zero_terminal_snr(),
    "shifted": Shifted(Linear(), 3.0),
}
COSINE = Gaussian(Cosine())


def gaussian(n, process=COSINE, seed=0):
    """A correlated Gaussian, its denoiser, and its density."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(n, n, generator=generator, dtype=torch.float64) / math.sqrt(n)
    mean, cov = torch.randn(n, generator=generator, dtype=torch.float64), root @ root.T + 0.03 * torch.eye(n)
    return GaussianDenoiser(process, mean, cov=cov), MultivariateNormal(mean, cov)


def mixture(n, process=COSINE, spread=1.5, width=0.3):
    """Three correlated components, their denoiser, and their density."""
    generator = torch.Generator().manual_seed(1)
    means = spread * torch.randn(3, n, generator=generator, dtype=torch.float64)
    root = width * torch.randn(3, n, n, generator=generator, dtype=torch.float64) / math.sqrt(n)
    covs, weights = root @ root.transpose(1, 2) + 0.01 * torch.eye(n), torch.tensor([0.3, 0.5, 0.2]).double()
    density = MixtureSameFamily(Categorical(weights), MultivariateNormal(means, covs))
    return MixtureDenoiser(process, weights, means, covs=covs), density


def draw(density, count, seed=0):
    torch.manual_seed(seed)
    return density.sample((count,))


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_mixture_on_every_schedule(name):
    denoiser, density = mixture(2, Gaussian(SCHEDULES[name]))
    # Data, and places where data is rare.
    x0 = torch.cat([draw(density, 4), torch.tensor([[0.0, 0.0], [1.2, -1.2]]).double()])
    got = log_likelihood(denoiser, x0, steps=48)
    assert (got.log_prob - density.log_prob(x0)).abs().max() < 0.01
    assert got.discretisation.max() < 0.03 and got.stderr.abs().max() == 0.0 and 6 * 48 < got.nfe < 6 * 48 + 20


@pytest.mark.parametrize("make", [gaussian, pytest.param(mixture, marks=pytest.mark.slow)])
def test_64_dimensions(make):
    denoiser, density = make(64, Gaussian(Linear()))
    x0 = draw(density, 2)
    got = log_likelihood(denoiser, x0, steps=32)
    assert (got.log_prob - density.log_prob(x0)).abs().max() < 0.01


def test_the_shape_and_the_width_of_the_data():
    mean, std = torch.full((2, 3, 1), 40.0), 12.0
    denoiser = GaussianDenoiser(Gaussian(EDM(sigma_max=2000.0), data_std=10.0), mean, std=std)
    x0 = mean + std * torch.linspace(-2.0, 2.0, 6).reshape(1, 2, 3, 1)
    got = log_likelihood(denoiser, x0, steps=32)
    truth = Normal(40.0, std).log_prob(x0.double()).sum()
    assert got.log_prob.shape == (1,) and got.log_prob.dtype == torch.float64 and abs(float(got.log_prob - truth)) < 0.01


def test_the_prior_of_the_process():
    # A prior at 0 that the data's mean of 40 at σ = 80 contradicts by ½·(40/80)² nats on average.
    denoiser = GaussianDenoiser(Gaussian(EDM()), torch.full((1,), 40.0), std=1.0)
    x0 = torch.tensor([[40.0]])
    centred, plain = (float(log_likelihood(denoiser, x0, steps=32, prior=p).log_prob) for p in ("denoiser", "process"))
    assert abs(centred - Normal(40.0, 1.0).log_prob(torch.tensor(40.0))) < 0.01
    assert centred - plain == pytest.approx(0.125, abs=1e-3)


def test_the_density_of_any_denoiser_integrates_to_one():
    # A network that no data stands behind: the change of variables must hold all the same.
    def network(x, logsnr, cond):
        level = logsnr[:, None].double()
        return 0.4 * torch.tanh(1.3 * x + 0.1 * level) + 0.2 * torch.sin(x) + cond["shift"]

    denoiser = Preconditioned(network, COSINE, "v")
    x0 = torch.linspace(-12.0, 12.0, 400, dtype=torch.float64)[:, None]
    got = log_likelihood(denoiser, x0, {"shift": torch.full((400, 1), 0.1, dtype=torch.float64)}, steps=48)
    assert torch.trapezoid(got.log_prob.exp(), x0[:, 0]) == pytest.approx(1.0, abs=2e-3)


def test_the_stated_discretisation_is_that_of_few_steps():
    denoiser, density = mixture(2, spread=0.8)
    x0 = draw(density, 20)
    few, more = (log_likelihood(denoiser, x0, steps=steps) for steps in (24, 48))
    error = (few.log_prob - density.log_prob(x0)).abs()
    assert error.max() > 1e-4  # there is something to state
    assert (error <= few.discretisation).double().mean() >= 0.85
    assert more.discretisation.mean() < 0.2 * few.discretisation.mean()


def test_the_interval_of_hutchinson_covers_the_truth():
    denoiser, density = gaussian(6)
    x0 = draw(density, 300)
    truth = density.log_prob(x0)
    got = log_likelihood(denoiser, x0, steps=16, trace="hutchinson", probes=8, noise=Noise(range(300)))
    low, high = got.interval()
    covered = ((low <= truth) & (truth <= high)).double().mean()
    assert covered >= 0.90, covered
    # And not by being wide: the errors are as large as stated.
    rms = float((got.log_prob - truth).square().mean().sqrt())
    assert rms == pytest.approx(float(got.stderr.square().mean().sqrt()), rel=0.25) and rms > 0.05


def test_probes_depend_on_the_seed_alone():
    denoiser, density = gaussian(5)
    x0 = draw(density, 3)
    options = {"steps": 4, "trace": "hutchinson", "probes": 3}
    together = log_likelihood(denoiser, x0, noise=Noise([7, 8, 9]), **options)
    alone = log_likelihood(denoiser, x0[1:2], noise=Noise([8]), **options)
    other = log_likelihood(denoiser, x0[1:2], noise=Noise([9]), **options)
    assert torch.allclose(together.log_prob[1:2], alone.log_prob, atol=1e-9, rtol=0.0)
    assert (alone.log_prob - other.log_prob).abs() > 1e-3


def test_it_needs_no_gradients_from_outside():
    denoiser, density = gaussian(2)
    x0 = draw(density, 2)
    plain = log_likelihood(denoiser, x0, steps=4)
    with torch.inference_mode():
        inside = log_likelihood(denoiser, x0, steps=4)
    assert torch.equal(plain.log_prob, inside.log_prob) and not plain.log_prob.requires_grad


@pytest.mark.parametrize(
    ("level", "freedom", "value"), [(0.95, 1, 12.7062), (0.95, 7, 2.3646), (0.9, 15, 1.7531), (0.95, 2000, 1.9612)]
)
def test_student(level, freedom, value):
    assert student(level, freedom) == pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize("levels", [3, 17, 256])
def test_bits_of_any_number_of_levels(levels):
    # P(k) of a Gaussian's bins; the bound averages the log-density over the bin instead.
    low, high, std = -2.0, 3.0, 1.1
    width = (high - low) / (levels - 1)
    k = torch.arange(0, levels, max(1, levels // 4)).double()
    x0 = (low + width * k)[:, None].expand(-1, 2)
    denoiser = GaussianDenoiser(COSINE, torch.full((2,), 0.4), std=std)
    got = bits_per_dim(denoiser, x0, noise=Noise(range(len(k))), levels=levels, low=low, high=high, draws=6, steps=8)
    density = Normal(0.4, std)
    inside = low + width * (k[:, None] + (torch.arange(1000) + 0.5) / 1000.0 - 0.5)
    bound = -(density.log_prob(inside).mean(1) + math.log(width)) / math.log(2.0)
    exact = -torch.log2(density.cdf(inside[:, -1] + width / 2000) - density.cdf(inside[:, 0] - width / 2000)).double()
    assert (bound >= exact - 1e-6).all()
    assert abs(got.value - float(bound.mean())) < 4.0 * got.draws_stderr + 1e-3
    assert got.items.shape == (len(k),) and got.stderr == pytest.approx(float(got.items.std()) / math.sqrt(len(k)))
    if levels == 256:
        assert abs(got.value - float(exact.mean())) < 0.01


def test_bits_with_probes_and_one_item():
    denoiser, _ = gaussian(4)
    x0 = torch.tensor([[-1.0, 1.0, 1.0 / 255.0, 1.0]])
    options = {"levels": 256, "steps": 4, "draws": 2, "noise": Noise([3])}
    got = bits_per_dim(denoiser, x0, trace="hutchinson", probes=40, **options)
    exact = bits_per_dim(denoiser, x0, **options)
    assert math.isnan(got.stderr) and got.value == pytest.approx(exact.value, abs=0.5) and got.value != exact.value


@pytest.mark.parametrize("name", ["cosine", "edm"])
def test_the_bound_meets_the_density_of_the_exact_denoiser(name):
    denoiser, density = mixture(2, Gaussian(SCHEDULES[name]), width=0.6)
    x0 = draw(density, 60)
    got = variational_bound(denoiser, x0, noise=Noise(range(60)), points=24, draws=4)
    gap = got.value + density.log_prob(x0)
    error = float(got.stderr.square().sum().sqrt()) / 60
    assert error < 0.2 and abs(float(gap.mean())) < 3.5 * error + 0.01
    low, _ = got.interval(0.99)
    assert (low <= -density.log_prob(x0) + 0.01).double().mean() > 0.95


def test_the_bound_has_no_variance_for_a_unit_gaussian():
    denoiser = GaussianDenoiser(COSINE, torch.zeros(5), std=1.0)
    x0 = draw(Normal(0.0, 1.0), 10).reshape(2, 5)
    got = variational_bound(denoiser, x0, noise=Noise([0, 1]), points=4, draws=2)
    truth = -Normal(0.0, 1.0).log_prob(x0).sum(1).double()
    assert torch.allclose(got.value, truth, atol=1e-4) and got.stderr.max() < 1e-4


def test_the_bound_is_above_for_a_wrong_denoiser():
    right, density = gaussian(3)
    x0 = draw(density, 40)

    class Wrong:
        process = COSINE

        def __call__(self, x_t, t, cond=None):
            return 0.8 * right(x_t, t)

    got = variational_bound(Wrong(), x0, noise=Noise(range(40)), points=24, draws=4)
    error = float(got.stderr.square().sum().sqrt()) / 40
    assert float((got.value + density.log_prob(x0)).mean()) > 5.0 * error


GOOD = torch.zeros(2, 3)
BAD = {
    "batch": (GOOD[0], {}, "batch dimension"),
    "nan": (torch.full((2, 3), math.nan), {}, "finite"),
    "whole": (torch.zeros(2, 3, dtype=torch.int64), {}, "floating-point"),
    "trace": (GOOD, {"trace": "hutchison"}, "did you mean hutchinson"),
    "probes": (GOOD, {"trace": "hutchinson", "probes": 1, "noise": Noise([0, 1])}, "probes"),
    "noise": (GOOD, {"trace": "hutchinson"}, "Noise"),
    "seeds": (GOOD, {"trace": "hutchinson", "noise": Noise([0])}, "one seed an item"),
    "prior": (GOOD, {"prior": "denoised"}, "did you mean denoiser"),
    "odd": (GOOD, {"steps": 5}, "even"),
    "steps": (GOOD, {"steps": 0}, "steps"),
    "end": (GOOD, {"end": 1.0}, "end"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    x0, options, text = BAD[name]
    denoiser = GaussianDenoiser(COSINE, torch.zeros(3), std=1.0)
    with pytest.raises(UserError, match=text) as error:
        log_likelihood(denoiser, x0, **options)
    assert "\n" not in str(error.value)


def test_bad_levels_bounds_and_denoisers():
    denoiser, noise = GaussianDenoiser(COSINE, torch.zeros(3), std=1.0), Noise([0, 1])
    with pytest.raises(UserError, match="levels"):
        bits_per_dim(denoiser, GOOD, noise=noise, levels=1)
    with pytest.raises(UserError, match="not on the 256 values"):
        bits_per_dim(denoiser, GOOD, noise=noise)  # 0 lies between two of 256 values
    with pytest.raises(UserError, match="low < high"):
        bits_per_dim(denoiser, GOOD, noise=noise, low=1.0, high=1.0)
    with pytest.raises(UserError, match="draws"):
        variational_bound(denoiser, GOOD, noise=noise, draws=1)
    with pytest.raises(UserError, match="not finite"):
        log_likelihood(Preconditioned(lambda x, level, c: x / 0.0, COSINE), GOOD, steps=2)
