"""What one sampling step costs beyond the network: ours beside diffusers, in one process, in interleaved rounds.

    pip install -e '.[bench]' && python benchmarks/step_overhead.py [--rounds 9]    writes benchmarks/results/step_overhead.json

x is (1, 4, 8, 8) float32 and the network's answer is a tensor made beforehand, on one thread. Ours: one `advance` of a plan
of 20 intervals (`run` adds the generator and no_grad), a row being one evaluation. Theirs: one call of `step`. A round times
several blocks of whole plans for each contender in turn; its figure is the median block, and the figure reported is the
lowest over the rounds, as a shared machine only ever adds. The bare multiply-and-add of two such tensors, timed in the
same way, tells how fast the machine is. Targets: at most 12 µs on a quiet machine, a tenth of diffusers for 2M and UniPC.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from unfog.diffusion.grids import make_grid
from unfog.diffusion.plan import Plan, advance, begin, run
from unfog.diffusion.samplers import SAMPLERS, make_plan
from unfog.diffusion.schedules import Table

STEPS = 20
SHAPE = (1, 4, 8, 8)
TARGET_US, TARGET_RATIO = 12.0, 0.1
BLOCKS, BLOCK_SECONDS = 7, 0.004
Timed = tuple[Callable[[], None], Callable[[], None], int]  # made ready outside the clock, timed, steps in it


def ours(plan: Plan) -> Timed:
    x, x0 = torch.randn(SHAPE), 0.1 * torch.randn(SHAPE)

    def timed() -> None:
        state = begin(plan, x)
        for _ in range(plan.nfe):
            state = advance(plan, state, x0)

    return (lambda: None), timed, plan.nfe


def ours_run(plan: Plan) -> Timed:
    x, x0 = torch.randn(SHAPE), 0.1 * torch.randn(SHAPE)

    def timed() -> None:
        for _ in run(plan, lambda x, t: x0, x):
            pass

    return (lambda: None), timed, plan.nfe


def bare() -> Timed:
    x, x0 = torch.randn(SHAPE), torch.randn(SHAPE)

    def timed() -> None:
        for _ in range(STEPS):
            torch.add(x * 0.9, x0, alpha=0.1)

    return (lambda: None), timed, STEPS


def theirs(name: str, options: dict[str, Any]) -> Timed:
    import diffusers

    peer = getattr(diffusers, name)(**options)
    x, output = torch.randn(SHAPE), 0.1 * torch.randn(SHAPE)
    times: list[Any] = []

    def ready() -> None:
        peer.set_timesteps(STEPS)
        times[:] = list(peer.timesteps)

    def timed() -> None:
        state = x
        for t in times:
            state = peer.step(output, t, state, return_dict=False)[0]

    return ready, timed, STEPS


def contenders() -> dict[str, Timed]:
    schedule = Table.scaled_linear()
    grid = make_grid("karras", schedule, STEPS, sigma_min=0.03, sigma_max=14.0)
    out: dict[str, Timed] = {"bare multiply and add": bare()}
    for name in SAMPLERS:
        plan = make_plan(name, schedule, grid)
        if not plan.stochastic:
            out[f"unfog {name}"] = ours(plan)
    for name in ("ddim", "dpmpp_2m", "unipc"):
        out[f"unfog {name}, in run()"] = ours_run(make_plan(name, schedule, grid))
    try:
        out["diffusers ddim"] = theirs("DDIMScheduler", {"clip_sample": False})
        out["diffusers dpmpp_2m"] = theirs("DPMSolverMultistepScheduler", {})
        out["diffusers unipc"] = theirs("UniPCMultistepScheduler", {})
    except ImportError as error:
        print(f"diffusers is left out: {error}")
    return out


def block(timed: Timed, repeats: int) -> float:
    """Seconds a step."""
    ready, call, steps = timed
    spent = 0.0
    for _ in range(repeats):
        ready()
        start = time.perf_counter()
        call()
        spent += time.perf_counter() - start
    return spent / (repeats * steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "step_overhead.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sides = contenders()
    medians: dict[str, list[float]] = {name: [] for name in sides}
    with torch.no_grad():
        repeats = {name: max(1, round(BLOCK_SECONDS / (block(timed, 2) * timed[2]))) for name, timed in sides.items()}
        for _ in range(arguments.rounds):
            for name, timed in sides.items():
                medians[name].append(statistics.median(block(timed, repeats[name]) for _ in range(BLOCKS)))
    best = {name: 1e6 * min(values) for name, values in medians.items()}
    print(f"{'one step':32} {'µs':>8} {'median µs':>10} {'× bare':>8}")
    for name, value in best.items():
        middle = 1e6 * statistics.median(medians[name])
        print(f"{name:32} {value:8.1f} {middle:10.1f} {value / best['bare multiply and add']:8.1f}")
    slowest = max((name for name in best if name.startswith("unfog")), key=best.__getitem__)
    ratios = {
        name: best[f"unfog {name}"] / best[f"diffusers {name}"]
        for name in ("ddim", "dpmpp_2m", "unipc")
        if f"diffusers {name}" in best
    }
    print(f"slowest of ours: {slowest}, {best[slowest]:.1f} µs (target {TARGET_US:g} on a quiet machine)")
    for name, ratio in ratios.items():
        print(f"ours / diffusers, {name}: {ratio:.3f} (target {TARGET_RATIO:g})")
    machine = {
        "cores": os.cpu_count(), "load": [round(value, 1) for value in os.getloadavg()], "torch": torch.__version__,
        "python": platform.python_version(), "processor": platform.machine(),
    }  # fmt: skip
    rows = {
        name: {"us_best_round": round(best[name], 2), "us_rounds": [round(1e6 * value, 2) for value in values]}
        for name, values in medians.items()
    }
    report = {
        "machine": machine, "shape": SHAPE, "steps": STEPS, "target_us": TARGET_US, "target_ratio": TARGET_RATIO,
        "ratio_to_diffusers": {name: round(ratio, 4) for name, ratio in ratios.items()}, "rows": rows,
    }  # fmt: skip
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
