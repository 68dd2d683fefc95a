"""cond["perturb"]: the items in which each picture token reads no picture token but itself."""

import pytest
import torch

from unfog.diffusion import Gaussian
from unfog.diffusion.denoisers import Preconditioned
from unfog.diffusion.guidance.perturbed import Perturbed
from unfog.diffusion.schedules import Cosine
from unfog.networks import NETWORKS
from unfog.networks.attention import TextAttention, attend, perturbed
from unfog.networks.dit import Attention

TEXT, CLASSES = 12, 2
TINY = {
    "unet": {"unshuffle": 2, "widths": [16, 24], "blocks": [1, 1], "attention": [False, True], "embedding": 32},
    "dit": {"size": 8, "patch": 2, "width": 32, "depth": 3, "heads": 2, "registers": 2, "bottleneck": 12},
}
TOLERANCE = 1e-5  # matrix products round by the number of rows


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def wake(module):
    """Off its start, where the last layers are zero and nothing counts."""
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.add_(normal(*parameter.shape, seed=i) * 0.2)
    return module.eval()


@pytest.fixture(scope="module", params=sorted(TINY))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def network(name):
    torch.manual_seed(0)
    return wake(NETWORKS[name](channels=4, text_dim=TEXT, classes=CLASSES, **TINY[name]))


def inputs(batch=3, text=True):
    mask = torch.arange(5)[None] < torch.tensor([5, 2, 3])[torch.arange(batch) % 3][:, None]
    cond = {"class": torch.arange(batch) % (CLASSES + 1)}
    if text:
        cond |= {"text": normal(batch, 5, TEXT, seed=2), "text_mask": mask}
    return normal(batch, 4, 8, 8, seed=1), torch.linspace(-4, 4, batch), cond


def ask(network, x, logsnr, cond, perturb=None):
    with torch.no_grad():
        return network(x, logsnr, cond if perturb is None else {**cond, "perturb": torch.tensor(perturb)})


def test_every_network_is_here():
    assert set(TINY) == set(NETWORKS)


@pytest.mark.parametrize("text", [True, False])
def test_all_false_is_no_key(network, text):
    given = inputs(text=text)
    assert torch.equal(ask(network, *given, [False] * 3), ask(network, *given))


@pytest.mark.parametrize("text", [True, False])
def test_true_changes_the_item_and_no_other(network, text):
    given = inputs(text=text)
    plain, mixed, full = (ask(network, *given, perturb) for perturb in (None, [False, True, False], [True] * 3))
    changed = (full - plain).flatten(1).abs().amax(1)
    assert (changed > 100 * TOLERANCE).all(), changed
    assert torch.equal(mixed[[0, 2]], plain[[0, 2]]) and torch.equal(mixed[1], full[1])


def test_an_item_of_a_mixed_batch_is_the_item_alone(network):
    x, logsnr, cond = inputs()
    perturb = [True, False, True]
    mixed = ask(network, x, logsnr, cond, perturb)
    for i, wanted in enumerate(perturb):
        one = slice(i, i + 1)
        alone = ask(network, x[one], logsnr[one], {key: value[one] for key, value in cond.items()}, [wanted])
        torch.testing.assert_close(mixed[one], alone, atol=TOLERANCE, rtol=TOLERANCE)


def test_training_path_agrees(network):
    """With gradients the products are written out; masked places must be left out there too."""
    x, logsnr, cond = inputs()
    cond = {**cond, "perturb": torch.tensor([True, False, True])}
    with torch.no_grad():
        quick = network(x, logsnr, cond)
    torch.testing.assert_close(network(x, logsnr, cond).detach(), quick, atol=TOLERANCE, rtol=1e-4)


@pytest.mark.parametrize("grad", [False, True])
def test_attention_is_the_identity_of_values(grad):
    """The bits of v come out where `perturb` is true; elsewhere what comes out without any mask."""
    q, k, v = (normal(2, 3, 6, 4, seed=i) for i in range(3))
    mask = perturbed(torch.ones(2, 6, dtype=torch.bool), torch.tensor([True, False]), 6)
    with torch.set_grad_enabled(grad):
        out, free = attend(q, k, v, mask), attend(q, k, v)
    assert torch.equal(out[0], v[0])
    torch.testing.assert_close(out[1], free[1])
    assert (free[0] - v[0]).abs().max() > 0.1


@pytest.mark.parametrize("queries", [4, 7])
def test_text_is_still_read(queries):
    """Of 4 picture and 3 text tokens: a picture token weighs itself and the text, text tokens read all."""
    q, k, v = (normal(1, 1, n, 4, seed=i, dtype=torch.float64) for i, n in enumerate((queries, 7, 7)))
    real = torch.tensor([[True] * 5 + [False, True]])
    out = attend(q, k, v, perturbed(real, torch.tensor([True]), 4)[:, :queries])[0, 0]
    for i in range(queries):
        keys = [j for j in range(7) if real[0, j] and (i >= 4 or j >= 4 or j == i)]
        weights = torch.softmax(k[0, 0, keys] @ q[0, 0, i] / 2.0, dim=0)
        torch.testing.assert_close(out[i], weights @ v[0, 0, keys])


def test_layers_of_both_networks_then_map_values_alone():
    x, perturb = normal(2, 5, 16), torch.tensor([True, True])
    layer = wake(TextAttention(16, 0, head_dim=8))
    value = layer.qkv(layer.norm(x)).chunk(3, dim=-1)[2]
    torch.testing.assert_close(layer(x, perturb=perturb), x + layer.out(value))
    other = wake(Attention(16, 2))
    everything = perturbed(torch.ones(2, 5, dtype=torch.bool), perturb, 5)
    value = other.qkv(x).chunk(3, dim=-1)[2]
    torch.testing.assert_close(other(x, torch.zeros(5, 4), everything), other.out(value))


def test_guidance_asks_for_it(network):
    """`Perturbed` around a network: D + scale·(D − D′), D′ the same network's answer with the key set."""
    x, _, cond = inputs()
    denoiser = Preconditioned(network, Gaussian(Cosine()), "v")
    with torch.no_grad():
        guided = Perturbed(denoiser, 1.5)(x, 0.6, cond)
        plain, other = denoiser(x, 0.6, cond), denoiser(x, 0.6, {**cond, "perturb": torch.ones(3, dtype=torch.bool)})
    torch.testing.assert_close(guided, plain + 1.5 * (plain - other), atol=10 * TOLERANCE, rtol=1e-4)
