"""Adaptive steps against fine solutions, alone and in a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unfog.diffusion.adaptive import run_adaptive, sample_adaptive
from unfog.diffusion.denoisers import MixtureDenoiser
from unfog.diffusion.grids import make_grid
from unfog.diffusion.noise import Noise
from unfog.diffusion.plan import sample
from unfog.diffusion.processes import Gaussian
from unfog.diffusion.samplers import make_plan
from unfog.diffusion.schedules import EDM, VP, Cosine, Linear, Table
from unfog.errors import UserError

SCHEDULES = [Cosine(), Linear(), VP(), EDM(), Table.scaled_linear()]


def mixture(schedule):
    means = torch.tensor([[1.0, 0.5, -0.5], [-1.0, 0.2, 0.8]], dtype=torch.float64)
    return MixtureDenoiser(Gaussian(schedule), torch.tensor([0.4, 0.6]), means, stds=torch.tensor([0.4, 0.3]))


def start(exact, seeds):
    return exact.process.prior(Noise(seeds).normal((3,), 0, dtype=torch.float64))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_the_error_follows_the_tolerance(schedule):
    exact = mixture(schedule)
    x = start(exact, range(8))
    fine = sample(make_plan("dpmpp_3s", schedule, make_grid("logsnr", schedule, 120)), exact, x)
    errors, spent = [], []
    for tolerance in (0.1, 0.01, 0.001):
        out, nfe = sample_adaptive(exact.process, exact, x, tolerance=tolerance)
        # the median: a coarse step may carry an item near a border to another mode
        errors.append((out - fine).abs().amax(1).median().item())
        spent.append(nfe.mean())
    assert errors[1] < 0.03 and errors[2] < 0.003
    assert errors[0] > errors[1] > errors[2] and spent[0] < spent[1] < spent[2]


def test_an_item_alone_is_the_item_in_a_batch():
    exact = mixture(Cosine())
    seeds = [4, 9, 2, 7]
    together, nfe = sample_adaptive(exact.process, exact, start(exact, seeds))
    assert len(set(nfe.tolist())) > 1  # they do differ
    for i, seed in enumerate(seeds):
        alone, count = sample_adaptive(exact.process, exact, start(exact, [seed]))
        torch.testing.assert_close(alone[0], together[i], rtol=1e-12, atol=1e-13)
        assert count[0] == nfe[i]


def test_every_evaluation_is_counted_rejects_and_all():
    exact, asked = mixture(Cosine()), []

    def counting(x_t, t):
        asked.append(len(x_t))
        return exact(x_t, t)

    states = list(run_adaptive(exact.process, counting, start(exact, range(5)), tolerance=0.002, first=6.0))
    assert states[-1].nfe.sum() == sum(asked)
    assert states[-1].rejected.sum() > 0  # the first step was far too long
    assert states[-1].done and not any(state.done for state in states[:-1])
    assert all((a.t >= b.t).all() for a, b in zip(states, states[1:], strict=False))
    # two a step, one more a rejection, one where the last step landed
    steps = states[-1].nfe - states[-1].rejected
    assert (steps % 2 == 0).all()


def test_it_cannot_hang():
    exact = mixture(Cosine())
    with pytest.raises(UserError, match="more than 20 evaluations"):
        sample_adaptive(exact.process, exact, start(exact, [1]), tolerance=1e-6, max_nfe=20)
    with pytest.raises(UserError, match="not finite .* item 1"):
        sample_adaptive(
            exact.process, lambda x, t: torch.full_like(x, np.nan) if len(x) == 1 else torch.where(
                torch.arange(len(x))[:, None] == 1, torch.nan, exact(x, t)), start(exact, [1, 2]))  # fmt: skip
    for options in ({"tolerance": 0.0}, {"tolerance": 2.0}, {"first": 0.0}, {"max_nfe": 1}, {"logsnr_min": 11.0}):
        with pytest.raises(UserError, match="adaptive"):
            sample_adaptive(exact.process, exact, start(exact, [1]), **options)
