"""Guides of Stable Diffusion XL: ControlNets of one kind and of several, T2I-Adapters; the same latents as diffusers'."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parent))

import tiny
from guided import LATENTS, PROMPT, apart, noise, picture, theirs, walked

from unfog.errors import UserError
from unfog.interop import load


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, and what was made for it."""
    place = tmp_path_factory.mktemp("guides-xl")
    tiny.stable_diffusion_xl(place / "xl")
    tiny.controlnet(3, text=64, use_linear_projection=True, attention_head_dim=(2, 4), transformer_layers_per_block=(1, 2),
                    addition_embed_type="text_time", addition_time_embed_dim=8,
                    projection_class_embeddings_input_dim=32 + 6 * 8).save_pretrained(place / "xl-depth")  # fmt: skip
    picture(1).save(place / "edges.png")
    picture(2).save(place / "other.png")
    return place


def test_a_controlnet_of_xl(place):
    from diffusers import ControlNetModel, EulerDiscreteScheduler, StableDiffusionXLControlNetPipeline

    net = ControlNetModel.from_pretrained(place / "xl-depth")
    pipe = StableDiffusionXLControlNetPipeline.from_pretrained(place / "xl", controlnet=net)
    assert isinstance(pipe.scheduler, EulerDiscreteScheduler)
    model = load(place / "xl", "cpu", [place / "xl-depth"], dtype=torch.float32)
    x = noise()
    wanted = theirs(pipe, x, image=picture(1), controlnet_conditioning_scale=0.8)
    asked = [{"kind": "xl-depth", "picture": place / "edges.png", "strength": 0.8}]
    assert apart(walked(model, x, sampler="euler", control=asked), wanted) < LATENTS


def test_a_controlnet_of_several_kinds(place):
    from diffusers import StableDiffusionXLControlNetUnionPipeline

    net = tiny.controlnet_union(4)
    net.save_pretrained(place / "my-union")
    pipe = StableDiffusionXLControlNetUnionPipeline.from_pretrained(place / "xl", controlnet=net)
    model = load(place / "xl", "cpu", [place / "my-union"], dtype=torch.float32)
    x, pictures = noise(), {"canny": (1, "edges.png"), "depth": (2, "other.png")}

    def asked(**strengths):
        return [{"kind": kind, "picture": place / pictures[kind][1], "strength": s} for kind, s in strengths.items()]

    made = {}
    for strengths, modes in (({"canny": 0.8}, [3]), ({"depth": 0.5, "canny": 0.7}, [1, 3])):
        wanted = theirs(pipe, x, control_image=[picture(pictures[kind][0]) for kind in strengths], control_mode=modes,
                        controlnet_conditioning_scale=list(strengths.values()))  # fmt: skip
        made[len(modes)] = walked(model, x, sampler="euler", control=asked(**strengths))
        assert apart(made[len(modes)], wanted) < LATENTS
    assert apart(made[1], made[2]) > LATENTS
    few = {"sampler": "euler", "steps": 2}
    # diffusers' pipeline stops in guess mode (it tells one item the kinds of two), its network does not
    branch, generator = model.space.guides.branches[0], torch.Generator().manual_seed(2)
    text, hint = (torch.randn(shape, generator=generator) for shape in ((1, 7, 64), (1, 3, 32, 32)))
    beside = {"text_embeds": torch.randn(1, 32, generator=generator), "time_ids": torch.ones(1, 6)}
    kinds = torch.zeros(1, 8)
    kinds[:, 3] = 1.0
    with torch.no_grad():
        down, middle = net(x, torch.tensor([500.0]), text, [hint], kinds, [3], conditioning_scale=[0.8], guess_mode=True,
                           added_cond_kwargs=beside, return_dict=False)  # fmt: skip
        hints = torch.cat([hint if kind == 3 else torch.zeros_like(hint) for kind in range(8)], dim=1)
        found = branch.added(x, torch.tensor([500.0]), text, beside, hints, 0.8 * kinds, True)
    assert len(found) == len(down) + 1 and all(apart(a, b) < LATENTS for a, b in zip(found, [*down, middle], strict=True))
    # a kind of strength 0 is as if it were not there, and the kind that a picture is of counts
    alone = walked(model, x, control=asked(canny=0.8), **few)
    assert torch.equal(walked(model, x, control=asked(canny=0.8, depth=0.0), **few), alone)
    assert torch.equal(walked(model, x, control=[{**asked(canny=0.8)[0], "kind": "my-union/lineart"}], **few), alone)
    assert apart(walked(model, x, control=[{**asked(canny=0.8)[0], "kind": "tile"}], **few), alone) > LATENTS
    for kinds, word in ((["sound"], "unknown; give one of: my-union/canny"), (["canny", "mlsd"], "given twice")):
        with pytest.raises(UserError, match=word):
            model.generate(PROMPT, control=[f"{kind}={place / 'edges.png'}" for kind in kinds], seed=1, steps=1)


def test_a_controlnet_of_several_kinds_in_a_single_file(place, tmp_path):
    tiny.controlnet_union(5, num_trans_head=8, num_control_type=6).save_pretrained(place / "six")
    file = tmp_path / "six-promax.safetensors"
    whole = load_file(place / "six/diffusion_pytorch_model.safetensors")
    save_file(whole, file)
    x, few, made = noise(), {"sampler": "euler", "steps": 2}, []
    for given in (place / "six", file):
        model = load(place / "xl", "cpu", [given], dtype=torch.float32)
        hints = [{"kind": "depth", "picture": place / "edges.png"},
                 {"kind": "canny", "picture": place / "other.png", "strength": 0.5}]  # fmt: skip
        made.append(walked(model, x, control=hints, **few))
    assert torch.equal(*made) and apart(made[0], walked(load(place / "xl", "cpu", dtype=torch.float32), x, **few)) > LATENTS
    for change, word in (({"task_embedding": torch.ones(9, 32)}, "num_control_type must be"),
                         ({"task_embedding": torch.ones(3)}, "laid out as no known ControlNet"),
                         ({"task_embedding": torch.ones(6, 33)}, "x.safetensors")):  # fmt: skip
        save_file({**whole, **change}, tmp_path / "x.safetensors")
        with pytest.raises(UserError, match=word) as caught:
            load(place / "xl", "cpu", [tmp_path / "x.safetensors"], dtype=torch.float32)
        assert "\n" not in str(caught.value)


def test_a_t2i_adapter_of_xl(place):
    from diffusers import StableDiffusionXLAdapterPipeline, T2IAdapter

    torch.manual_seed(6)
    T2IAdapter(3, [32, 64], 1, 4, "full_adapter_xl").save_pretrained(place / "t2i-xl")
    net = T2IAdapter.from_pretrained(place / "t2i-xl")
    pipe = StableDiffusionXLAdapterPipeline.from_pretrained(place / "xl", adapter=net)
    x = noise()
    wanted = theirs(pipe, x, image=picture(1), adapter_conditioning_scale=0.8)
    model = load(place / "xl", "cpu", [place / "t2i-xl"], dtype=torch.float32)
    asked = [{"kind": "t2i", "picture": place / "edges.png", "strength": 0.8}]
    assert apart(walked(model, x, sampler="euler", control=asked), wanted) < LATENTS
    with pytest.raises(UserError, match="t2i-xl reads pictures whose sides are multiples of 4, not 34x32"):
        model.generate(PROMPT, control=asked, seed=1, steps=1, settings={"size": "34x32"})
