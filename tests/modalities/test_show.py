"""PNG files with their recipe, and contact sheets."""

import json
import os
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from unfog.errors import UserError
from unfog.files import write_bytes
from unfog.modalities.image.show import checkerboard, contact_sheet, png_bytes, read_recipe, save_png

RECIPE = {"prompt": "ein Apfel 🍎 «rouge»\nzwei", "seed": 2**63 - 1, "scale": 0.1, "style": None, "steps": 20}


def picture(seed: int = 0, size: tuple[int, int] = (12, 9)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    return Image.fromarray(pixels, "RGBA")


def test_recipe_and_pixels_come_back(tmp_path):
    image = picture()
    save_png(image, tmp_path / "a.png", RECIPE)
    assert read_recipe(tmp_path / "a.png") == RECIPE
    with Image.open(tmp_path / "a.png") as back:
        # Hidden colours under alpha 0 included: the file is the array.
        assert back.mode == "RGBA" and back.tobytes() == image.tobytes()
    assert os.listdir(tmp_path) == ["a.png"]


def test_equal_pictures_are_equal_files(tmp_path):
    image = picture()
    save_png(image, tmp_path / "a.png", RECIPE)
    dressed = image.copy()
    dressed.info = {"dpi": (300, 300), "icc_profile": b"x" * 200, "unfog": "old", "exif": b"Exif\0\0"}
    save_png(dressed, tmp_path / "b.png", dict(reversed(RECIPE.items())))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    save_png(picture(1), tmp_path / "b.png", RECIPE)
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


def test_the_chunk_is_plain_itxt_with_sorted_json(tmp_path):
    """Read by hand, not with Pillow: any PNG tool must find the recipe."""
    data = png_bytes(picture(), RECIPE)
    at, found = 8, {}
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert int.from_bytes(data[at + 8 + length : at + 12 + length], "big") == zlib.crc32(kind + body)
        found[kind] = body
        at += 12 + length
    keyword, rest = found[b"iTXt"].split(b"\0", 1)
    assert keyword == b"unfog"
    assert rest[:2] == b"\0\0"  # not compressed
    text = rest[2:].split(b"\0", 2)[2].decode("utf-8")
    assert json.loads(text) == RECIPE
    assert list(json.loads(text)) == sorted(RECIPE)


def test_files_get_the_usual_permissions(tmp_path):
    save_png(picture(), tmp_path / "a.png")
    (tmp_path / "b").write_bytes(b"")
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_a_failed_write_leaves_nothing_and_keeps_the_old(tmp_path, monkeypatch):
    save_png(picture(), tmp_path / "a.png", RECIPE)
    before = (tmp_path / "a.png").read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        save_png(picture(1), tmp_path / "a.png", RECIPE)
    assert (tmp_path / "a.png").read_bytes() == before
    assert os.listdir(tmp_path) == ["a.png"]


def test_a_taken_name_is_not_replaced_unless_asked(tmp_path):
    assert write_bytes(tmp_path / "a", b"1", replace=False)
    assert not write_bytes(tmp_path / "a", b"2", replace=False)
    assert (tmp_path / "a").read_bytes() == b"1"
    assert write_bytes(tmp_path / "a", b"3")
    assert (tmp_path / "a").read_bytes() == b"3"
    assert os.listdir(tmp_path) == ["a"]


def test_without_hard_links_names_are_still_kept(tmp_path, monkeypatch):
    def no_links(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    assert write_bytes(tmp_path / "a", b"1", replace=False)
    assert not write_bytes(tmp_path / "a", b"2", replace=False)
    assert (tmp_path / "a").read_bytes() == b"1"


def _with_text(path, text, keyword="unfog"):
    info = PngImagePlugin.PngInfo()
    info.add_itxt(keyword, text)
    picture().save(path, pnginfo=info)


def test_unreadable_recipes_are_one_line(tmp_path):
    good = png_bytes(picture(), RECIPE)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "half.png").write_bytes(good[: len(good) - 150])
    (tmp_path / "early.png").write_bytes(good[:30])
    picture().convert("RGB").save(tmp_path / "jpeg.png", "JPEG")
    picture().save(tmp_path / "bare.png")
    _with_text(tmp_path / "other.png", "{}", keyword="Comment")
    _with_text(tmp_path / "broken.png", '{"prompt": ')
    _with_text(tmp_path / "list.png", "[1, 2]")
    _with_text(tmp_path / "deep.png", "[" * 50_000)
    _with_text(tmp_path / "long.png", json.dumps({"prompt": "x" * 200_000}))
    names = sorted(os.listdir(tmp_path))
    assert len(names) == 12
    for name in [*names, "missing.png"]:
        with pytest.raises(UserError) as caught:
            read_recipe(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value) and "; give a PNG" in str(caught.value)


def test_checkerboard_is_light_and_regular():
    board = np.asarray(checkerboard(40, 24)).astype(int)
    assert board.shape == (24, 40, 3)
    assert board.min() > 200
    assert (board[:16, :16] == np.roll(board[:16, :16], (8, 8), (0, 1))).all()
    assert (board[0, 0] != board[0, 8]).any() and (board[0, 0] != board[8, 0]).any()


def test_transparent_pictures_show_the_board_and_opaque_ones_themselves():
    clear = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    red = Image.new("RGBA", (16, 16), (255, 0, 0, 255))
    sheet = np.asarray(contact_sheet([clear, red], columns=2, scale=1))
    assert sheet.shape == (16 + 2 * 8, 2 * 16 + 3 * 8, 3)
    assert (sheet[8:24, 8:24] == np.asarray(checkerboard(16, 16))).all()
    assert (sheet[8:24, 32:48] == (255, 0, 0)).all()
    white = np.asarray(contact_sheet([clear], background="white", scale=1))
    assert (white == 255).all()


def test_hidden_colours_do_not_bleed_when_enlarged():
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[..., 0] = 255  # red, but transparent ...
    pixels[:, 8:] = (0, 0, 255, 255)  # ... beside opaque blue
    sheet = np.asarray(contact_sheet([Image.fromarray(pixels, "RGBA")], background="white", scale=4)).astype(int)
    assert (sheet[..., 0] <= sheet[..., 2]).all()


def test_sheet_layout_and_captions():
    images = [picture(i, (16, 16)) for i in range(5)]
    plain = contact_sheet(images)
    assert plain.size == (3 * 40 + 8, 2 * 40 + 8)
    labelled = contact_sheet(images, [f"{i}: a very long caption that can not fit" for i in range(5)])
    assert labelled.width == plain.width and labelled.height > plain.height
    ink = np.asarray(labelled.convert("L"))[8 + 32 + 4 : 8 + 32 + 20, 8:40]
    assert (ink < 100).sum() > 20
    one_row = contact_sheet(images, columns=99)
    assert one_row.size == (5 * 40 + 8, 40 + 8)
    assert contact_sheet(images, [""] * 5).mode == "RGB"


def test_captions_stay_inside_their_cell():
    size = (64, 64)
    clear = Image.new("RGBA", size)
    text = "supercalifragilisticexpialidocious and so on without an end " * 3
    sheet = np.asarray(contact_sheet([clear, clear], [text, ""], columns=2, background="white", scale=1))
    assert (sheet[:, 8 + 64 + 8 :] == 255).all()
    assert (sheet[72:, 8 : 8 + 64] < 100).any()


@pytest.mark.parametrize("kwargs", [{"images": []}, {"labels": ["a"]}, {"columns": 0}, {"scale": 0}])
def test_bad_sheets_are_refused(kwargs):
    with pytest.raises(UserError):
        contact_sheet(**{"images": [picture(), picture()], **kwargs})
