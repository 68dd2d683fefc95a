"""The U-Net's own: its size, and that neither resolution nor depth is fixed."""

import pytest
import torch

from unfog.networks.unet import Conv, Down, UNet, Up, _Trained


def test_default_size():
    with torch.device("meta"):
        count = sum(p.numel() for p in UNet(classes=5).parameters())
    assert 10e6 < count < 20e6


def test_up_undoes_down_with_identity_weights():
    down, up = Down(3, 12), Up(12, 3)
    with torch.no_grad():
        for linear in (down.linear, up.linear):
            linear.weight.copy_(torch.eye(12))
            linear.bias.zero_()
        x = torch.randn(2, 4, 6, 3)
        assert torch.equal(up(down(x)), x)


def test_down_keeps_places_together():
    down = Down(1, 4)
    with torch.no_grad():
        down.linear.weight.copy_(torch.eye(4))
        down.linear.bias.zero_()
        x = torch.arange(16.0).reshape(1, 4, 4, 1)
        assert down(x)[0, 1, 0].tolist() == [8, 9, 12, 13]  # the 2x2 square at row 2, column 0


@pytest.mark.parametrize("levels", [1, 3])
def test_any_number_of_levels(levels):
    network = UNet(widths=[16] * levels, blocks=[1] * levels, attention=[False] * levels, unshuffle=1, embedding=16)
    x = torch.randn(1, 4, 2 ** (levels + 1), 2 ** (levels - 1))
    assert network(x, torch.zeros(1), None).shape == x.shape


def test_unknown_setting_is_refused():
    with pytest.raises(TypeError, match="depht"):
        UNet(depht=3)


@pytest.mark.parametrize("chunk", [1, 3 * 9 * 128 * 20, 2**20])  # a picture at a time, three (and the one left), all
def test_gradients_of_a_wide_convolution_are_the_librarys(chunk, monkeypatch):
    monkeypatch.setattr(_Trained, "CHUNK", chunk)
    torch.manual_seed(0)
    conv, x = Conv(128, 7), torch.randn(4, 4, 5, 128, requires_grad=True)
    out = torch.randn(4, 4, 5, 7)
    wanted = [x, *conv.parameters()]
    ours = torch.autograd.grad(conv(x), wanted, out)
    assert type(conv(x).grad_fn.next_functions[0][0]).__name__ == "_TrainedBackward"
    theirs = torch.autograd.grad(conv.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), wanted, out)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert ours[1].stride() == theirs[1].stride() == conv.conv.weight.stride()


def test_a_gate_hands_the_input_through_where_it_is_open():
    torch.manual_seed(0)
    plain = UNet(channels=4, unshuffle=2, widths=[16], blocks=[1], attention=[False], embedding=16, text_dim=0).eval()
    gated = UNet(channels=4, unshuffle=2, widths=[16], blocks=[1], attention=[False], embedding=16, text_dim=0, gated=True).eval()
    x, logsnr = torch.randn(2, 4, 8, 8), torch.zeros(2)
    with torch.no_grad():
        plain.head.conv.weight.normal_()
        gated.load_state_dict(plain.state_dict(), strict=False)
        assert torch.equal(gated(x, logsnr), plain(x, logsnr))  # closed at first
        gated.gate.conv.bias.fill_(1.0)
        assert torch.allclose(gated(x, logsnr), plain(x, logsnr) + x, atol=1e-5)
