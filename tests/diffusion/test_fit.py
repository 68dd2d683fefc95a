"""Learned plans: the general one behind "auto" and those fitted to one model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from unfog.diffusion.denoisers import GaussianDenoiser, MixtureDenoiser
from unfog.diffusion.fit import Problem, error, fit
from unfog.diffusion.grids import make_grid
from unfog.diffusion.noise import Noise
from unfog.diffusion.plan import Plan, sample
from unfog.diffusion.processes import Gaussian
from unfog.diffusion.samplers import make_plan
from unfog.diffusion.schedules import EDM, VP, Cosine, Linear, Table
from unfog.diffusion.tuned import TUNED, table
from unfog.errors import UserError

SCHEDULES = [Cosine(), Linear(), VP(), EDM(), Table.linear(), Table.scaled_linear()]


def mixture(schedule, dtype=torch.float64):
    means = torch.tensor([[1.2, 0.5, -0.5, 0.9], [-1.0, 0.2, 0.8, -1.1], [0.1, -1.3, 0.2, 0.6]], dtype=dtype)
    return MixtureDenoiser(Gaussian(schedule), torch.tensor([0.4, 0.3, 0.3]), means, stds=torch.full((3,), 0.4))


def problem(schedule, seeds, dtype=torch.float64):
    exact = mixture(schedule)
    x = exact.process.prior(Noise(seeds).normal((4,), 0, dtype=dtype))
    fine = sample(make_plan("dpmpp_3s", schedule, make_grid("logsnr", schedule, 60, logsnr_max=13.0)), exact, x)
    return Problem(exact, x, fine)


@pytest.mark.parametrize("schedule", [Linear(), Table.linear()], ids=["flow", "ddpm"])
def test_a_fitted_plan_halves_the_error_on_other_noise(schedule):
    learn, test = problem(schedule, list(range(16))), problem(schedule, list(range(100, 132)))
    grid = make_grid("exponential", schedule, 5, sigma_min=0.05, sigma_max=20.0)
    told = []
    found = fit([learn], schedule, grid, sampler="deis", rounds=5, each=lambda n, e: told.append((n, e)))
    before = make_plan("deis", schedule, grid)
    assert found.plan.nfe == 5 and found.rounds == len(told) == told[-1][0]
    assert found.error == pytest.approx(error(found.plan, [learn]))
    assert found.error < 0.5 * error(before, [learn])
    assert error(found.plan, [test]) < 0.6 * error(before, [test])
    assert all(a[1] > b[1] for a, b in zip(told, told[1:], strict=False))  # it never rises
    again = Plan.from_dict(found.plan.to_dict())
    assert torch.equal(sample(again, test.denoise, test.x), sample(found.plan, test.denoise, test.x))


def test_what_each_freedom_keeps():
    """ "grid" stays a plan of the sampler; "consistent" stays exact for a constant D; "all" need not."""
    schedule = Cosine()
    learn = problem(schedule, list(range(16)))
    grid = make_grid("logsnr", schedule, 4)
    moved = fit([learn], schedule, grid, sampler="dpmpp_2m", free="grid", rounds=3).plan
    same = make_plan("dpmpp_2m", schedule, np.append(moved.t, 0.0))
    assert np.allclose(moved.b, same.b) and np.allclose(moved.a, same.a) and not np.allclose(moved.t, grid[:-1])
    kept = fit([learn], schedule, grid, free="consistent", rounds=3).plan
    target = torch.tensor([[0.3, -0.7, 1.1, 0.2]], dtype=torch.float64)
    ends = sample(kept, lambda x, t: target.expand(len(x), -1), learn.x)
    torch.testing.assert_close(ends, target.expand(16, -1), rtol=0.0, atol=1e-10)
    free = fit([learn], schedule, grid, free="all", rounds=3)
    assert free.error <= fit([learn], schedule, grid, free="consistent", rounds=3).error * 1.5


def test_fit_goes_on_from_a_plan():
    schedule = Linear()
    learn = problem(schedule, list(range(16)))
    grid = make_grid("auto", schedule, 5)
    start = make_plan("auto", schedule, grid)
    found = fit([learn], schedule, grid, start=start, rounds=1)
    assert found.error < error(start, [learn])
    with pytest.raises(UserError, match="same grid"):
        fit([learn], schedule, make_grid("uniform", schedule, 5), start=start)


def test_fit_works_in_float32_and_says_what_is_wrong():
    schedule = Linear()
    exact = mixture(schedule)
    learn = problem(schedule, list(range(16)), torch.float32)
    assert learn.x.dtype == torch.float32
    grid = make_grid("logsnr", schedule, 4)
    assert fit([learn], schedule, grid, rounds=4).error < 0.8 * error(make_plan("exp_adams", schedule, grid), [learn])
    for wrong, match in (({"free": "al"}, "all"), ({"minutes": 0.0}, "minutes"), ({"memory": 0}, "memory"),
                         ({"sampler": "heun"}, "one evaluation a step"), ({"sampler": "ddpm"}, "deterministic")):  # fmt: skip
        with pytest.raises(UserError, match=match):
            fit([learn], schedule, grid, **wrong)
    with pytest.raises(UserError, match="at least one problem"):
        fit([], schedule, grid)
    assert math.isfinite(error(make_plan("ddim", schedule, grid), [Problem(lambda x, t: exact(x, t) / 0.0, learn.x, learn.fine)]))


@pytest.mark.parametrize("steps", [1, 2, 3, *sorted(TUNED["small"]), 7, 12, 40])
@pytest.mark.parametrize("dimension", [0, 2, 12_288])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_auto_is_a_plan_for_every_schedule_and_number_of_steps(schedule, dimension, steps):
    grid = make_grid("auto", schedule, steps, dimension=dimension)
    plan = make_plan("auto", schedule, grid)
    assert plan.nfe == steps and plan.end == 0.0
    # from pure noise or σ/α = 157.4, whichever is lower
    begin = min(157.4, math.exp(-0.5 * schedule.logsnr(1.0)))
    assert math.exp(-0.5 * schedule.logsnr(plan.start)) == pytest.approx(begin)
    assert make_grid("auto", schedule, steps, start=1.0, dimension=dimension)[0] == 1.0
    learned = table(dimension)
    if begin > 100.0:  # a schedule that starts within the levels gets them refined, and plain order 3
        usual = make_plan("exp_adams", schedule, grid, order=2 if steps < max(learned) else 3)
        np.testing.assert_allclose(plan.b[1:].sum(1), usual.b[1:].sum(1), rtol=1e-9)
        assert not any(plan.b[i, i + 1 :].any() for i in range(min(steps, 4)))  # no results that there are not yet
        if steps in learned and begin == 157.4:  # another start changes what Adams says of the first rows
            for row, older in zip(plan.b[1:], learned[steps].weights[1:], strict=True):
                np.testing.assert_allclose(row[1 : len(older) + 1] / row.sum(), older, atol=1e-6)
        if steps < min(learned):
            np.testing.assert_allclose(plan.b[1:, : usual.b.shape[1]], usual.b[1:])
    target = torch.tensor([[0.3, -0.7]], dtype=torch.float64)
    ends = sample(plan, lambda x, t: target, torch.randn(1, 2, dtype=torch.float64))
    torch.testing.assert_close(ends, target, rtol=0.0, atol=1e-8)  # exact for a constant D
    part = make_grid("auto", schedule, steps, start=0.6, end=0.01, dimension=dimension)
    assert part[0] == 0.6 and part[-1] == 0.01 and len(part) == steps + 1


@pytest.mark.parametrize("steps", [6, 7, 9, 13, 17, 24, 40])
def test_auto_keeps_what_it_learned_at_other_numbers_of_steps(steps):
    """The corrections, read off for a number of steps that was not learned, at most halve the error of order 2 and 3."""
    found = problem(Linear(), list(range(48)))
    grid = make_grid("auto", Linear(), steps, dimension=4)
    begun = found.x * (mixture(Linear()).process.prior_std(grid[0]) / mixture(Linear()).process.prior_std(1.0))
    ended = [Problem(found.denoise, begun, found.fine)]
    ours = error(make_plan("auto", Linear(), grid), ended)
    for order in (2, 3):
        assert ours < 0.5 * error(make_plan("exp_adams", Linear(), grid, order=order), ended), order


def test_what_auto_corrects_vanishes_as_steps_grow():
    """Share (30/n)²: the weights tend to exponential Adams', whose order the sampler so keeps."""
    most = []
    for steps in (60, 120, 240):
        grid = make_grid("auto", Linear(), steps, dimension=4)
        usual = make_plan("exp_adams", Linear(), grid)
        gap = make_plan("auto", Linear(), grid).b[1:, :3] - usual.b[1:]
        most.append(float(np.abs(gap / usual.b[1:].sum(1, keepdims=True)).max()))
    assert 3.5 < most[0] / most[1] < 4.5 and 3.5 < most[1] / most[2] < 4.5


def test_auto_is_the_same_in_every_schedule():
    """One table in log-SNR: with the same noise all schedules that start from (nearly) pure noise end at the same place."""
    ends = []
    for schedule in (Linear(), Cosine(), EDM(sigma_max=1e4)):
        exact = mixture(schedule)
        plan = make_plan("auto", schedule, make_grid("auto", schedule, 8))
        x = Noise([1, 2, 3]).normal((4,), 0, dtype=torch.float64) * schedule.sigma(plan.start)
        ends.append(sample(plan, exact, x))
    torch.testing.assert_close(ends[0], ends[1], rtol=0.0, atol=1e-9)
    torch.testing.assert_close(ends[0], ends[2], rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), EDM(sigma_max=1e5)], ids=lambda s: type(s).__name__)
def test_auto_starts_below_pure_noise_without_losing_the_mean(schedule):
    """From σ/α = 157 a draw of the prior lacks α·E[x0], 1/157 of the mean: nothing of that is left."""
    exact = GaussianDenoiser(Gaussian(schedule), torch.full((4,), 3.0, dtype=torch.float64), std=0.5)
    plan = make_plan("auto", schedule, make_grid("auto", schedule, 40, dimension=4))
    noise = Noise(range(8)).normal((4,), 0, dtype=torch.float64)
    ends = sample(plan, exact, exact.process.prior(noise, plan.start))
    assert float((ends - (3.0 + 0.5 * noise)).abs().max()) < 2e-3


@pytest.mark.parametrize("steps", [5, 8, 10, 15, 20])
def test_auto_beats_untuned_samplers_on_a_target_that_it_has_not_seen(steps):
    found = problem(Linear(), list(range(48)))
    plan = make_plan("auto", Linear(), make_grid("auto", Linear(), steps, dimension=4))
    begun = found.x * (mixture(Linear()).process.prior_std(plan.start) / mixture(Linear()).process.prior_std(1.0))
    ours = error(plan, [Problem(found.denoise, begun, found.fine)])
    for sampler in ("dpmpp_2m", "unipc"):
        for grid in ("logsnr", "exponential", "flow"):
            assert ours < error(make_plan(sampler, Linear(), make_grid(grid, Linear(), steps)), [found]), (sampler, grid)
