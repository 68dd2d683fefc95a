"""What the forward process makes of a picture, x_t = α·x0 + σ·ε with one ε for all t, and what a model sees in it: E[x0|x_t]."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unfog.diffusion import Gaussian, Noise, Process, schedule_from_config
from unfog.errors import UserError, unknown
from unfog.modalities.image.codec import RGBACodec
from unfog.modalities.image.data import PictureSet
from unfog.modalities.image.records import Record
from unfog.model import Model
from unfog.plots.data import held_out, pictures_of
from unfog.plots.drawn import Sheet
from unfog.plots.requests import ForwardRequest
from unfog.plots.strip import Panel, draw, wrapped
from unfog.plots.strip import font as font_of
from unfog.requests import Progress

LEVELS = (6.0, 4.0, 2.0, 0.0, -2.0, -4.0, -6.0)  # log-SNR, where nothing else is asked for
SIZE = 64


def noised(process: Process, x0: Tensor, times: Sequence[float], seed: int) -> list[Tensor]:
    """x_t (4, H, W) float32 of x0 (4, H, W) at each of the times, all with the noise of one seed."""
    eps = Noise([seed]).normal(tuple(x0.shape), 0).to(x0.device)
    return [process.mix(x0[None], eps, t)[0] for t in times]


@torch.inference_mode()
def stream(request: ForwardRequest, model: Model | None) -> Iterator[Progress | Sheet]:
    """Progress, then the sheet: a row of x_t, and one of E[x0 | x_t] where there is a model."""
    if model is not None:
        for field in ("schedule", "size"):
            if getattr(request, field) is not None:
                raise UserError(f"{field}: {model.name} has its own; leave it out, or leave the model out")
        if request.style is not None and request.style not in model.styles:
            raise unknown("style", request.style, model.styles)
        process: Process = model.denoiser.process
    else:
        for field in ("prompt", "style"):
            if getattr(request, field) is not None:
                raise UserError(f"{field}: nobody is there to be told; give a model")
        process = Gaussian(schedule_from_config({"name": request.schedule or "cosine"}))
    pixels, what = _picture(request, model)
    codec = model.codec if model is not None else RGBACodec()
    x0 = codec.encode(pixels[None])[0].to(model.device if model is not None else "cpu")
    schedule = process.schedule
    times = request.t or [float(schedule.time(level)) for level in (request.logsnr or LEVELS)]
    columns = [_level(schedule, t) for t in times]
    rows = [noised(process, x0, times, request.seed)]
    names = ["x_t"]
    if model is not None:
        cond = model.condition([request.prompt or ""], [request.style])
        rows.append([])
        for k, (t, x_t) in enumerate(zip(times, rows[0], strict=True)):
            rows[1].append(model.denoiser(x_t[None], t, cond)[0])
            columns[k]["rmse"] = float((rows[1][-1].float() - x0).square().mean().sqrt())
            yield Progress(k + 1, len(times))
        names.append("E[x0 | x_t]")
    pictures = [[Image.fromarray(codec.decode(x[None])[0]) for x in row] for row in rows]
    foot = [[f"t {c['t']:.3f}", f"alpha {c['alpha']:.3f}", f"sigma {c['sigma']:.3f}", f"SNR {_short(c['snr'])}",
             f"logsnr {c['logsnr']:.1f}" if c["logsnr"] is not None else "logsnr -"]
            + ([f"error {c['rmse']:.3f}"] if "rmse" in c else []) for c in columns]  # fmt: skip
    told = [part for part in (request.style, request.prompt) if part]
    labels = [[names[0]]] + [[names[1], *wrapped(", ".join(told), 200, font_of(13), 2)] for _ in rows[1:]]
    said = [model.name if model is not None else f"schedule {request.schedule or 'cosine'}", f"noise of seed {request.seed}"]
    if model is not None:
        said.append("error: root mean square, data's std = 1")
    facts: dict[str, Any] = {"plot": "forward", "picture": what, "seed": request.seed, "schedule": schedule.config(),
                             "levels": columns, "prompt": request.prompt, "style": request.style}  # fmt: skip
    if model is not None:
        facts |= {"model": model.name, "model_hash": model.hash}
    image = draw([Panel(pictures, [], labels, foot=foot)], what, ", ".join(said), smooth=False)
    yield Sheet(image, facts, [p for row in pictures for p in row])


def _level(schedule: Any, t: float) -> dict[str, Any]:
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    snr = alpha**2 / sigma**2 if sigma > 0 else math.inf
    return {"t": t, "alpha": alpha, "sigma": sigma, "snr": snr if math.isfinite(snr) else None,
            "logsnr": math.log(snr) if 0 < snr < math.inf else None}  # fmt: skip


def _short(snr: float | None) -> str:
    return "infinite" if snr is None else f"{snr:.3g}" if snr < 1000 else f"{snr:,.0f}" if snr < 1e6 else f"{snr:.1e}"


def _picture(request: ForwardRequest, model: Model | None) -> tuple[np.ndarray, str]:
    """Straight RGBA (H, W, 4) in the model's size, and what it is."""
    size: Any = request.size or SIZE
    if model is not None:  # a square is filled up, another shape is filled
        size = model.size if model.buckets[0] == (model.size, model.size) else model.buckets[0]
    if request.picture is not None:
        if request.data is not None or request.number is not None:
            raise UserError("picture: is given beside data or number; give one of them")
        path = Path(request.picture)
        if not path.is_file():
            raise UserError(f"picture: {path} is no file; give a picture's file")
        alone = PictureSet(path.parent, [Record(file_name=path.name)], lambda _: path.read_bytes())
        return np.array(alone.load(0, size)), path.name
    pictures = pictures_of(request.data, model)
    split = held_out(pictures)
    rows = pictures.split(split) if split else list(range(len(pictures)))
    if request.number is not None and request.number > len(pictures):
        raise UserError(f"number: the data have {len(pictures):,} pictures, not {request.number:,}; give a smaller one")
    row = rows[0] if request.number is None else request.number - 1
    record = pictures.records[row]
    words = (record.name or record.text or record.file_name).strip()
    return np.array(pictures.load(row, size)), f"{words} ({record.style})" if record.style else words
