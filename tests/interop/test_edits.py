"""Pictures edited by models of others under what steers them: in each way, at strength 0 to the bit as without."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parent))

import tiny

from unfog.editing import EditRequest, edit
from unfog.errors import UserError
from unfog.interop import load
from unfog.requests import Result

RAW = np.random.default_rng(0).integers(0, 256, (32, 32, 4), dtype=np.uint8) | np.uint8([0, 0, 0, 255])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    from diffusers import T2IAdapter

    place = tmp_path_factory.mktemp("edits")
    fields = {"block_out_channels": (32, 32), "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D")}
    for name, channels in (("sd", 4), ("depth", 5), ("inpaint", 9)):
        folder = tiny.stable_diffusion(place / name, name="DDIMScheduler")
        network = tiny.unet(0, in_channels=channels, up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), **fields)
        network.save_pretrained(folder / "unet")
    tiny.controlnet(1, **fields).save_pretrained(place / "canny")
    torch.manual_seed(5)
    T2IAdapter(3, [32, 32], 1, 2, "full_adapter").save_pretrained(place / "sketch")
    tiny.clip_vision().save_pretrained(place / "eye")
    save_file(tiny.ip_adapter(network), place / "ip.safetensors")
    mask = np.zeros((32, 32), np.uint8)
    mask[8:20, 12:32] = 255
    Image.fromarray(mask).save(place / "mask.png")
    for k in range(2):
        Image.fromarray(np.random.default_rng(k).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(place / f"{k}.png")
    return place


@pytest.fixture(scope="module")
def model(place):
    guides = [place / name for name in ("canny", "sketch", "ip.safetensors", "eye")]
    return load(place / "sd", "cpu", guides, dtype=torch.float32)


def made(model, **fields):
    fields = {"prompt": "a red apple", "steps": 2, "seed": 1, "scale": 1, **fields}
    return [e for e in edit(model, RAW, EditRequest(item="x.png", **fields)) if isinstance(e, Result)][-1]


WAYS = [{}, {"mask": "mask.png"}, {"original": "a cat"}, {"variations": 0.5}, {"towards_prompt": "a cat", "frames": 2}]


@pytest.mark.parametrize("fields", WAYS, ids=["again", "mask", "original", "variations", "towards"])
def test_each_way(model, place, fields, monkeypatch):
    monkeypatch.chdir(place)
    plain = made(model, **fields)
    for name, wish in (("control", "canny=0.png"), ("control", "sketch=0.png"), ("style_image", "1.png")):
        zero, told = (made(model, **fields, **{name: [wish + number]}) for number in (":0", ":2"))
        assert (zero.item == plain.item).all() and (told.item != plain.item).any(), wish
        (one,) = told.recipe[name]
        assert one.get("strength", one.get("weight")) == 2 and name not in plain.recipe
        used = ["canny", "sketch"] if name == "control" else ["ip", "eye"]
        assert [a["name"] for a in told.recipe["adapters"]] == used
        if "mask" in fields:
            free = np.asarray(Image.open("mask.png")) > 127
            assert (told.item[~free] == RAW[~free]).all()


def test_what_acts_when(model, place):
    """By shares of the way to the result, on the way into noise at the same levels."""
    branch, seen = model.space.guides.branches[0], []
    handle = branch.network.register_forward_pre_hook(lambda module, given: seen.append(float(given[1].flatten()[0])))
    asked = {"control": [{"kind": "canny", "picture": place / "0.png", "interval": (0.0, 0.5)}], "steps": 4}
    made(model, strength=0.5, **{**asked, "steps": 8})
    levels, seen[:] = list(seen), []
    assert len(levels) == 2 and levels[0] > levels[1]
    made(model, variations=0.1, **asked)
    handle.remove()
    assert len(seen) == 4 and seen[0] < seen[1] and seen[2:] == pytest.approx(seen[1::-1])


def test_settings_of_the_model(model, place):
    asked = {"control": [f"canny={place / '0.png'}"], "scale": 3.0, "steps": 1}
    plain, guessed = made(model, **asked), made(model, **asked, settings={"guess": "on"})
    assert (plain.item != guessed.item).any() and guessed.recipe["settings"] == {"guess": "on"}
    for settings, word in (({"size": "32x32"}, "the size is the item's own"), ({"gues": "on"}, "'gues' is unknown")):
        with pytest.raises(UserError, match=word):
            made(model, **asked, settings=settings)


def test_windows_take_a_style_and_no_control(model, place):
    style = {"style_image": [str(place / "1.png")]}
    for fields in ({"tile": True, "strength": 0.5}, {"canvas": "8,0,8,0"}):
        assert (made(model, **fields, **style).item != made(model, **fields).item).any()
        with pytest.raises(UserError, match="is of one frame of sd, beyond which this (tile|canvas) goes; leave one out"):
            made(model, **fields, control=[f"canny={place / '0.png'}"])


def test_a_network_for_inpainting_is_asked_at_once_on_a_canvas_too(place):
    model = load(place / "inpaint", "cpu", [place / "canny"], dtype=torch.float32)
    asked = {"canvas": "8,0,8,0", "control": [f"canny={place / '0.png'}"]}
    wide = made(model, **asked)
    assert wide.item.shape == (32, 48, 4) and (wide.item[:, 8:40] == RAW).all()
    assert (wide.item != made(model, canvas="8,0,8,0").item).any()


def test_a_network_that_reads_depth(place):
    model = load(place / "depth", "cpu", dtype=torch.float32)
    for fields in ({"strength": 0.5}, {"original": "a cat"}, {"mask": str(place / "mask.png")}):
        one, other = (made(model, control=[f"depth={place / name}"], **fields).item for name in ("0.png", "1.png"))
        assert (one != other).any()
    for fields, word in (
        ({}, "reads a depth map; give one with --control depth=map.png"),
        ({"canvas": "8,0,8,0", "control": [f"depth={place / '0.png'}"]}, "this canvas goes"),
        ({"control": [f"depth={place / '0.png'}:0.5"]}, "no strength or interval"),
    ):
        with pytest.raises(UserError, match=word):
            made(model, **fields)
