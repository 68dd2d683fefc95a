"""Nearest items: by hand, and against all pairs."""

import numpy as np
import torch

from unfog.evaluation.near import Near, nearest


def test_by_hand():
    known = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    assert np.allclose(nearest(torch.tensor([[0.0, 0.0], [3.0, 0.0], [1.0, 1.0]]), known), [0, 3 / 2**0.5, 1])
    assert np.allclose(nearest(known, known, itself=True), [5 / 2**0.5] * 2)


def test_against_all_pairs_in_blocks():
    generator = torch.Generator().manual_seed(0)
    x, known = torch.randn(1100, 3, 2, generator=generator), torch.randn(700, 3, 2, generator=generator)
    apart = ((x[:, None].double() - known[None].double()) ** 2).flatten(2).mean(2).sqrt()
    assert np.allclose(nearest(x, known), apart.min(1).values.numpy())
    own = ((known[:, None].double() - known[None].double()) ** 2).flatten(2).mean(2).sqrt() + torch.eye(700) * 1e9
    assert np.allclose(nearest(known, known, itself=True), own.min(1).values.numpy())


def test_copies_are_nearer_than_unseen_items():
    generator = torch.Generator().manual_seed(1)
    known, unseen = torch.randn(500, 8, generator=generator), torch.randn(400, 8, generator=generator)
    near = Near.of(known, unseen, 0.05)
    assert abs(near(unseen)["copies"] - 0.05) < 0.01
    assert near(known[:50] + 1e-3)["copies"] == 1.0
    fresh = torch.randn(2000, 8, generator=generator)
    assert 0.02 < near(fresh)["copies"] < 0.09
