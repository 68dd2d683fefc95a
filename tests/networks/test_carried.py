"""tools/weights/carried.py: the parts that are exact."""

import importlib.util
from pathlib import Path

import torch

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
