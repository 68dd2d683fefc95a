"""What every registered network keeps: shapes, conditions that count, padding and neighbours that do not."""

import subprocess
import sys

import pytest
import torch

from unfog.networks import NETWORKS

CLASSES, TEXT = 3, 24
TINY = {
    "unet": {"unshuffle": 2, "widths": [16, 24], "blocks": [1, 1], "attention": [False, True], "embedding": 32},
    "dit": {"size": 16, "patch": 4, "width": 32, "depth": 5, "heads": 2, "registers": 2, "bottleneck": 12},
}
VARIANTS = {"unet, gated": ("unet", {"gated": True})}
NAMES = sorted([*NETWORKS, *VARIANTS])


def build(name, awake=True):
    """A tiny network; `awake` moves it off its start, where the last layer is zero and nothing counts."""
    torch.manual_seed(0)
    name, more = VARIANTS.get(name, (name, {}))
    network = NETWORKS[name](channels=4, text_dim=TEXT, classes=CLASSES, **TINY[name], **more)
    if awake:
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return network.eval()


def inputs(batch=3, size=16):
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(6)[None] < torch.tensor([6, 2, 4])[torch.arange(batch) % 3][:, None]
    cond = {
        "text": torch.randn(batch, 6, TEXT, generator=generator) * mask[..., None],
        "text_mask": mask,
        "class": torch.arange(batch) % (CLASSES + 1),
    }
    return torch.randn(batch, 4, size, size, generator=generator), torch.linspace(-8, 8, batch), cond


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def network(name):
    return build(name)


def test_every_network_is_here():
    assert set(TINY) == set(NETWORKS)


def test_shape_and_zero_at_start(name):
    x, logsnr, cond = inputs()
    out = build(name, awake=False)(x, logsnr, cond)
    assert out.shape == x.shape and out.dtype == torch.float32
    assert torch.equal(out, torch.zeros_like(x))


def test_laying_out_without_values_is_quick(name):
    """Loading a model builds its network on the meta device; torch's compiler (seconds) must not be loaded for that."""
    name, more = VARIANTS.get(name, (name, {}))
    program = (
        "import sys, torch; from unfog.networks import NETWORKS\n"
        f"with torch.device('meta'): NETWORKS[{name!r}](classes=3, **{ ({**TINY[name], **more})!r})\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_gradients_reach_every_parameter(name):
    network = build(name).train()
    x, logsnr, cond = inputs(batch=4)
    network(x, logsnr, cond).square().sum().backward()
    silent = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


@torch.no_grad()
def test_noise_level_text_and_class_count(network):
    x, logsnr, cond = inputs()
    base = network(x, logsnr, cond)
    changed = {
        "logsnr": (x, logsnr + 1, cond),
        "text": (x, logsnr, cond | {"text": cond["text"].flip(2)}),
        "order of words": (x, logsnr, cond | {"text": cond["text"] * torch.tensor([2.0, 0, 1, 1, 1, 1])[:, None]}),
        "class": (x, logsnr, cond | {"class": (cond["class"] + 1) % CLASSES}),
        "no cond": (x, logsnr, None),
    }
    for what, given in changed.items():
        difference = (network(*given) - base).abs().flatten(1).amax(1)
        assert (difference > 1e-3).all(), what


@torch.no_grad()
def test_an_absent_class_is_the_last_index(network):
    x, logsnr, cond = inputs()
    text_only = {k: v for k, v in cond.items() if k != "class"}
    assert torch.equal(network(x, logsnr, text_only), network(x, logsnr, cond | {"class": torch.full((3,), CLASSES)}))


@torch.no_grad()
def test_padding_does_not_count(network):
    x, logsnr, cond = inputs()
    base = network(x, logsnr, cond)
    noise = torch.randn(cond["text"].shape, generator=torch.Generator().manual_seed(2)) * 30
    filled = torch.where(cond["text_mask"][..., None], cond["text"], noise)
    longer = {
        "text": torch.cat([filled, noise], dim=1),
        "text_mask": torch.cat([cond["text_mask"], torch.zeros(3, 6, dtype=torch.bool)], dim=1),
        "class": cond["class"],
    }
    torch.testing.assert_close(network(x, logsnr, longer), base, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_alone_as_in_a_batch(network):
    x, logsnr, cond = inputs(batch=5)
    together = network(x, logsnr, cond)
    for i in range(5):
        alone = network(x[i : i + 1], logsnr[i : i + 1], {k: v[i : i + 1] for k, v in cond.items()})
        torch.testing.assert_close(alone[0], together[i], atol=1e-5, rtol=1e-5)


def test_training_path_is_the_inference_path(network):
    x, logsnr, cond = inputs()
    with torch.no_grad():
        quick = network(x, logsnr, cond)
    torch.testing.assert_close(network(x, logsnr, cond).detach(), quick, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(32, 32), (8, 24)])
def test_other_sizes(network, shape):
    x, logsnr, cond = torch.randn(3, 4, *shape), *inputs()[1:]
    assert network(x, logsnr, cond).shape == x.shape


def test_bf16_weights_and_autocast(name):
    x, logsnr, cond = inputs()
    network = build(name)
    with torch.no_grad():
        exact = network(x, logsnr, cond)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = network(x, logsnr, cond)
        half = build(name).bfloat16()(x.bfloat16(), logsnr, cond | {"text": cond["text"].bfloat16()})
    for rough in (mixed, half):
        assert rough.dtype == torch.float32
        assert (rough - exact).std() < 0.05 * exact.std()
