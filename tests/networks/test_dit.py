"""The DiT's own: rotary positions, skips, size."""

import math

import pytest
import torch

from unfog.diffusion import Gaussian, Noise, Preconditioned, make_grid, make_plan, sample
from unfog.diffusion.guidance.cfg import ClassifierFree
from unfog.diffusion.schedules import Cosine
from unfog.errors import UserError
from unfog.networks.dit import DiT
from unfog.networks.rotary import grid_angles, rotate


def scores(rows, columns, dim=16, side=8):
    """q·k of one and the same query and key put at every place of a grid: (rows, columns, rows, columns)."""
    q, k = torch.randn(2, 1, 1, 1, dim, generator=torch.Generator().manual_seed(0))
    angles = grid_angles(rows, columns, dim, side)
    turned = [rotate(x.expand(1, 1, rows * columns, dim), angles)[0, 0] for x in (q, k)]
    return (turned[0] @ turned[1].T).reshape(rows, columns, rows, columns)


def test_scores_depend_on_the_distance_only():
    table = scores(6, 9)
    for dy, dx in [(0, 0), (1, 0), (0, 1), (2, -3), (-4, 5)]:
        same = [float(table[y, x, y + dy, x + dx]) for y in range(6) for x in range(9) if 0 <= y + dy < 6 and 0 <= x + dx < 9]
        assert max(same) - min(same) < 1e-4, (dy, dx)


def test_scores_do_depend_on_the_distance():
    table = scores(8, 8)[4, 4]
    same = table == table[4, 4]
    assert int(same.sum()) == 1 and float((table - table[4, 4])[~same].abs().min()) > 1e-3


def test_rows_and_columns_are_told_apart():
    table = scores(5, 5)
    assert abs(float(table[0, 0, 0, 3] - table[0, 0, 3, 0])) > 1e-2


def test_turning_keeps_length_and_the_centre():
    x = torch.randn(2, 3, 25, 16)
    turned = rotate(x, grid_angles(5, 5, 16, 5))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[:, :, 12], x[:, :, 12])


def test_frequencies_run_from_one_radian_to_a_fifth_over_the_side():
    angles = grid_angles(1, 3, 32, 16)[2, 8:]
    assert math.isclose(float(angles[0]), 1.0, rel_tol=1e-6)
    assert math.isclose(float(angles[-1]) * 16, 0.2, rel_tol=1e-5)


def test_default_size():
    with torch.device("meta"):
        count = sum(p.numel() for p in DiT(classes=5).parameters())
    assert 22e6 < count < 24.5e6


def test_without_gates_the_picture_passes_by_skips_alone():
    """Blocks start as the identity: the stream is then (1 + skip maps) of the stem, whatever the text is."""
    torch.manual_seed(0)
    network = DiT(size=16, width=32, depth=4, heads=2, text_dim=8, registers=1, bottleneck=16)
    torch.nn.init.normal_(network.head.out.weight)
    x, logsnr = torch.randn(2, 4, 16, 16), torch.zeros(2)
    texts = [{"text": torch.randn(2, 3, 8), "text_mask": torch.ones(2, 3, dtype=torch.bool)} for _ in range(2)]
    a, b = (network(x, logsnr, cond) for cond in texts)
    assert torch.equal(a, b) and a.abs().sum() > 0
    with torch.no_grad():
        for skip in network.skips:
            skip.weight.copy_(torch.eye(32))
        doubled = network(x, logsnr, None)
        for skip in network.skips:
            skip.weight.zero_()
        single = network(x, logsnr, None)
    # each of two skips adds the same stream once more, and the last norm takes the factor out again
    torch.testing.assert_close(doubled, single, atol=1e-4, rtol=1e-4)


def test_position_counts():
    """Two patches that trade places give another picture than the traded one: the network knows where they are."""
    torch.manual_seed(0)
    network = DiT(size=16, width=32, depth=2, heads=2, text_dim=0, registers=2, bottleneck=16).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
        x = torch.randn(1, 4, 16, 16)
        shifted = network(x.roll(4, dims=3), torch.zeros(1), None)
        assert (shifted - network(x, torch.zeros(1), None).roll(4, dims=3)).abs().max() > 1e-3


@pytest.mark.parametrize("settings", [{"width": 100, "heads": 6}, {"size": 30, "patch": 4}])
def test_settings_that_do_not_fit(settings):
    with pytest.raises(UserError, match="multiple of"):
        DiT(**settings)


@pytest.mark.parametrize("settings", [{"size": 16, "width": 64, "heads": 2}, {"size": 32, "width": 384, "heads": 6}])
def test_the_same_bits_alone_in_a_batch_in_another_order_and_with_two_threads(settings):
    """A whole guided sampling. Width 384 has sums of 1,024 numbers, which a plain layer shares among threads."""
    torch.manual_seed(0)
    network = DiT(depth=3, text_dim=48, classes=3, **settings)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.03)
    process = Gaussian(Cosine())
    denoiser = Preconditioned(network.eval(), process, "v")
    plan = make_plan("ddpm", process.schedule, make_grid("logsnr", process.schedule, 4))
    text = torch.randn(7, 5, 48)

    def pictures(items):
        cond = {"text": text[items], "class": torch.tensor(items) % 3}
        empty = {"text": torch.zeros(1, 5, 48), "class": torch.tensor([3])}
        guided = ClassifierFree(denoiser, 3.0, empty)
        noise = Noise([10 + i for i in items])
        x = noise.normal((4, settings["size"], settings["size"]), 0)
        return sample(plan, lambda x, t: guided(x, t, cond), x, noise)

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        together = pictures(list(range(7)))
        assert torch.isfinite(together).all() and together.std() > 0.1
        assert torch.equal(pictures(list(range(7))[::-1]).flip(0), together)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert torch.equal(pictures(list(range(7))), together), threads
            for i in (0, 3, 6):
                assert torch.equal(pictures([i])[0], together[i]), (threads, i)
    finally:
        torch.set_num_threads(before)
