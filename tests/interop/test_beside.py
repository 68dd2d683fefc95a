"""Networks that read more than latents: for inpainting (mask and masked picture, 9 channels) and with depth (5 channels)."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parent))

import tiny
from guided import LATENTS, NEGATIVE, PROMPT, apart, check_outside_a_mask, edited, noise, picture, walked

from unfog.errors import UserError
from unfog.interop import load, save


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("beside")
    for name, channels, pipeline in (("inpaint", 9, "StableDiffusionInpaintPipeline"),
                                     ("depth", 5, "StableDiffusionDepth2ImgPipeline")):  # fmt: skip
        folder = tiny.stable_diffusion(place / name, name="DDIMScheduler")
        tiny.unet(0, in_channels=channels).save_pretrained(folder / "unet")
        told = (folder / "model_index.json").read_text().replace("StableDiffusionPipeline", pipeline)
        (folder / "model_index.json").write_text(told)
    index = place / "depth/model_index.json"
    told = json.loads(index.read_text()) | {"depth_estimator": ["transformers", "DPTForDepthEstimation"],
                                            "feature_extractor": ["transformers", "DPTImageProcessor"]}  # fmt: skip
    index.write_text(json.dumps(told))
    folder = tiny.stable_diffusion_xl(place / "xl")
    network = tiny.unet(0, text=64, use_linear_projection=True, attention_head_dim=(2, 4), transformer_layers_per_block=(1, 2),
                        addition_embed_type="text_time", addition_time_embed_dim=8, in_channels=9,
                        projection_class_embeddings_input_dim=32 + 6 * 8)  # fmt: skip
    network.save_pretrained(folder / "unet")
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionXLPipeline", "StableDiffusionXLInpaintPipeline"))
    mask = np.zeros((32, 32), np.uint8)
    mask[8:20, 12:32] = 255
    Image.fromarray(mask).save(place / "mask.png")
    picture(1).save(place / "picture.png")
    return place


@pytest.fixture(scope="module")
def inpaint(place):
    return load(place / "inpaint", "cpu", dtype=torch.float32)


def beside(model, place, monkeypatch):
    """What the network is told of the picture and its mask, in place of what generation tells it."""
    raw = np.asarray(Image.open(place / "picture.png").convert("RGBA"))
    kept = np.asarray(Image.open(place / "mask.png")) < 128
    told = model.space.around(raw, kept)["beside"]
    monkeypatch.setattr(model.space, "_beside", lambda width, height: told)
    return told


def test_what_is_told_of_a_masked_picture(inpaint, place):
    raw = np.asarray(Image.open(place / "picture.png").convert("RGBA"))
    kept = np.ones((32, 32), bool)
    kept[3:8, 4:6] = False
    told = inpaint.space.around(raw, kept)["beside"]
    assert told.shape == (1, 5, 16, 16)
    wanted = np.zeros((16, 16))
    wanted[1:4, 2] = 1  # each cell of which a pixel is free
    assert np.array_equal(told[0, 0].numpy(), wanted)
    grey = torch.from_numpy(raw[..., :3].copy()).permute(2, 0, 1).float() / 127.5 - 1
    grey[:, ~kept] = 0
    with torch.no_grad():
        latents = inpaint.space.codec.vae.encode(grey[None]).latent_dist.mean * inpaint.space.codec.scale
    assert apart(told[:, 1:], latents) < 1e-5


@pytest.mark.parametrize("name", ["inpaint", "xl"])
def test_inpainting(place, name, monkeypatch):
    from diffusers import StableDiffusionInpaintPipeline, StableDiffusionXLInpaintPipeline

    make = StableDiffusionXLInpaintPipeline if name == "xl" else StableDiffusionInpaintPipeline
    pipe = make.from_pretrained(place / name)
    pipe.set_progress_bar_config(disable=True)
    model = load(place / name, "cpu", dtype=torch.float32)
    x, told = noise(), beside(model, place, monkeypatch)
    with torch.no_grad():
        wanted = pipe(PROMPT, negative_prompt=NEGATIVE, num_inference_steps=20, guidance_scale=7.5, latents=x.clone(),
                      strength=1.0, image=picture(1), mask_image=Image.open(place / "mask.png"), height=32, width=32,
                      masked_image_latents=told[:, 1:], output_type="latent").images  # fmt: skip
    assert apart(walked(model, x, sampler="euler" if name == "xl" else "ddim"), wanted) < LATENTS


def test_a_depth_map(place):
    from diffusers import StableDiffusionDepth2ImgPipeline
    from transformers import CLIPTextModel, CLIPTokenizer

    model, folder = load(place / "depth", "cpu", dtype=torch.float32), place / "depth"
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    pipe = StableDiffusionDepth2ImgPipeline(
        AutoencoderKL.from_pretrained(folder / "vae"), CLIPTextModel.from_pretrained(folder / "text_encoder"),
        CLIPTokenizer.from_pretrained(folder / "tokenizer"), UNet2DConditionModel.from_pretrained(folder / "unet"),
        DDIMScheduler.from_pretrained(folder / "scheduler"), None, None)  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    depth = np.random.default_rng(3).integers(0, 256, (32, 32), dtype=np.uint8)
    seen = []
    handle = pipe.unet.register_forward_pre_hook(lambda module, given: seen.append(given[0][:1, :4].clone()))
    with torch.no_grad():
        wanted = pipe(PROMPT, negative_prompt=NEGATIVE, num_inference_steps=20, guidance_scale=7.5, strength=1.0,
                      image=picture(1), depth_map=torch.from_numpy(depth)[None].float(), output_type="latent",
                      generator=torch.Generator().manual_seed(4)).images  # fmt: skip
    handle.remove()
    asked = [{"kind": "depth", "picture": Image.fromarray(depth)}]
    assert apart(walked(model, seen[0], control=asked), wanted) < LATENTS


def test_a_depth_map_must_be_given(place, tmp_path):
    from unfog.editing import EditRequest, edit

    model = load(place / "depth", "cpu", dtype=torch.float32)
    flat = Image.new("L", (32, 32), 77)
    assert model.generate(PROMPT, control=[{"kind": "depth", "picture": flat}], seed=1, steps=2)[0].size == (32, 32)
    for fields, word in (
        ({}, "reads a depth map; give one with --control depth=map.png"),
        ({"control": [{"kind": "depth", "picture": flat, "strength": 0.5}]}, "no strength or interval"),
        ({"control": [{"kind": "canny", "picture": flat}]}, "reads a depth map"),
    ):
        with pytest.raises(UserError, match=word):
            model.generate(PROMPT, seed=1, steps=2, **fields)
    raw = np.asarray(picture(1).convert("RGBA"))
    with pytest.raises(UserError, match="reads a depth map; give one with --control depth=map.png"):
        list(edit(model, raw, EditRequest(item="x.png", prompt="a cat", steps=2)))


@pytest.mark.parametrize("size", [(32, 32), (45, 70)])
def test_outside_a_mask_nothing_changes(inpaint, tmp_path, size):
    check_outside_a_mask(inpaint, tmp_path, size)


def test_the_network_is_told_the_mask(inpaint, place):
    raw = np.asarray(Image.open(place / "picture.png").convert("RGBA"))
    seen = []
    handle = inpaint.denoiser.network.unet.register_forward_pre_hook(lambda module, given: seen.append(given[0].clone()))
    edited(inpaint, raw, mask=str(place / "mask.png"), scale=3.0)
    handle.remove()
    kept = np.asarray(Image.open(place / "mask.png")) < 128
    told = inpaint.space.around(raw, kept)["beside"]
    assert len(seen) == 3 and all(torch.allclose(x[:, 4:], told.expand(2, -1, -1, -1), atol=1e-5) for x in seen)


def test_other_edits(inpaint, place, tmp_path):
    raw = np.random.default_rng(0).integers(0, 256, (32, 32, 4), dtype=np.uint8)
    raw[..., 3] = 255
    assert np.asarray(edited(inpaint, raw, strength=0.5).item).shape == raw.shape
    wide = np.asarray(edited(inpaint, raw, canvas="8,0,8,0").item)
    assert wide.shape == (32, 48, 4) and np.array_equal(wide[:, 8:40], raw)
    with pytest.raises(UserError, match="tile: inpaint is for inpainting"):
        edited(inpaint, raw, tile=True)
    assert inpaint.generate("a cat", seed=1, steps=2, settings={"size": "48x32"})[0].size == (48, 32)  # all is free


def test_usual_networks_edit_too(tmp_path, place):
    """Masks, canvases and tiles with a network of 4 channels, and of XL, in which sizes are told."""
    raw = np.random.default_rng(0).integers(0, 256, (32, 32, 4), dtype=np.uint8)
    raw[..., 3] = 255
    mask = np.asarray(Image.open(place / "mask.png"))
    for folder in (tiny.stable_diffusion(tmp_path / "sd"), tiny.stable_diffusion_xl(tmp_path / "xl")):
        model = load(folder, "cpu", dtype=torch.float32)
        made = np.asarray(edited(model, raw, mask=str(place / "mask.png")).item)
        assert np.array_equal(made[mask == 0], raw[mask == 0]) and not np.array_equal(made[mask > 0], raw[mask > 0])
    assert np.asarray(edited(model, raw, canvas="8,0,8,0").item).shape == (32, 48, 4)
    assert np.asarray(edited(model, raw, tile=True, strength=0.5).item).shape == raw.shape
    assert np.asarray(edited(model, raw, variations=0.3).item).shape == raw.shape


def test_saved_back(inpaint, place, tmp_path):
    from diffusers import StableDiffusionInpaintPipeline

    save(inpaint, tmp_path / "out", half=False)
    pipe = StableDiffusionInpaintPipeline.from_pretrained(tmp_path / "out")
    assert pipe.unet.config.in_channels == 9
    again = load(tmp_path / "out", "cpu", dtype=torch.float32)
    first, second = (m.generate("a cat", seed=1, steps=2)[0].tobytes() for m in (inpaint, again))
    assert first == second


def test_what_is_not_read_is_saved_as_it_was(place, tmp_path):
    (place / "depth/depth_estimator").mkdir()
    (place / "depth/depth_estimator/model.safetensors").write_bytes(b"weights of its own")
    save(load(place / "depth", "cpu", dtype=torch.float32), tmp_path / "out")
    assert (tmp_path / "out/depth_estimator/model.safetensors").read_bytes() == b"weights of its own"


@pytest.mark.parametrize("pair", [["evil", "Estimator"], ["transformers", "AutoModel"], "DPTForDepthEstimation"])
def test_an_unknown_estimator(place, tmp_path, pair):
    import shutil

    folder = shutil.copytree(place / "depth", tmp_path / "depth")
    told = json.loads((folder / "model_index.json").read_text()) | {"depth_estimator": [*pair] if isinstance(pair, list) else {}}
    (folder / "model_index.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match="depth_estimator"):
        load(folder, "cpu", dtype=torch.float32)


def test_channels_that_mean_nothing(place, tmp_path):
    folder = tiny.stable_diffusion(tmp_path / "odd")
    tiny.unet(0, in_channels=7).save_pretrained(folder / "unet")
    with pytest.raises(UserError, match="takes 7 channels, the autoencoder gives 4; get the folder again"):
        load(folder, "cpu", dtype=torch.float32)
    tiny.unet(0, in_channels=9, out_channels=5).save_pretrained(folder / "unet")
    with pytest.raises(UserError, match="do not work together"):
        load(folder, "cpu", dtype=torch.float32)


def test_the_command_line(place, tmp_path, capfd, monkeypatch):
    from unfog.cli import main

    monkeypatch.chdir(tmp_path)
    words = ["edit", str(place / "picture.png"), "a red apple", "--mask", str(place / "mask.png"), "--steps", "2", "--seed", "1"]
    assert main([*words, "--model", str(place / "inpaint")]) == 0
    (path,) = capfd.readouterr().out.splitlines()
    with Image.open(path) as made, Image.open(place / "picture.png") as before:
        one, other = (np.asarray(image.convert("RGBA")) for image in (made, before))
    mask = np.asarray(Image.open(place / "mask.png"))
    assert np.array_equal(one[mask == 0], other[mask == 0]) and not np.array_equal(one, other)
