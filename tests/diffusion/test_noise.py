"""Noise: each item from its own seed alone, the same numbers everywhere, and really normal."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from unfog.diffusion.noise import Noise, _circle, _log
from unfog.errors import UserError


def test_an_item_does_not_know_its_batch():
    whole = Noise([5, 6, 7, 8]).normal((3, 4), stream=2)
    assert torch.equal(Noise([7]).normal((3, 4), stream=2)[0], whole[2])
    assert torch.equal(Noise([8, 5]).normal((3, 4), stream=2), whole[[3, 0]])
    assert torch.equal(Noise([5, 5]).normal((3, 4), stream=2)[1], whole[0])
    uniform = Noise([5, 6, 7, 8]).uniform((3, 4), stream=2)
    assert torch.equal(Noise([7]).uniform((3, 4), stream=2)[0], uniform[2])


def test_no_state_between_draws():
    noise = Noise([1, 2])
    first = noise.normal((8,), stream=0)
    noise.normal((100,), stream=1)
    noise.uniform((3,), stream=0)
    assert torch.equal(noise.normal((8,), stream=0), first)
    torch.manual_seed(99)
    np.random.seed(99)
    assert torch.equal(noise.normal((8,), stream=0), first)


def test_pinned_values():
    """Written down once: a changed value breaks every picture that anybody kept the seed of."""
    out = Noise([0, 1, 2**63 - 1]).normal((4,), stream=3, dtype=torch.float64)
    assert [[value.hex() for value in row] for row in out.tolist()] == PINNED_NORMAL
    assert Noise([42]).uniform((2,), stream=0, dtype=torch.float64)[0].tolist() == PINNED_UNIFORM


PINNED_NORMAL = [
    ["-0x1.1f80539eaa5c0p+0", "0x1.109879de9b6c3p-2", "0x1.7074c1b736b89p-3", "0x1.0d9951b73460dp+0"],
    ["0x1.53a568cb56932p-1", "0x1.2250fc1c68edbp-2", "-0x1.c5736609a5b99p+0", "0x1.01e31e04fb29fp-4"],
    ["-0x1.d184ae566fb02p+0", "-0x1.0afc9d4b7857fp-1", "0x1.8d5e85c1b4897p-2", "0x1.8fc1667087b26p+0"],
]
PINNED_UNIFORM = [0.4569135662565265, 0.0844752188774423]


def test_elementary_functions_against_the_library():
    u = np.concatenate([np.random.default_rng(0).random(20000), [1.0, 2.0**-53, 0.5, math.sqrt(0.5), 0.25]])
    np.testing.assert_allclose(_log(u), np.log(u), rtol=4e-16, atol=1e-17)
    u = u[u < 1.0]
    cos, sin = _circle(u)
    np.testing.assert_allclose(cos, np.cos(2 * np.pi * u - np.pi / 4), atol=2e-15)
    np.testing.assert_allclose(sin, np.sin(2 * np.pi * u - np.pi / 4), atol=2e-15)


def test_moments_and_tails():
    z = Noise(range(64)).normal((64, 64), stream=0, dtype=torch.float64).flatten()
    n = len(z)
    assert abs(z.mean().item()) < 4 / math.sqrt(n)
    assert abs(z.var().item() - 1) < 4 * math.sqrt(2 / n)
    assert abs((z**3).mean().item()) < 4 * math.sqrt(15 / n)
    assert abs((z**4).mean().item() - 3) < 4 * math.sqrt(96 / n)
    for edge in (-2.0, -0.5, 0.3, 1.0, 2.5):  # the distribution function, by binomial error
        p = 0.5 * math.erfc(-edge / math.sqrt(2))
        assert abs((z < edge).double().mean().item() - p) < 4 * math.sqrt(p * (1 - p) / n)
    u = Noise(range(64)).uniform((64, 64), stream=0, dtype=torch.float64).flatten()
    ordered = u.sort().values
    ks = (ordered - torch.arange(1, n + 1, dtype=torch.float64) / n).abs().max().item()
    assert ks < 1.95 / math.sqrt(n)


def test_streams_seeds_kinds_and_neighbours_are_uncorrelated():
    def z(seed, stream):
        return Noise([seed]).normal((40000,), stream=stream, dtype=torch.float64)[0]

    base = z(1, 1)
    uniform = Noise([1]).uniform((40000,), stream=1, dtype=torch.float64)[0]
    others = [z(2, 1), z(1, 2), z(2, 2), z(0, 1), base.roll(1), base.roll(2), base**2 - 1, uniform - 0.5]
    for other in others:
        assert abs(torch.corrcoef(torch.stack([base, other]))[0, 1].item()) < 5 / math.sqrt(40000)
    pairs = base.reshape(-1, 2)
    squares = torch.corrcoef((pairs**2).T)[0, 1].item()  # both of a pair share a radius
    assert abs(squares) < 5 / math.sqrt(20000)


def test_kinds_and_odd_sizes():
    noise = Noise([3])
    assert noise.normal((), stream=0).shape == (1,)
    assert noise.normal((0, 4), stream=0).shape == (1, 0, 4)
    assert torch.equal(noise.normal((5,), stream=0)[0], noise.normal((6,), stream=0)[0, :5])
    assert torch.equal(noise.normal((4,), 0), noise.normal((4,), 0, dtype=torch.float64).float())
    low = noise.uniform((100000,), 0, dtype=torch.bfloat16)
    assert low.min() >= 0 and low.max() < 1
    assert Noise([]).normal((3,), 0).shape == (0, 3)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, "7", True, None])
def test_bad_seeds(seed):
    with pytest.raises(UserError, match="seed"):
        Noise([seed])
    with pytest.raises(ValueError):
        Noise([seed])
