"""Learning a plan for a model folder: few evaluations that end where a fine trajectory of the same model ends."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unfog import data
from unfog.diffusion import Noise, Plan, Problem, fit, make_grid, make_plan, sample
from unfog.diffusion.fit import error
from unfog.diffusion.guidance.cfg import ClassifierFree
from unfog.errors import UserError
from unfog.modalities.image.data import PictureSet
from unfog.model import CARD, Model, add_plan, load
from unfog.requests import FitRequest

FINE_STEPS = 60
CHUNK = 16  # pictures in one call of the network
STARTS = [("deis", "exponential"), ("deis", "logsnr"), ("exp_adams", "exponential"), ("exp_adams", "logsnr")]
Asked = list[tuple[str, str | None]]


def _prompts(model: Model, file: Path | None, count: int) -> Asked:
    """`count` prompts with a style each, drawn from the file's lines or from the data that the model was trained on."""
    rng = np.random.default_rng(0)
    styles = [*model.styles, None]
    if file is None:
        source = str(model.card.get("training", {}).get("data", ""))
        try:
            known = PictureSet.open(Path(source) if Path(source).exists() else data.path(source))
        except UserError:
            raise UserError(
                f"{model.folder / CARD}: its training data {source!r} are not here; give --prompts, a text file"
            ) from None
        lines = [(record.name or record.text).strip() for record in known.records]
    else:
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as failure:
            raise UserError(f"--prompts: {file} cannot be read as text ({failure}); give a prompt a line") from None
    lines = [line for line in dict.fromkeys(lines) if line]
    if not lines:
        raise UserError(f"--prompts: no prompt in {file or model.folder}; give a text file with a prompt a line")
    order = rng.permutation(len(lines))
    return [(lines[order[i % len(order)]], styles[int(rng.integers(len(styles)))]) for i in range(count)]


def _problems(model: Model, asked: Asked, first_seed: int, scale: float, fine: Plan) -> list[Problem]:
    """Starting noise and where the fine trajectory ends, in chunks."""
    found = []
    uncond = model.condition([""], [None])
    interval = model.defaults.get("interval")
    for first in range(0, len(asked), CHUNK):
        part = asked[first : first + CHUNK]
        cond = model.condition([p for p, _ in part], [s for _, s in part])
        guided = ClassifierFree(model.denoiser, scale, uncond, tuple(interval) if interval else None)
        seeds = range(first_seed + first, first_seed + first + len(part))
        noise = Noise(list(seeds)).normal((4, model.size, model.size), 0)
        x = model.denoiser.process.prior(noise, fine.start).to(model.device)

        def denoise(x_t: Tensor, t: float, guided: ClassifierFree = guided, cond: dict[str, Tensor] = cond) -> Tensor:
            return guided(x_t, t, cond)

        found.append(Problem(denoise, x, sample(fine, denoise, x)))
    return found


def learn_plan(request: FitRequest, each: Callable[[int, float], None] | None = None) -> dict[str, Any]:
    """Learn, test on other seeds and prompts, store; returns the report that goes beside the plan.

    Raises UserError where the model, its data or the folder to write to is missing.
    """
    model = load(request.model)
    shipped = Path(__file__).parent.parent in model.folder.parents
    out = request.out or model.folder
    if request.out is None and shipped:
        raise UserError(f"--out: {model.name} is shipped with unfog; give a folder for a copy of it that has the plan")
    if request.out is not None and request.out.exists() and request.out.resolve() != model.folder.resolve():
        if not (request.out / CARD).is_file():
            raise UserError(f"--out: {request.out} exists and is no model folder; choose another place")
        if load(request.out).hash != model.hash:
            raise UserError(f"--out: {request.out} holds another model; choose another place")
    schedule, scale = model.denoiser.process.schedule, float(model.defaults["scale"])
    name = request.name or f"fit-{request.nfe}"
    asked = _prompts(model, request.prompts, 2 * request.seeds)
    begin = model.plan("auto", request.nfe).start  # one start for all that are compared
    fine = model.plan("auto", FINE_STEPS)  # order 3; it starts there, too, and brings the mean that a draw of the prior lacks
    with torch.inference_mode():
        learn = _problems(model, asked[: request.seeds], 10_000, scale, fine)
        test = _problems(model, asked[request.seeds :], 20_000, scale, fine)
        grids = {grid: make_grid(grid, schedule, request.nfe, start=begin) for _, grid in STARTS}
        starts = {(s, g): make_plan(s, schedule, grids[g]) for s, g in STARTS}
        grids["auto"] = np.array([*model.plan("auto", request.nfe).t, 0.0])
        starts["auto", "auto"] = model.plan("auto", request.nfe)
        sampler, grid = min(starts, key=lambda start: error(starts[start], learn))
        learned = fit(
            learn, schedule, grids[grid], sampler="exp_adams" if sampler == "auto" else sampler,
            start=starts[sampler, grid] if sampler == "auto" else None, minutes=request.minutes, each=each,
        )  # fmt: skip
        usual = model.defaults["sampler"] if model.defaults["sampler"] not in model.plans else "auto"
        default = model.plan(usual, request.nfe)
        report = {
            "name": name, "nfe": request.nfe, "start": f"{sampler} on {grid}", "rounds": learned.rounds,
            "seconds": round(learned.seconds, 1), "seeds": request.seeds, "error_learnt_on": round(learned.error, 5),
            "error_held_out": round(error(learned.plan, test), 5), "start_held_out": round(error(starts[sampler, grid], test), 5),
            "default": usual, "default_held_out": round(error(default, test), 5),
        }  # fmt: skip
    add_plan(model.folder, out, name, {"plan": learned.plan.to_dict(), "scale": scale, "report": report})
    return {**report, "model": str(out)}


def show(report: dict[str, Any]) -> str:
    """The report in a few lines."""
    return "\n".join([
        f"{report['name']}: {report['nfe']} evaluations, stored in {report['model']}",
        f"distance to {FINE_STEPS} steps, on {report['seeds']} seeds and prompts not learnt from (data's std = 1):",
        f"  learned  {report['error_held_out']:.5f}   (on the {report['seeds']} learnt from: {report['error_learnt_on']:.5f})",
        f"  start    {report['start_held_out']:.5f}   ({report['start']})",
        f"  default  {report['default_held_out']:.5f}   ({report['default']})",
        f"use it: unfog generate \"...\" --model {report['model']} --sampler {report['name']}",
    ])  # fmt: skip


def watch(round_: int, found: float) -> None:
    """One line of progress on stderr."""
    if sys.stderr.isatty():
        print(f"round {round_}: {found:.5f}", file=sys.stderr)
    else:
        print(json.dumps({"event": "round", "round": round_, "error": round(found, 6)}), file=sys.stderr)
