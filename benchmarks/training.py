"""Training, ours beside diffusers and denoising-diffusion-pytorch: pictures a second at about equal work, in one run.

    pip install -e '.[bench]' accelerate && pip install --no-deps denoising-diffusion-pytorch ema-pytorch einops scipy
    python benchmarks/training.py [--rounds 5] [--batch 16 64]      writes benchmarks/results/training.json

Each side trains its own network of about 4 GFLOP a 64x64 picture, in float32, in a process of its own (training_peers.py);
they take turns, so that a shared machine disturbs all alike. A turn in which other processes used more than a tenth of a core
is taken again, until `--minutes` are over. Where that never ends, `--threads 1 --clock processor` counts what each process used
of a processor instead of the wall clock. Rows of other batch sizes, threads and clocks stay in the file. GFLOP/s counts a
forward pass three times (once forward, twice backward) and the optimiser not at all. Figures are medians; "outside" is the
share of a step outside forward and backward.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from training_peers import CLOCKS, SIDES

from unfog.precision import fastest

QUIET = 0.1  # of a core that other processes may use
TURN_SECONDS = 3.0  # a turn has as many steps as fit
TARGETS = {"diffusers": 1.7, "denoising-diffusion-pytorch": 2.0}  # times its GFLOP/s, with our defaults, on native bfloat16
SETTING = ("batch", "threads", "clock")
SHARES = {"data": 0.02, "telemetry": 0.02}  # of a step, at most


class Side:
    """One process, and what it has measured."""

    def __init__(self, name: str, batch: int, threads: int, size: int, clock: str) -> None:
        self.name, self.batch, self.threads, self.clock = name, batch, threads, clock
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        peers = str(Path(__file__).with_name("training_peers.py"))
        command = [sys.executable, peers, name, str(batch), str(threads), str(size), clock]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment
        )
        self.network = self.read()
        self.steps, self.turns = 1, []  # type: ignore[var-annotated]

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        self.log.seek(0)
        raise SystemExit(f"{self.name}: ended early\n" + "".join(self.log.readlines()[-5:]))

    def turn(self) -> dict[str, Any]:
        """So many steps; seconds and parts a step."""
        assert self.process.stdin is not None
        print(self.steps, file=self.process.stdin, flush=True)
        out = self.read()
        return {"seconds": out["seconds"] / self.steps, "others": out["others"],
                "parts": {part: seconds / self.steps for part, seconds in out["parts"].items()}}  # fmt: skip

    def quiet(self) -> list[dict[str, Any]]:
        if self.clock == "processor":
            return self.turns
        return [turn for turn in self.turns if turn["others"] is None or turn["others"] <= QUIET]

    def close(self) -> float:
        """Peak memory in MB."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        peak = self.read()["peak_mb"]
        self.process.wait()
        return peak


def measure(
    names: list[str], batch: int, threads: int, size: int, clock: str, rounds: int, minutes: float
) -> list[dict[str, Any]]:
    """A row for each side."""
    sides = [Side(name, batch, threads, size, clock) for name in names]
    for side in sides:
        first = side.turn()["seconds"]  # the first step finds memory, the second one is as any
        side.steps = 1 if first > TURN_SECONDS else max(1, round(TURN_SECONDS / side.turn()["seconds"]))
    end = time.monotonic() + 60 * minutes
    for number in range(10 * rounds):
        late = time.monotonic() > end
        wanting = [side for side in sides if len(side.turns) < rounds and (number < 2 or not late) or
                   len(side.quiet()) < rounds and not late]  # fmt: skip
        for side in wanting:
            side.turns.append(side.turn())
        if not wanting:
            break
    return [row(side) for side in sides]


def row(side: Side) -> dict[str, Any]:
    turns = side.quiet() or side.turns
    seconds = statistics.median(turn["seconds"] for turn in turns)
    work = 3 * side.network["gflop"] * side.batch

    def share(part: str) -> float:
        return round(statistics.median(turn["parts"].get(part, 0.0) / turn["seconds"] for turn in turns), 4)

    shares = {part: share(part) for part in ("forward", "backward", "data", "clip", "optimiser", "average")}
    shares["outside"] = round(1 - shares["forward"] - shares["backward"], 4)
    if "step" in turns[0]["parts"]:
        shares["telemetry"] = round(1 - share("step") - shares["data"], 4)
    return {
        "side": side.name, "batch": side.batch, "threads": side.threads, "clock": side.clock,
        "gflop_one_forward": round(side.network["gflop"], 3), "parameters": side.network["parameters"],
        "seconds_a_step": round(seconds, 4),
        "images_a_second": round(side.batch / seconds, 2), "gflops": round(work / seconds, 2), "peak_mb": round(side.close()),
        "shares": shares, "quiet_turns": len(side.quiet()), "steps_a_turn": side.steps,
        "turns": [{"seconds": round(t["seconds"], 4), "others": t["others"] and round(t["others"], 2)} for t in side.turns],
    }  # fmt: skip


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """GFLOP/s of ours over each peer's, in the same setting; the loop alone, around diffusers' network; and over no loop."""
    found = {(r["side"], *(r[key] for key in SETTING)): r["gflops"] for r in rows}
    pairs = [(ours, peer) for ours in ("unfog", "unfog, bf16", "unfog, finer", "unfog, AdamW") for peer in TARGETS]
    pairs += [("unfog around diffusers' network", "diffusers"), ("unfog", "plain torch, unfog's network")]
    return [
        {"ours": ours, "theirs": theirs, **dict(zip(SETTING, at, strict=True)),
         "ratio": round(found[ours, *at] / found[theirs, *at], 3)}
        for at in sorted({tuple(r[key] for key in SETTING) for r in rows})
        for ours, theirs in pairs if (ours, *at) in found and (theirs, *at) in found
    ]  # fmt: skip


def show(rows: list[dict[str, Any]]) -> None:
    """The table, the ratios and what is not in them."""
    heads = f"{'GFLOP':>6} {'s/step':>7} {'img/s':>6} {'GFLOP/s':>8} {'outside':>8} {'MB':>6} {'turns':>5}"
    print(f"{'side':32} {'batch':>5} {heads}")
    for r in rows:
        print(f"{r['side']:32} {r['batch']:5} {r['gflop_one_forward']:6.2f} {r['seconds_a_step']:7.3f} "
              f"{r['images_a_second']:6.2f} {r['gflops']:8.1f} {r['shares']['outside']:8.1%} {r['peak_mb']:6} "
              f"{r['quiet_turns']:2}/{len(r['turns'])}")  # fmt: skip
    for c in ratios(rows):
        wanted = f" (target {TARGETS[c['theirs']]:g} with native bfloat16)" if c["theirs"] in TARGETS else ""
        print(f"{c['ours']} / {c['theirs']}, batch {c['batch']}: {c['ratio']:.2f}{wanted}")
    for r in rows:
        if "telemetry" in r["shares"]:
            told = ", ".join(f"{part} {r['shares'][part]:.2%}" for part in SHARES)
            print(f"{r['side']}, batch {r['batch']}: {told} of a step (target 2 % each)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=5, help="for each batch size")
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), metavar="SIDE", help=", ".join(SIDES))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "training.json")
    arguments = parser.parse_args()
    native = fastest() == torch.bfloat16
    names = [name for name in arguments.sides if native or name != "unfog, bf16"]
    rows: list[dict[str, Any]] = []
    for batch in arguments.batch:
        rows += measure(names, batch, arguments.threads, arguments.size, arguments.clock, arguments.rounds, arguments.minutes)
    print(f"{arguments.threads} thread(s), {arguments.clock} clock")
    show(rows)
    if not native:
        print("unfog, bf16: not run, as this processor has no bfloat16 of its own; unfog trains in float32 here")
    kept = json.loads(arguments.out.read_text())["rows"] if arguments.out.exists() else []
    now = {tuple(r[key] for key in SETTING) for r in rows}
    rows = [r for r in kept if tuple(r[key] for key in SETTING) not in now] + rows
    machine = {
        "cores": os.cpu_count(), "load": [round(value, 1) for value in os.getloadavg()],
        "torch": torch.__version__, "python": platform.python_version(), "processor": platform.machine(),
        "native_bf16": native, "fastest": str(fastest()).removeprefix("torch."),
    }  # fmt: skip
    report = {
        "machine": machine, "size": arguments.size, "bf16": "run" if native else "not native here, not run",
        "targets": TARGETS, "share_targets": SHARES, "ratios": ratios(rows), "rows": rows,
    }  # fmt: skip
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
