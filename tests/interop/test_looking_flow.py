"""IP-Adapters of Flux and Stable Diffusion 3: the same latents as diffusers' pipelines, and what is refused."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parent))

import tiny
import tiny_flow
from guided import LATENTS, NEGATIVE, PROMPT, apart, flow_noise, flow_theirs, picture, walked

from unfog.errors import UserError
from unfog.interop import load
from unfog.interop.joint_looking import siglip
from unfog.interop.safe import Folder

STATES = 1e-5
SIZE = {"settings": {"size": "32x32"}, "sampler": "euler"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("looking-flow")
    tiny_flow.flux(place / "flux", network={"num_layers": 2, "num_single_layers": 1})
    tiny_flow.flux(place / "schnell", network={"num_layers": 2, "guidance_embeds": False})
    tiny_flow.sd3(place / "sd3", network={"num_layers": 2})
    tiny_flow.sd3(place / "sd35", network={"num_layers": 3, "dual_attention_layers": [0, 1], "qk_norm": "rms_norm"})
    tiny.clip_vision().save_pretrained(place / "eye")
    tiny_flow.siglip_vision().save_pretrained(place / "siglip")
    from diffusers import FluxTransformer2DModel, SD3Transformer2DModel

    flux = FluxTransformer2DModel.from_pretrained(place / "flux/transformer")
    save_file(tiny_flow.flux_ip_adapter(flux), place / "flux.safetensors")
    save_file(tiny_flow.flux_ip_adapter(flux, theirs=False), place / "flux-plain.safetensors")
    for name in ("sd3", "sd35"):
        network = SD3Transformer2DModel.from_pretrained(place / name / "transformer")
        save_file(tiny_flow.sd3_ip_adapter(network), place / f"{name}.safetensors")
    picture(1).save(place / "ref.png")
    picture(2).save(place / "other.png")
    return place


def flux_pipeline(place, name, file, scale):
    from diffusers import FluxPipeline
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

    pipe = FluxPipeline.from_pretrained(place / name, image_encoder=CLIPVisionModelWithProjection.from_pretrained(place / "eye"),
                                        feature_extractor=CLIPImageProcessor(size=32, crop_size=32))  # fmt: skip
    pipe.load_ip_adapter(str(place), weight_name=file, local_files_only=True)
    pipe.set_ip_adapter_scale(scale)
    return pipe


def sd3_pipeline(place, name, scale):
    from diffusers import StableDiffusion3Pipeline
    from transformers import SiglipImageProcessor, SiglipVisionModel

    pipe = StableDiffusion3Pipeline.from_pretrained(
        place / name, image_encoder=SiglipVisionModel.from_pretrained(place / "siglip"),
        feature_extractor=SiglipImageProcessor(size={"height": 32, "width": 32}))  # fmt: skip
    pipe.load_ip_adapter(str(place), weight_name=f"{name}.safetensors", image_encoder_folder=None, local_files_only=True)
    pipe.set_ip_adapter_scale(scale)
    return pipe


def looking(place, name, eye, file=None, strength=""):
    return load(place / name, "cpu", [f"{place / (file or f'{name}.safetensors')}{strength}", place / eye], dtype=torch.float32)


@pytest.mark.parametrize("name, file", [("flux", "flux.safetensors"), ("flux", "flux-plain.safetensors"),
                                        ("schnell", "flux.safetensors")])  # fmt: skip
def test_latents_of_flux(place, name, file):
    pipe, x = flux_pipeline(place, name, file, 0.7), flow_noise()
    wanted = flow_theirs(pipe, pipe._pack_latents(x, 1, 8, 16, 16), guidance_scale=3.5, ip_adapter_image=picture(1))
    model = looking(place, name, "eye", file)
    ours = walked(model, x, scale=1.0, style_image=[{"picture": place / "ref.png", "weight": 0.7}], **SIZE)
    assert apart(pipe._pack_latents(ours, 1, 8, 16, 16), wanted) < LATENTS < apart(ours, walked(model, x, scale=1.0, **SIZE))


def test_latents_of_flux_against_a_negative_prompt(place):
    pipe, x = flux_pipeline(place, "flux", "flux.safetensors", 0.6), flow_noise()
    packed = pipe._pack_latents(x, 1, 8, 16, 16)
    wanted = flow_theirs(pipe, packed, guidance_scale=3.5, true_cfg_scale=3.0, negative_prompt=NEGATIVE,
                         ip_adapter_image=picture(1))  # fmt: skip
    ours = walked(looking(place, "flux", "eye", strength=":0.5"), x, scale=3.0,
                  style_image=[{"picture": place / "ref.png", "weight": 1.2}], **SIZE)  # fmt: skip
    assert apart(pipe._pack_latents(ours, 1, 8, 16, 16), wanted) < LATENTS


@pytest.mark.parametrize("name", ["sd3", "sd35"])
def test_latents_of_sd3(place, name):
    x = flow_noise()
    wanted = flow_theirs(
        sd3_pipeline(place, name, 0.7), x, negative_prompt=NEGATIVE, guidance_scale=7.5, ip_adapter_image=picture(1)
    )
    model = looking(place, name, "siglip")
    ours = walked(model, x, style_image=[{"picture": place / "ref.png", "weight": 0.7}], **SIZE)
    assert apart(ours, wanted) < LATENTS < apart(ours, walked(model, x, **SIZE))


def test_the_image_encoder_of_siglip(place, tmp_path):
    from transformers import SiglipVisionModel

    own, x = siglip(Folder(place), "siglip", "cpu"), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        wanted = SiglipVisionModel.from_pretrained(place / "siglip")(x, output_hidden_states=True).hidden_states[-2]
        assert apart(own(x), wanted) < STATES
        # a folder of the whole SigLIP: its text is passed over
        whole = shutil.copytree(place / "siglip", tmp_path / "whole")
        told = json.loads((whole / "config.json").read_text())
        (whole / "config.json").write_text(json.dumps({"architectures": ["SiglipModel"], "vision_config": told}))
        tensors = {f"vision_model.{name}": tensor for name, tensor in load_file(whole / "model.safetensors").items()}
        save_file(tensors | {"text_model.head.weight": torch.zeros(2, 2), "logit_scale": torch.zeros(1)},
                  whole / "model.safetensors")  # fmt: skip
        assert torch.equal(siglip(Folder(tmp_path), "whole", "cpu")(x), own(x))


@pytest.mark.parametrize(
    "change", [{"num_hidden_layers": 10**9}, {"hidden_size": 10**9}, {"image_size": 33}, {"patch_size": "8"}]
)
def test_broken_encoders(place, tmp_path, change):
    folder = shutil.copytree(place / "siglip", tmp_path / "siglip")
    told = json.loads((folder / "config.json").read_text()) | change
    for config in (told, {"architectures": ["SiglipModel"], "vision_config": told}):
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError) as error:
            load(place / "sd3", "cpu", [place / "sd3.safetensors", folder], dtype=torch.float32)
        assert "\n" not in str(error.value) and "config.json" in str(error.value)


def test_a_picture_as_siglip_sees_it(place):
    from transformers import SiglipImageProcessor

    process = SiglipImageProcessor(size={"height": 32, "width": 32})
    own = siglip(Folder(place), "siglip", "cpu")
    assert torch.allclose(own.prepared(picture(1)), process(picture(1), return_tensors="pt").pixel_values[0], atol=1e-5)
    wide = picture(3).resize((90, 61))
    assert apart(own.prepared(wide), process(wide, return_tensors="pt").pixel_values[0]) < 0.02  # they round otherwise


@pytest.mark.parametrize("name, eye, scale", [("flux", "eye", 1.0), ("sd3", "siglip", 7.5)])
def test_several_references_and_none(place, name, eye, scale):
    x, model = flow_noise(), looking(place, name, eye)
    pair = [{"picture": place / file, "weight": 0.6} for file in ("ref.png", "other.png")]

    def made(*references):
        return walked(model, x, scale=scale, style_image=references, **SIZE)

    one, both = made(pair[0]), made(*pair)
    assert apart(made(pair[0], {**pair[1], "weight": 0.0}), one) < STATES
    assert apart(made(*pair[::-1]), both) < STATES and apart(one, both) > LATENTS
    assert apart(made(pair[0], pair[0]), one) < STATES  # the same picture twice is that picture
    alone = walked(load(place / name, "cpu", dtype=torch.float32), x, scale=scale, **SIZE)
    assert torch.equal(walked(model, x, scale=scale, **SIZE), alone) and torch.equal(made({**pair[0], "weight": 0.0}), alone)


def test_beside_a_controlnet(place):
    tiny_flow.flux_controlnet().save_pretrained(place / "flux-canny")
    x, asked = flow_noise(), {"control": [{"kind": "canny", "picture": place / "other.png", "strength": 0.8}]}
    reference = {"style_image": [{"picture": place / "ref.png", "weight": 0.7}]}
    files = [place / "flux.safetensors", place / "eye", place / "flux-canny"]
    model = load(place / "flux", "cpu", files, dtype=torch.float32)
    both = walked(model, x, scale=1.0, **asked, **reference, **SIZE)
    alone = load(place / "flux", "cpu", [place / "flux-canny"], dtype=torch.float32)
    assert torch.equal(walked(model, x, scale=1.0, **asked, **SIZE), walked(alone, x, scale=1.0, **asked, **SIZE))
    assert apart(both, walked(model, x, scale=1.0, **asked, **SIZE)) > LATENTS
    assert apart(both, walked(model, x, scale=1.0, **reference, **SIZE)) > LATENTS


def test_the_encoder_may_lie_in_the_folder(place, tmp_path):
    folder = shutil.copytree(place / "sd3", tmp_path / "sd3")
    with pytest.raises(UserError, match="give the folder of its image encoder with --adapter"):
        load(folder, "cpu", [place / "sd3.safetensors"], dtype=torch.float32)
    shutil.copytree(place / "siglip", folder / "image_encoder")
    told = json.loads((folder / "model_index.json").read_text())
    told["image_encoder"] = ["transformers", "SiglipVisionModel"]
    (folder / "model_index.json").write_text(json.dumps(told))
    model = load(folder, "cpu", [place / "sd3.safetensors"], dtype=torch.float32)
    assert model.generate(PROMPT, style_image=[str(place / "ref.png")], seed=1, steps=1, settings={"size": "32x32"})


def test_what_does_not_fit_is_refused_in_a_line(place, tmp_path):
    def refused(word, name, *adapters):
        with pytest.raises(UserError, match=word) as error:
            load(place / name, "cpu", list(adapters), dtype=torch.float32)
        assert "\n" not in str(error.value)

    flux, sd3, eye, glip = (place / file for file in ("flux.safetensors", "sd3.safetensors", "eye", "siglip"))
    refused("is CLIP's image encoder, IP-Adapters of this family read SigLIP's", "sd3", sd3, eye)
    refused("is SigLIP's image encoder, IP-Adapters of this family read CLIP's", "flux", flux, glip)
    refused("does not read for this family", "sd3", flux, glip)
    refused("does not read for this family", "flux", sd3, eye)
    refused("is an image encoder, which an IP-Adapter needs", "flux", eye)
    refused("are both for a reference picture", "flux", flux, place / "flux-plain.safetensors", eye)
    tensors = load_file(flux)
    bias = "double_blocks.{}.processor.ip_adapter_double_stream_k_proj.bias"
    for change, word in (
        ({bias.format(0): torch.zeros(3)}, r"has shape \[3\]"),
        ({"ip_adapter_proj_model.norm.weight": torch.full((96,), float("nan"))}, "not finite"),
        ({bias.format(9): torch.zeros(32)}, "for no layer"),
        ({"ip_adapter_proj_model.proj.weight": torch.zeros(4 * 96, 7)}, "reads 7 numbers of a picture"),
    ):
        save_file(tensors | change, tmp_path / "odd.safetensors")
        refused(word, "flux", tmp_path / "odd.safetensors", eye)
    save_file({k: v for k, v in load_file(sd3).items() if not k.endswith("0.norm_q.weight")}, tmp_path / "less.safetensors")
    refused("norm_q.weight'? is missing", "sd3", tmp_path / "less.safetensors", glip)
