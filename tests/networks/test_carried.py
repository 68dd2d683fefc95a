"""tools/weights/carried.py: the parts that are exact."""

import importlib.util
from pathlib import Path

import torch

from unfog.modalities import build_network
from unfog.networks.layers import fourier
from unfog.networks.unet import Down

PATH = Path(__file__).parents[2] / "tools/weights/carried.py"
SPEC = importlib.util.spec_from_file_location("carried", PATH)
carried = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(carried)


def test_turned_weights_read_a_shifted_log_snr():
    torch.manual_seed(0)
    weight, logsnr = torch.randn(8, 12), torch.linspace(-9, 9, 7)
    wanted = fourier(logsnr + 1.3, 12) @ weight.T
    assert torch.allclose(
        fourier(logsnr, 12) @ carried.turned(weight, 1.3).T, wanted, atol=2e-3
    )  # angles go to 1,600, in float32
    assert not torch.allclose(fourier(logsnr, 12) @ weight.T, wanted, atol=1e-1)


def test_a_linear_map_is_found():
    torch.manual_seed(0)
    x, weight, bias = torch.randn(500, 6), torch.randn(3, 6), torch.randn(3)
    found, offset, share = carried.fitted(x, x @ weight.T + bias)
    assert torch.allclose(found, weight, atol=1e-2) and torch.allclose(offset, bias, atol=1e-2) and share > 0.999


def test_squares_are_what_down_maps():
    torch.manual_seed(0)
    x, down = torch.randn(2, 4, 6, 3), Down(3, 5)
    assert torch.allclose(down.linear(carried.squares(x)), down(x), atol=1e-6)


def test_halfway_between_two_networks_only_what_touches_the_pictures_stays():
    def network(channels):
        settings = {"channels": channels, "unshuffle": 1, "widths": [8, 16, 16], "blocks": [1, 1, 1],
                    "attention": [False, False, False], "embedding": 16, "gated": True}  # fmt: skip
        return build_network("image", "unet", settings)

    torch.manual_seed(0)
    one, other = network(4), network(6)  # of pictures, and of latents of another number of channels
    before, theirs = one.state_dict(), other.state_dict()
    made = carried.mixed(before, theirs)
    own = {name for name in made if torch.equal(made[name], before[name]) and not torch.equal(made[name], theirs[name])}
    assert {name.split(".")[0] for name in own} >= {"stem", "head", "gate"}
    for name in made:
        if name.startswith(("middle.", "down.1.", "up.0.", "shrink.1.", "grow.0.", "conditioning.")):
            assert torch.equal(made[name], (before[name] + theirs[name]) / 2), name
        if name.startswith(("down.0.", "up.2.", "grow.1.", "shrink.0.")):
            assert torch.equal(made[name], before[name]), name
    less, name = carried.mixed(before, theirs, 0.25), "middle.block.conv_in.conv.weight"
    assert torch.allclose(less[name], 0.75 * before[name] + 0.25 * theirs[name], atol=1e-7)
    assert all(torch.equal(tensor, before[key]) for key, tensor in carried.mixed(before, theirs, 0.0).items())
    one.load_state_dict(made)  # the shapes are its own
