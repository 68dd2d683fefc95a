"""An item in model space, ready to be changed, and the way back to its file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from unfog.diffusion import Plan, State
from unfog.diffusion.denoisers import Denoiser
from unfog.diffusion.guidance.infill import Infill
from unfog.diffusion.views import Windows
from unfog.edits import EditRequest
from unfog.errors import UserError
from unfog.modalities.contract import Cond, Placed, without
from unfog.model import Model
from unfog.parts import Asking
from unfog.prompts import Prompt, plain
from unfog.requests import GenerateRequest
from unfog.script import Item, Script, read
from unfog.steer import Hints, Timed


class Way(Protocol):
    """How an item is changed. count: results; each: evaluations of one; before: evaluations that all share."""

    count: int
    each: int
    before: int
    scale: float
    sampler: str

    def begin(self) -> Iterator[int]:
        """What all results share; yields evaluations done."""
        ...

    def make(self, k: int) -> Iterator[State]:
        """The making of result k."""
        ...

    def last(self, state: State) -> Tensor:
        """x0 (1, *D) of its last state."""
        ...


def open_item(model: Model, path: Path) -> Any:
    """What a file of the model's kind holds. Raises UserError where it cannot be read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path}: cannot be read ({reason}); give a file of the kind {model.kind.name}") from None
    return model.kind.from_bytes(data, str(path))[0]


class Work:
    """x0 (1, *D) of an item; mask (1, *D), True where it stays, or None; note: what a person should know of it. whole: the
    network reads what is told of each place, so it is asked for all of x0 at once."""

    whole = False

    def __init__(self, model: Model, raw: Any, request: EditRequest) -> None:
        self.model, self.request, self.raw = model, request, raw
        kind, space, spec = model.kind, model.space, request.kept
        if kind.place is None:
            for name in ("mask", "canvas", "tile"):
                if getattr(request, name):
                    raise UserError(f"{name}: is for pictures; of the kind {kind.name} say what stays with keep, or leave it out")
            if spec is not None and (kind.keep is None or kind.paste is None):
                raise UserError(f"keep: the kind {kind.name} has no parts to keep; give strength instead")
        self.placed: Placed | None = None
        if kind.place is not None:
            left, top, right, bottom = map(int, request.canvas.split(",")) if request.canvas else (0, 0, 0, 0)
            self.placed = kind.place(space, raw, spec, (left, top, right, bottom) if request.canvas else None)
        self.note = self.placed.note if self.placed else ""
        x0, own = space.encode([raw if self.placed is None else self.placed.raw])
        self.x0 = x0.to(model.device)
        self.own = {key: value.to(model.device) for key, value in own.items()}
        self.shape = tuple(x0.shape[1:])
        self.frame = tuple(space.shape[1:]) if self.placed is None else self._frame(x0, self.placed)
        if self.placed is None and self.shape != tuple(space.shape):
            raise UserError(f"item: is of shape {self.shape}, {model.name} makes {tuple(space.shape)}; give one of that size")
        if request.tile and self.placed is not None and self.placed.padded:
            raise UserError("tile: the picture's shape is none that the model makes; crop it to the model's own")
        self.mask = self._mask(spec)
        self.settings: dict[str, Any] = {}
        if isinstance(space, Asking):
            self._tell(space, raw if self.placed is None else self.placed.raw)
        self.hints = self._hints()

    def _tell(self, space: Asking, raw: Any) -> None:
        """Sizes, and what a network for inpainting reads beside the noisy item: what stays of it, and where."""
        told = space.around(raw, None if self.placed is None else self.placed.kept)
        if told and self.request.tile:
            raise UserError(
                f"tile: {self.model.name} is for inpainting or sees a whole picture, with its own edges; give another model"
            )
        self.own |= {key: value.to(self.model.device) for key, value in told.items()}
        self.whole = bool(told)
        high, wide = raw.shape[:2] if self.whole or self.placed is None else self.placed.frame
        self.settings = {"settings": {**self.request.settings, "size": f"{wide}x{high}"}}

    def _hints(self) -> Hints | None:
        """What steers, fitted into what the model makes at once. Raises UserError where it makes the item in windows."""
        request, more, space = self.request, dict(self.settings), self.model.space
        if "size" in request.settings:
            raise UserError("settings: the size is the item's own; leave size out")
        if request.settings and not more:
            raise UserError(f"settings: {self.model.name} has none of its own; leave out {', '.join(request.settings)}")
        if self.placed is not None and not more:
            more["aspect"] = f"{self.placed.frame[1]}:{self.placed.frame[0]}"
        asked = GenerateRequest(prompts=["any"], style=request.style, control=request.control, style_image=request.style_image,
                                **more)  # fmt: skip
        if isinstance(space, Asking):
            space.settled(asked)  # refuses settings that it does not know
        hints: Hints | None = self.model.hints(asked)
        if self.windowed and hints is not None and not hints.cond.keys().isdisjoint(("control", "beside")):
            larger = "tile" if request.tile else "canvas"
            raise UserError(f"control: is of one frame of {self.model.name}, beyond which this {larger} goes; leave one out")
        if hints is not None and "beside" in hints.cond:  # what the network reads, whatever it follows
            self.own["beside"] = hints.cond["beside"].to(self.model.device)
        return hints

    @property
    def windowed(self) -> bool:
        """Whether the network is asked for windows of the item instead of all of it."""
        return self.request.tile or (self.placed is not None and self.shape[1:] != self.frame and not self.whole)

    @staticmethod
    def _frame(x0: Tensor, placed: Placed) -> tuple[int, ...]:
        """What the model makes at once, in model space, which may be coarser than pixels."""
        shrunk = placed.raw.shape[0] // x0.shape[-2]
        return placed.frame[0] // shrunk, placed.frame[1] // shrunk

    def _mask(self, spec: str | None) -> Tensor | None:
        if self.placed is None:
            kept = (
                None if spec is None or self.model.kind.keep is None else self.model.kind.keep(self.model.space, self.raw, spec)
            )
            return None if kept is None else torch.from_numpy(kept)[None].to(self.model.device)
        kept = self.placed.kept
        if kept is None:
            return None
        free = 1.0 - torch.from_numpy(kept).float()[None, None]
        if free.shape[-2:] != self.x0.shape[-2:]:  # a part of model space stays where all its pixels do
            free = torch.nn.functional.adaptive_max_pool2d(free, self.x0.shape[-2:])
        return (free == 0.0).expand_as(self.x0).to(self.model.device)

    def read(self, text: str) -> Prompt:
        found = read(self.model.space, text, self.request.literal)
        return found if isinstance(found, Prompt) else plain(text)

    def around(self, denoiser: Denoiser) -> Denoiser:
        """The denoiser over all of x0, with what is kept in place."""
        if self.windowed:
            denoiser = Windows(denoiser, self.frame, wrap=self.request.tile)
        return denoiser if self.mask is None else Infill(denoiser, self.x0, self.mask, self.model.kind.align)

    def script(self, prompt: Prompt, negative: str | Prompt | None, seed: int, plan: Plan, steps: int, scale: float,
               steered: bool = True) -> Script:  # fmt: skip
        """What is said while the item is changed. plan: of the way to the result, by which rows and shares of it are meant, also
        on a way into noise. steered: whether what steers is told."""
        items = [(prompt, self.request.style, seed)]
        denoiser: Denoiser = self.model.denoiser
        asked: Any = self._asked
        if steered and self.hints is not None:
            denoiser, asked = Timed(denoiser, self.hints, plan.t), partial(self.hints.beside, asked, self.model._told, scale)
        return Script(denoiser, asked, items, negative, plan.nfe, steps, scale, self.model.defaults.get("interval"))

    def _asked(self, items: Sequence[Item], negative: Any) -> tuple[Cond, Cond]:
        reads = getattr(self.model.space, "reads", False)

        def text(said: Any) -> Any:
            if isinstance(said, tuple) and (self.request.literal or not reads):
                return "".join(fragment.text for fragment in said)
            return said

        wanted = [(text(said), style, seed) for said, style, seed in items]
        told, other = self.model.asked(wanted, text(negative), self.settings)
        cond = {**told, **self.own}
        if self.mask is not None and self.model.kind.grows:
            cond["mask"] = cond["mask"] | told["mask"]
        self.cond = cond
        return cond, ({**other, **self.own} if self.model.kind.name == "image" else without(cond, other))

    def finish(self, x0: Tensor) -> Any:
        """The changed item as files hold it; what stays is the file's own."""
        made = self.model.space.decode(x0, self.cond)[0]
        if self.placed is not None:
            return self.placed.back(made)
        spec, paste = self.request.kept, self.model.kind.paste
        return made if spec is None or paste is None else paste(self.model.space, made, self.raw, spec)


def followed(states: Iterator[State], script: Script) -> Iterator[State]:
    """The states of a run, with the script's row kept in step."""
    for state in states:
        script.row = state.nfe
        yield state
