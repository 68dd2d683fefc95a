"""Hints: what each control sees of pictures whose answer is known, and of anybody's files."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from unfog.errors import UserError
from unfog.modalities.image.controls import CONTROLS, cut_out, of_picture, shown, sketched


def disc(colour=(200, 40, 30, 255), size=64, outline=None):
    image = Image.new("RGBA", (size, size))
    ImageDraw.Draw(image).ellipse((size // 4, size // 4, 3 * size // 4, 3 * size // 4), fill=colour, outline=outline, width=2)
    return image


def tensor(image):
    return torch.from_numpy(np.array(image))[None]


def distance():
    y, x = np.mgrid[:64, :64]
    return np.abs(np.hypot(x - 32, y - 32) - 16)


@pytest.mark.parametrize("name", CONTROLS)
def test_hints_are_of_the_registered_shape_and_range(name):
    hint = CONTROLS[name].draw(tensor(disc()).repeat(2, 1, 1, 1))
    assert hint.shape == (2, CONTROLS[name].channels, 64, 64) and hint.min() >= 0 and hint.max() <= 1 and hint.max() > 0
    assert of_picture(name, disc(size=100), (64, 48)).shape == (CONTROLS[name].channels, 48, 64)
    assert shown(name, hint[0]).size == (64, 64)


@pytest.mark.parametrize("outline", [None, (0, 0, 0, 255)])
def test_lines_lie_on_the_outline_and_are_thin(outline):
    lines = CONTROLS["lineart"].draw(tensor(disc(outline=outline)))[0, 0].numpy() > 0.5
    assert distance()[lines].max() < 2.6  # a stroke of two pixels lies on the inner side
    assert all((lines & (distance() < 3))[part].any() for part in (np.s_[:20], np.s_[44:], np.s_[:, :20], np.s_[:, 44:]))
    assert lines.sum() < 2.6 * 2 * np.pi * 16


def test_a_white_thing_on_nothing_has_an_outline():
    assert CONTROLS["lineart"].draw(tensor(disc((255, 255, 255, 255)))).sum() > 60


def test_palette_is_flat_in_blocks_and_lowres_forgets_detail():
    noise = torch.randint(0, 256, (1, 64, 64, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    blocks = CONTROLS["palette"].draw(noise)[0].reshape(4, 8, 8, 8, 8)
    assert torch.equal(blocks, blocks[:, :, :1, :, :1].expand_as(blocks))
    assert CONTROLS["lowres"].draw(noise).std() < 0.4 * noise.float().div(255).std()


def test_a_sketch_stays_one_and_thin_lines_survive_shrinking():
    page = Image.new("RGB", (900, 900), "white")
    ImageDraw.Draw(page).ellipse((225, 225, 675, 675), outline="black", width=3)
    assert sketched(page.convert("RGBA")) is not None and sketched(disc()) is None
    ink = of_picture("lineart", page, (64, 64))[0].numpy()
    assert ink.max() == 1 and distance()[ink > 0.5].max() < 1.6 and (ink > 0.5).sum() > 2 * 16 * np.pi * 0.9
    inverse = Image.eval(page, lambda v: 255 - v)
    assert np.abs(of_picture("lineart", inverse, (64, 64))[0].numpy() - ink).max() < 0.01


def test_a_background_of_one_colour_is_none():
    page = Image.new("RGBA", (80, 80), (240, 238, 230, 255))
    page.alpha_composite(disc(), (8, 8))
    alpha = np.asarray(cut_out(page))[..., 3]
    assert alpha[0, 0] == 0 and alpha[40, 40] == 255 and abs((alpha > 127).mean() - np.pi * 16**2 / 6400) < 0.03
    for whole in (disc(), Image.new("RGBA", (9, 9), "red")):  # clear already; of one colour, and meant to be
        assert cut_out(whole) is whole


def test_bad_pictures_are_refused_in_a_line(tmp_path):
    (tmp_path / "bad.png").write_text("no")
    for picture, told in ((tmp_path / "bad.png", "readable"), (tmp_path / "nix.png", "cannot be read"),
                          (np.zeros((4, 4, 4)), "array")):  # fmt: skip
        with pytest.raises(UserError, match=told) as error:
            of_picture("lineart", picture, (64, 64))
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="mean lineart"):
        of_picture("linart", disc(), (64, 64))
