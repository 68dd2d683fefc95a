"""Other people's dashboards, given the same numbers and pictures as RUN/events.jsonl: `unfog train --track tensorboard`.

Each is one function that opens it and returns three calls. They work without a network: TensorBoard writes RUN/tensorboard,
wandb keeps its runs in RUN/wandb (WANDB_MODE=online uploads), trackio in its own local folder.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unfog.errors import UserError, unknown

if TYPE_CHECKING:
    from PIL.Image import Image

SAMPLES = "samples"


@dataclass(frozen=True)
class Tracker:
    """values(step, numbers by name), picture(step, RGB picture), close()."""

    values: Callable[[int, Mapping[str, float]], object]
    picture: Callable[[int, Image], object]
    close: Callable[[], object]


def tensorboard(out: Path, name: str, config: Mapping[str, Any], step: int) -> Tracker:
    """Event files in OUT/tensorboard; what a lost part of the run wrote is hidden."""
    import numpy as np
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)

    def values(at: int, numbers: Mapping[str, float]) -> None:
        for key, value in numbers.items():
            writer.add_scalar(key, value, at)

    def picture(at: int, image: Image) -> None:
        writer.add_image(SAMPLES, np.asarray(image), at, dataformats="HWC")
        writer.flush()

    writer.add_text("settings", "\n".join(f"    {key}: {value}" for key, value in config.items()), step + 1)
    return Tracker(values, picture, writer.close)


def trackio(out: Path, name: str, config: Mapping[str, Any], step: int) -> Tracker:
    """A run of the local project "unfog"; `trackio show` displays it."""
    import trackio

    trackio.init(project="unfog", name=f"{name}-{out.resolve().name}", config=dict(config), resume="allow")
    return Tracker(
        lambda at, numbers: trackio.log(dict(numbers), step=at),
        lambda at, image: trackio.log({SAMPLES: trackio.Image(image)}, step=at),
        trackio.finish,
    )


def wandb(out: Path, name: str, config: Mapping[str, Any], step: int) -> Tracker:
    """A run in OUT/wandb, offline unless WANDB_MODE says otherwise."""
    import wandb

    mode = os.environ.get("WANDB_MODE", "offline")
    run = wandb.init(project="unfog", name=name, dir=str(out), config=dict(config), mode=mode)
    return Tracker(
        lambda at, numbers: run.log(dict(numbers), step=at),
        lambda at, image: run.log({SAMPLES: wandb.Image(image)}, step=at),
        run.finish,
    )


TRACKERS: dict[str, Callable[[Path, str, Mapping[str, Any], int], Tracker]] = {
    "tensorboard": tensorboard,
    "trackio": trackio,
    "wandb": wandb,
}


def check_trackers(names: Sequence[str]) -> None:
    """Raises UserError where a name is unknown or its package is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise unknown("track", name, TRACKERS)
        if name in sys.modules:
            continue
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # the latter: a mere folder of that name, such as wandb leaves behind
            raise UserError(f"--track {name}: {name} is not installed; run pip install 'unfog[{name}]', or leave it out")


class Trackers:
    """Those that a run reports to. One that fails is let go with a line on stderr; the run goes on."""

    def __init__(self, names: Sequence[str], out: Path, name: str, config: Mapping[str, Any]) -> None:
        self.names, self.about = list(dict.fromkeys(names)), (out, name, config)
        self.open: dict[str, Tracker] = {}

    def begin(self, step: int) -> None:
        """Open them for a run that goes on after `step`."""
        for name in self.names:
            self._try(name, lambda name=name: self.open.update({name: TRACKERS[name](*self.about, step)}))  # type: ignore[misc]

    def values(self, step: int, numbers: Mapping[str, float]) -> None:
        """Numbers by name."""
        for name, tracker in list(self.open.items()):
            self._try(name, lambda tracker=tracker: tracker.values(step, numbers))  # type: ignore[misc]

    def picture(self, step: int, image: Image) -> None:
        """A sheet of samples."""
        for name, tracker in list(self.open.items()):
            self._try(name, lambda tracker=tracker: tracker.picture(step, image))  # type: ignore[misc]

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, *_: object) -> None:
        for name, tracker in list(self.open.items()):
            self._try(name, tracker.close)
        self.open = {}

    def _try(self, name: str, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:  # somebody else's program, which may raise anything
            self.open.pop(name, None)
            told = " ".join(str(error).split())[:200] or type(error).__name__
            print(f"unfog: --track {name} failed ({told}); the run goes on without it", file=sys.stderr)
