"""What a run learns from, whatever its kind: x0 and cond by number, and what a report and a model card need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from unfog.training.recipe import Recipe

if TYPE_CHECKING:
    from PIL.Image import Image

Cond = dict[str, Tensor]
Told = tuple[str, Cond, str]  # what the network is told, cond without it or with another, and the mend where it is not heard


@dataclass(frozen=True)
class Asked:
    """Samples that fit one batch: their places on the sheet, their conditions, guidance's other branch, the shape of an x0."""

    places: NDArray[np.int64]
    cond: Cond
    nothing: Cond
    shape: tuple[int, ...]


class Corpus(Protocol):
    """Items to learn from, at hand."""

    @property
    def plain(self) -> int:
        """Items as found; others may be made of them."""
        ...

    @property
    def names(self) -> list[str]:
        """Of each, in messages."""
        ...

    @property
    def styles(self) -> list[str]:
        """Classes chosen apart from the prompt; [] where the kind has none."""
        ...

    def to(self, device: str) -> Any:
        """Move what steps read to a device."""
        ...

    def chosen(self, recipe: Recipe, index: int) -> NDArray[np.int64]:
        """Which items batch `index` is made of, (B,)."""
        ...

    def batch(self, recipe: Recipe, index: int, rows: slice = slice(None)) -> tuple[Tensor, Cond]:
        """x0 (B, *D) and cond of these rows of batch `index`: a function of the recipe's seed and that only."""
        ...

    def known(self, chosen: NDArray[np.int64]) -> tuple[Tensor, Cond]:
        """x0 and cond of these items as they stand: nothing dropped, turned or cut at random."""
        ...

    def alike(self, chosen: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Places in `chosen` of items that fit one batch."""
        ...

    def asked(self, recipe: Recipe, rows: int) -> tuple[list[Asked], list[str]]:
        """What a sheet of samples shows, and the label of each."""
        ...

    def decode(self, x0: Tensor, cond: Cond) -> Sequence[Any]:
        """Items of x0."""
        ...

    def sheet(self, items: Sequence[Any], labels: list[str]) -> Image:
        """Samples as `asked` wants them, on one picture."""
        ...

    def changed(self, cond: Cond) -> tuple[Cond, list[Told]]:
        """`cond` with something said in each place, and with each of them said otherwise, which must move the output."""
        ...

    def network_settings(self, recipe: Recipe) -> dict[str, Any]:
        """What the network is built with: what the data decide, then the recipe's own."""
        ...

    def card(self, recipe: Recipe) -> dict[str, Any]:
        """What a model's card says of the kind: all that sampling needs."""
        ...
