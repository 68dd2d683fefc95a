"""Flux's network that fills in: the same latents as diffusers', nothing changes outside the mask, and what is refused."""

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
from guided import LATENTS, PROMPT, apart, check_outside_a_mask, edited, picture, walked

from unfog.errors import UserError
from unfog.interop import load, save

BESIDE = 8 + 2 * 2  # latents of the masked picture, and the pixels of a cell of the tiny autoencoder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("fill")
    tiny_flow.flux(place / "fill", network={"in_channels": 4 * (8 + BESIDE), "out_channels": 32})
    index = place / "fill/model_index.json"
    index.write_text(index.read_text().replace("FluxPipeline", "FluxFillPipeline"))
    mask = np.zeros((32, 32), np.uint8)
    mask[8:20, 13:32] = 255  # a column of cells half free
    Image.fromarray(mask).save(place / "mask.png")
    picture(1).save(place / "picture.png")
    return place


@pytest.fixture(scope="module")
def model(place):
    return load(place / "fill", "cpu", dtype=torch.float32)


def told(model, place):
    raw = np.asarray(Image.open(place / "picture.png").convert("RGBA"))
    kept = np.asarray(Image.open(place / "mask.png")) < 128
    return model.space.around(raw, kept)["beside"]


def test_latents(model, place, monkeypatch):
    from diffusers import FluxFillPipeline
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mean)
    pipe = FluxFillPipeline.from_pretrained(place / "fill")
    pipe.set_progress_bar_config(disable=True)
    x = torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(1))
    first, mask = pipe._pack_latents(x, 1, 8, 16, 16), Image.open(place / "mask.png")
    with torch.no_grad():
        wanted = pipe(PROMPT, image=picture(1), mask_image=mask, height=32, width=32, strength=1.0, num_inference_steps=20,
                      latents=first, output_type="latent").images  # fmt: skip
    fields = {"scale": 1.0, "sampler": "euler", "settings": {"size": "32x32"}}
    free = walked(model, x, **fields)
    masked = told(model, place)
    monkeypatch.setattr(model.space, "_beside", lambda width, height: masked)
    ours = walked(model, x, **fields)
    assert apart(pipe._pack_latents(ours, 1, 8, 16, 16), wanted) < LATENTS < apart(ours, free)


@pytest.mark.parametrize("size", [(32, 32), (45, 70)])
def test_outside_a_mask_nothing_changes(model, tmp_path, size):
    check_outside_a_mask(model, tmp_path, size)


def test_other_edits(model):
    raw = np.random.default_rng(0).integers(0, 256, (32, 32, 4), dtype=np.uint8)
    raw[..., 3] = 255
    wide = np.asarray(edited(model, raw, canvas="8,0,8,0").item)
    assert wide.shape == (32, 48, 4) and np.array_equal(wide[:, 8:40], raw)
    assert np.asarray(edited(model, raw, strength=0.5).item).shape == raw.shape
    with pytest.raises(UserError, match="tile: fill is for inpainting"):
        edited(model, raw, tile=True)
    assert model.generate("a cat", seed=1, steps=2, settings={"size": "48x32"})[0].size == (48, 32)  # all is free


def test_beside_a_controlnet(model, place, tmp_path):
    tiny_flow.flux_controlnet().save_pretrained(tmp_path / "flux-pose")
    both = load(place / "fill", "cpu", [tmp_path / "flux-pose"], dtype=torch.float32)
    raw, fields = np.asarray(picture(1).convert("RGBA")), {"mask": str(place / "mask.png")}
    off, on = (np.asarray(edited(both, raw, control=[{"kind": "pose", "picture": picture(2), "strength": s}], **fields).item)
               for s in (0.0, 1.0))  # fmt: skip
    assert np.array_equal(off, np.asarray(edited(model, raw, **fields).item)) and not np.array_equal(off, on)


def test_the_guidance_it_is_told(model):
    assert model.space._guidance({}) == 30.0 and model.space._guidance({"settings": {"guidance": "4"}}) == 4.0


def test_saved_back(model, tmp_path):
    from diffusers import FluxFillPipeline

    save(model, tmp_path / "out", half=False)
    assert FluxFillPipeline.from_pretrained(tmp_path / "out").transformer.config.in_channels == 4 * (8 + BESIDE)
    again = load(tmp_path / "out", "cpu", dtype=torch.float32)
    fields = {"seed": 1, "steps": 2, "settings": {"size": "32x32"}}
    assert again.generate("a cat", **fields)[0].tobytes() == model.generate("a cat", **fields)[0].tobytes()


def test_channels_that_mean_nothing(tmp_path):
    for channels, out, word in ((96, 32, "reads 16 channels beside latents, not 0, a map's 8 or a masked picture's"),
                                (32, 64, "out_channels '64' makes no"), (33, 32, "in_channels '33' makes no")):  # fmt: skip
        folder = tiny_flow.flux(tmp_path / str(channels), network={"in_channels": channels, "out_channels": out})
        with pytest.raises(UserError, match=word) as error:
            load(folder, "cpu", dtype=torch.float32)
        assert "\n" not in str(error.value)
