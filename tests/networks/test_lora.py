"""Low-rank branches: nothing changes at the start, only they train, merging is exact, a known change of low rank is learned."""

import copy

import pytest
import torch
from torch import nn

from unfog.errors import UserError
from unfog.networks import NETWORKS, lora
from unfog.networks.layers import SteadyLinear, seed_dropout
from unfog.training.optimisers import MuonAdamW

TINY = {
    "unet": {"unshuffle": 2, "widths": [16, 24], "blocks": [1, 1], "attention": [False, True], "embedding": 32},
    "dit": {"size": 16, "patch": 4, "width": 32, "depth": 3, "heads": 2, "registers": 2, "bottleneck": 12},
}


class Made(nn.Module):
    """Made up for the test: strides, dilation, grouped and circular convolutions, attention that reads a layer's weight."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(4, 8, 1)
        self.wide = nn.Conv2d(8, 12, (3, 5), stride=2, padding=(2, 4), dilation=2, padding_mode="circular")
        self.apart = nn.Conv2d(12, 12, 3, padding=1, groups=4)
        self.lines = nn.ModuleList([nn.Linear(12, 16), nn.GELU(), SteadyLinear(16, 12, bias=False)])
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)

    def forward(self, x, logsnr=None, cond=None):
        y = self.apart(self.wide(self.stem(x)).relu()).flatten(2).transpose(1, 2)
        for line in self.lines:
            y = line(y)
        return self.attention(y, y, y)[0]


def built(name):
    torch.manual_seed(0)
    network = Made() if name == "made" else NETWORKS[name](channels=4, text_dim=24, classes=3, dropout=0.1, **TINY[name])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network.eval()


def inputs(batch=3, size=16):
    generator = torch.Generator().manual_seed(1)
    cond = {"text": torch.randn(batch, 6, 24, generator=generator), "class": torch.arange(batch) % 4,
            "text_mask": torch.arange(6)[None] < torch.tensor([6, 2, 4])[torch.arange(batch) % 3][:, None]}  # fmt: skip
    return torch.randn(batch, 4, size, size, generator=generator), torch.linspace(-8, 8, batch), cond


def stirred(network, size=0.3):
    """Branches moved off their start."""
    with torch.no_grad():
        for layer in lora.branches(network).values():
            layer.b.weight.normal_(generator=torch.Generator().manual_seed(2), std=size)
    return network


names = pytest.mark.parametrize("name", ["unet", "dit", "made"])


@names
def test_the_same_function_at_the_start_to_the_bit(name):
    network = built(name)
    before = copy.deepcopy(network)
    added = lora.add(network, 4)
    assert added == list(lora.branches(network)) and len(added) > 2
    # torch's own attention has other bits in a copy of itself while training, or where its weights want a gradient
    for mode in (False,) if name == "made" else (False, True):
        outputs = []
        for one in (before.train(mode), network.train(mode)):
            seed_dropout(one, [1, 2, 3])
            with torch.set_grad_enabled(name != "made"):
                outputs.append(one(*inputs()))
        assert torch.equal(*outputs)


@names
def test_gradients_reach_the_branches_and_nothing_else(name):
    network = built(name)
    lora.add(network, 2)
    stirred(network)(*inputs(4)).square().sum().backward()
    trained = {n for n, p in network.named_parameters() if p.requires_grad}
    assert trained == {f"{n}.{key}.weight" for n in lora.branches(network) for key in ("a", "b")}
    reached = {n for n, p in network.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert reached == trained
    optimiser = MuonAdamW(network, lr=0.1)
    held = {id(p) for group in optimiser.param_groups for p in group["params"]}
    assert held == {id(p) for p in network.parameters() if p.requires_grad}
    before = {n: p.clone() for n, p in network.named_parameters()}
    optimiser.step()
    assert {n for n, p in network.named_parameters() if not torch.equal(p, before[n])} == trained


@names
@torch.no_grad()
def test_merged_is_unmerged(name):
    network = built(name)
    plain = copy.deepcopy(network)
    lora.add(network, 3, alpha=6.0)
    stirred(network)
    beside = network(*inputs())
    assert (beside - plain(*inputs())).abs().max() > 0.01 * beside.abs().max()
    first = {n: layer.base.weight.clone() for n, layer in lora.branches(network).items()}
    lora.merge(network)
    torch.testing.assert_close(network(*inputs()), beside, rtol=1e-5, atol=1e-5 * float(beside.abs().max()))
    lora.merge(network, 0.0)  # from where it began, not on top
    assert torch.equal(network(*inputs()), plain(*inputs()))
    lora.unmerge(network)
    assert all(torch.equal(layer.base.weight, first[n]) for n, layer in lora.branches(network).items())
    assert torch.equal(network(*inputs()), beside)
    # folded in as a copy, and the same change added to a table of weights
    whole = lora.folded(network)
    assert not lora.branches(whole) and lora.branches(network)
    state = whole.state_dict()
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in plain.state_dict().items()}
    table = lora.merged(plain.state_dict(), lora.state(network), 6.0 / 3)
    assert all(torch.equal(table[key], state[key]) for key in state)


def test_saved_and_loaded(tmp_path):
    one, other = stirred_dit(seed=0), stirred_dit(seed=7)
    assert not torch.equal(one(*inputs()), other(*inputs()))
    lora.load(other, lora.state(one))
    assert torch.equal(one(*inputs()), other(*inputs()))
    wrong = lora.state(one)
    wrong.pop(next(iter(wrong)))
    with pytest.raises(UserError, match="another network, rank or targets"):
        lora.load(other, wrong)
    weights = built("unet").state_dict()
    with pytest.raises(UserError, match="layer blocks.0.attention.out of the adapter does not fit"):
        lora.merged(weights, lora.state(one), 1.0)


@pytest.mark.parametrize("a, b", [
    ((2, 3, 3, 3), (4, 2)), ((2, 3, 3, 3), (4, 2, 3, 3)), ((2, 3), (4, 2, 1, 1)), ((2, 3, 3, 3), (4, 1, 1, 1)),
    ((), (4, 2, 1, 1)),
    ((2, 3, 3, 3), ()), ((2, 5, 3, 3), (4, 2, 1, 1)), ((2, 3, 3, 3), (5, 2, 1, 1)),
])  # fmt: skip
def test_branches_of_a_stranger_must_fit(a, b):
    weights = {"w.weight": torch.zeros(4, 3, 3, 3)}
    assert lora.merged(weights, {"w.a": torch.ones(2, 3, 3, 3), "w.b": torch.ones(4, 2, 1, 1)}, 1.0)["w.weight"].eq(2).all()
    with pytest.raises(UserError, match="layer w of the adapter does not fit"):
        lora.merged(weights, {"w.a": torch.ones(a), "w.b": torch.ones(b)}, 1.0)


def stirred_dit(seed):
    network = built("dit")
    lora.add(network, 2, seed=seed)
    return stirred(network)


def test_which_layers():
    network = built("unet")
    assert not [n for n in lora.candidates(network) if {"stem", "head", "modulation", "conditioning"} & set(n.split("."))]
    assert lora.candidates(network, ["attention.qkv", "stem"]) == ["stem.conv", *(
        n for n in lora.candidates(network) if n.endswith("attention.qkv"))]  # fmt: skip
    with pytest.raises(UserError, match="lora_targets: 'atention' is unknown; did you mean attention?"):
        lora.candidates(network, ["atention"])
    assert "apart" not in lora.candidates(built("made"))  # grouped: B·A would be no kernel of its shape
    with pytest.raises(UserError, match="no linear map"):
        lora.add(nn.Sequential(nn.GELU()), 2)
    lora.add(network, 2)
    with pytest.raises(UserError, match="branches already"):
        lora.add(network, 2)


@pytest.mark.parametrize("threads", [1, 2, 3])
@torch.no_grad()
def test_an_item_has_the_same_bits_in_any_batch(threads):
    """What SteadyLinear promises holds with a branch beside it, vectors and tokens, on some threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        _same_in_any_batch()
    finally:
        torch.set_num_threads(before)


def _same_in_any_batch():
    torch.manual_seed(0)
    network = nn.Sequential(SteadyLinear(1600, 64), SteadyLinear(64, 1600)).eval()
    lora.add(network, 8)
    stirred(network)
    for x in (torch.randn(7, 1600), torch.randn(7, 5, 1600)):
        together = network(x)
        for i, item in enumerate(x):
            assert torch.equal(network(item[None])[0], together[i])


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_a_change_of_rank_r_is_learned_exactly(kind):
    """Least squares on W + ΔW, ΔW of rank 3: branches of rank 3 reach it, those of rank 2 stop at the third singular value.

    Full-batch loss ‖(W + BA − W − ΔW) X‖² with X of orthonormal rows is ‖BA − ΔW‖², whose best value at rank r is the sum of
    the squares of ΔW's singular values beyond r. Source: Eckart & Young 1936.
    """
    torch.manual_seed(0)
    if kind == "linear":
        base, x = nn.Linear(12, 10), torch.eye(12)
    else:  # every 2×2 patch of 3 channels with one pixel set: the same as 12 inputs
        base, x = nn.Conv2d(3, 10, 2), torch.eye(12).reshape(12, 3, 2, 2)
    u, v = torch.linalg.qr(torch.randn(10, 3))[0], torch.linalg.qr(torch.randn(12, 3))[0]
    change = u @ torch.diag(torch.tensor([2.0, 1.0, 0.5])) @ v.T
    for rank, left in ((3, 0.0), (2, 0.25)):
        network = nn.Sequential(copy.deepcopy(base))
        with torch.no_grad():
            target = network(x).flatten(1) + x.flatten(1) @ change.T
        lora.add(network, rank)
        optimiser = torch.optim.LBFGS([p for p in network.parameters() if p.requires_grad], max_iter=400, tolerance_grad=1e-9,
                                      tolerance_change=1e-12, line_search_fn="strong_wolfe")  # fmt: skip

        def closure(network=network, target=target, optimiser=optimiser):
            optimiser.zero_grad()
            loss = (network(x).flatten(1) - target).square().sum()
            loss.backward()
            return loss

        optimiser.step(closure)
        assert float(closure().detach()) == pytest.approx(left, abs=1e-5)
        if rank == 3:
            torch.testing.assert_close(lora.branches(network)["0"].change().flatten(1), change, atol=2e-3, rtol=0)


def test_a_rank_beyond_the_layer_is_cut():
    network = nn.Sequential(nn.Linear(3, 5))
    lora.add(network, 64, alpha=64.0)
    layer = lora.branches(network)["0"]
    assert layer.a.weight.shape == (3, 3) and layer.b.weight.shape == (5, 3) and layer.scale == 1.0
