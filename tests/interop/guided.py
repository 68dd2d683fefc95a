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
