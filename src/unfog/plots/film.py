"""The film of a picture's making: x_t as it stands at step k, and D(x_t) = E[x0 | x_t], guidance included, that step k finds.

The last frame is the picture itself, the one that `unfog generate` gives for the same request, byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from unfog.errors import UserError
from unfog.model import Model
from unfog.plots.drawn import Sheet
from unfog.plots.requests import FilmRequest
from unfog.plots.strip import Panel, draw
from unfog.requests import GenerateRequest, Progress, check


@dataclass(frozen=True)
class Frame:
    """step k of a plan with n rows stands at time t; x_t and x0 (4, H, W) in model space. At k = n both are the picture."""

    step: int
    t: float
    x_t: Tensor
    x0: Tensor


def chosen(request: FilmRequest, rows: int) -> list[int]:
    """The steps to show of 0 (the noise) ... rows (the picture). Raises UserError for one that there is not."""
    if request.at is None:
        return sorted({round(k * rows / (request.frames - 1)) for k in range(request.frames)})
    for step in request.at:
        if not 0 <= step <= rows:
            raise UserError(f"at: {step} is no step of this film; give steps from 0 (the noise) to {rows} (the picture)")
    return sorted(set(request.at))


def stream(request: FilmRequest, model: Model) -> Iterator[Progress | Sheet]:
    """Progress, then the sheet: for each seed a row of x_t and a row of x0."""
    fields = {key: getattr(request, key) for key in ("style", "steps", "scale", "sampler", "seed", "n", "negative")}
    asked = check(GenerateRequest, {"prompts": [request.prompt], **fields})
    plan = model.planned(asked)
    steps = chosen(request, plan.nfe)
    films: list[list[Frame]] = []
    for _, seed in asked.pictures():
        frames: list[Frame] = []
        before = None
        for state in model.states(asked, [(request.prompt, request.style, seed)], plan):
            if before is not None and before.nfe in steps:
                frames.append(Frame(before.nfe, before.t, before.x[0], state.x0[0]))
            before = state
            yield Progress(len(films) * plan.nfe + state.nfe, request.n * plan.nfe)
        assert before is not None
        if before.nfe in steps:
            frames.append(Frame(before.nfe, before.t, before.x[0], before.x[0]))
        films.append(frames)
    yield _sheet(request, model, asked, films)


def _sheet(request: FilmRequest, model: Model, asked: GenerateRequest, films: list[list[Frame]]) -> Sheet:
    schedule = model.denoiser.process.schedule
    rows = [[[_shown(model, frame.x_t) for frame in frames], [_shown(model, frame.x0) for frame in frames]] for frames in films]
    settings = model.settled(asked)
    frames = films[0]
    levels = [float(schedule.logsnr(min(max(frame.t, 0.0), 1.0))) for frame in frames]
    heads = [[f"step {frame.step}"] for frame in frames]
    foot = [[f"t {frame.t:.3f}", f"logsnr {level:.1f}" if np.isfinite(level) and abs(level) < 100 else ""]
            for frame, level in zip(frames, levels, strict=True)]  # fmt: skip
    said = [model.name, *([request.style] if request.style else []), settings["sampler"], f"{settings['steps']} steps",
            f"scale {settings['scale']:g}", f"seed {request.seed}" if request.n == 1 else ""]  # fmt: skip
    facts = {"plot": "film", "model": model.name, "model_hash": model.hash, "prompt": request.prompt, "style": request.style,
             "negative": request.negative, "seed": request.seed, "n": request.n, **settings,
             "frames": [{"step": frame.step, "t": frame.t, "logsnr": level if np.isfinite(level) else None}
                        for frame, level in zip(frames, levels, strict=True)]}  # fmt: skip
    names, last = [["x_t"], ["E[x0 | x_t]"]], len(rows) - 1
    titles = [f"seed {seed}" if last else "" for _, seed in asked.pictures()]
    panels = [Panel(two, heads if k == 0 else [], names, foot=foot if k == last else (), title=titles[k])
              for k, two in enumerate(rows)]  # fmt: skip
    image = draw(panels, request.prompt, ", ".join(filter(None, said)), smooth=False)
    return Sheet(image, facts, [picture for two in rows for row in two for picture in row])


def _shown(model: Model, x: Tensor) -> Image.Image:
    """What the codec makes of a point of model space, clean or not."""
    return Image.fromarray(model.codec.decode(x[None])[0])
