"""The copy detector: aligning is exact where the answer is known, the score falls with differences, changed copies are found."""

import numpy as np
import pytest
import torch

from unfog.evaluation.aligned import align, blur, describe, planes, readings, shown
from unfog.evaluation.copies import Known, Network, look
from unfog.evaluation.memorisation import threshold_of
from unfog.evaluation.plants import KINDS


def shapes(count: int, seed: int = 0, opaque: bool = False) -> np.ndarray:
    """Random soft discs and bars, straight RGBA (N, 64, 64, 4), clear of the edges."""
    rng = np.random.default_rng(seed)
    made = np.zeros((count, 64, 64, 4), np.uint8)
    rows, columns = np.mgrid[:64, :64]
    for picture in made:
        if opaque:
            picture[...] = [*rng.integers(0, 256, 3), 255]
        for _ in range(5):
            (cy, cx), (h, w) = rng.uniform(20, 44, 2), rng.uniform(5, 13, 2)
            a, b = abs(rows - cy) / h, abs(columns - cx) / w
            inside = (np.hypot(a, b) if rng.random() < 0.5 else np.maximum(a, b)) < 1
            picture[inside] = [*rng.integers(0, 256, 3), 255]
    return made


@pytest.fixture(scope="module")
def known():
    return Known.of([shapes(200)])


@pytest.fixture(scope="module")
def limit(known):
    """What no new picture scores."""
    return threshold_of(look(shapes(60, seed=9), known).score)


def test_planes_are_premultiplied_means_of_any_shape():
    picture = np.zeros((64, 64, 4), np.uint8)
    picture[..., 0] = 255  # hidden but for one pixel of four
    picture[::2, ::2, 3] = 255
    assert planes(picture[None])[0, :, 5, 5].tolist() == [64, 0, 0, 64]
    wide = np.full((32, 64, 4), 255, np.uint8)
    (made,) = planes([wide])
    assert (made[3, :8] == 0).all() and (made[3, 8:24] == 255).all() and (made[3, 24:] == 0).all()
    assert planes([wide, picture]).shape == (2, 4, 32, 32)  # of several shapes
    with pytest.raises(ValueError, match="uint8"):
        planes(np.zeros((1, 64, 64, 3), np.uint8))


@pytest.mark.parametrize("shift", [(0.0, 0.0), (1.5, -0.7), (-3.0, 2.0)])
def test_a_move_is_found_to_a_tenth_of_a_pixel(shift):
    """A smooth picture and its exact move: the warp says by how much, and nothing is left."""
    at = torch.arange(32.0)

    def bump(dy, dx):
        y, x = torch.exp(-((at - 15.5 - dy) ** 2) / 30)[:, None], torch.exp(-((at - 15.5 - dx) ** 2) / 50)[None]
        return torch.stack([y * x, 0.5 * y * x, 0.2 * y * x, torch.ones(32, 32)])[None]

    original, moved = bump(0, 0), bump(*shift)
    fit = align(shown(moved), original, torch.tensor([True]), torch.zeros(1, 6), 6, 2)
    found = fit.warp[0, :2] * 16  # half sides to pixels; where the sample is read, so the move itself
    assert found.tolist() == pytest.approx([shift[1], shift[0]], abs=0.1)
    assert fit.energy.item() < 1e-4


def test_colour_and_background_are_taken_out_but_counted():
    x = planes(shapes(8)).float() / 255
    mixed = torch.einsum("dc,nchw->ndhw", torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.8, 0.1], [0.1, 0.0, 0.9]]), x[:, :3])
    back = torch.tensor([0.9, 0.2, 0.4]).view(1, 3, 1, 1)
    plain, other = shown(x), mixed + (1 - x[:, 3:]) * back
    zero, yes = torch.zeros(8, 6), torch.ones(8, dtype=torch.bool)
    same, changed = align(plain, x, ~yes, zero, 1, 2), align(other, x, yes, zero, 1, 2)
    assert same.energy.max() < 1e-6
    assert changed.residual.square().mean() < 2e-5 < (other - plain).square().mean() / 100
    said = [readings(fit) for fit in (same, changed)]
    assert (said[1]["brightness"] + said[1]["hue"] > 100 * (said[0]["brightness"] + said[0]["hue"])).all()


def test_edges_describe_a_picture_on_any_background():
    x = planes(shapes(40)).float() / 255
    back = torch.rand(40, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    vectors, others = describe(shown(x)), describe(x[:, :3] + (1 - x[:, 3:]) * back)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(40), atol=1e-5)
    assert ((vectors @ others.T).argmax(1) == torch.arange(40)).float().mean() > 0.9


def test_a_blur_keeps_means_and_widths():
    x = torch.zeros(1, 1, 33, 33)
    x[0, 0, 16, 16] = 1
    y = blur(x, 1.5)[0, 0]
    at = torch.arange(33.0) - 16
    assert y.sum().item() == pytest.approx(1, abs=1e-5)
    assert (y.sum(0) * at**2).sum().sqrt().item() == pytest.approx(1.5, rel=0.02)


def test_the_score_falls_with_every_difference():
    network = Network.load()
    falling = ["l0", "l1", "l2", "c1", "c0", "worst", "odd", "odd_strong", "odd_many", "brightness", "hue", "apart", "rough"]
    names = list(
        readings(align(torch.zeros(1, 3, 32, 32), torch.zeros(1, 4, 32, 32), torch.tensor([True]), torch.zeros(1, 6), 0, 2))
    )
    names += ["apart", "context", "rest", "rough"]
    assert len(names) == network.weight.shape[1]
    values = network.mean + network.spread * torch.randn(200, len(names), generator=torch.Generator().manual_seed(0))
    for name in falling:
        more = values.clone()
        more[:, names.index(name)] += 2
        assert (network.score(more) <= network.score(values) + 1e-5).all(), name


@pytest.mark.parametrize("kind", KINDS)
def test_changed_copies_are_found_among_shapes(kind, known, limit):
    """Shapes are nothing the weights were fitted on; the threshold is the largest score of 60 pictures that are new."""
    pictures, rng = shapes(200), np.random.default_rng(3)
    rows = np.arange(0, 200, 10)
    found = look([KINDS[kind](pictures[i], rng) for i in rows], known)
    assert (found.score > limit).mean() >= 0.9
    assert (found.index == rows).mean() >= 0.9


def test_a_mirrored_copy_is_found_as_such(known, limit):
    pictures = shapes(200)[:20, :, ::-1]
    turned = threshold_of(look(shapes(60, seed=9), known, mirrored=True).score)
    found = look(pictures, known, mirrored=True)
    assert (found.score > turned).all() and found.index.tolist() == list(range(20))
    assert (look(pictures, known).score <= limit).mean() > 0.9


def test_own_picture_is_passed_over_and_order_does_not_matter(known):
    own = np.arange(40)
    found = look(known.planes[:40], known, own)
    assert (found.index != own).all()
    backwards = look(known.planes[:40].flip(0), known, own[::-1].copy())
    assert np.allclose(found.score, backwards.score[::-1], atol=1e-3)
    exact = look(known.planes[:40], known)
    assert exact.index.tolist() == own.tolist() and exact.apart.max() < 1e-3


def test_one_known_picture_is_enough_but_none_is_not():
    pictures = shapes(3)
    alone = Known.of([pictures[:1]])
    found = look(pictures, alone)
    assert found.index.tolist() == [0, 0, 0] and found.score[0] > found.score[1:].max() and np.isfinite(found.score).all()
    with pytest.raises(ValueError, match="known"):
        look(pictures[:1], alone, own=[0])
    assert len(look(pictures[:0], alone).score) == 0
