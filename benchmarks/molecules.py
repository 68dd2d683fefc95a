"""What decided how molecules are modelled: three ways, each given the same processor time on one thread.

    python benchmarks/molecules.py [--minutes 10] [--only counted-equivariant ...]

    counted-equivariant   hydrogens counted on their atoms, places move along the lines between atoms (the recipe)
    counted-plain         the same network with places as plain numbers, turns learned from random ones
    atoms-equivariant     hydrogens as atoms of their own

Minutes are of processor time, so that other work on the machine does not enter; the learning rate falls to 0 by the end of each.
Writes benchmarks/results/molecules.json: steps done, and the kind's own measures of 300 samples for held-out prompts.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import unfog.data
from unfog.diffusion import Gaussian, Noise, Preconditioned, make_grid, make_plan, sample, schedule_from_config
from unfog.files import write_atomic
from unfog.modalities import build_network, modality
from unfog.training.denoising import Denoising
from unfog.training.ema import PowerEMA
from unfog.training.item_corpus import item_corpora
from unfog.training.loop import train_step
from unfog.training.optimisers import optimiser_of
from unfog.training.recipe import read_recipe

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "molecules.json"
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # options, settings
    "counted-equivariant": ({"hydrogens": "counted"}, {"equivariant": True}),
    "counted-plain": ({"hydrogens": "counted"}, {"equivariant": False}),
    "atoms-equivariant": ({"hydrogens": "atoms"}, {"equivariant": True}),
}
SAMPLES, BATCH, FALL = 300, 50, 0.3


def train(way: str, minutes: float) -> tuple[Any, Any, dict[str, Any]]:
    """The averaged denoiser, the held-out corpus, and what there is to say."""
    options, settings = WAYS[way]
    recipe = read_recipe(ROOT / "recipes" / "molecules_s.py")
    recipe = recipe.model_copy(update={"options": options, "settings": {**recipe.settings, **settings}})
    kind = modality(recipe.kind)
    asked = kind.options.model_validate(recipe.options)
    items = kind.open(unfog.data.path(recipe.data), asked)
    corpus, held = item_corpora(kind, items, kind.fit(items, asked))
    torch.manual_seed(recipe.seed)
    network = build_network(recipe.kind, recipe.network, {**corpus.network_settings(recipe), "dropout": 0.0})
    process = Gaussian(schedule_from_config(recipe.schedule))
    task = Denoising(recipe, corpus, Preconditioned(network, process, recipe.prediction, project=kind.project), network)
    optimiser, average = optimiser_of(recipe, network), PowerEMA(network, recipe.ema, 4)
    step, began = 0, time.process_time()
    while (share := (time.process_time() - began) / (60 * minutes)) < 1:
        lr = recipe.lr * min(1.0, (step + 1) / recipe.warm_up, (1 - share) / FALL)
        train_step(network, task.loss, optimiser, [average], task.batch(step), lr=lr, clip=recipe.clip, step=step,
                   dtype=torch.float32)  # fmt: skip
        step += 1
    denoiser = Preconditioned(average.network.eval(), process, recipe.prediction, sigma_min=recipe.sigma_min,
                              project=kind.project)  # fmt: skip
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    return denoiser, (kind, items, held), {"steps": step, "molecules": step * recipe.batch, "parameters_m": round(millions, 2)}


def measured(denoiser: Any, kind: Any, items: Any, held: Any) -> list[dict[str, Any]]:
    """The kind's rows of SAMPLES samples."""
    prompts = [held.prompts[i] for i in np.random.default_rng(0).permutation(held.plain)[:SAMPLES]]
    schedule = denoiser.process.schedule
    plan = make_plan("dpmpp_2m", schedule, make_grid("logsnr", schedule, 50))
    made = []
    for first in range(0, len(prompts), BATCH):
        seeds = list(range(first, min(first + BATCH, len(prompts))))
        cond, noise = held.space.ask(prompts[first : first + BATCH], seeds), Noise(seeds)
        x = denoiser.process.prior(noise.normal(tuple(held.space.shape), 0), plan.start)
        made += held.space.decode(sample(plan, lambda x_t, t, c=cond: denoiser(x_t, t, c), x, noise), cond)
    rows = []
    for row in kind.measure(made, prompts, items, 0):
        real = None if row.real is None else round(float(np.mean(row.real)), 4)
        rows.append({"name": row.name, "made": round(float(np.mean(row.made)), 4), "real": real, "unit": row.unit})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--only", nargs="*", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(given.out.read_text()) if given.out.exists() else {}
    for way in given.only:
        denoiser, (kind, items, held), told = train(way, given.minutes)
        rows = measured(denoiser, kind, items, held)
        found[way] = {"minutes": given.minutes, **told, "measures": rows}
        write_atomic(given.out, (json.dumps(found, indent=1) + "\n").encode())
        print(way, told, *(f"{r['name']}: {r['made']} ({r['real']}) {r['unit']}" for r in rows), sep="\n  ", flush=True)


if __name__ == "__main__":
    main()
