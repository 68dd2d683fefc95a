"""An item changed: what is kept stays to the bit, whatever becomes of the rest.

    again       x_t = α(t)·x0 + σ(t)·ε at the t that leaves a share `strength` of the grid, then sample from there; around what is
                kept (D ← x0 there), on a canvas (D is the mean over windows), as a tile (windows on a torus)
    reworded    down the flow to noise under the old prompt, back under the new one, with what the old one lacked of the item
    varied      down to noise, along the sphere towards fresh noise, back
    led         the same between two items, prompts or seeds, frame by frame

`edit` is the way in; a request (`unfog.edits`) says which. docs/editing.md is the page.
Sources: Meng et al. 2022 (SDEdit), arXiv:2108.01073; Song et al. 2021, arXiv:2011.13456, §I.2; Song et al. 2021 (inversion),
arXiv:2010.02502, §4.3; Bar-Tal et al. 2023, arXiv:2302.08113 (windows).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import Any

import torch

from unfog.editing.again import Again
from unfog.editing.inverted import Led, Reworded, Varied
from unfog.editing.work import Way, Work, open_item
from unfog.edits import USUAL, EditRequest
from unfog.model import Model
from unfog.requests import Progress, Result
from unfog.steer import told_of

WAYS: dict[str, Callable[[Work], Way]] = {"again": Again, "original": Reworded, "variations": Varied, "towards": Led}
TOLD = ("mask", "canvas", "tile", "original", "variations", "towards", "towards_prompt", "towards_seed", "frames", "literal")


def edit(model: Model, raw: Any, request: EditRequest) -> Generator[Progress | Result]:
    """Progress and results: `raw`, an item of the model's kind, changed as asked, with the seeds seed, seed + 1, ...

    Raises UserError for what the model, its kind or the item cannot do; before anything is made.
    """
    from unfog import __version__

    request = request.settled(
        getattr(model.space, "anew", USUAL["again"])
    )  # a network that sees the item needs none of it in x_t
    assert request.seed is not None
    work = Work(model, raw, request)
    way = WAYS[request.way](work)
    total, done = way.before + way.count * way.each, 0
    with torch.inference_mode():
        for nfe in way.begin():
            yield Progress(nfe, total)
    done = way.before
    for k in range(way.count):
        began, state = time.perf_counter(), None
        with torch.inference_mode():
            for state in way.make(k):
                yield Progress(min(done + state.nfe, done + way.each), total)
            assert state is not None
            made = work.finish(way.last(state))
        done += way.each
        seed = request.seed + (k if request.n > 1 else 0)
        asked = {name: getattr(request, name) for name in TOLD if getattr(request, name) not in (None, False)}
        recipe = {"edit": True, "prompt": request.prompt, "negative": request.negative, "style": request.style, "seed": seed,
                  "keep": request.keep, "strength": request.strength, "scale": way.scale, "steps": way.each,
                  "sampler": way.sampler, **{key: str(v) if key == "towards" else v for key, v in asked.items()},
                  **({"frame": k} if request.leads else {}), **({"resized": work.note} if work.note else {}),
                  **({"settings": request.settings} if request.settings else {}),
                  **told_of(model.adapters, request.control, request.style_image, work.hints),
                  "model": model.name, "model_hash": model.hash, "version": __version__}  # fmt: skip
        yield Result(made, request.prompt, seed, k, (time.perf_counter() - began) * 1000, recipe)


__all__ = ["EditRequest", "edit", "open_item"]
