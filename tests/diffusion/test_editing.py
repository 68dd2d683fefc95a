"""Noised starts, inversion and slerp."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unfog.diffusion.denoisers import GaussianDenoiser, MixtureDenoiser
from unfog.diffusion.editing import inversion, noised, slerp
from unfog.diffusion.grids import make_grid
from unfog.diffusion.noise import Noise
from unfog.diffusion.plan import sample
from unfog.diffusion.processes import Gaussian
from unfog.diffusion.samplers import make_plan
from unfog.diffusion.schedules import EDM, VP, Cosine, Linear, Table
from unfog.errors import UserError

SCHEDULES = [Cosine(), Linear(), VP(), EDM(), Table.scaled_linear()]
schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)


def mixture(schedule):
    means = torch.tensor([[1.0, 0.5, -0.5], [-1.0, 0.2, 0.8]], dtype=torch.float64)
    return MixtureDenoiser(Gaussian(schedule), torch.tensor([0.4, 0.6]), means, stds=torch.tensor([0.4, 0.3]))


@schedules
def test_a_weakly_noised_item_keeps_its_mode_and_a_strong_start_forgets_it(schedule):
    """From little noise every item returns to its own mode; from pure noise the modes' shares are the mixture's."""
    exact, seeds = mixture(schedule), list(range(200))
    x0 = exact.means[1].expand(200, 3).clone()
    shares = []
    for level in (0.1, 100.0):
        t = min(1.0, float(schedule.time(-2.0 * np.log(level))))
        plan = make_plan("dpmpp_2m", schedule, make_grid("logsnr", schedule, 12, start=t))
        out = sample(plan, exact, noised(exact.process, x0, Noise(seeds), t))
        shares.append(((out[:, 0] < 0.0).double().mean()).item())
    assert shares[0] == 1.0
    assert shares[1] == pytest.approx(0.6, abs=0.12)


def test_noised_is_the_forward_process_of_each_seed():
    process = Gaussian(Cosine())
    x0 = torch.ones(2, 3)
    both = noised(process, x0, Noise([5, 6]), 0.4)
    assert torch.equal(both[1:], noised(process, x0[1:], Noise([6]), 0.4))
    expected = process.mix(x0, Noise([5, 6]).normal((3,), 0), 0.4)
    assert torch.equal(both, expected)


@schedules
@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp_2m", "dpmpp_3s", "exp_adams", "deis", "flow_adams"])
def test_inversion_comes_back(schedule, name):
    """Data → noise → data; the higher order the nearer."""
    exact = mixture(schedule)
    x0 = torch.tensor([[1.2, 0.4, -0.7], [-0.8, 0.3, 1.0]], dtype=torch.float64)
    grid = make_grid("logsnr", schedule, 60, end=float(schedule.time(9.0)))
    end = float(grid[-1])
    start = x0 * schedule.alpha(end)
    there = sample(inversion(name, schedule, grid), exact, start)
    back = sample(make_plan(name, schedule, grid), exact, there)
    assert (back - start).abs().max() < (0.3 if name == "ddim" else 0.02)


@schedules
def test_inversion_of_a_gaussian_is_its_own_scaling(schedule):
    """One Gaussian: the ODE only rescales, x_t − αμ = (x_s − α_s μ)·std_t/std_s."""
    mean = torch.tensor([0.5, -1.0], dtype=torch.float64)
    exact = GaussianDenoiser(Gaussian(schedule), mean, std=0.7)
    grid = make_grid("logsnr", schedule, 80, start=min(1.0, float(schedule.time(-8.0))), end=float(schedule.time(8.0)))
    x = torch.tensor([[0.9, -0.2]], dtype=torch.float64)
    got = sample(inversion("dpmpp_3s", schedule, grid), exact, x)

    def width(t):
        return (schedule.alpha(t) ** 2 * 0.49 + schedule.sigma(t) ** 2) ** 0.5

    first, last = float(grid[-1]), float(grid[0])
    wanted = (x - schedule.alpha(first) * mean) * (width(last) / width(first)) + schedule.alpha(last) * mean
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_inversion_says_what_it_cannot_do():
    schedule = Cosine()
    with pytest.raises(UserError, match="clean data"):
        inversion("ddim", schedule, make_grid("logsnr", schedule, 5))
    grid = make_grid("logsnr", schedule, 5, end=0.01)
    with pytest.raises(UserError, match="draws noise"):
        inversion("ddpm", schedule, grid)
    with pytest.raises(UserError, match="eta to 0"):
        inversion("ddim", schedule, grid, eta=0.5)
    with pytest.raises(UserError, match="fall"):
        make_plan("ddim", schedule, grid[::-1])  # a rising grid by mistake is no inversion


def test_slerp_keeps_the_length_and_the_angle():
    a, b = Noise([1, 2]).normal((50,), 0, dtype=torch.float64), Noise([3, 4]).normal((50,), 0, dtype=torch.float64)
    assert torch.equal(slerp(a, b, 0.0), a) and torch.equal(slerp(a, b, 1.0), b)
    middle = slerp(a, b, 0.5)
    torch.testing.assert_close(middle.norm(dim=1), (a.norm(dim=1) + b.norm(dim=1)) / 2)
    unit = [v / v.norm(dim=1, keepdim=True) for v in (a, middle, b)]
    torch.testing.assert_close((unit[0] * unit[1]).sum(1), (unit[1] * unit[2]).sum(1))
    assert ((0.5 * (a + b)).norm(dim=1) < 0.9 * middle.norm(dim=1)).all()  # what the straight line loses
    mixed = slerp(a, b, torch.tensor([0.0, 0.3]))
    assert torch.equal(mixed[0], a[0])
    torch.testing.assert_close(mixed[1:], slerp(a[1:], b[1:], 0.3))


def test_slerp_of_parallel_opposite_and_zero_stays_finite():
    a = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    b = torch.tensor([[2.0, 0.0], [-1.0, 0.0], [0.0, 3.0]])
    torch.testing.assert_close(slerp(a, b, 0.5), torch.tensor([[1.5, 0.0], [0.0, 0.0], [0.0, 1.5]]))
    with pytest.raises(UserError, match="one shape"):
        slerp(a, b[:2], 0.5)
