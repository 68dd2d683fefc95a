"""Editing pictures: outside the mask nothing changes at any size and any number of times, tiles tile, and without a change
nothing changes."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

import unfog
from unfog.editing import edit
from unfog.edits import EditRequest
from unfog.errors import UserError
from unfog.requests import Result


@pytest.fixture(scope="module")
def model():
    return unfog.load("emoji-64")


def wheel(width=64, height=64):
    """Colours that differ everywhere, half-clear in the middle, clear in a corner."""
    y, x = np.mgrid[:height, :width]
    alpha = np.where(x + y < 20, 0, np.where(abs(x - width // 2) < 8, 120, 255))
    return np.stack([x * 255 // width, y * 255 // height, 255 - x * 255 // width, alpha], -1).astype(np.uint8)


def masked(path, width=64, height=64, free=None):
    mask = np.zeros((height, width), np.uint8)
    mask[free or (slice(height // 4, height // 2), slice(width // 3, width))] = 255
    Image.fromarray(mask).save(path)
    return mask == 255


def made(model, raw, **fields):
    fields = {"seed": 3, "steps": 2, **fields}
    return [e for e in edit(model, raw, EditRequest(item="x.png", **fields)) if isinstance(e, Result)]


def apart(a, b):
    """Levels, of premultiplied channels: what a clear pixel would be counts for nothing."""
    a, b = ((x[..., :3].astype(float) * x[..., 3:] / 255, x[..., 3:].astype(float)) for x in (a, b))
    return np.abs(np.concatenate([p - q for p, q in zip(a, b, strict=True)], -1))


@pytest.mark.parametrize("size", [(64, 64), (200, 150), (37, 90), (16, 16)])
@pytest.mark.parametrize("fields", [{}, {"strength": 0.5}, {"original": "a cat"}, {"variations": 0.5}])
def test_outside_the_mask_nothing_changes(model, tmp_path, size, fields):
    raw = wheel(*size)
    free = masked(tmp_path / "m.png", *size)
    (result,) = made(model, raw, prompt="a dog", mask=str(tmp_path / "m.png"), **fields)
    assert result.item.shape == raw.shape and result.item.dtype == np.uint8
    assert (result.item[~free] == raw[~free]).all() and (result.item[free] != raw[free]).any()
    assert ("resized" in result.recipe) == (size != (64, 64))


def test_ten_edits_in_a_row_do_not_drift(model, tmp_path):
    raw = wheel(100, 80)
    free = masked(tmp_path / "m.png", 100, 80)
    last = raw
    for k in range(10):
        last = made(model, last, prompt="a cat", mask=str(tmp_path / "m.png"), strength=0.7, seed=k)[0].item
    assert (last[~free] == raw[~free]).all() and (last[free] != raw[free]).any()


def test_mask_and_keep_are_one_thing(model, tmp_path):
    masked(tmp_path / "m.png")
    one, two = (made(model, wheel(), **{name: str(tmp_path / "m.png")})[0].item for name in ("mask", "keep"))
    drawn = made(model, Image.fromarray(wheel()), mask=str(tmp_path / "m.png"))[0].item  # as `Model.generate` gives them
    assert (one == two).all() and (one == drawn).all()


def test_a_larger_canvas_holds_the_picture(model, tmp_path):
    raw = wheel()
    (result,) = made(model, raw, prompt="a garden", canvas="10,0,38,20")
    assert result.item.shape == (84, 112, 4) and (result.item[:64, 10:74] == raw).all()
    assert result.item[:64, 74:, 3].any()
    small = wheel(100, 50)
    free = masked(tmp_path / "m.png", 100, 50)
    (result,) = made(model, small, canvas="0,10,0,0", mask=str(tmp_path / "m.png"))
    assert result.item.shape == (60, 100, 4) and (result.item[10:][~free] == small[~free]).all()


def seam(pixels):
    """How much neighbours over the edge differ, against neighbours inside: 1 where there is no edge."""
    p = np.concatenate([pixels[..., :3].astype(float) * pixels[..., 3:] / 255, pixels[..., 3:].astype(float)], -1)
    inner = np.abs(np.diff(p, axis=0)).mean() + np.abs(np.diff(p, axis=1)).mean()
    return (np.abs(p[0] - p[-1]).mean() + np.abs(p[:, 0] - p[:, -1]).mean()) / inner


@pytest.mark.slow
def test_a_tile_has_no_seam(model):
    raw = wheel()
    raw[..., 3] = 255
    fields = {"prompt": "a stone wall", "strength": 0.8, "steps": 10}
    assert seam(raw) > 10 and seam(made(model, raw, **fields, tile=True)[0].item) < 2.5


def test_without_a_change_nothing_changes(model):
    """Down to noise and back: the item, but for what its own codec rounds."""
    raw = wheel()
    codec = model.codec.decode(model.codec.encode(raw[None]))[0]
    for fields in (
        {"variations": 0.0},
        {"original": "a cat", "prompt": "a cat"},
        {"original": "a cat", "prompt": "a cat", "n": 2},
    ):
        for result in made(model, raw, steps=4, **fields):
            assert apart(result.item, codec).max() <= 3


def test_variations_differ_more_the_more_is_asked(model):
    raw = np.asarray(model.generate("a red apple", seed=1, steps=4)[0])
    far = [apart(made(model, raw, prompt="a red apple", variations=v, steps=6)[0].item, raw).mean() for v in (0.1, 0.4, 1.0)]
    assert far[0] < far[1] < far[2]
    one, two = made(model, raw, variations=0.4, steps=4, n=2)
    assert (one.item != two.item).any() and (one.seed, two.seed) == (3, 4)


def test_frames_lead_from_one_to_the_other(model, tmp_path):
    a, b = wheel(), np.array(model.generate("a cat", seed=2, steps=2)[0])
    Image.fromarray(b).save(tmp_path / "b.png")
    frames = made(model, a, prompt="a flag", towards=tmp_path / "b.png", towards_prompt="a cat", frames=4, steps=4)
    assert [f.recipe["frame"] for f in frames] == [0, 1, 2, 3]
    ends = [model.codec.decode(model.codec.encode(x[None]))[0] for x in (a, b)]
    assert apart(frames[0].item, ends[0]).max() <= 3 and apart(frames[-1].item, ends[1]).max() <= 3
    to_a = [apart(f.item, a).mean() for f in frames]
    assert to_a[0] < to_a[1] < to_a[3]
    by_seed = made(model, a, towards_seed=9, frames=2)
    assert apart(by_seed[0].item, ends[0]).max() <= 3 and apart(by_seed[1].item, a).mean() > 5
    by_prompt = made(model, a, prompt="a flag", towards_prompt="a cat", frames=3)
    assert apart(by_prompt[0].item, ends[0]).max() <= 3 and apart(by_prompt[2].item, a).mean() > 1


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"mask": "m.png", "keep": "m.png"}, "mask: cannot be asked for together with keep"),
        ({"canvas": "1,1,1,1", "tile": True}, "canvas: cannot be asked for together with tile"),
        ({"canvas": "0,0,0,0"}, "canvas: adds nothing"),
        ({"original": "a", "variations": 0.5}, "original: cannot be asked for together with variations"),
        ({"variations": 0.5, "strength": 0.5}, "strength: cannot be asked for together with variations"),
        ({"towards_prompt": "a", "mask": "m.png"}, "mask: cannot be asked for together with towards"),
        ({"towards_seed": 1, "n": 2}, "n: cannot be asked for together with towards"),
        ({"towards_seed": 1, "towards": "b.png"}, "towards_seed: cannot be asked for together with towards"),
        ({"frames": 3}, "frames: are of a way towards something"),
        ({"variations": 0.5, "sampler": "heun"}, "sampler: an item goes through its own noise by ddim"),
        ({"towards": "none.png"}, "none.png: cannot be read"),
        ({"mask": "none.png"}, "none.png: cannot be read"),
        ({"prompt": "a (cat:99)"}, "prompt: the weight 99"),
        ({"canvas": "9000,0,0,0"}, "canvas: would be"),
        ({"canvas": "0,0,4000,0"}, "canvas: would be"),
    ],
)
def test_what_contradicts_is_refused_before_anything_is_made(model, fields, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    masked(tmp_path / "m.png")
    with pytest.raises(UserError) as caught:
        next(edit(model, wheel(), EditRequest(item="x.png", **fields)))
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)


def test_a_tile_needs_the_models_shape(model):
    with pytest.raises(UserError, match="tile: the picture's shape"):
        next(edit(model, wheel(64, 40), EditRequest(item="x.png", tile=True)))


def sketch(path):
    """An ellipse drawn with a pen."""
    picture = Image.new("L", (128, 128), 255)
    ImageDraw.Draw(picture).ellipse((30, 10, 98, 118), outline=0, width=4)
    picture.save(path)
    return str(path)


WAYS = [{}, {"mask": "m.png"}, {"original": "a cat"}, {"variations": 0.5}, {"towards_prompt": "a cat", "frames": 2}]


@pytest.mark.parametrize("fields", WAYS, ids=["again", "mask", "original", "variations", "towards"])
def test_a_control_steers_each_way_and_strength_0_is_nothing(model, tmp_path, monkeypatch, fields):
    monkeypatch.chdir(tmp_path)
    raw, free, hint = wheel(), masked("m.png"), sketch("s.png")

    def last(**more):
        return made(model, raw, prompt="a dog", scale=1, steps=1, **fields, **more)[-1]

    plain, zero, told = last(), last(control=[f"lineart={hint}:0"]), last(control=[f"lineart={hint}:2"])
    assert (zero.item == plain.item).all() and (told.item != plain.item).any()
    assert "control" not in plain.recipe and zero.recipe["control"][0]["strength"] == 0
    (one,) = told.recipe["control"]
    assert (one["kind"], one["strength"], len(one["hint"])) == ("lineart", 2, 16)
    assert [a["name"] for a in told.recipe["adapters"]] == ["emoji-64-control"] and "adapters" not in plain.recipe
    if "mask" in fields:
        assert (told.item[~free] == raw[~free]).all()


def test_without_a_change_a_control_changes_nothing(model, tmp_path):
    """It is told on the way down, too, at the same levels; only of what is to be new it is told on the way back alone."""
    raw, hint = wheel(), sketch(tmp_path / "s.png")
    codec = model.codec.decode(model.codec.encode(raw[None]))[0]
    asked = {"control": [{"kind": "lineart", "picture": hint, "strength": 2.0, "interval": (0.0, 0.5)}], "steps": 4}
    assert apart(made(model, raw, variations=0.0, **asked)[0].item, codec).max() <= 3
    assert apart(made(model, raw, prompt="a cat", original="a cat", **asked)[0].item, codec).max() > 3


def test_a_hint_lies_where_the_picture_does(model, tmp_path):
    """Of a picture of another shape, too: the canvas that holds all of it is one frame then, and a larger one is none."""
    raw, hint = wheel(32, 64), sketch(tmp_path / "s.png")
    told, plain = (made(model, raw, prompt="a dog", steps=1, scale=1, canvas="16,0,16,0", **more)[0].item
                   for more in ({"control": [f"lineart={hint}"]}, {}))  # fmt: skip
    assert told.shape == (64, 64, 4) and (told != plain).any() and (told[:, 16:48] == raw).all()
    for fields, word in (({"canvas": "0,0,40,0"}, "this canvas goes"), ({"tile": True}, "this tile goes")):
        with pytest.raises(UserError, match=word) as caught:
            next(edit(model, wheel(), EditRequest(item="x.png", control=[f"lineart={hint}"], **fields)))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"control": ["lineart=none.png"]}, "none.png: cannot be read"),
        ({"style_image": ["none.png"]}, "none.png: cannot be read"),
        ({"settings": {"guess": "on"}}, "settings: emoji-64 has none of its own; leave out guess"),
        ({"settings": {"size": "64x64"}}, "settings: the size is the item's own; leave size out"),
    ],
)
def test_hints_that_are_none(model, fields, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sketch("s.png")
    with pytest.raises(UserError) as caught:
        next(edit(model, wheel(), EditRequest(item="x.png", **fields)))
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)
