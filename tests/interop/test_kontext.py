"""Flux's network that sees the picture that it is to change: the same latents as diffusers', edits, and beside others."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parent))

import tiny_flow
from guided import LATENTS, NEGATIVE, PROMPT, apart, edited, picture, walked

from unfog.interop import load


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("kontext")
    index = tiny_flow.flux(place / "kontext") / "model_index.json"
    index.write_text(index.read_text().replace("FluxPipeline", "FluxKontextPipeline"))
    mask = np.zeros((32, 32), np.uint8)
    mask[8:20, 12:32] = 255
    Image.fromarray(mask).save(place / "mask.png")
    picture(2).save(place / "other.png")
    return place


@pytest.fixture(scope="module")
def model(place):
    return load(place / "kontext", "cpu", dtype=torch.float32)


def raw(seed=1):
    return np.asarray(picture(seed).convert("RGBA"))


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_latents(model, place, monkeypatch, scale):
    from diffusers import FluxKontextPipeline

    pipe = FluxKontextPipeline.from_pretrained(place / "kontext")
    pipe.set_progress_bar_config(disable=True)
    x = torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(1))
    first = pipe._pack_latents(x, 1, 8, 16, 16)
    against = {} if scale == 1.0 else {"negative_prompt": NEGATIVE, "true_cfg_scale": scale}
    with torch.no_grad():
        wanted = pipe(image=picture(1), prompt=PROMPT, height=32, width=32, max_area=32 * 32, _auto_resize=False, latents=first,
                      num_inference_steps=20, output_type="latent", **against).images  # fmt: skip
    fields = {"scale": scale, "sampler": "euler", "settings": {"size": "32x32"}}
    alone, told, both = walked(model, x, **fields), model.space.around(raw(), None), model.space.both
    monkeypatch.setattr(model.space, "both", lambda *given: tuple({**cond, **told} for cond in both(*given)))
    ours = walked(model, x, **fields)
    assert apart(pipe._pack_latents(ours, 1, 8, 16, 16), wanted) < LATENTS < apart(ours, alone)


def test_an_edit_begins_at_noise_and_sees_the_picture(model):
    first, second = edited(model, raw(1)), edited(model, raw(2))
    assert first.recipe["strength"] == 1.0 and np.asarray(first.item).shape == (32, 32, 4)
    assert not np.array_equal(np.asarray(first.item), np.asarray(second.item))  # though both begin at the same noise
    unseen = model.generate("a red apple", steps=3, seed=1, settings={"size": "32x32"})[0]
    assert not np.array_equal(np.asarray(first.item), np.asarray(unseen))


def test_outside_a_mask_nothing_changes(model, place):
    mask = np.asarray(Image.open(place / "mask.png"))
    made = np.asarray(edited(model, raw(), mask=str(place / "mask.png")).item)
    assert np.array_equal(made[mask == 0], raw()[mask == 0]) and not np.array_equal(made[mask > 0], raw()[mask > 0])
    wide = np.asarray(edited(model, raw(), canvas="8,0,8,0").item)
    assert wide.shape == (32, 48, 4) and np.array_equal(wide[:, 8:40], raw())


def test_beside_a_controlnet(model, place):
    tiny_flow.flux_controlnet().save_pretrained(place / "flux-canny")
    with_branch = load(place / "kontext", "cpu", [place / "flux-canny"], dtype=torch.float32)
    wish = {"kind": "canny", "picture": place / "other.png"}
    plain = np.asarray(edited(model, raw()).item)
    assert np.array_equal(np.asarray(edited(with_branch, raw(), control=[{**wish, "strength": 0.0}]).item), plain)
    assert not np.array_equal(np.asarray(edited(with_branch, raw(), control=[{**wish, "strength": 1.0}]).item), plain)
