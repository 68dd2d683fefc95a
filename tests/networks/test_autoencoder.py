"""The autoencoder: what a latent sees, tiles that join without a seam, first values that are a transform's."""

import pytest
import torch

from unfog.networks.autoencoder import FIRST, Autoencoder, tiled


@pytest.fixture
def network():
    """A small one whose every path does something."""
    torch.manual_seed(0)
    found = Autoencoder(latent=5, width=12, encoder=1, decoder=1, fine_width=8, fine=1)
    for parameter in found.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return found.eval().requires_grad_(False)


@pytest.mark.parametrize("factor, grows", [(2, 1), (4, 1), (8, 2)])
def test_shapes(factor, grows):
    network = Autoencoder(factor=factor, latent=6, width=8, encoder=1, decoder=1, fine_width=8, fine=1)
    x = torch.rand(2, 4, 32, 16)
    mean, spread = network.encode(x)
    assert mean.shape == spread.shape == (2, 6, 32 // factor, 16 // factor)
    assert network.decode(mean).shape == x.shape
    assert network.preview(mean).shape == (2, 4, 32 // factor * grows, 16 // factor * grows)


def test_nothing_sees_further_than_reach(network):
    x = torch.rand(1, 4, 4 * 31, 4 * 31)
    reach = network.reach["encode"]
    other = x.clone()
    other[..., 60:64, 60:64] += 1.0  # cell 15
    moved = (network.encode(x)[0] != network.encode(other)[0]).any(1)[0]
    rows = moved.any(1).nonzero()
    assert 15 - reach <= int(rows.min()) < 15 < int(rows.max()) <= 15 + reach
    z = torch.randn(1, 5, 31, 31)
    reach = network.reach["decode"]
    other = z.clone()
    other[..., 15, 15] += 1.0
    moved = (network.decode(z) - network.decode(other)).abs().amax((0, 1, 3)) > 0
    rows = moved.nonzero() // 4
    assert 15 - reach <= int(rows.min()) < 15 < int(rows.max()) <= 15 + reach


@pytest.mark.parametrize("tile", [5, 16])
def test_tiles_give_what_the_whole_gives(network, tile):
    x = torch.rand(1, 4, 4 * 23, 4 * 31)
    whole = network.encode(x)[0]
    parts = tiled(lambda part: network.encode(part)[0], x, 4, 1, network.reach["encode"], tile)
    assert parts.shape == whole.shape and torch.allclose(parts, whole, atol=1e-4 * float(whole.abs().max()))
    made = network.decode(whole)
    parts = tiled(network.decode, whole, 1, 4, network.reach["decode"], tile)
    assert parts.shape == made.shape and torch.allclose(parts, made, atol=1e-4 * float(made.abs().max()))
    short = tiled(network.decode, whole, 1, 4, 1, tile)  # too little overlap shows at the seams
    assert not torch.allclose(short, made, atol=1e-2 * float(made.abs().max()))


def test_it_begins_as_the_principal_axes():
    torch.manual_seed(0)
    network = Autoencoder(factor=2, latent=3, width=8, encoder=1, decoder=1, fine=0)
    basis = torch.linalg.qr(torch.randn(16, 3))[0]
    patches = torch.randn(4000, 3) * torch.tensor([3.0, 1.0, 0.5]) @ basis.T + 0.3
    network.begin(patches)
    x = torch.nn.functional.pixel_shuffle(patches[:64].reshape(1, 8, 8, 16).permute(0, 3, 1, 2), 2)
    assert torch.allclose(network(x), x, atol=1e-3)  # three axes hold all of it
    with torch.no_grad():
        mean, spread = network.encode(x)
    assert 0.7 < float(mean.std()) < 1.3
    assert torch.allclose(spread, torch.full_like(spread, FIRST))


@pytest.mark.parametrize("factor, latent", [(2, 8), (4, 40), (8, 100)])
def test_the_preview_begins_as_the_picture_made_small(factor, latent):
    torch.manual_seed(0)
    network = Autoencoder(factor=factor, latent=latent, width=8, encoder=1, decoder=1, fine=0).requires_grad_(False)
    network.begin(torch.rand(2000, 4 * factor**2))
    z = torch.randn(2, latent, 6, 5)
    small = network.preview(z)
    assert torch.allclose(small, torch.nn.functional.avg_pool2d(network.decode(z), factor // max(factor // 4, 1)), atol=1e-5)
