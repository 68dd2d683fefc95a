"""How near a sampler ends to the exact end of the trajectory, at equal network evaluations; ours beside the peers' best.

    pip install -e '.[bench]' && python benchmarks/samplers.py [--model emoji-64] [--plot]
    writes benchmarks/results/samplers.json (and samplers.png)

Targets (sampler_targets.py): Gaussian mixtures whose denoiser is exact. "ring" (d 2) and "power" (d 64) are those that the
peers' errors were first measured on; "curve" (d 16, narrow), "points" (d 3, twelve points) and "field" (d 256, picture-like
spectrum) were fixed before any sampler of ours was tried on them. "points" then showed that the population of
tools/tune_auto.py lacked narrow modes; with them added, "moons" (d 2), "sparse" (d 32) and "onehot" (d 10, ten near-points)
were fixed before the next look. Two paths: the DDPM table (linear betas) and rectified flow. Error: mean over noises of
|x − x_fine|/(data's standard deviation·√d); x_fine is a solution with 300 third-order evaluations (a model: 120) from the same
noise. Peers run their own code in their own coordinates with several grids each, of which the best counts, target by target
and budget by budget: a choice that their users cannot make. Ours is one rule for all ("auto": grid and weights by budget only).
`fit` learns from noises that it is not tested on. k-diffusion is optional: used if `import k_diffusion` works.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from sampler_targets import DOUBLE, TARGETS, Case, case
from torch import Tensor

from unfog.diffusion import Plan, Problem, fit, make_grid, make_plan, sample, tuned
from unfog.diffusion.fit import error
from unfog.diffusion.schedules import Table

BUDGETS = (5, 8, 10, 15, 20)
FITTED = (5, 8)
# Left out on a trained model beyond 5 evaluations: first order or two evaluations a step (1.26 to 6.7 times the best at 5 there),
# and k-diffusion's equals of diffusers' 2M and 3M.
COSTLY = {"DDIM", "Euler", "Heun", "FlowMatchEuler", "FlowMatchHeun", "euler", "heun", "dpm_2", "dpmpp_2m", "dpmpp_3m_sde"}
BETAS: dict[str, Any] = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 1000}


def peers_ddpm() -> dict[str, tuple[str, int, dict[str, Any]]]:
    """name: (diffusers class, evaluations a step, options)."""
    grids = {"linspace": {}, "karras": {"use_karras_sigmas": True}, "exponential": {"use_exponential_sigmas": True}}
    rows: dict[str, tuple[str, int, dict[str, Any]]] = {"DDIM": ("DDIMScheduler", 1, {"clip_sample": False}),
        "PNDM": ("PNDMScheduler", 1, {"skip_prk_steps": True})}  # fmt: skip
    for name, options in grids.items():
        for title, cls, evaluations, more in (
            ("Euler", "EulerDiscreteScheduler", 1, {}), ("Heun", "HeunDiscreteScheduler", 2, {}),
            ("LMS", "LMSDiscreteScheduler", 1, {}), ("2M", "DPMSolverMultistepScheduler", 1, {}),
            ("3M", "DPMSolverMultistepScheduler", 1, {"solver_order": 3}),
            ("UniPC-2", "UniPCMultistepScheduler", 1, {}), ("UniPC-3", "UniPCMultistepScheduler", 1, {"solver_order": 3}),
            ("DEIS-2", "DEISMultistepScheduler", 1, {}), ("DEIS-3", "DEISMultistepScheduler", 1, {"solver_order": 3}),
        ):  # fmt: skip
            rows[f"{title} {name}"] = (cls, evaluations, {**more, **options})
    return {f"diffusers {name}": (cls, evaluations, {**BETAS, **options}) for name, (cls, evaluations, options) in rows.items()}


def peers_flow() -> dict[str, tuple[str, int, dict[str, Any]]]:
    rows: dict[str, tuple[str, int, dict[str, Any]]] = {}
    for shift in (1.0, 2.0, 3.0):
        rows[f"FlowMatchEuler shift {shift:g}"] = ("FlowMatchEulerDiscreteScheduler", 1, {"shift": shift})
        rows[f"FlowMatchHeun shift {shift:g}"] = ("FlowMatchHeunDiscreteScheduler", 2, {"shift": shift})
        flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}
        third = {"solver_order": 3}
        for title, cls, more in (
            ("2M", "DPMSolverMultistepScheduler", {}), ("3M", "DPMSolverMultistepScheduler", third),
            ("UniPC-2", "UniPCMultistepScheduler", {}), ("UniPC-3", "UniPCMultistepScheduler", third),
            ("DEIS-3", "DEISMultistepScheduler", third),
        ):  # fmt: skip
            rows[f"{title} flow shift {shift:g}"] = (cls, 1, {**flow, **more})
    return {f"diffusers {name}": row for name, row in rows.items()}


def with_diffusers(found: Case, row: tuple[str, int, dict[str, Any]], budget: int) -> Tensor:
    """The final samples of a diffusers sampler that may ask `budget` times."""
    import diffusers

    cls, evaluations, options = row
    stepper = getattr(diffusers, cls)(**options)
    stepper.set_timesteps(budget if evaluations == 1 else (budget + 1) // 2)
    flow = found.path == "flow"
    wide = not flow and float(stepper.init_noise_sigma) > 1.5  # its x is y = x/α
    table = Table.linear()
    x = found.x.float()
    if wide:
        x = x / float(table.alpha(1.0))
    flat_data = x.ndim == 2
    if flat_data:
        x = x[..., None, None]
    for t in stepper.timesteps:
        given = stepper.scale_model_input(x, t) if hasattr(stepper, "scale_model_input") else x
        flat = given.to(DOUBLE)[..., 0, 0] if flat_data else given.to(DOUBLE)
        if flow:
            sigma = float(stepper.sigmas[stepper.step_index or 0])
            clean = found.at(flat / (1.0 - sigma), sigma / (1.0 - sigma)) if sigma < 1.0 else found.at(flat, math.inf)
            out = (flat - clean) / sigma
        else:
            if getattr(stepper, "sigmas", None) is not None:
                place = stepper.step_index if stepper.step_index is not None else stepper.index_for_timestep(t)
                level = float(stepper.sigmas[place])
            else:
                level = math.exp(-0.5 * float(table.logsnr((float(t) + 1.0) / 1000)))
            y = flat * math.sqrt(1.0 + level * level)
            out = (y - found.at(y, level)) / level
        out = out.float()[..., None, None] if flat_data else out.float()
        x = stepper.step(out, t, x, return_dict=False)[0]
    return x[..., 0, 0] if flat_data else x


def k_diffusion_peers() -> dict[str, Callable[[Case, int], Tensor]]:
    try:
        from k_diffusion import sampling as k  # type: ignore[import-not-found]
    except ImportError:
        return {}
    low, high = (math.exp(-0.5 * float(Table.linear().logsnr(t))) for t in (1 / 1000, 1.0))

    def run(name: str, grid: str, evaluations: int, options: dict[str, Any]) -> Callable[[Case, int], Tensor]:
        def go(found: Case, budget: int) -> Tensor:
            steps = budget if evaluations == 1 else (budget + 1) // 2
            sigmas = getattr(k, f"get_sigmas_{grid}")(steps, low, high).to(DOUBLE)
            start = found.x / float(Table.linear().alpha(1.0))
            result: Tensor = getattr(k, f"sample_{name}")(
                lambda x, s, **_: found.at(x, float(s[0] if s.ndim else s)), start, sigmas, disable=True, **options
            )
            return result

        return go

    rows = {}
    for grid in ("karras", "exponential"):
        for name, evaluations in (("euler", 1), ("heun", 2), ("dpm_2", 2), ("lms", 1), ("dpmpp_2m", 1), ("dpmpp_3m_sde", 1)):
            options = {"eta": 0.0, "noise_sampler": lambda *_: torch.zeros(())} if name.endswith("sde") else {}
            rows[f"k-diffusion {name} {grid}"] = run(name, grid, evaluations, options)
    return rows


def peer_errors(found: Case, budget: int, few: bool = False) -> dict[str, float]:
    """The error of each peer setting; few: without those of COSTLY."""
    errors = {}
    for name, row in (peers_ddpm() if found.path == "ddpm" else peers_flow()).items():
        if few and name.split()[1] in COSTLY:
            continue
        try:
            errors[name] = found.error(with_diffusers(found, row, budget))
        except ImportError:  # diffusers' LMS wants scipy; k-diffusion's does too
            continue
    if found.path == "ddpm":
        for name, go in k_diffusion_peers().items():
            if few and name.split()[1] in COSTLY:
                continue
            errors[name] = found.error(go(found, budget))
    return errors


def default(found: Case, budget: int) -> tuple[Plan, Tensor]:
    """Our rule for a number of evaluations, and the start: as wide as the process where the plan starts."""
    grid = make_grid("auto", found.schedule, budget, dimension=found.x[0].numel())
    plan = make_plan("auto", found.schedule, grid)
    assert plan.nfe == budget
    at, whole = (math.hypot(found.schedule.alpha(t), found.schedule.sigma(t)) for t in (plan.start, 1.0))
    return plan, found.x * (at / whole)


def ours(found: Case, budget: int) -> float:
    plan, x = default(found, budget)
    return found.error(sample(plan, found.denoiser, x))


def fitted(name: str, path: str, found: Case, budget: int, minutes: float) -> float:
    """The error on `found`'s noises of a plan learned from others."""
    other = case(name, path, first_seed=1)
    count = max(8, min(1024, 4096 // other.x[0].numel()))
    start, x = default(other, budget)
    problem = Problem(other.denoiser, x[:count], other.fine[:count])
    grid = [*start.t, 0.0]
    learned = fit([problem], found.schedule, grid, sampler="exp_adams", start=start, minutes=minutes)
    return error(learned.plan, [Problem(found.denoiser, default(found, budget)[1], found.fine)])


def measure(name: str, budgets: tuple[int, ...], minutes: float) -> list[dict[str, Any]]:
    rows = []
    for path in ("ddpm", "flow"):
        found = case(name, path)
        for budget in budgets:
            peers = peer_errors(found, budget, few=name not in TARGETS and budget > 5)
            best = min((value, key) for key, value in peers.items() if not math.isnan(value))
            row = {"target": name, "path": path, "nfe": budget, "auto": ours(found, budget), "best_peer": best[0],
                   "which": best[1], "numbers": found.x[0].numel(), "peers": peers}  # fmt: skip
            row["table"] = table(row)
            if budget in FITTED and minutes:
                row["fit"] = fitted(name, path, found, budget, minutes)
            rows.append(row)
            print(line(row), flush=True)
    return rows


def table(row: dict[str, Any]) -> str:
    """Which learned numbers a row used; older rows that used others are not kept."""
    return sha256(repr(tuned.table(row.get("numbers", 0)).get(row["nfe"])).encode()).hexdigest()[:8]


def line(row: dict[str, Any]) -> str:
    learned = f"  fit {row['fit']:.4f} ({row['fit'] / row['best_peer']:.2f})" if "fit" in row else ""
    return (f"{row['target']:>8} {row['path']:>5} {row['nfe']:>3}  auto {row['auto']:.4f} ({row['auto'] / row['best_peer']:.2f})"
            f"{learned}  best peer {row['best_peer']:.4f} {row['which']}")  # fmt: skip


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    ratios = {f"auto/best peer at {n}": statistics.geometric_mean([r["auto"] / r["best_peer"] for r in rows if r["nfe"] == n])
              for n in sorted({r["nfe"] for r in rows})}  # fmt: skip
    single: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row["peers"].items():
            single.setdefault(f"{row['path']}: {name}", []).append(row["auto"] / value if value == value else 0.0)
    learned = [row["fit"] / row["best_peer"] for row in rows if "fit" in row]
    return {
        "geometric mean": ratios,
        "auto at least as good": f"{sum(r['auto'] <= r['best_peer'] for r in rows)} of {len(rows)}",
        "a single peer setting better on average (geometric)": sorted(
            name for name, values in single.items() if min(values) > 0.0 and statistics.geometric_mean(values) > 1.0
        ),
        "fit at most half": f"{sum(ratio <= 0.5 for ratio in learned)} of {len(learned)}",
    }


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(row["target"] for row in rows))
    figure, axes = pyplot.subplots(2, len(names), figsize=(3.2 * len(names), 6), squeeze=False, sharex=True)
    for column, name in enumerate(names):
        for axis, path in zip(axes[:, column], ("ddpm", "flow"), strict=True):
            own = [row for row in rows if (row["target"], row["path"]) == (name, path)]
            budgets = [row["nfe"] for row in own]
            for peer in own[0]["peers"]:
                axis.loglog(budgets, [row["peers"].get(peer, math.nan) for row in own], color="0.8", linewidth=0.8)
            axis.loglog(budgets, [row["best_peer"] for row in own], "k--", label="best peer of each budget")
            axis.loglog(budgets, [row["auto"] for row in own], "C0o-", label="unfog auto")
            learned = [row for row in own if "fit" in row]
            axis.loglog([row["nfe"] for row in learned], [row["fit"] for row in learned], "C3^", label="unfog fit")
            axis.set_title(f"{name}, {path}")
            axis.set_xticks(budgets, [str(budget) for budget in budgets], minor=False)
            axis.minorticks_off()
    axes[0, 0].legend(fontsize=7, loc="upper right")
    axes[1, 0].set_xlabel("network evaluations")
    axes[0, 0].set_ylabel("error")
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="*", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--model", help="also (or with an empty --targets only) on a model folder, or a shipped model by name")
    parser.add_argument("--budgets", nargs="*", type=int, default=list(BUDGETS))
    parser.add_argument("--fit-minutes", type=float, default=3.0, help="for each fitted plan; 0 leaves fit out")
    parser.add_argument("--plot", action="store_true", help="also write samplers.png")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "samplers.json")
    asked = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    began, rows = time.time(), json.loads(asked.out.read_text())["rows"] if asked.out.exists() else []
    place = {(row["target"], row["path"], row["nfe"]): row for row in rows if row.get("table") == table(row)}
    for target in [*asked.targets, *([asked.model] if asked.model else [])]:  # written after each: nothing measured is lost
        for row in measure(target, tuple(asked.budgets), asked.fit_minutes):  # what was not measured now stays
            key = row["target"], row["path"], row["nfe"]
            place[key] = {name: value for name, value in place.get(key, {}).items() if name == "fit"} | row
        names = [*TARGETS, *sorted({row["target"] for row in place.values()} - set(TARGETS))]
        rows = [place[key] for key in sorted(place, key=lambda key: (names.index(key[0]), key[1:]))]
        result = {"machine": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__, "peers": versions(),
                  "seconds": round(time.time() - began), "summary": summary(rows), "rows": rows}  # fmt: skip
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(summary(rows), indent=1))
    if asked.plot:
        plot(rows, asked.out.with_suffix(".png"))


def versions() -> dict[str, str]:
    import diffusers

    return {"diffusers": diffusers.__version__, "k-diffusion": "sampling.py" if k_diffusion_peers() else "absent"}


if __name__ == "__main__":
    main()
