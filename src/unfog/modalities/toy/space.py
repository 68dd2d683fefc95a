"""Model space of points: centred and scaled; a prompt is a class's name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unfog.errors import UserError, unknown
from unfog.modalities.contract import ANY, Cond, Items, Options

Point = NDArray[np.float64]


@dataclass(frozen=True)
class PointSpace:
    """x0 = (point − mean)/std, each coordinate by its own; classes in the order of their names."""

    mean: tuple[float, float]
    std: tuple[float, float]
    classes: tuple[str, ...]
    shape: tuple[int, ...] = (2,)

    def card(self) -> dict[str, Any]:
        return {"mean": list(self.mean), "std": list(self.std), "classes": list(self.classes)}

    def network(self) -> dict[str, Any]:
        return {"classes": len(self.classes)}

    def encode(self, raw: Sequence[Point], rngs: Sequence[np.random.Generator] | None = None) -> tuple[Tensor, Cond]:
        return torch.from_numpy((np.stack(list(raw)) - self.mean) / self.std).float(), {}

    def ask(self, prompts: Sequence[str | None], seeds: Sequence[int]) -> Cond:
        for prompt in prompts:
            if prompt not in (None, "", ANY, *self.classes):
                raise unknown("prompt", prompt, [*self.classes, ANY])
        numbers = [self.classes.index(p) if p in self.classes else len(self.classes) for p in prompts]
        return {"class": torch.tensor(numbers)} if self.classes else {}

    def decode(self, x0: Tensor, cond: Cond) -> list[Point]:
        return list(x0.double().cpu().numpy() * self.std + self.mean)


def fit(items: Items, options: Options) -> PointSpace:
    trained = np.stack([items.raw[i] for i in items.split("train")])
    (mx, my), (sx, sy) = trained.mean(0).tolist(), np.maximum(trained.std(0), 1e-9).tolist()
    return PointSpace((mx, my), (sx, sy), tuple(sorted({p for p in items.prompts if p not in ("", ANY)})))


def space(card: dict[str, Any]) -> PointSpace:
    (mx, my), (sx, sy) = (map(float, card[key]) for key in ("mean", "std"))
    return PointSpace((mx, my), (sx, sy), tuple(map(str, card["classes"])))


def keep(own: PointSpace, raw: Point, spec: str) -> NDArray[np.bool_]:
    """spec: x, y or both as x,y: the coordinates that stay."""
    names = spec.replace(" ", "").split(",")
    if not set(names) <= {"x", "y"}:
        raise UserError(f"keep: {spec!r} names more than x and y; give x, y or x,y")
    return np.array(["x" in names, "y" in names])


def paste(own: PointSpace, made: Point, raw: Point, spec: str) -> Point:
    return np.where(keep(own, raw, spec), raw, made)
