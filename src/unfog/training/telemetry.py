"""What a run writes down while it goes: one writer for everything.

RUN/events.jsonl   what does not depend on the clock or on interruptions: losses, gradient norms, what a report measured
RUN/timing.jsonl   what the clock says; appended only, so that it also shows restarts, and steps that were lost and done again
RUN/run.json       what is trained, on what, by which settings

A line of events with "end" stands at a step where a whole run would have none (where the run was stopped, or ended); it goes
when the run is taken up again, so that both runs leave the same bytes.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from unfog.training.recipe import LoopSettings

if TYPE_CHECKING:
    from PIL.Image import Image

    from unfog.training.trackers import Trackers

EVENTS, TIMING, ABOUT = "events.jsonl", "timing.jsonl", "run.json"
EVERY = 10  # steps from line to line
APART = 5.0  # seconds from one line of timing to the next, at least
OUTSIDE = ("report", "checkpoint")  # parts of the time that are no training: left out of items a second


def gathered() -> dict[str, float]:
    """The sums of no step at all."""
    return {"steps": 0, "loss": 0.0, "grad": 0.0, "grad_max": 0.0, "skipped": 0, "broken": 0}


def unmeasured(part: str) -> None:
    """Stands in for `Telemetry.lap` where parts cannot be told apart."""


def peak_memory() -> float | None:
    """The most that this process has held so far, in MiB: on the GPU where one is used, else in all; None where unknown."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


class Telemetry:
    """Writes for the leading process; all others are given one that writes nothing."""

    def __init__(self, out: Path, settings: LoopSettings, leads: bool = True, batches: int = 1,
                 trackers: Trackers | None = None) -> None:  # fmt: skip
        self.out, self.settings, self.leads = out, settings, leads
        self.items = settings.batch * batches
        self.trackers = trackers if leads else None
        self.files: dict[str, IO[str]] = {}
        self.sums = gathered()
        self.reported = -1  # the last step with a report
        self.restart()

    def __enter__(self) -> Telemetry:
        return self

    def __exit__(self, *_: object) -> None:
        """Close the files; one that is written to later is opened again."""
        for file in self.files.values():
            file.close()
        self.files = {}

    def restart(self) -> None:
        """From now on the clock counts."""
        self.parts: dict[str, float] = {}
        self.since, self.steps = time.perf_counter(), 0
        self.last = self.since

    def begin(self, step: int, sums: Mapping[str, float] | None = None) -> None:
        """Drop what a lost part of the run wrote after `step`; go on with the `sums` that were saved there."""
        self.sums = gathered() | dict(sums or {})
        if not self.leads:
            return
        from unfog.training.checkpoint import cut_events  # here, so that reading a run's lines loads no torch

        path = self.out / EVENTS
        cut_events(path, step, step >= self.settings.steps)
        self.reported = max((line["step"] for line in lines(path) if "held_out" in line), default=-1)
        if self.trackers:
            self.trackers.begin(step)
        self.restart()
        self._opened(EVENTS)
        self._append(TIMING, {"step": step, "at": _now(), "start": True})

    def lap(self, part: str) -> float:
        """The time since the last lap went into `part`. -> seconds."""
        now = time.perf_counter()
        took, self.last = now - self.last, now
        self.parts[part] = self.parts.get(part, 0.0) + took
        return took

    def step(self, event: Mapping[str, Any]) -> None:
        """Take up one step: step, loss, grad, lr, and skipped where its gradient was not used."""
        step, loss, grad = event["step"], event["loss"], event["grad"]
        self.steps += 1
        if not (math.isfinite(loss) and math.isfinite(grad)):
            self.sums["broken"] += 1
        else:
            self.sums["grad_max"] = max(self.sums["grad_max"], grad)
            if event.get("skipped"):
                self.sums["skipped"] += 1
            else:
                self.sums["steps"] += 1
                self.sums["loss"] += loss
                self.sums["grad"] += grad
        if step % EVERY == 0 or step == self.settings.steps:
            self._line(step, event["lr"])

    def _line(self, step: int, lr: float) -> None:
        count = self.sums["steps"]
        line: dict[str, Any] = {"step": step}
        line |= {key: self.sums[key] / count if count else None for key in ("loss", "grad")}
        line |= {"grad_max": self.sums["grad_max"] if count or self.sums["skipped"] else None, "lr": lr}
        line |= {key: self.sums[key] for key in ("skipped", "broken") if self.sums[key]}
        if step % EVERY:  # a longer run goes on summing here
            line["end"] = True
        else:
            self.sums = gathered()
        self._append(EVENTS, line)
        self._tell(step, "train", line)
        if time.perf_counter() - self.since >= APART or step == self.settings.steps:
            self.time(step)

    def time(self, step: int) -> None:
        """A line of timing for the steps since the last one."""
        self.lap("rest")
        wall, steps, parts = self.last - self.since, self.steps, self.parts
        self.restart()
        if not steps:
            return
        training = wall - sum(parts.get(part, 0.0) for part in OUTSIDE)
        line: dict[str, Any] = {"step": step, "at": _now(), "steps": steps, "seconds": round(wall, 4)}
        line["items_per_s"] = round(steps * self.items / training, 3) if training > 0 else None
        line["waiting"] = round(parts.get("data", 0.0) / training, 5) if training > 0 else None
        line["parts"] = {part: round(seconds, 4) for part, seconds in parts.items()}
        memory = peak_memory()
        line |= {} if memory is None else {"memory_mib": round(memory, 1)}
        self._append(TIMING, line)
        self._tell(step, "speed", {key: line[key] for key in ("items_per_s", "waiting", "memory_mib") if key in line})

    def report(self, step: int, values: Mapping[str, Any], picture: Image | None = None) -> None:
        """What a report measured after `step`, numbers that the clock has no part in, and its sheet of samples."""
        if step != self.reported:  # else the run had ended there before
            end = {"end": True} if step % self.settings.report_steps else {}
            self._append(EVENTS, {"step": step, **values, **end})
            self._tell(step, "report", values)
            if picture is not None and self.trackers:
                self.trackers.picture(step, picture)
        self.reported = step

    def settle(self) -> None:
        """Until the disk has all of it."""
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())

    def _append(self, name: str, line: Mapping[str, Any]) -> None:
        if not self.leads:
            return
        file = self._opened(name)
        file.write(json.dumps(line) + "\n")
        file.flush()

    def _opened(self, name: str) -> IO[str]:
        if name not in self.files:
            path = self.out / name
            torn = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
            self.files[name] = open(path, "a", encoding="utf-8")  # noqa: SIM115 (__exit__ closes it)
            if torn:  # what a kill left is unreadable, but must not spoil the next line
                self.files[name].write("\n")
        return self.files[name]

    def _tell(self, step: int, group: str, values: Mapping[str, Any]) -> None:
        if self.trackers:
            self.trackers.values(step, dict(flat(group, values)))


def flat(group: str, values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Every number of nested values under a name such as report/held_out/-1."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(f"{group}/{key}", value)
        elif isinstance(value, int | float) and not isinstance(value, bool) and key != "step":
            yield f"{group}/{key}", value


def lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of events or timing that can be read, each with its step; none where there is no file."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    found = []
    for line in data.split(b"\n"):
        try:
            read = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(read, dict) and isinstance(read.get("step"), int):
            found.append(read)
    return found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
