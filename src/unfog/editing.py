"""An item changed: what is kept stays to the bit, the rest is made to fit it, or all of it is made anew from some noise on.

    strength s:   x_t = α(t)·x0 + σ(t)·ε at the time t that leaves a share s of the grid, then sample from there
    keep:         D ← x0 where it is kept (guidance/infill.py), and the kept part of the file itself is put back at the end

Sources: Meng et al. 2022 (SDEdit), arXiv:2108.01073; Song et al. 2021, arXiv:2011.13456, §I.2.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from functools import partial
from typing import Any

import torch

from unfog.diffusion import Noise, begin, run
from unfog.diffusion.editing import noised
from unfog.diffusion.guidance.cfg import ClassifierFree
from unfog.diffusion.guidance.infill import Infill
from unfog.edits import EditRequest
from unfog.errors import UserError
from unfog.modalities.contract import without
from unfog.model import Model
from unfog.requests import Progress, Result


def edit(model: Model, raw: Any, request: EditRequest) -> Generator[Progress | Result]:
    """Progress and results: `raw`, an item of the model's kind, changed as asked, with the seeds seed, seed + 1, ...

    Raises UserError for what the model, its kind or the item cannot do; before anything is made.
    """
    from unfog import __version__

    request, kind, space = request.settled(), model.kind, model.space
    if request.keep is not None and (kind.keep is None or kind.paste is None):
        raise UserError(f"keep: the kind {kind.name} has no parts to keep; give strength instead")
    assert request.seed is not None
    x0, own = space.encode([raw])
    if tuple(x0.shape[1:]) != tuple(space.shape):
        raise UserError(
            f"item: is of shape {tuple(x0.shape[1:])}, {model.name} makes {tuple(space.shape)}; give one of that size"
        )
    mask = None if request.keep is None or kind.keep is None else torch.from_numpy(kind.keep(space, raw, request.keep))[None]
    strength = request.strength if request.strength is not None else 1.0
    plan = model.plan(request.sampler, request.steps, strength)  # of 20 steps 0.5 takes the last 10
    scale = model.defaults["scale"] if request.scale is None else request.scale
    x0 = x0.to(model.device)
    for k in range(request.n):
        seed, began = request.seed + k, time.perf_counter()
        noise = Noise([seed])
        with torch.inference_mode():
            told, other = model.asked([(request.prompt, request.style, seed)], request.negative)
            cond = {**told, **{key: value.to(model.device) for key, value in own.items()}}
            if mask is not None and kind.grows:
                cond["mask"] = cond["mask"] | told["mask"]
            guided: Any = ClassifierFree(
                model.denoiser, scale, {**cond, **other} if kind.name == "image" else without(cond, other)
            )
            if mask is not None:
                guided = Infill(guided, x0, mask.to(model.device), kind.align)
            if strength < 1.0:
                x = noised(model.denoiser.process, x0, noise, plan.start)
            else:
                x = model.denoiser.process.prior(noise.normal(tuple(space.shape), 0), plan.start).to(model.device)
            for state in run(plan, partial(guided, cond=cond), begin(plan, x), noise):
                yield Progress(k * plan.nfe + state.nfe, request.n * plan.nfe)
            made = space.decode(state.x, cond)[0]
        if request.keep is not None and kind.paste is not None:
            made = kind.paste(space, made, raw, request.keep)
        recipe = {"edit": True, "prompt": request.prompt, "negative": request.negative, "style": request.style, "seed": seed,
                  "keep": request.keep, "strength": strength, "scale": float(scale), "steps": plan.nfe,
                  "sampler": request.sampler or model.defaults["sampler"], "model": model.name, "model_hash": model.hash,
                  "version": __version__}  # fmt: skip
        yield Result(made, request.prompt, seed, k, (time.perf_counter() - began) * 1000, recipe)
