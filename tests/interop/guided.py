"""What tests of guides share: pictures, and the same latents walked by unfog and by a pipeline of diffusers'."""

import numpy as np
import torch
from PIL import Image

from unfog.diffusion import Noise, begin, run
from unfog.requests import GenerateRequest

LATENTS = 1e-4
PROMPT, NEGATIVE = "a red apple on the moon", "a blue cat"


def apart(ours, theirs):
    return float((ours - theirs).norm() / theirs.norm())


def picture(seed, size=32):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def walked(model, x, steps=20, sampler="ddim", scale=7.5, **fields):
    """The latents of a request, begun at x."""
    request = GenerateRequest(prompts=[PROMPT], negative=NEGATIVE, seed=1, steps=steps, sampler=sampler, scale=scale,
                              **fields).settled()  # fmt: skip
    plan, hints = model.planned(request), model.hints(request)
    asked = model.asked if hints is None else (lambda items, negative: hints.beside(plainly, model._told, scale, items, negative))

    def plainly(items, negative):
        return model.asked(items, negative, model.settled(request))

    from unfog.script import Script
    from unfog.steer import Timed

    denoiser = model.denoiser if hints is None else Timed(model.denoiser, hints, plan.t)
    said = Script(denoiser, plainly if hints is None else asked, [(PROMPT, None, 1)], NEGATIVE, plan.nfe, steps, scale)
    with torch.inference_mode():
        for state in run(plan, said, begin(plan, x), Noise([1])):
            said.row = state.nfe
    return state.x


def theirs(pipe, x, steps=20, **fields):
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        return pipe(PROMPT, negative_prompt=NEGATIVE, num_inference_steps=steps, guidance_scale=7.5, latents=x.clone(),
                    output_type="latent", **fields).images  # fmt: skip


def noise(seed=1):
    return torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(seed))


def flow_noise(seed=1):
    """Latents of the small Flux and Stable Diffusion 3."""
    return torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(seed))


def flow_theirs(pipe, x, **fields):
    """Twenty steps of a pipeline of theirs, at 32 pixels."""
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        return pipe(PROMPT, num_inference_steps=20, latents=x.clone(), width=32, height=32, output_type="latent", **fields).images


def edited(model, raw, **fields):
    """The last of three steps of an edit."""
    from unfog.editing import EditRequest, edit

    *_, last = edit(model, raw, EditRequest(item="x.png", prompt="a red apple", steps=3, seed=1, **fields))
    return last


def check_outside_a_mask(model, folder, size, **fields):
    """Outside a mask nothing changes, to the bit, and inside it something does."""
    raw = np.random.default_rng(0).integers(0, 256, (*size, 4), dtype=np.uint8)
    mask = np.zeros(size, np.uint8)
    mask[10:25, 8:20] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    made = np.asarray(edited(model, raw, mask=str(folder / "mask.png"), **fields).item)
    assert made.shape == raw.shape
    assert np.array_equal(made[mask == 0], raw[mask == 0]) and not np.array_equal(made[mask > 0], raw[mask > 0])
