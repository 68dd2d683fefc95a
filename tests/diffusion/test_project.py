"""A process on a part of the space: what lies outside is neither seen nor learned, and no sampler leaves it."""

import pytest
import torch

from unfog.diffusion import Gaussian, Noise, begin, make_grid, make_plan, run
from unfog.diffusion.denoisers import Preconditioned
from unfog.diffusion.losses import denoising_loss
from unfog.diffusion.samplers import SAMPLERS
from unfog.diffusion.schedules import Cosine


def centred(x, cond):
    """Points (B, N, 2) about their centre of mass."""
    return x - x.mean(1, keepdim=True)


def network(x, logsnr, cond):
    return 0.3 * x + 0.7 * torch.tanh(x.sum(2, keepdim=True)) + 1.5  # its own centre of mass is elsewhere


@pytest.mark.parametrize("prediction", ["x0", "v", "eps", "flow", "edm"])
def test_what_lies_outside_is_unseen(prediction):
    denoiser = Preconditioned(network, Gaussian(Cosine()), prediction, project=centred)
    x = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0))
    moved = x + torch.tensor([4.0, -7.0])
    first, second = denoiser(x, 0.4), denoiser(moved, 0.4)
    assert torch.allclose(first, second, atol=1e-5)
    assert float(first.mean(1).abs().max()) < 1e-6


@pytest.mark.parametrize("prediction", ["x0", "v", "eps"])
def test_the_loss_counts_only_what_is_inside(prediction):
    denoiser = Preconditioned(network, Gaussian(Cosine()), prediction, project=centred)
    generator = torch.Generator().manual_seed(1)
    x0, noise = (torch.randn(4, 5, 2, generator=generator) for _ in range(2))
    t = torch.tensor([0.1, 0.4, 0.7, 0.95])
    plain = denoising_loss(denoiser, x0, None, t, noise)
    moved = denoising_loss(denoiser, x0 + 3.0, None, t, noise - 2.0)
    assert torch.allclose(plain, moved, rtol=1e-4)
    # by hand: everything projected first
    inside = Preconditioned(lambda x, logsnr, cond: centred(network(x, logsnr, cond), cond), Gaussian(Cosine()), prediction)
    assert torch.allclose(plain, denoising_loss(inside, centred(x0, None), None, t, centred(noise, None)), rtol=1e-4)


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_no_sampler_leaves_it(name):
    schedule = Cosine()
    denoiser = Preconditioned(network, Gaussian(schedule), "x0", project=centred)
    plan = make_plan(name, schedule, make_grid("auto" if name == "auto" else "logsnr", schedule, 6))
    noise = Noise([0, 1])
    x = denoiser.process.prior(noise.normal((5, 2), 0), plan.start)
    last = list(run(plan, denoiser, begin(plan, x), noise))[-1].x
    assert float(last.mean(1).abs().max()) < 1e-4 < float(last.std())
