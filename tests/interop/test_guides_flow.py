"""ControlNets of Stable Diffusion 3 and Flux: the same latents as diffusers', alone, several, of several kinds."""

import json
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parent))

import tiny
import tiny_flow
from guided import LATENTS, NEGATIVE, apart, flow_noise, flow_theirs, picture, walked

from unfog.errors import UserError
from unfog.interop import load
from unfog.interop.joint_guides import spread

NETWORKS = {"plain": {}, "pooled": {"force_zeros_for_pooled_projection": False, "num_layers": 2},
            "alone": {"joint_attention_dim": None, "use_pos_embed": False}}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("guides-flow")
    tiny_flow.sd3(place / "sd3", network={"num_layers": 3})
    tiny_flow.flux(place / "flux", network={"num_layers": 3, "num_single_layers": 2})
    for name, fields in NETWORKS.items():
        tiny_flow.sd3_controlnet(**fields).save_pretrained(place / f"sd3-{name}")
    tiny_flow.flux_controlnet().save_pretrained(place / "flux-canny")
    tiny_flow.flux_controlnet(6, num_layers=2, num_single_layers=0, guidance_embeds=False).save_pretrained(place / "flux-depth")
    tiny_flow.flux_controlnet(7, num_mode=10).save_pretrained(place / "flux-union")
    tiny.controlnet(0).save_pretrained(place / "sd1-canny")
    picture(1).save(place / "edges.png")
    picture(2).save(place / "other.png")
    return place


@pytest.fixture(autouse=True)
def means(monkeypatch):
    """diffusers draws the latents of a picture; unfog takes their mean."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mean)


def asked(place, **strengths):
    return [{"kind": kind.replace("_", "-"), "picture": place / file, "strength": strength}
            for kind, (file, strength) in strengths.items()]  # fmt: skip


SIZE = {"settings": {"size": "32x32"}, "sampler": "euler"}


@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_controlnet_of_sd3(place, name):
    from diffusers import SD3ControlNetModel, StableDiffusion3ControlNetPipeline

    net = SD3ControlNetModel.from_pretrained(place / f"sd3-{name}")
    pipe = StableDiffusion3ControlNetPipeline.from_pretrained(place / "sd3", controlnet=net)
    x = flow_noise()
    wanted = flow_theirs(pipe, x, negative_prompt=NEGATIVE, guidance_scale=7.5, control_image=picture(1),
                    controlnet_conditioning_scale=0.8)  # fmt: skip
    model = load(place / "sd3", "cpu", [place / f"sd3-{name}"], dtype=torch.float32)
    found = walked(model, x, control=asked(place, **{f"sd3_{name}": ("edges.png", 0.8)}), **SIZE)
    assert apart(found, wanted) < LATENTS
    without = walked(model, x, control=asked(place, **{f"sd3_{name}": ("edges.png", 0.0)}), **SIZE)
    assert torch.equal(without, walked(load(place / "sd3", "cpu", dtype=torch.float32), x, **SIZE))
    assert apart(found, without) > LATENTS


def test_two_controlnets_of_sd3(place):
    from diffusers import SD3ControlNetModel, StableDiffusion3ControlNetPipeline
    from diffusers.models.controlnets.controlnet_sd3 import SD3MultiControlNetModel

    nets = [SD3ControlNetModel.from_pretrained(place / "sd3-plain"), tiny_flow.sd3_controlnet(8)]
    nets[1].save_pretrained(place / "sd3-second")
    pipe = StableDiffusion3ControlNetPipeline.from_pretrained(place / "sd3", controlnet=SD3MultiControlNetModel(nets))
    x = flow_noise()
    # of several networks diffusers reads one config, which each of these shares
    pipe.controlnet.config = nets[0].config
    wanted = flow_theirs(pipe, x, negative_prompt=NEGATIVE, guidance_scale=7.5, control_image=[picture(1), picture(2)],
                    controlnet_conditioning_scale=[0.8, 0.5])  # fmt: skip
    model = load(place / "sd3", "cpu", [place / "sd3-plain", place / "sd3-second"], dtype=torch.float32)
    both = asked(place, sd3_plain=("edges.png", 0.8), sd3_second=("other.png", 0.5))
    assert apart(walked(model, x, control=both, **SIZE), wanted) < LATENTS


@pytest.mark.parametrize("name", ["flux-canny", "flux-depth"])
def test_a_controlnet_of_flux(place, name):
    from diffusers import FluxControlNetModel, FluxControlNetPipeline

    net = FluxControlNetModel.from_pretrained(place / name)
    pipe = FluxControlNetPipeline.from_pretrained(place / "flux", controlnet=net)
    x = flow_noise()
    wanted = flow_theirs(pipe, pipe._pack_latents(x, 1, 8, 16, 16), guidance_scale=3.5, control_image=picture(1),
                    controlnet_conditioning_scale=0.7)  # fmt: skip
    model = load(place / "flux", "cpu", [place / name], dtype=torch.float32)
    found = walked(model, x, scale=1.0, control=asked(place, **{name.replace("-", "_"): ("edges.png", 0.7)}), **SIZE)
    assert apart(pipe._pack_latents(found, 1, 8, 16, 16), wanted) < LATENTS


def test_a_union_of_flux(place):
    from diffusers import FluxControlNetModel, FluxControlNetPipeline
    from diffusers.models.controlnets.controlnet_flux import FluxMultiControlNetModel

    net = FluxControlNetModel.from_pretrained(place / "flux-union")
    model = load(place / "flux", "cpu", [place / "flux-union"], dtype=torch.float32)
    x, made = flow_noise(), {}
    for wishes, modes in (({"canny": ("edges.png", 0.7)}, [0]), ({"depth": ("edges.png", 0.7)}, [2]),
                          ({"canny": ("edges.png", 0.7), "depth": ("other.png", 0.4)}, [0, 2])):  # fmt: skip
        pipe = FluxControlNetPipeline.from_pretrained(place / "flux", controlnet=FluxMultiControlNetModel([net]))
        # without an interval each, diffusers heeds as many pictures as there are networks
        wanted = flow_theirs(pipe, pipe._pack_latents(x, 1, 8, 16, 16), guidance_scale=3.5,
                        control_image=[picture(1), picture(2)][: len(modes)], control_mode=modes,
                        control_guidance_start=[0.0] * len(modes), control_guidance_end=[1.0] * len(modes),
                        controlnet_conditioning_scale=[strength for _, strength in wishes.values()])  # fmt: skip
        found = walked(model, x, scale=1.0, control=asked(place, **wishes), **SIZE)
        assert apart(pipe._pack_latents(found, 1, 8, 16, 16), wanted) < LATENTS
        made[tuple(modes)] = found
    assert apart(made[0,], made[2,]) > LATENTS
    with pytest.raises(UserError, match="unknown; give one of: flux-union/blur"):
        walked(model, x, control=asked(place, sound=("edges.png", 1.0)), **SIZE)


def test_a_residual_serves_several_layers():
    one, two = torch.ones(2, 1, 3), 2 * torch.ones(2, 1, 3)
    strength = torch.tensor([[1.0], [0.5]])
    first = spread(None, [one, two], strength, [0, 0, 1])
    assert [layer[:, 0, 0].tolist() for layer in first] == [[1, 0.5], [1, 0.5], [2, 1]]
    assert [layer[0, 0, 0].item() for layer in spread(first, [two], strength, [0, 0, 0])] == [3, 3, 4]


def test_what_does_not_fit_is_refused_in_a_line(place, tmp_path):
    def loaded(folder, *more):
        return load(place / folder, "cpu", list(more), dtype=torch.float32)

    for folder, other, message in (("sd3", "flux-canny", "flux-canny steers Flux only"),
                                   ("flux", "sd3-plain", "Stable Diffusion 3 only"),
                                   ("sd3", "sd1-canny", "steers Stable Diffusion 1, 2 and XL only")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            loaded(folder, place / other)
    odd = {"pooled_projection_dim": 32, "extra_conditioning_channels": 1}
    for key, value in odd.items():
        tiny_flow.sd3_controlnet(**{key: value}).save_pretrained(tmp_path / key)
        with pytest.raises(UserError, match=key):
            loaded("sd3", tmp_path / key)
    tiny_flow.flux_controlnet(conditioning_embedding_channels=32).save_pretrained(tmp_path / "hints")
    with pytest.raises(UserError, match="reads latents alone"):
        loaded("flux", tmp_path / "hints")
    config = json.loads((place / "flux-union/config.json").read_text())
    (tmp_path / "union").mkdir()
    (tmp_path / "union/config.json").write_text(json.dumps(config | {"num_mode": 10**9}))
    with pytest.raises(UserError, match="num_mode must be a whole number from 1 to 64"):
        loaded("flux", tmp_path / "union")
    tiny.stable_diffusion(tmp_path / "sd1")
    with pytest.raises(UserError, match="flux-canny steers Flux only"):
        load(tmp_path / "sd1", "cpu", [place / "flux-canny"])
