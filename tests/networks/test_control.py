"""What steers a network: nothing at the start or at strength 0, to the bit; then each kind by its own strength."""

import pytest
import torch

from unfog.networks.control import ControlBranch
from unfog.networks.steered import Steered
from unfog.networks.style import StyleReader
from unfog.networks.unet import UNet


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(0)
    net = UNet(4, 4, [16, 32], [1, 2], [False, True], 16, 12, 3)
    for p in net.parameters():
        p.data += torch.randn(p.shape) * 0.05
    return net.requires_grad_(False).eval()


@pytest.fixture
def told():
    g = torch.Generator().manual_seed(1)
    cond = {"text": torch.randn(3, 5, 12, generator=g), "text_mask": torch.ones(3, 5, dtype=torch.bool),
            "class": torch.tensor([0, 1, 3])}  # fmt: skip
    return torch.randn(3, 4, 16, 16, generator=g), torch.randn(3, generator=g), cond


def hinted(cond, strength):
    g = torch.Generator().manual_seed(2)
    return {**cond, "control": torch.rand(3, 6, 16, 16, generator=g), "control_strength": torch.tensor(strength)}


ONE = [[1.0, 0.0, 0.0]] * 3


def moved(module, seed=3):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p += torch.randn(p.shape, generator=g) * 0.1
    return module.eval()


def test_a_fresh_branch_and_a_fresh_reader_change_no_bit(base, told):
    x, level, cond = told
    net = Steered(base, ControlBranch(base, [1, 1, 4]), StyleReader(base)).eval()
    plain = base(x, level, cond)
    asked = hinted(cond, ONE) | {"image": torch.rand(3, 2, 4, 24, 24), "image_mask": torch.ones(3, 2)}
    assert torch.equal(net(x, level, cond), plain) and torch.equal(net(x, level, asked), plain)


def test_strength_0_is_the_base_to_the_bit_beside_items_that_are_steered(base, told):
    x, level, cond = told
    net = Steered(base, moved(ControlBranch(base, [1, 1, 4])))
    plain, some = base(x, level, cond), net(x, level, hinted(cond, [[0.0] * 3, [1.0, 0.0, 0.0], [0.0] * 3]))
    assert torch.equal(some[[0, 2]], plain[[0, 2]]) and not torch.allclose(some[1], plain[1], atol=1e-3)
    assert torch.equal(net(x, level, hinted(cond, [[0.0] * 3] * 3)), plain)


def test_strength_scales_what_the_branch_adds(base, told):
    x, level, cond = told
    branch = moved(ControlBranch(base, [1, 1, 4]))
    full, half = (branch(base, x, level, hinted(cond, [[s, 0.0, 0.0]] * 3)) for s in (1.0, 0.5))
    assert all(torch.allclose(h, f / 2, rtol=1e-5, atol=1e-6) for f, h in zip(full, half, strict=True))


def test_a_kind_that_is_not_asked_for_is_not_seen(base, told):
    x, level, cond = told
    net = Steered(base, moved(ControlBranch(base, [1, 1, 4])))
    asked = hinted(cond, ONE)
    other = {**asked, "control": torch.cat([asked["control"][:, :1], torch.rand(3, 5, 16, 16)], 1)}
    assert torch.equal(net(x, level, asked), net(x, level, other))
    both = {**asked, "control_strength": torch.tensor([[1.0, 0.5, 0.0]] * 3)}
    assert not torch.allclose(net(x, level, asked), net(x, level, both), atol=1e-4)


def test_only_the_branch_learns(base, told):
    x, level, cond = told
    branch = ControlBranch(base, [1, 1, 4]).train()
    Steered(base, branch)(x, level, hinted(cond, ONE)).square().sum().backward()
    assert all(p.grad is None for p in base.parameters())
    assert all(layer.weight.grad.abs().sum() > 0 for layer in branch.out)


def test_references_by_weight(base, told):
    x, level, cond = told
    net = Steered(base, None, moved(StyleReader(base))).eval()
    looks = torch.rand(3, 2, 4, 24, 24, generator=torch.Generator().manual_seed(4))

    def at(*weights):
        return net(x, level, {**cond, "image": looks, "image_mask": torch.tensor([weights] * 3)})

    plain = base(x, level, cond)
    assert torch.equal(at(0.0, 0.0), plain)
    alone = net(x, level, {**cond, "image": looks[:, :1], "image_mask": torch.ones(3, 1)})
    assert torch.allclose(at(1.0, 0.0), alone, atol=1e-6)  # one that weighs nothing is not read
    apart = [float((at(w, 0.0) - plain).detach().norm()) for w in (0.01, 0.3, 1.0)]
    assert apart == sorted(apart) and apart[0] < 0.1 * apart[2]
    swapped = net(x, level, {**cond, "image": looks.flip(1), "image_mask": torch.tensor([[0.7, 0.3]] * 3)})
    assert torch.allclose(at(0.3, 0.7), swapped, atol=1e-5)  # their order says nothing
