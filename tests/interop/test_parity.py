"""The same picture as diffusers' own pipelines, from the same noise, on tiny random checkpoints."""

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parent))

import tiny

from unfog.diffusion import Noise, begin, run
from unfog.diffusion.guidance.cfg import ClassifierFree
from unfog.interop import load

LATENTS, STATES = 1e-4, 1e-5
PROMPT, NEGATIVE = "a red apple on the moon", "a blue cat"
KINDS = {
    "sd1": {},
    "sd2": {"second": True, "name": "DDIMScheduler", "prediction_type": "v_prediction", "timestep_spacing": "leading"},
    "trailing": {"second": True, "name": "DDIMScheduler", "prediction_type": "v_prediction", "timestep_spacing": "trailing",
                 "set_alpha_to_one": True},
    "zero-snr": {"second": True, "name": "DDIMScheduler", "prediction_type": "v_prediction", "timestep_spacing": "trailing",
                 "rescale_betas_zero_snr": True},
}  # fmt: skip


def apart(ours, theirs):
    return float((ours - theirs).norm() / theirs.norm())


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("sd")
    return {kind: tiny.stable_diffusion(place / kind, **fields) for kind, fields in KINDS.items()}


@pytest.fixture(scope="module", params=list(KINDS))
def pair(request, folders):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folders[request.param])
    pipe.set_progress_bar_config(disable=True)
    return request.param, load(folders[request.param], "cpu", dtype=torch.float32), pipe


@torch.no_grad()
def walked(model, plan, start, cond, other, scale=7.5):
    guided = ClassifierFree(model.denoiser, scale, other)
    for state in run(plan, lambda x_t, t: guided(x_t, t, cond), begin(plan, start), Noise([0])):
        last = state
    return last.x


def test_text_states(pair):
    _, model, pipe = pair
    cond, other = model.space.both([PROMPT], NEGATIVE, {})
    with torch.no_grad():
        told, avoided = pipe.encode_prompt(PROMPT, "cpu", 1, True, NEGATIVE)
    assert apart(cond["text"], told) < STATES and apart(other["text"], avoided) < STATES


@pytest.mark.parametrize("name", ["ddim", "euler", "dpmpp_2m"])
def test_latents(pair, name):
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

    kind, model, pipe = pair
    own, theirs = (
        pipe.scheduler,
        {"ddim": DDIMScheduler, "euler": EulerDiscreteScheduler, "dpmpp_2m": DPMSolverMultistepScheduler},
    )
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    try:
        pipe.scheduler = theirs[name].from_config(own.config)
        with torch.no_grad():
            wanted = pipe(PROMPT, negative_prompt=NEGATIVE, num_inference_steps=20, guidance_scale=7.5, latents=x.clone(),
                          output_type="latent").images  # fmt: skip
        # theirs in σ/α begin at their own width
        width = (
            float(pipe.scheduler.init_noise_sigma) / (float(pipe.scheduler.sigmas[0]) ** 2 + 1) ** 0.5 if name == "euler" else 1
        )
    finally:
        pipe.scheduler = own
    plan = model.plan(name, 20)
    assert plan.nfe == 20
    cond, other = model.space.both([PROMPT], NEGATIVE, {})
    # with zero terminal SNR these two of theirs begin at ᾱ = 2⁻²⁴ instead of 0
    bound = 1e-3 if kind == "zero-snr" and name != "ddim" else LATENTS
    assert apart(walked(model, plan, x * width, cond, other), wanted) < bound


def test_pictures(pair):
    _, model, pipe = pair
    x0 = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        wanted = pipe.vae.decode(x0 / pipe.vae.config.scaling_factor).sample
        picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(3)).mul(255).round()
        mean = pipe.vae.encode(picture / 127.5 - 1).latent_dist.mean * pipe.vae.config.scaling_factor
    assert apart(model.space.codec.pixels(x0), wanted) < STATES
    rgba = torch.cat([picture, torch.full_like(picture[:, :1], 255)], 1).permute(0, 2, 3, 1).to(torch.uint8)
    assert apart(model.space.codec.encode(rgba), mean) < STATES


def test_generate_is_a_function_of_the_seed(pair):
    _, model, _ = pair
    first, second, other = (model.generate("a red apple", seed=s, steps=3)[0] for s in (1, 1, 2))
    assert first.size == (32, 32) and first.mode == "RGBA"
    assert first.tobytes() == second.tobytes() != other.tobytes()


def test_sizes(folders):
    model = load(folders["sd1"], "cpu", dtype=torch.float32)
    assert model.generate("a cat", seed=1, steps=1, settings={"size": "48x32"})[0].size == (48, 32)
    assert model.generate("a cat", seed=1, steps=1, aspect="2:1")[0].size == (48, 16)
    for wrong in ("47x32", "x", "0x0", "99999x8", "32"):
        with pytest.raises(ValueError, match="size"):
            model.generate("a cat", seed=1, steps=1, settings={"size": wrong})
    with pytest.raises(ValueError, match="unknown"):
        model.generate("a cat", seed=1, steps=1, settings={"siez": "32x32"})


def test_long_and_weighted_prompts(folders):
    model = load(folders["sd1"], "cpu", dtype=torch.float32)
    encoder = model.space.encoders[0]
    long = " ".join(["a red apple"] * 40)
    cond, other = model.space.both([long], None, {})
    assert cond["text"].shape == other["text"].shape == (1, 2 * 77, 32)
    plain, weighted = (encoder.encode([[("a red ", 1.0), ("apple", w)]], 1)[0] for w in (1.0, 1.3))
    whole = encoder.encode([[("a red apple", 1.0)]], 1)[0]
    assert torch.allclose(plain, whole, atol=1e-6)
    empty = encoder.encode([[("", 1.0)]], 1)[0]
    place = 3  # start, a, red, apple
    assert torch.allclose(plain[:, :place], weighted[:, :place], atol=1e-6)
    assert torch.allclose(weighted[:, place], empty[:, place] + 1.3 * (plain[:, place] - empty[:, place]), atol=1e-6)


def test_a_contradicting_prediction_is_refused(folders):
    with pytest.raises(ValueError, match="states v, not eps; leave it out"):
        load(folders["sd2"], "cpu", prediction="eps")


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    from diffusers import StableDiffusionXLPipeline

    folder = tiny.stable_diffusion_xl(tmp_path_factory.mktemp("xl") / "sdxl")
    pipe = StableDiffusionXLPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return load(folder, "cpu", dtype=torch.float32), pipe


@pytest.mark.parametrize("negative", [NEGATIVE, None])
def test_the_two_encoders_of_xl(large, negative):
    model, pipe = large
    cond, other = model.space.both([PROMPT], negative, {})
    with torch.no_grad():
        found = pipe.encode_prompt(PROMPT, device="cpu", negative_prompt=negative, do_classifier_free_guidance=True)
    for ours, theirs in zip((cond["text"], other["text"], cond["pooled"], other["pooled"]), found, strict=True):
        assert apart(ours, theirs) < STATES if float(theirs.abs().max()) else not bool(ours.abs().any())


@pytest.mark.parametrize("settings", [{}, {"original": "64x40", "crop": "3,5", "target": "24x32"}])
def test_latents_of_xl(large, settings):
    model, pipe = large
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    told = {"original_size": (40, 64), "crops_coords_top_left": (5, 3), "target_size": (32, 24)} if settings else {}
    with torch.no_grad():
        wanted = pipe(PROMPT, negative_prompt=NEGATIVE, num_inference_steps=20, guidance_scale=7.5, latents=x.clone(),
                      output_type="latent", **told).images  # fmt: skip
    cond, other = model.space.both([PROMPT], NEGATIVE, {"settings": settings})
    assert apart(walked(model, model.plan("euler", 20), x, cond, other), wanted) < LATENTS


def test_xl_makes_a_picture(large):
    assert large[0].generate("a cat", seed=1, steps=2, settings={"crop": "0,8"})[0].size == (32, 32)


def test_the_command_line(folders, tmp_path, capfd, monkeypatch):
    from PIL import Image

    from unfog.cli import main

    monkeypatch.chdir(tmp_path)
    words = ["generate", "a red apple", "--model", str(folders["sd1"]), "--steps", "2", "--seed", "7"]
    assert main([*words, "--set", "size=48x32"]) == 0
    (path,) = capfd.readouterr().out.splitlines()
    with Image.open(path) as picture:
        assert picture.size == (48, 32)
    before = Path(path).read_bytes()
    assert main(["generate", "--like", path, "--model", str(folders["sd1"])]) == 0
    assert Path(path).read_bytes() == before
    for wrong, said in (
        (["--set", "size=48x32", "--aspect", "3:2"], "leave one out"),
        (["--set", "size"], "NAME=VALUE"),
        (["--set", "crop=0,0"], "is unknown"),
        (["--style", "noto"], "unknown"),
        (["--prediction", "vv"], "did you mean v"),
    ):
        capfd.readouterr()
        assert main([*words, *wrong]) == 2
        error = capfd.readouterr().err.strip()
        assert said in error and len(error.splitlines()) == 1
