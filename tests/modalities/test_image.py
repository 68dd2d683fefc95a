"""Pictures in and out: the codec, data sets of all layouts, captions, colours, and the shipped emoji."""

import io
import json
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

import unfog.data
from unfog.errors import UserError
from unfog.modalities.image.captions import captions
from unfog.modalities.image.codec import RGBACodec
from unfog.modalities.image.colours import COLOURS, main_colours, turn_hue
from unfog.modalities.image.data import PictureSet, Record


def noise(n=3, size=12, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 4), dtype=np.uint8)


def png(picture):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def flat(*rgb, alpha=255, size=8):
    return np.full((size, size, 4), (*rgb, alpha), np.uint8)


# codec


def test_round_trip_of_opaque_and_empty_pixels():
    pictures = noise()
    pictures[..., 3] = np.where(pictures[..., 3] > 100, 255, 0)
    codec = RGBACodec.fit(pictures)
    back = codec.decode(codec.encode(pictures))
    full = pictures[..., 3] == 255
    assert back.dtype == np.uint8 and np.array_equal(back[..., 3], pictures[..., 3])
    assert np.abs(back[full].astype(int) - pictures[full]).max() <= 2
    assert not back[~full].any()  # the colour of nothing is not kept


def test_half_transparent_pixels_are_kept():
    pictures = noise()
    pictures[..., 3] = np.random.default_rng(1).integers(60, 240, pictures.shape[:3])
    back = RGBACodec().decode(RGBACodec().encode(pictures)).astype(int)
    assert np.abs(back[..., :3] - pictures[..., :3]).max() <= 3
    assert np.array_equal(back[..., 3], pictures[..., 3])


def test_a_faint_veil_is_cleared_and_a_faint_hole_filled():
    pictures = noise()
    pictures[..., 3] = np.where(np.arange(12) < 6, 9, 246)
    back = RGBACodec().decode(RGBACodec().encode(pictures))
    assert np.array_equal(back[..., 3], np.broadcast_to(np.where(np.arange(12) < 6, 0, 255), back.shape[:3]))


def test_the_colour_under_nothing_does_not_reach_the_model():
    a, b = flat(200, 10, 30, alpha=0)[None], flat(0, 0, 0, alpha=0)[None]
    assert torch.equal(RGBACodec().encode(a), RGBACodec().encode(b))


def test_fit_gives_zero_mean_and_unit_variance():
    pictures = noise(20)
    x0 = RGBACodec.fit(pictures).encode(pictures)
    assert x0.shape == (20, 4, 12, 12) and x0.dtype == torch.float32
    torch.testing.assert_close(x0.mean((0, 2, 3)), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(x0.std((0, 2, 3)), torch.ones(4), atol=2e-3, rtol=0)


def test_fit_of_always_opaque_pictures_is_finite():
    x0 = RGBACodec.fit(flat(10, 20, 30)[None]).encode(flat(10, 20, 30)[None])
    assert torch.isfinite(x0).all() and float(x0.abs().max()) < 0.01


def test_decode_keeps_any_prediction_in_range():
    x0 = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * 50
    picture = RGBACodec().decode(x0)
    assert picture.shape == (2, 8, 8, 4) and picture.dtype == np.uint8


# data sets


def fill(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(flat(9, 8, 7)))


def test_folder_with_sidecars(tmp_path):
    fill(tmp_path, ["b.png", "a.PNG", "notes/c.png"])
    (tmp_path / "a.txt").write_text("  an apple, größer\n", encoding="utf-8")
    (tmp_path / "readme.md").write_text("no picture")
    data = PictureSet.open(tmp_path)
    found = {r.file_name: r.text for r in data.records}
    assert found == {"a.PNG": "an apple, größer", "b.png": "", "notes/c.png": "notes"}
    assert data.split("train") == [0, 1, 2] and len(data) == 3 and data.styles == []
    assert np.array_equal(data.load(0), flat(9, 8, 7))


def test_class_folders(tmp_path):
    fill(tmp_path, ["red_cars/1.png", "red_cars/2.png", "dogs/1.png"])
    assert [r.text for r in PictureSet.open(tmp_path).records] == ["dogs", "red cars", "red cars"]


def make_zip(path, lines, pictures):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.jsonl", "\n".join(lines))
        for name, data in pictures.items():
            archive.writestr(name, data)
    return path


def test_zip_with_metadata(tmp_path):
    records = [
        {"file_name": "x/1.png", "text": "an apple", "style": "noto", "tags": ["fruit"], "split": "heldout_pair", "width": 3},
        {"file_name": "x/2.png", "style": "flat"},
    ]
    pictures = {"x/1.png": png(flat(1, 2, 3)), "x/2.png": png(flat(4, 5, 6)), "x/unnamed.png": b""}
    data = PictureSet.open(make_zip(tmp_path / "a.zip", [json.dumps(r) for r in records] + [""], pictures))
    assert data.styles == ["noto", "flat"] and data.split("heldout_pair") == [0] and data.split("train") == [1]
    assert data.records[0].tags == ["fruit"] and np.array_equal(data.load(1), flat(4, 5, 6))


def test_line_separators_inside_a_text_do_not_end_the_line(tmp_path):
    text = "one\u2028two\x85three"
    lines = [json.dumps({"file_name": "1.png", "text": text}, ensure_ascii=False) + "\r", ""]
    assert PictureSet.open(make_zip(tmp_path / "a.zip", lines, {"1.png": png(flat(1, 2, 3))})).records[0].text == text


def test_load_fits_into_a_square_without_dark_edges(tmp_path):
    wide = np.zeros((10, 40, 4), np.uint8)
    wide[:, :20] = (255, 255, 255, 255)  # the right half is empty, and black underneath
    (tmp_path / "a.png").write_bytes(png(wide))
    picture = PictureSet.open(tmp_path).load(0, 16)
    assert picture.shape == (16, 16, 4)
    assert not picture[:6].any() and not picture[10:].any() and picture[6:10, :6, 3].all()
    assert (picture[picture[..., 3] > 8][:, :3] >= 250).all()


def test_other_modes_are_read(tmp_path):
    Image.new("L", (4, 4), 77).save(tmp_path / "grey.png")
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "rgb.bmp")
    Image.new("P", (4, 4)).save(tmp_path / "palette.gif")
    data = PictureSet.open(tmp_path)
    assert all(data.load(i).shape == (4, 4, 4) for i in range(3))
    assert data.load(0)[0, 0].tolist() == [77, 77, 77, 255]


@pytest.mark.parametrize("line", ["{oops", "[1]", '{"text": "no file"}', "[" * 99_999, '{"file_name": 3}'], ids=range(5))
def test_a_bad_line_is_numbered(tmp_path, line):
    path = make_zip(tmp_path / "a.zip", ['{"file_name": "1.png"}', line], {"1.png": png(flat(1, 2, 3))})
    with pytest.raises(UserError, match="metadata.jsonl line 2 is not usable"):
        PictureSet.open(path)


def test_what_is_missing_is_named(tmp_path):
    path = make_zip(tmp_path / "a.zip", ['{"file_name": "../2.png"}'], {"1.png": png(flat(1, 2, 3))})
    with pytest.raises(UserError, match=r"names \.\./2\.png, which is not there"):
        PictureSet.open(path)
    with pytest.raises(UserError, match="no such folder or zip"):
        PictureSet.open(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no pictures found"):
        PictureSet.open(tmp_path / "empty")


def test_broken_archives(tmp_path):
    path = tmp_path / "a.zip"
    path.write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(UserError, match="not a zip archive"):
        PictureSet.open(path)
    good = make_zip(path, ['{"file_name": "1.png"}'], {"1.png": png(noise()[0])}).read_bytes()
    at = good.index(b"IDAT") + 20
    path.write_bytes(good[:at] + bytes([good[at] ^ 255]) + good[at + 1 :])
    with pytest.raises(UserError, match=r"1\.png is not a readable picture"):
        PictureSet.open(path).load(0)


def test_text_that_is_not_utf8_is_named(tmp_path):
    fill(tmp_path, ["a.png"])
    (tmp_path / "a.txt").write_bytes("Äpfel".encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.txt.*UTF-8"):
        PictureSet.open(tmp_path)
    (tmp_path / "metadata.jsonl").write_bytes(b'{"file_name": "a.png", "text": "\xc4"}')
    with pytest.raises(UserError, match=r"metadata\.jsonl.*UTF-8"):
        PictureSet.open(tmp_path)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("side", [8_100, 60_000])
def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, side):
    head = struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(bomb)
    with pytest.raises(UserError, match=r"bomb\.png"):
        PictureSet.open(tmp_path).load(0)


@pytest.mark.parametrize("suffix", ["PNG", "WEBP", "JPEG", "GIF", "BMP"])
def test_damaged_pictures_are_refused_in_one_line(tmp_path, suffix):
    file = io.BytesIO()
    Image.fromarray(noise()[0]).convert("RGBA" if suffix in ("PNG", "WEBP") else "RGB").save(file, suffix)
    rng = np.random.default_rng(0)
    path = tmp_path / f"a.{suffix.lower()}"
    for _ in range(30):
        data = bytearray(file.getvalue())
        for at in rng.integers(len(data), size=3):
            data[at] = rng.integers(256)
        path.write_bytes(data[: rng.integers(1, len(data) + 1)])
        try:
            assert PictureSet.open(tmp_path).load(0).shape[2] == 4
        except UserError as error:
            assert path.name in str(error) and "\n" not in str(error)


# captions and colours


APPLE = Record(file_name="a", name="red apple", tags=["fruit", "apple", "tree"], colors=["red", "green"], style="fluent-3d")


def test_captions_all_say_the_name():
    for seed in range(20):
        lines = captions(APPLE, np.random.default_rng(seed))
        assert len(lines) == 4 and all("red apple" in line for line in lines) and lines[0] == "red apple"
        assert all(line == line.strip(", ") and ", ," not in line for line in lines)
        assert "3D render" in lines[3] and "red and green" in lines[3] and len(lines[3]) == max(map(len, lines))


def test_captions_are_a_function_of_the_generator():
    runs = [[captions(APPLE, np.random.default_rng(seed)) for _ in range(2)] for seed in range(8)]
    assert all(a == b for a, b in runs) and len({tuple(a) for a, _ in runs}) > 1


def test_captions_of_a_bare_record():
    rng = np.random.default_rng(0)
    assert captions(Record(file_name="a"), rng) == [""] * 4
    assert all("an old door" in line for line in captions(Record(file_name="a", text="an old door"), rng))


@pytest.mark.parametrize("name", sorted(COLOURS))
def test_a_flat_picture_has_its_colour(name):
    for shade in COLOURS[name]:
        assert main_colours(flat(*shade)) == [name]


def test_colours_come_by_area_and_small_ones_not_at_all():
    picture = flat(220, 40, 50, size=10)
    picture[:3] = (50, 120, 220, 255)
    picture[9, :5] = (255, 205, 70, 255)
    assert main_colours(picture) == ["red", "blue"]
    picture[:, :, 3] = 0
    assert main_colours(picture) == []


def test_turning_hue_by_a_third_is_a_change_of_channels():
    picture = noise(1)[0]
    picture[..., 3] |= 1
    turned = turn_hue(picture, 1 / 3)
    assert np.array_equal(turned, picture[..., [2, 0, 1, 3]])
    assert main_colours(turn_hue(flat(200, 30, 30), 1 / 3)) == ["green"]
    back = turn_hue(turn_hue(picture, 1 / 3), 2 / 3)
    assert np.array_equal(back, picture)


@pytest.mark.parametrize("angle", [0.1, 0.37, 0.8])
def test_turning_hue_keeps_grey_alpha_and_emptiness(angle):
    greys = np.stack([flat(v, v, v, alpha=v) for v in (0, 1, 90, 255)])
    turned = np.stack([turn_hue(g, angle) for g in greys])
    assert np.abs(turned[..., :3].astype(int) - greys[..., :3]).max() <= 1
    assert np.array_equal(turned[..., 3], greys[..., 3])
    assert not turn_hue(flat(200, 10, 30, alpha=0), angle).any()


# the shipped emoji


@pytest.fixture(scope="module")
def emoji():
    return PictureSet.open(unfog.data.path("emoji-64"))


def test_emoji_counts(emoji):
    counts = {name: len(emoji.split(name)) for name in ("train", "heldout_pair", "heldout_concept")}
    assert counts == {"train": 8074, "heldout_pair": 449, "heldout_concept": 455} and len(emoji) == 8978
    assert sorted(emoji.styles) == ["fluent-3d", "fluent-flat", "noto", "openmoji", "twemoji"]
    assert len({(r.concept, r.style) for r in emoji.records}) == len({r.file_name for r in emoji.records}) == 8978


def test_emoji_splits_do_not_leak(emoji):
    of = {s: {r.concept for r in emoji.records if r.split == s} for s in ("train", "heldout_pair", "heldout_concept")}
    assert not of["heldout_concept"] & (of["train"] | of["heldout_pair"])
    assert of["heldout_pair"] <= of["train"]


def test_emoji_near_duplicates_never_straddle(emoji):
    split = {(r.concept, r.style): r.split for r in emoji.records}
    straddling = [
        (r.file_name, other)
        for r in emoji.records
        for other in r.near_duplicates
        if (split[r.concept, r.style] == "train") != (split.get((other, r.style), r.split) == "train")
    ]
    assert sum(len(r.near_duplicates) for r in emoji.records) > 0
    assert straddling == []


def test_emoji_pictures(emoji):
    for i in range(0, len(emoji), 400):
        picture, record = emoji.load(i), emoji.records[i]
        assert picture.shape == (64, 64, 4) and picture[..., 3].any()
        assert record.name and record.category and record.text.startswith(record.name)
        assert np.array_equal(emoji.load(i, 64), picture)
