"""Moved pictures: each way of moving against what it is by hand, and what the network is told of it."""

import math

import numpy as np
import pytest
import torch

from unfog.modalities.image.augment import MOVE, NUMBERS, SCALE, TURN, drawn, labels, moved
from unfog.networks.unet import UNet

EMPTY = torch.tensor([-1.0, 0.5])


def one(**change):
    row = {"mirrored": 0.0, "scale": 0.0, "turn": 0.0, "across": 0.0, "down": 0.0} | change
    return np.array([list(row.values())])


def picture(side=16):
    return torch.from_numpy(np.random.default_rng(0).standard_normal((1, 2, side, side), np.float32))


def test_a_picture_that_is_not_moved_keeps_its_bits():
    x0 = picture().repeat(3, 1, 1, 1)
    changes = np.concatenate([one(), one(across=0.25), one()])
    out = moved(x0, changes, EMPTY)
    assert torch.equal(out[0], x0[0]) and torch.equal(out[2], x0[2]) and not torch.equal(out[1], x0[1])
    assert moved(x0, np.zeros((3, 5)), EMPTY) is x0


def test_mirrored_is_flipped():
    torch.testing.assert_close(moved(picture(), one(mirrored=1.0), EMPTY), picture().flip(-1))


@pytest.mark.parametrize(("across", "down"), [(4, 0), (0, 4), (-3, 5)])
def test_a_move_by_whole_pixels(across, down):
    x0, side = picture(), 16
    wanted = EMPTY[None, :, None, None].expand(1, 2, side, side).clone()
    rows, columns = range(max(0, down), min(side, side + down)), range(max(0, across), min(side, side + across))
    for r in rows:
        for c in columns:
            wanted[..., r, c] = x0[..., r - down, c - across]
    torch.testing.assert_close(moved(x0, one(across=across / side, down=down / side), EMPTY), wanted, atol=1e-4, rtol=0)


def test_a_quarter_turn_and_a_half_turn():
    quarter = moved(picture(), one(turn=math.pi / 2), EMPTY)
    assert min(float((quarter - picture().rot90(k, (2, 3))).abs().max()) for k in (1, 3)) < 1e-4
    torch.testing.assert_close(moved(picture(), one(turn=math.pi), EMPTY), picture().flip(-1, -2), atol=1e-4, rtol=0)


def test_scale_and_order():
    """Twice as large: the middle fills the picture. Mirror, scale, turn and move are done in this order."""
    smooth = torch.linspace(-1, 1, 16)[None, None, None].expand(1, 2, 16, 16)
    larger = moved(smooth, one(scale=1.0), EMPTY)
    torch.testing.assert_close(larger[..., 1:-1], smooth[..., 1:-1] / 2, atol=1e-5, rtol=0)
    both = moved(picture(), one(mirrored=1.0, turn=math.pi / 2, across=0.25), EMPTY)
    steps = moved(moved(moved(picture(), one(mirrored=1.0), EMPTY), one(turn=math.pi / 2), EMPTY), one(across=0.25), EMPTY)
    torch.testing.assert_close(both, steps, atol=1e-4, rtol=0)


def test_shares_and_sizes_of_changes():
    changes = drawn(np.random.default_rng(0), 20_000, 0.2)
    assert abs((changes[:, 0] > 0).mean() - 0.1) < 0.01
    for column, deviation in ((1, SCALE), (2, TURN), (3, MOVE), (4, MOVE)):
        hit = changes[:, column] != 0
        assert abs(hit.mean() - 0.2) < 0.01 and abs(changes[hit, column].std() / deviation - 1) < 0.05
    assert not drawn(np.random.default_rng(0), 100, 0.0).any()


def test_what_the_network_is_told():
    assert not labels(np.zeros((4, 5))).any()
    told = labels(
        np.concatenate([one(mirrored=1.0), one(scale=SCALE), one(turn=0.3), one(turn=-0.3), one(across=MOVE), one(down=MOVE)])
    )
    assert told.shape == (6, NUMBERS) and len({tuple(row.tolist()) for row in told}) == 6  # no two changes look alike


def test_a_network_that_is_told_nothing_is_the_one_for_pictures_as_found():
    torch.manual_seed(0)
    network = UNet(widths=(16,), blocks=(1,), attention=(False,), embedding=16, text_dim=0, augment=NUMBERS)
    torch.nn.init.normal_(network.head.conv.weight)
    torch.nn.init.normal_(network.conditioning.augment.weight)
    for block in network.modules():
        if hasattr(block, "modulation"):
            torch.nn.init.normal_(block.modulation.weight)
            torch.nn.init.normal_(block.conv_out.conv.weight)
    x, logsnr = torch.randn(2, 4, 16, 16), torch.zeros(2)
    plain = network(x, logsnr, {})
    assert torch.equal(plain, network(x, logsnr, {"augment": torch.zeros(2, NUMBERS)}))
    assert not torch.allclose(plain, network(x, logsnr, {"augment": torch.ones(2, NUMBERS)}))
