"""Muon's orthogonal matrices, and AdamW against PyTorch's."""

import copy

import pytest
import torch
from torch import nn

from unfog.networks.unet import UNet
from unfog.training import optimisers
from unfog.training.optimisers import MuonAdamW, hidden_matrices, optimiser_of, orthogonal
from unfog.training.recipe import Recipe


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(64, 16), (16, 64), (48, 200), (9, 3)])
def test_singular_values_are_near_one(shape, dtype, monkeypatch):
    monkeypatch.setattr(optimisers, "fastest", lambda device: dtype)  # whatever this machine multiplies fastest
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    result = orthogonal(matrix)
    assert result.dtype == dtype
    result = result.float()
    values = torch.linalg.svdvals(result)
    assert result.shape == shape and float(values.min()) > 0.6 and float(values.max()) < 1.3
    # the same directions, not just any orthogonal matrix
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    torch.testing.assert_close(u.T @ result @ v.T, torch.diag((u.T @ result @ v.T).diag()), atol=0.05, rtol=0)


def test_wide_matrices_take_the_short_way_to_the_same(monkeypatch):
    monkeypatch.setattr(optimisers, "fastest", lambda device: torch.float32)
    spread = torch.logspace(-4, 0, 24)[:, None]  # singular values over four powers of ten
    matrix = spread * torch.randn((24, 200), generator=torch.Generator().manual_seed(3))
    x = (matrix / (matrix.norm() + 1e-7)).double()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    torch.testing.assert_close(orthogonal(matrix).double(), x, atol=2e-3, rtol=0)


def test_scale_does_not_count():
    matrix = torch.randn(12, 30, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(orthogonal(matrix), orthogonal(matrix * 2**10), atol=0.02, rtol=0)
    assert torch.equal(orthogonal(torch.zeros(4, 3)).float(), torch.zeros(4, 3))


def test_solves_a_regression():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 24), nn.SiLU(), nn.Linear(24, 3))
    x = torch.randn(128, 6)
    y = torch.tanh(x @ torch.randn(6, 3))
    optimiser = MuonAdamW(network)
    losses = []
    for step in range(150):
        loss = (network(x) - y).square().mean()
        optimiser.zero_grad()
        loss.backward()
        for group in optimiser.param_groups:
            group["lr"] = 0.05 * (1 - step / 150)
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]


class Vectors(nn.Module):
    """Only vectors, which Muon has no use for."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.linspace(-1, 1, 7))
        self.b = nn.Parameter(torch.ones(()))


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_vectors_move_as_under_pytorchs_adamw(decay):
    ours, theirs = Vectors(), Vectors()
    mine = MuonAdamW(ours, lr=3e-2, weight_decay=decay)
    other = torch.optim.AdamW(theirs.parameters(), lr=3e-2, betas=(0.9, 0.99), eps=1e-8, weight_decay=decay)
    for step in range(25):
        for network, optimiser in ((ours, mine), (theirs, other)):
            optimiser.zero_grad()
            ((network.a * (step % 5 + 1)).sin().sum() * network.b).backward()
            optimiser.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-6)


def test_a_parameter_without_gradient_stays():
    network = Vectors()
    before = network.b.detach().clone()
    network.a.sum().backward()
    MuonAdamW(network, weight_decay=0.1).step()
    assert torch.equal(network.b, before)


def test_embeddings_stem_and_head_are_not_orthogonalised():
    network = UNet(widths=[16], blocks=[1], attention=[True], classes=3, embedding=16)
    chosen = {id(p) for p in hidden_matrices(network)}
    names = {n for n, p in network.named_parameters() if id(p) in chosen}
    assert "down.0.0.block.conv_in.conv.weight" in names and "down.0.0.attention.qkv.weight" in names
    assert not any(n.startswith(("conditioning", "stem", "head")) or "modulation" in n or n.endswith("bias") for n in names)


def test_a_recipe_that_asks_for_adamw_gets_it_for_all_weights():
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(5, 8), nn.SiLU(), nn.Linear(8, 2))
    theirs = copy.deepcopy(ours)
    mine = optimiser_of(Recipe(optimiser="adamw", lr=2e-3), ours)
    other = torch.optim.AdamW(theirs.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=0.0)
    assert any(group["params"] for group in optimiser_of(Recipe(), ours).param_groups if group["kind"] == "muon")
    x = torch.randn(16, 5)
    for _ in range(20):
        for network, optimiser in ((ours, mine), (theirs, other)):
            optimiser.zero_grad()
            (network(x).square().sum() + network(x).sin().sum()).backward()
            optimiser.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-5, rtol=1e-5)
