"""Our samplers beside the peers' (diffusers, k-diffusion): same network, same noise, same noise levels; how far apart they end.

    pip install -e '.[bench]' && python benchmarks/parity.py [--quick]        writes benchmarks/results/parity.json

Ours gets the very levels σ/α that the peer visits (grid "custom") and the noise that the peer draws. The figure is
max|ours − peer| / max|peer| of the final samples, in float32 (the verdict: at most 1e-5, or listed in DIFFERENCES with the
reason and a demonstration) and in float64 with the peer's tables widened (peers that round x to float32 stay near 1e-7).
k-diffusion is optional: it is used if `import k_diffusion` works. Exit status 1 if a pair differs without being listed.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import platform
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from parity_differences import CHANGED, CHANGES, DIFFERENCES, NAN, NEARER, NOT_COMPARED, ROUNDING, third_order_weight, wrong_sign
from parity_pairs import PAIRS, Pair
from parity_peers import Network, ours, reference, start
from torch import Tensor

TOLERANCE = 1e-5
TOLERANCE = 1e-5


@dataclass
class Outcome:
    """One pair: float32 and float64 differences by schedule and number of steps, and what shows a listed difference."""

    pair: Pair
    cases: list[dict[str, Any]] = field(default_factory=list)

    def worst(self, key: str, listed: bool | None = None) -> float:
        values = [case[key] for case in self.cases if listed is None or bool(case["difference"]) == listed]
        return max((math.inf if value is None else value for value in values), default=0.0)


def relative(a: Tensor, b: Tensor) -> float | None:
    """max|a − b|/max|b|; None if that is not a number."""
    value = float((a.double() - b.double()).abs().max() / b.double().abs().max())
    return float(f"{value:.2e}") if math.isfinite(value) else None


def compare(pair: Pair, steps: Sequence[int]) -> Outcome:
    outcome = Outcome(pair)
    for schedule in pair.schedules:
        for count in steps:
            keys = (f"{pair.peer} @ {schedule} @ {count}", f"{pair.peer} @ {schedule}", pair.peer)
            listed = next((DIFFERENCES[key] for key in keys if key in DIFFERENCES), None)
            case: dict[str, Any] = {"schedule": schedule, "steps": count, "difference": listed and listed[0]}
            mine, theirs = {}, {}
            for dtype in (torch.float32, torch.float64):
                peer, network = pair.make(schedule, count, dtype), Network(dtype)
                options, x = pair.options(count, peer), start(peer, dtype)
                theirs[dtype] = peer.sample(x, network)
                mine[dtype] = ours(pair.ours, options, peer, x, network)
                case[str(dtype)[6:]] = relative(mine[dtype], theirs[dtype])
            single, double = torch.float32, torch.float64
            case["options"] = options
            if case["difference"] == ROUNDING:
                case["ours_moved"], case["peer_moved"] = (relative(side[single], side[double]) for side in (mine, theirs))
                if case["float32"] is not None and case["float32"] <= TOLERANCE:
                    case["difference"] = None  # the reason holds for other cases of this pair
            if case["difference"] == CHANGED:
                changed = ours(pair.ours, options, peer, x, network, CHANGES[pair.peer])
                case["changed"] = relative(changed, theirs[double])
            if case["difference"] in (NEARER, CHANGED) and not ("sde" in pair.ours or options.get("churn") or options.get("tau")):
                exact = reference(peer)
                case["ours_to_exact"], case["peer_to_exact"] = (relative(side[double], exact) for side in (mine, theirs))
            outcome.cases.append(case)
    return outcome


def shown(case: dict[str, Any]) -> bool:
    """Whether a case that lists a difference bears it out; what lists none must agree."""
    single, double, kind = case["float32"], case["float64"], case["difference"]
    if kind == NAN:
        return single is None
    if kind == ROUNDING:
        return double is not None and double <= 1e-6
    if kind == CHANGED:
        return case["changed"] is not None and case["changed"] <= 1e-6
    return kind == NEARER or (single is not None and single <= TOLERANCE)


def figure(value: float | None) -> str:
    return "nan" if value is None or not math.isfinite(value) else f"{value:.1e}"


def demonstrations(outcome: Outcome) -> list[str]:
    """One line for each figure that bears a difference out, by schedule and steps, worst or all."""
    lines = []
    texts = {
        ("ours_to_exact", "peer_to_exact"): "error against the exact ODE, ours | peer",
        ("ours_moved", "peer_moved"): "what float32 moves, ours | peer",
        ("changed",): "left with the peer's rule in ours",
    }
    for keys, text in texts.items():
        cases = [case for case in outcome.cases if keys[0] in case]
        for schedule in dict.fromkeys(case["schedule"] for case in cases):
            here = [case for case in cases if case["schedule"] == schedule]
            figures = (f"{case['steps']}: {' | '.join(figure(case[key]) for key in keys)}" for case in here)
            lines.append(f"{text}, {schedule}, by steps  " + "  ".join(figures))
    if CHANGES.get(outcome.pair.peer) is wrong_sign:
        weights = (f"{exact:.4f} | {theirs:.4f}" for theirs, exact in map(third_order_weight, (1.0, 0.1, 0.01)))
        lines.append("weight of D2 for h = 1, 0.1, 0.01, the integral | peer  " + "  ".join(weights))
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="5 and 10 steps only")
    parser.add_argument("--only", default="", help="pairs whose name contains this; nothing is written")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "parity.json")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    versions: dict[str, Any] = {"torch": torch.__version__, "python": platform.python_version()}
    for name in ("diffusers", "k_diffusion"):
        try:
            module = __import__(name)
            if name == "k_diffusion":
                __import__("k_diffusion.sampling")
            else:
                module.utils.logging.set_verbosity_error()
            versions[name] = getattr(module, "__version__", "source")
        except ImportError as error:
            print(f"{name} is left out: {error}")
    logging.disable(logging.WARNING)
    began, outcomes = time.perf_counter(), []
    print(f"{'peer':44} {'ours':14} {'float32':>8} {'float64':>8}  cases, verdict")
    for pair in PAIRS:
        if pair.peer.split()[0].replace("-", "_") not in versions or arguments.only not in pair.peer:
            continue
        outcome = compare(pair, pair.steps[:2] if arguments.quick else pair.steps)
        outcomes.append(outcome)
        differing = [case for case in outcome.cases if not shown(case)]
        listed = sorted({case["difference"] for case in outcome.cases if case["difference"]})
        verdict = f"{len(differing)} UNEXPLAINED" if differing else "differs: " + ", ".join(listed) if listed else "equal"
        print(f"{pair.peer:44} {pair.ours:14} {figure(outcome.worst('float32')):>8} {figure(outcome.worst('float64')):>8}"
              f"  {len(outcome.cases)}, {verdict}", flush=True)  # fmt: skip
        for case in differing:
            print(f"    {case['schedule']}, {case['steps']} steps: {figure(case['float32'])}, {figure(case['float64'])}")
        for line in demonstrations(outcome):
            print(f"    {line}")
    cases = [case for outcome in outcomes for case in outcome.cases]
    failures = sum(not shown(case) for case in cases)
    equal = [case["float32"] for case in cases if not case["difference"] and shown(case)]
    print(f"{len(outcomes)} pairs, {len(cases)} cases: {len(equal)} equal (at most {figure(max(equal, default=0.0))}), "
          f"{len(cases) - len(equal) - failures} with a stated difference, {failures} unexplained; "
          f"{time.perf_counter() - began:.0f} s")  # fmt: skip
    if not arguments.only:
        report = {
            "versions": versions, "tolerance": TOLERANCE, "quick": arguments.quick,
            "pairs": [{"peer": o.pair.peer, "ours": o.pair.ours, "float32": o.worst("float32"), "float64": o.worst("float64"),
                       "equal_float32": o.worst("float32", False), "cases": o.cases} for o in outcomes],
            "differences": {key: {"shown_by": how, "reason": why} for key, (how, why) in DIFFERENCES.items()},
            "not_compared": NOT_COMPARED,
        }  # fmt: skip
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(report, indent=1, ensure_ascii=False, default=str).replace("Infinity", "null")
        arguments.out.write_text(text + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
