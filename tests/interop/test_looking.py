"""IP-Adapters of others: the same latents as diffusers' pipelines, and what is refused."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parent))

import tiny
from guided import PROMPT, apart, noise, picture, theirs, walked

from unfog.errors import UserError
from unfog.interop import load, save
from unfog.interop.looking import image_encoder, prepared
from unfog.interop.safe import Folder

LATENTS, STATES = 1e-4, 1e-5


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("looking")
    tiny.stable_diffusion(place / "sd", name="DDIMScheduler")
    tiny.stable_diffusion_xl(place / "xl")
    tiny.clip_vision().save_pretrained(place / "eye")
    from diffusers import UNet2DConditionModel

    for name in ("sd", "xl"):
        network = UNet2DConditionModel.from_pretrained(place / name / "unet")
        for kind in ("plain", "plus", "full") if name == "sd" else ("plain",):
            save_file(tiny.ip_adapter(network, kind), place / f"{name}-{kind}.safetensors")
    picture(1).save(place / "ref.png")
    picture(2).save(place / "other.png")
    return place


def pipeline(place, name, kind, scale):
    """diffusers' own, with its own reading of the file."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

    make = StableDiffusionXLPipeline if name == "xl" else StableDiffusionPipeline
    pipe = make.from_pretrained(place / name, image_encoder=CLIPVisionModelWithProjection.from_pretrained(place / "eye"),
                                feature_extractor=CLIPImageProcessor(size=32, crop_size=32))  # fmt: skip
    pipe.load_ip_adapter(str(place), subfolder="", weight_name=f"{name}-{kind}.safetensors", image_encoder_folder=None,
                         local_files_only=True)  # fmt: skip
    pipe.set_ip_adapter_scale(scale)
    return pipe


def looking(place, name="sd", kind="plain", strength=""):
    return load(place / name, "cpu", [f"{place / f'{name}-{kind}.safetensors'}{strength}", place / "eye"], dtype=torch.float32)


def test_the_image_encoder(place):
    from transformers import CLIPVisionModelWithProjection

    own = image_encoder(Folder(place), "eye", "cpu")
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        wanted = CLIPVisionModelWithProjection.from_pretrained(place / "eye")(x, output_hidden_states=True)
        embedding, states = own(x)
    assert apart(embedding, wanted.image_embeds) < STATES and apart(states, wanted.hidden_states[-2]) < STATES


def test_a_picture_as_the_encoder_sees_it():
    from transformers import CLIPImageProcessor

    process = CLIPImageProcessor(size=32, crop_size=32)
    same = process(picture(1), return_tensors="pt").pixel_values[0]
    assert torch.allclose(prepared(picture(1), 32), same, atol=1e-5)
    large = Image.effect_noise((90, 61), 80).convert("RGB")
    assert apart(prepared(large, 32), process(large, return_tensors="pt").pixel_values[0]) < 0.02  # they round otherwise
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert torch.equal(prepared(clear, 32), prepared(Image.new("RGB", (8, 8), (255, 255, 255)), 32))


@pytest.mark.parametrize("kind", ["plain", "plus", "full"])
def test_latents(place, kind):
    x, scale = noise(), 0.7
    wanted = theirs(pipeline(place, "sd", kind, scale), x, ip_adapter_image=picture(1))
    model = looking(place, kind=kind)
    ours = walked(model, x, style_image=[{"picture": place / "ref.png", "weight": scale}])
    assert apart(ours, wanted) < LATENTS < apart(ours, walked(model, x))


def test_latents_of_xl(place):
    x = noise()
    wanted = theirs(pipeline(place, "xl", "plain", 0.6), x, ip_adapter_image=picture(1))
    ours = walked(looking(place, "xl", strength=":0.5"), x, sampler="euler",
                  style_image=[{"picture": place / "ref.png", "weight": 1.2}])  # fmt: skip
    assert apart(ours, wanted) < LATENTS


def test_several_references(place):
    x, model = noise(), looking(place)
    pair = [{"picture": place / name, "weight": 0.6} for name in ("ref.png", "other.png")]
    wanted = theirs(pipeline(place, "sd", "plain", 0.6), x, ip_adapter_image=[[picture(1), picture(2)]])
    assert apart(walked(model, x, style_image=pair), wanted) < LATENTS
    one = walked(model, x, style_image=pair[:1])
    assert apart(walked(model, x, style_image=[pair[0], {**pair[1], "weight": 0.0}]), one) < STATES


def test_beside_a_controlnet(place):
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

    tiny.controlnet(1).save_pretrained(place / "my-canny")
    plain = pipeline(place, "sd", "plain", 0.7)
    parts = {key: value for key, value in plain.components.items() if key != "safety_checker"}
    net = ControlNetModel.from_pretrained(place / "my-canny")
    pipe = StableDiffusionControlNetPipeline(**parts, safety_checker=None, controlnet=net, requires_safety_checker=False)
    x = noise()
    wanted = theirs(pipe, x, ip_adapter_image=picture(1), image=picture(2), controlnet_conditioning_scale=0.8)
    model = load(place / "sd", "cpu", [place / "sd-plain.safetensors", place / "eye", place / "my-canny"], dtype=torch.float32)
    ours = walked(model, x, style_image=[{"picture": place / "ref.png", "weight": 0.7}],
                  control=[{"kind": "canny", "picture": place / "other.png", "strength": 0.8}])  # fmt: skip
    assert apart(ours, wanted) < LATENTS


def test_weight_zero_is_as_if_it_were_not_there(place):
    fields = {"seed": 1, "steps": 2}
    wanted = load(place / "sd", "cpu", dtype=torch.float32).generate(PROMPT, **fields)[0].tobytes()
    model, ref = looking(place), str(place / "ref.png")
    assert model.generate(PROMPT, **fields)[0].tobytes() == wanted
    assert model.generate(PROMPT, style_image=[f"{ref}:0"], **fields)[0].tobytes() == wanted
    assert looking(place, strength=":0").generate(PROMPT, style_image=[ref], **fields)[0].tobytes() == wanted
    assert model.generate(PROMPT, style_image=[ref], **fields)[0].tobytes() != wanted


def test_the_encoder_may_lie_in_the_folder(place, tmp_path):
    folder = shutil.copytree(place / "sd", tmp_path / "sd")
    with pytest.raises(UserError, match="give the folder of its image encoder with --adapter"):
        load(folder, "cpu", [place / "sd-plain.safetensors"], dtype=torch.float32)
    shutil.copytree(place / "eye", folder / "image_encoder")
    told = json.loads((folder / "model_index.json").read_text())
    told["image_encoder"] = ["transformers", "CLIPVisionModelWithProjection"]
    (folder / "model_index.json").write_text(json.dumps(told))
    model = load(folder, "cpu", [place / "sd-plain.safetensors"], dtype=torch.float32)
    assert model.generate(PROMPT, style_image=[str(place / "ref.png")], seed=1, steps=1)
    with pytest.raises(UserError, match="sd-plain.safetensors has no place in the layout"):
        save(model, tmp_path / "out")


def refused(call, word):
    with pytest.raises(UserError, match=word) as caught:
        call()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_broken_files(place, tmp_path):
    whole = load_file(place / "sd-plain.safetensors")

    def held(tensors, name="ip.safetensors"):
        save_file(tensors, tmp_path / name)
        return lambda: load(place / "sd", "cpu", [tmp_path / name, place / "eye"], dtype=torch.float32)

    def without(*names):
        return {key: value for key, value in whole.items() if key not in names}

    refused(held(without("ip_adapter.1.to_k_ip.weight")), "to_k_ip.weight' is missing; give an IP-Adapter made for")
    refused(held({**whole, "ip_adapter.1.to_k_ip.weight": torch.ones(64, 31)}), "has shape")
    refused(held({**whole, "ip_adapter.99.to_k_ip.weight": torch.ones(64, 32)}), "for no layer of this model")
    refused(held({**whole, "image_proj.norm.bias": torch.full((32,), torch.nan)}), "not finite")
    refused(held(without("image_proj.proj.weight")), "of a kind of IP-Adapter that unfog does not read")
    refused(held({**whole, "image_proj.proj.weight": torch.ones(3)}), "unfog does not read")
    refused(held({**whole, "image_proj.proj.weight": torch.ones(128, 23)}), "reads 23 numbers of a picture, the image encoder")
    faces = {"image_proj.proj.0.weight": torch.ones(64, 512), "image_proj.norm.weight": torch.ones(32),
             "ip_adapter.0.to_q_lora.down.weight": torch.ones(4, 64)}  # fmt: skip
    refused(held(faces), "ip.safetensors")
    refused(lambda: load(place / "sd", "cpu", [place / "xl-plain.safetensors", place / "eye"], dtype=torch.float32), "family")
    refused(lambda: load(place / "sd", "cpu", [place / "eye"], dtype=torch.float32), "is an image encoder, which an IP-Adapter")
    both = [place / "sd-plain.safetensors", place / "sd-plus.safetensors", place / "eye"]
    refused(lambda: load(place / "sd", "cpu", both, dtype=torch.float32), "both for a reference picture; give one")
    (tmp_path / "ip.bin").write_bytes(b"\x80\x04bomb")
    refused(lambda: load(place / "sd", "cpu", [tmp_path / "ip.bin"], dtype=torch.float32), "is a pickle")


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"hidden_size": 10**9}, "whole numbers up to"),
        ({"hidden_size": 0}, "sizes make no network"),
        ({"image_size": 33}, "sizes make no network"),
        ({"image_size": 10**6, "patch_size": 1}, "sizes make no network"),
        ({"patch_size": 0}, "sizes make no network"),
        ({"num_attention_heads": 5}, "5 heads of 32"),
        ({"hidden_act": "relu6"}, "relu6"),
        ({"intermediate_size": 38}, "has shape"),
        ({"num_hidden_layers": 4}, "is missing"),
        ({"num_hidden_layers": 2}, "is no part of the network"),
        ({"layer_norm_eps": "x"}, "layer_norm_eps"),
        ({"_target_": "os.system"}, "asks for code"),
        ({"architectures": ["SiglipVisionModel"]}, "SigLIP's image encoder"),
        ({"architectures": ["DPTForDepthEstimation"]}, "class"),
        ({"architectures": [["x"]]}, "class"),
    ],
)
def test_broken_encoders(place, tmp_path, changes, word):
    folder = shutil.copytree(place / "eye", tmp_path / "eye")
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**told, **changes}))
    refused(lambda: load(place / "sd", "cpu", [place / "sd-plain.safetensors", folder], dtype=torch.float32), word)


def test_the_command_line(place, tmp_path, capfd, monkeypatch):
    from unfog.cli import main

    monkeypatch.chdir(tmp_path)
    adapters = ["--adapter", str(place / "sd-plain.safetensors"), "--adapter", str(place / "eye")]
    words = ["generate", "a red apple", "--model", str(place / "sd"), "--steps", "2", "--seed", "7", *adapters]
    assert main([*words, "--style-image", str(place / "ref.png"), "--style-weight", "0.8"]) == 0
    (path,) = capfd.readouterr().out.splitlines()
    before = Path(path).read_bytes()
    like = ["generate", "--like", path, "--model", str(place / "sd"), *adapters]
    assert main([*like, "--style-image", str(place / "ref.png")]) == 0
    assert Path(path).read_bytes() == before
    capfd.readouterr()
    assert main([*like, "--style-image", str(place / "other.png")]) == 2
    error = capfd.readouterr().err.strip()
    assert "give those with --style-image" in error and len(error.splitlines()) == 1
    assert np.asarray(Image.open(path)).shape == (32, 32, 4)
