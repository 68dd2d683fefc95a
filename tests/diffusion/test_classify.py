"""Which condition an item fits, by errors: near what exact densities say, and each item by itself."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from unfog.diffusion import Gaussian, GaussianDenoiser, classify
from unfog.diffusion.schedules import Cosine, Linear

N, KINDS = 24, 4


class Conditional:
    """Exact for x0 of kind k ~ N(μ_k, C_k)."""

    def __init__(self, process):
        self.process = process
        g = torch.Generator().manual_seed(0)
        means = 0.35 * torch.randn(KINDS, N, generator=g, dtype=torch.float64)
        roots = torch.randn(KINDS, N, N, generator=g, dtype=torch.float64) / math.sqrt(N)
        covs = [root @ root.T * (0.5 + 0.3 * k) + 0.05 * torch.eye(N) for k, root in enumerate(roots)]
        self.parts = [GaussianDenoiser(process, mean, cov=cov) for mean, cov in zip(means, covs, strict=True)]
        self.exact = [MultivariateNormal(mean, cov) for mean, cov in zip(means, covs, strict=True)]

    def __call__(self, x_t, t, cond=None):
        out = torch.stack([part(x_t, t) for part in self.parts])
        return out[cond["kind"].expand(len(x_t)), range(len(x_t))]

    def drawn(self, count):
        torch.manual_seed(1)
        return torch.cat([density.sample((count,)) for density in self.exact]), torch.arange(KINDS).repeat_interleave(count)


CONDS = [{"kind": torch.tensor([k])} for k in range(KINDS)]


@pytest.mark.parametrize("schedule", [Cosine(), Linear()])
def test_it_finds_nearly_what_exact_densities_find(schedule):
    model = Conditional(Gaussian(schedule))
    x0, kinds = model.drawn(40)
    found = classify(model, x0, CONDS)
    assert torch.allclose(found.sum(1), torch.ones(len(x0)))
    best = torch.stack([density.log_prob(x0) for density in model.exact]).argmax(0)
    share, most = (float((guess == kinds).double().mean()) for guess in (found.argmax(1), best))
    assert most > 0.9 and share > most - 0.1


def test_an_item_s_answer_is_its_own():
    model = Conditional(Gaussian(Cosine()))
    x0, _ = model.drawn(3)
    together = classify(model, x0, CONDS)
    assert torch.allclose(together[4:5], classify(model, x0[4:5], CONDS), atol=1e-5)


def test_conditions_that_say_the_same_are_equally_likely():
    model = Conditional(Gaussian(Cosine()))
    x0, _ = model.drawn(2)
    assert torch.allclose(classify(model, x0, [CONDS[1]] * 3), torch.full((8, 3), 1 / 3))
    sure, unsure = (classify(model, x0, CONDS, sharpness).amax(1) for sharpness in (100.0, 1.0))
    assert (sure > unsure).all()
