"""What a model is made of, wherever it was read: our own folder, or another program's (`unfog.interop`); learned plans."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from unfog.files import MANIFEST, read_checked, sha256, write_atomic, write_folder
from unfog.modalities.contract import Cond, Modality

if TYPE_CHECKING:
    import numpy as np
    import torch

    from unfog.diffusion.denoisers import Preconditioned
    from unfog.requests import GenerateRequest

PLANS = "plans.json"


@dataclass(frozen=True)
class Parts:
    """The attributes of a `Model`.

    defaults: sampler, steps, scale. grids: the grid of steps + 1 times for a named sampler and the shape of
    x0, instead of "logsnr".
    """

    name: str
    hash: str
    kind: Modality
    space: Any
    denoiser: Preconditioned
    defaults: dict[str, Any]
    device: str
    dtype: torch.dtype
    folder: Path
    card: dict[str, Any] = field(default_factory=dict)
    styles: list[str] = field(default_factory=list)
    plans: dict[str, dict[str, Any]] = field(default_factory=dict)
    adapters: list[Any] = field(default_factory=list)
    grids: Callable[[str, int, Sequence[int]], np.ndarray] | None = None


@runtime_checkable
class Asking(Protocol):
    """A space that reads more of a request than prompts, such as the size of a picture."""

    def settled(self, request: GenerateRequest) -> dict[str, Any]:
        """The request's settings that only this model knows, as its recipe carries them. Raises UserError for what it lacks."""
        ...

    def shaped(self, settings: Mapping[str, Any]) -> tuple[int, ...]:
        """Of one x0 with these settings."""
        ...

    def both(self, prompts: Sequence[Any], negative: Any, settings: Mapping[str, Any]) -> tuple[Cond, Cond]:
        """What the prompts say (text as it stands, or fragments with weights), and guidance's other branch."""
        ...

    def frame(self, aspect: str | None, settings: Mapping[str, Any]) -> tuple[int, int]:
        """Width and height of a picture."""
        ...

    def hint(self, kind: str, picture: Any, frame: tuple[int, int]) -> torch.Tensor:
        """What a control is of a picture, (c, height, width) in [0, 1]. Raises UserError for one that is not known."""
        ...

    def around(self, raw: np.ndarray, kept: np.ndarray | None) -> Cond:
        """What the network is told of an item to be edited, of which `kept` stays."""
        ...

    def hints(self, request: GenerateRequest) -> Any:
        """The `steer.Hints` of the pictures that a request brings along, or None. Raises UserError where nothing follows them."""
        ...


def folder_hash(folder: Path) -> str:
    """The manifest's sha256, as it is without learned plans: adding one changes nothing about the pictures made before."""
    entries = json.loads((folder / MANIFEST).read_bytes())
    entries.pop(PLANS, None)
    return sha256((json.dumps(entries, indent=1) + "\n").encode())[:16]


def add_plan(folder: Path, out: Path, name: str, entry: dict[str, Any]) -> None:
    """Write the model of `folder` with one more learned plan to `out` (the same folder, to add it), whole or not at all.

    entry: plan (Plan.to_dict), scale, and what its report says.
    """
    plans = json.loads(read_checked(folder, PLANS)) if (folder / PLANS).is_file() else {}
    kept = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name not in (PLANS, MANIFEST)}

    def write(temporary: Path) -> None:
        for file, data in kept.items():
            write_atomic(temporary / file, data)
        write_atomic(temporary / PLANS, (json.dumps({**plans, name: entry}, indent=1) + "\n").encode())

    write_folder(out, write)
