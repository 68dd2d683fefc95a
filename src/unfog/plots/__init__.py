"""The plots that people want, one call each; `unfog plot` draws them from the command line.

    from unfog import plots
    plots.draw("grid", "emoji-64", prompt="a red apple", x="steps=5,10,20", y="scale=1,3,7").save("grid.png")

Pictures in rows need Pillow alone; curves are .svg by ourselves, and .png or .pdf by matplotlib (the extra `plot`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from unfog.checks import lookup
from unfog.errors import UserError
from unfog.plots.drawn import Curve, Drawn, Sheet
from unfog.plots.requests import CopiesRequest, FilmRequest, ForwardRequest, GridRequest, LossRequest
from unfog.requests import Progress, check
from unfog.schema import Request

if TYPE_CHECKING:
    from unfog.model import Model

# what each is asked by, and what it becomes; grid, film, forward, loss, copies are files beside this one, loaded where used
PLOTS: dict[str, tuple[type[Request], type[Sheet] | type[Curve]]] = {
    "grid": (GridRequest, Sheet),
    "film": (FilmRequest, Sheet),
    "forward": (ForwardRequest, Sheet),
    "loss": (LossRequest, Curve),
    "copies": (CopiesRequest, Curve),
}
# shared by them: data (pictures of a model's data), strip (pictures in rows), curves (matplotlib), drawn, requests


def stream(kind: str, request: Request, given: Mapping[str, Model] | None = None) -> Iterator[Progress | Drawn]:
    """Progress, then the plot. given: models at hand, by the names that the request has for them; others are loaded.

    Raises: UserError where there is no such plot, or the request asks for what its models do not know.
    """
    lookup(PLOTS, kind, "plot")
    from unfog.model import load

    def opened(name: str) -> Model:
        return given[name] if given and name in given else load(name)

    draws: Callable[..., Iterator[Progress | Drawn]] = import_module(f"unfog.plots.{kind}").stream
    if hasattr(request, "models"):
        yield from draws(request, opened)
    else:
        name = getattr(request, "model", None)
        yield from draws(request, None if name is None else opened(name))


def draw(kind: str, model: str | os.PathLike[str] | Model | Sequence[Any] | None = None, **fields: Any) -> Drawn:
    """A plot (a key of PLOTS) of a model: its name, folder, or the model itself; of several for loss; of none for forward.

    Fields are those of its request (`unfog.plots.requests`). -> Sheet or Curve, each with save(path), data() and facts.
    Raises: UserError, one line, where a field is wrong.
    """
    asks, _ = lookup(PLOTS, kind, "plot")
    several: list[Any] = list(model) if isinstance(model, list | tuple) else [] if model is None else [model]
    given = {one.name: one for one in several if hasattr(one, "stream")}
    names = [one.name if hasattr(one, "stream") else os.fspath(one) if isinstance(one, os.PathLike) else one for one in several]
    if "models" in asks.model_fields:
        fields["models"] = names
    elif len(names) > 1:
        raise UserError(f"model: {kind} is of one model, not of {len(names)}; give one")
    elif names:
        fields["model"] = names[0]
    drawn: Drawn | None = None
    for event in stream(kind, check(asks, fields), given):
        if not isinstance(event, Progress):
            drawn = event
    assert drawn is not None
    return drawn


__all__ = ["PLOTS", "Curve", "Drawn", "Sheet", "draw", "stream"]
