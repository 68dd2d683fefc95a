"""Pictures over two or three settings: each cell's pictures are those of `unfog generate` with these settings, byte for byte.

A cell's cost: milliseconds a picture, and evaluations of the network a picture, guidance included (counted at the network).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

from unfog.errors import UserError
from unfog.model import Model
from unfog.plots.drawn import Sheet
from unfog.plots.requests import MOST_CELLS, GridRequest
from unfog.plots.strip import SMALLEST, Panel, draw, tiled
from unfog.requests import GenerateRequest, Progress, Result, check

EACH = 96  # pixels that each of several pictures of a cell is drawn with, at least


@contextmanager
def counted(model: Model) -> Iterator[list[int]]:
    """[items that the network has been asked about] since the beginning."""
    asked = [0]

    def count(_: Any, given: tuple[Any, ...]) -> None:
        asked[0] += len(given[0])

    hook = model.denoiser.network.register_forward_pre_hook(count)  # type: ignore[attr-defined]
    try:
        yield asked
    finally:
        hook.remove()


def cells(request: GridRequest) -> list[dict[str, Any]]:
    """The settings of each cell that differ, x fastest, then y, then z."""
    axes = [axis for axis in (request.z, request.y, request.x) if axis is not None]
    return [dict(zip([name for name, _ in axes], values, strict=True)) for values in product(*(values for _, values in axes))]


def asked(request: GridRequest, cell: dict[str, Any]) -> GenerateRequest:
    """What a cell asks of `generate`. Raises UserError naming the field that is wrong."""
    own = {key: getattr(request, key) for key in ("style", "steps", "scale", "sampler", "seed", "n", "negative")}
    own |= {"prompts": [request.prompt], **cell}
    if "prompt" in own:
        own["prompts"] = [own.pop("prompt")]
    if own["prompts"] == [None]:
        raise UserError("prompt: is missing; give one in quotes, or an axis over prompts, as in --y 'prompt=a cat,a dog'")
    return check(GenerateRequest, own)


def stream(request: GridRequest, model: Model) -> Iterator[Progress | Sheet]:
    """Progress, then the sheet. Raises UserError, before anything is made, where any cell cannot be."""
    settings = cells(request)
    if len(settings) > MOST_CELLS:
        raise UserError(f"x, y, z: {len(settings):,} cells are more than {MOST_CELLS}; give fewer values")
    requests = [asked(request, cell) for cell in settings]
    plans = [model.planned(one) for one in requests]
    total, done = sum(plan.nfe * request.n for plan in plans), 0
    made: list[list[Result]] = []
    costs: list[dict[str, float]] = []
    if request.timed:  # the first use of all loads the text encoder and readies the network
        model.generate(requests[0].model_copy(update={"steps": 2, "sampler": "ddim", "n": 1}))
    for one, plan in zip(requests, plans, strict=True):
        made.append([])
        with counted(model) as items:
            for event in model.stream(one):
                if isinstance(event, Result):
                    made[-1].append(event)
                else:
                    yield Progress(done + event.done, total)
        done += plan.nfe * request.n
        costs.append({"milliseconds": sum(r.milliseconds for r in made[-1]) / request.n, "nfe": items[0] / request.n})
    yield _sheet(request, model, settings, made, costs)


def _sheet(request: GridRequest, model: Model, settings: list[dict[str, Any]], made: list[list[Result]],
           costs: list[dict[str, float]]) -> Sheet:  # fmt: skip
    z_name, z_values = request.z or ("", (None,))
    y_name, y_values = request.y or ("", (None,))
    x_name, x_values = request.x
    wide, high = len(x_values), len(y_values)
    panels = []
    for k, z in enumerate(z_values):
        rows = [range((k * high + r) * wide, (k * high + r + 1) * wide) for r in range(high)]
        panels.append(Panel(
            [[tiled([result.image for result in made[i]]) for i in row] for row in rows],
            [[_said(x_name, x)] for x in x_values],
            [[_said(y_name, y)] if y is not None else [] for y in y_values],
            [[_cost(costs[i], request.timed) for i in row] for row in rows],
            title=_said(z_name, z) if z is not None else "",
        ))  # fmt: skip
    recipe = made[0][0].recipe
    varied = {name for name, _ in (request.x, request.y or ("", ()), request.z or ("", ()))}
    fixed = {key: recipe[key] for key in ("prompt", "style", "negative", "sampler", "steps", "scale", "seed")
             if key not in varied and recipe[key] is not None}  # fmt: skip
    title = fixed.pop("prompt", "") or model.name
    said = [model.name, *(_said(key, value) for key, value in fixed.items())]
    if request.n > 1 and "seed" in fixed:
        said[-1] = f"seeds {request.seed} to {request.seed + request.n - 1}"
    facts: dict[str, Any] = {"plot": "grid", "model": model.name, "model_hash": model.hash, "cells": []}
    for cell, results, cost in zip(settings, made, costs, strict=True):
        spent = {"nfe": cost["nfe"]} | ({"milliseconds": round(cost["milliseconds"], 1)} if request.timed else {})
        facts["cells"].append({**cell, "recipe": results[0].recipe, "n": request.n, **spent})
    across = math.ceil(math.sqrt(request.n))
    image = draw(panels, title, ", ".join(said), smallest=SMALLEST if across == 1 else EACH * across)
    return Sheet(image, facts, [r.image for results in made for r in results])


def _said(name: str, value: object) -> str:
    return str(value) if name in ("prompt", "sampler", "style") else f"{name} {value:g}" if name == "scale" else f"{name} {value}"


def _cost(cost: dict[str, float], timed: bool) -> list[str]:
    nfe = f"{cost['nfe']:g} NFE"
    return [f"{cost['milliseconds']:,.0f} ms · {nfe}" if timed else nfe]
