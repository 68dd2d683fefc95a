"""Stable Diffusion 3 and Flux: the same picture as diffusers' own pipelines, from the same noise, on tiny random checkpoints."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parent))

import tiny_flow

from unfog.diffusion import Noise, begin, make_plan, run
from unfog.diffusion.guidance.cfg import ClassifierFree
from unfog.interop import load
from unfog.interop.flows import FlowSteps

LATENTS, STATES = 1e-4, 1e-5
PROMPT, NEGATIVE = "a red apple on the moon", "a blue cat"
SIZE = {"settings": {"size": "32x24"}}
SD3 = {
    "sd3": {},
    "sd3.5": {"network": {"qk_norm": "rms_norm", "dual_attention_layers": (0,)}},
    "dynamic": {"use_dynamic_shifting": True, "shift": 1.0},
    "linear": {"use_dynamic_shifting": True, "time_shift_type": "linear", "shift_terminal": 0.02},
    "karras": {"use_karras_sigmas": True},
    "no-t5": {"without": ("text_encoder_3",)},
}
FLUX = {"dev": {}, "schnell": {"network": {"guidance_embeds": False}, "use_dynamic_shifting": False, "shift": 1.0}}


def apart(ours, theirs):
    assert ours.shape == theirs.shape
    return float((ours - theirs).norm() / theirs.norm())


@torch.no_grad()
def walked(model, plan, start, cond, other, scale):
    guided = ClassifierFree(model.denoiser, scale, other)
    for state in run(plan, lambda x_t, t: guided(x_t, t, cond), begin(plan, start), Noise([0])):
        last = state
    return last.x


@pytest.fixture(scope="module", params=list(SD3))
def three(request, tmp_path_factory):
    from diffusers import StableDiffusion3Pipeline

    folder = tiny_flow.sd3(tmp_path_factory.mktemp("sd3") / request.param, **SD3[request.param])
    absent = {"text_encoder_3": None, "tokenizer_3": None} if request.param == "no-t5" else {}
    pipe = StableDiffusion3Pipeline.from_pretrained(folder, **absent)
    pipe.set_progress_bar_config(disable=True)
    return load(folder, "cpu", dtype=torch.float32), pipe


def test_text_states_of_sd3(three):
    model, pipe = three
    cond, other = model.space.both([PROMPT], NEGATIVE, {})
    with torch.no_grad():
        found = pipe.encode_prompt(PROMPT, None, None, "cpu", negative_prompt=NEGATIVE)
    ours = (cond["text"], other["text"], cond["pooled"], other["pooled"])
    for one, theirs in zip(ours, found, strict=True):
        assert apart(one, theirs) < STATES


def test_latents_of_sd3(three):
    model, pipe = three
    x = torch.randn(1, 8, 12, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = pipe(PROMPT, negative_prompt=NEGATIVE, num_inference_steps=20, guidance_scale=7.0, latents=x.clone(),
                      width=32, height=24, output_type="latent").images  # fmt: skip
    cond, other = model.space.both([PROMPT], NEGATIVE, SIZE)
    plan = model.plan("euler", 20, shape=(8, 12, 16))
    assert plan.nfe == 20 and apart(walked(model, plan, x, cond, other, 7.0), wanted) < LATENTS


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A whole folder, and what diffusers says of the prompt there."""
    from diffusers import StableDiffusion3Pipeline

    folder = tiny_flow.sd3(tmp_path_factory.mktemp("whole") / "sd3")
    with torch.no_grad():
        text, _, pooled, _ = StableDiffusion3Pipeline.from_pretrained(folder).encode_prompt(PROMPT, None, None, "cpu")
    return folder, text, pooled


@pytest.mark.parametrize("left", [(1,), (2,), (1, 2), (1, 3), (2, 3)])
def test_encoders_left_out_say_zeros(whole, left, tmp_path):
    """diffusers runs only the one without T5; to the others one gives states by hand, the missing ones as zeros."""
    folder = shutil.copytree(whole[0], tmp_path / "sd3")
    text, pooled = whole[1].clone(), whole[2].clone()
    index = json.loads((folder / "model_index.json").read_text())
    for number in left:
        for part in ("text_encoder", "tokenizer"):
            index[f"{part}_{number}".removesuffix("_1")] = [None, None]
        if number == 3:
            text[:, 77:] = 0.0
        else:
            span = slice(32 * (number - 1), 32 * number)
            text[:, :77, span], pooled[:, span] = 0.0, 0.0
    (folder / "model_index.json").write_text(json.dumps(index))
    model = load(folder, "cpu", dtype=torch.float32)
    cond, _ = model.space.both([PROMPT], None, {})
    assert torch.allclose(cond["text"], text, atol=1e-5) and torch.allclose(cond["pooled"], pooled, atol=1e-5)
    assert model.generate("a cat", seed=1, steps=1, **SIZE)[0].size == (32, 24)


@pytest.fixture(scope="module", params=list(FLUX))
def packed(request, tmp_path_factory):
    from diffusers import FluxPipeline

    folder = tiny_flow.flux(tmp_path_factory.mktemp("flux") / request.param, **FLUX[request.param])
    pipe = FluxPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return load(folder, "cpu", dtype=torch.float32), pipe


def test_text_states_of_flux(packed):
    model, pipe = packed
    cond, _ = model.space.both([PROMPT], NEGATIVE, {})
    with torch.no_grad():
        text, pooled, _ = pipe.encode_prompt(PROMPT, None, "cpu")
    assert apart(cond["text"], text) < STATES and apart(cond["pooled"], pooled) < STATES


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_latents_of_flux(packed, scale):
    model, pipe = packed
    x = torch.randn(1, 8, 12, 16, generator=torch.Generator().manual_seed(1))
    tokens = pipe._pack_latents(x, 1, 8, 12, 16)
    guided = {"negative_prompt": NEGATIVE, "true_cfg_scale": scale} if scale != 1.0 else {}
    told = {"settings": {"size": "32x24", "tokens": "64", **({"guidance": "2.5"} if model.space.sizes.guided else {})}}
    with torch.no_grad():
        wanted = pipe(PROMPT, num_inference_steps=20, guidance_scale=2.5, latents=tokens, width=32, height=24,
                      max_sequence_length=64, output_type="latent", **guided).images  # fmt: skip
        wanted = pipe._unpack_latents(wanted, 24, 32, 2)
    cond, other = model.space.both([PROMPT], NEGATIVE, told)
    plan = model.plan("euler", 20, shape=(8, 12, 16))
    assert plan.nfe == 20 and apart(walked(model, plan, x, cond, other, scale), wanted) < LATENTS


@pytest.mark.parametrize("name", ["dpmpp_2m", "unipc"])
def test_multistep_samplers(whole, name):
    """Theirs have levels of their own; here they get the folder's, from just below 1, where theirs are finite."""
    from diffusers import DPMSolverMultistepScheduler, StableDiffusion3Pipeline, UniPCMultistepScheduler

    kind = {"dpmpp_2m": DPMSolverMultistepScheduler, "unipc": UniPCMultistepScheduler}[name]
    theirs = kind(prediction_type="flow_prediction", use_flow_sigmas=True)
    model = load(whole[0], "cpu", dtype=torch.float32)
    times, own = [0.999, *model.plan(name, 20).t[1:], 0.0], theirs.set_timesteps

    def set_timesteps(n, device=None):
        own(n, device)
        theirs.sigmas = torch.tensor(times, dtype=torch.float32)
        theirs.timesteps = theirs.sigmas[:-1] * 1000

    theirs.set_timesteps = set_timesteps
    pipe = StableDiffusion3Pipeline.from_pretrained(whole[0], scheduler=theirs)
    pipe.set_progress_bar_config(disable=True)
    x = torch.randn(1, 8, 12, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = pipe(PROMPT, negative_prompt=NEGATIVE, num_inference_steps=20, guidance_scale=7.0, latents=x.clone(),
                      width=32, height=24, output_type="latent").images  # fmt: skip
    cond, other = model.space.both([PROMPT], NEGATIVE, SIZE)
    plan = make_plan(name, model.denoiser.process.schedule, times, **({"ramp_down": True} if name == "unipc" else {}))
    assert plan.nfe == 20 and apart(walked(model, plan, x, cond, other, 7.0), wanted) < LATENTS


def test_heun_on_the_folders_levels(whole):
    """Its rule is Karras' in σ/α, theirs the trapezoid in σ (both of second order), so the pictures differ; the levels do not."""
    from diffusers import FlowMatchHeunDiscreteScheduler

    theirs, model = FlowMatchHeunDiscreteScheduler(shift=3.0), load(whole[0], "cpu", dtype=torch.float32)
    theirs.set_timesteps(20)
    assert np.abs(theirs.timesteps.numpy() - 1000 * model.plan("heun", 20).t).max() < 1e-3


@pytest.mark.parametrize("noise", [{"shift": 3.0}, {"use_dynamic_shifting": True}, {"use_exponential_sigmas": True, "shift": 2.0},
                                   {"use_karras_sigmas": True}, {"num_train_timesteps": 500, "shift": 6.0},
                                   {"shift_terminal": 0.1, "use_dynamic_shifting": True, "max_image_seq_len": 8192}])  # fmt: skip
def test_levels_are_theirs(tmp_path, noise):
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    for even in (False, True):
        theirs = FlowMatchEulerDiscreteScheduler(**noise)
        own = theirs.config
        mu = calculate_shift(600, own.base_image_seq_len, own.max_image_seq_len, own.base_shift, own.max_shift)
        theirs.set_timesteps(*(() if even else (12,)), mu=mu, sigmas=np.linspace(1, 1 / 12, 12) if even else None)
        steps = FlowSteps(tmp_path / "s.json", {"_class_name": "FlowMatchEulerDiscreteScheduler", **noise}, even)
        steps.check()
        assert np.abs(steps.levels(12, 600) - theirs.sigmas[:-1].numpy()).max() < 1e-6
