"""What prompts say at each row of a plan: a prompt is read once, and each text that comes up is encoded once.

    one text each         D = guided by cond against the negative (guidance/cfg.py)
    parts with shares v   D = D_u + s·Σ_k v_k·(D_k − D_u): guidance/composed.py, with Σ_k v_k = 1

An item's words depend on its own prompt and the row alone, so an item is the same in any batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from unfog.diffusion.denoisers import Cond, Denoiser
from unfog.diffusion.guidance.cfg import ClassifierFree
from unfog.diffusion.guidance.composed import Composed
from unfog.diffusion.processes import Process
from unfog.prompts import Prompt, parse

Item = tuple[Any, str | None, int]  # what is asked for (text as it stands, a Prompt, or fragments), style, seed
Asked = Callable[[Sequence[Item], Any], tuple[Cond, Cond]]  # of items and a negative: the condition, and guidance's other branch


def read(space: Any, text: str | None, literal: bool = False) -> str | Prompt | None:
    """The prompt, where the space reads the prompt language; else the text itself. Raises UserError where it cannot be read."""
    return text if text is None or literal or not getattr(space, "reads", False) else parse(text)


def beyond(space: Any, texts: Sequence[str | Prompt | None]) -> bool:
    """Whether any text says more than it would without a language: signs that mean something, or too long for the encoder."""
    return any(isinstance(text, Prompt) and not (text.plain and space.fits(text.source)) for text in texts)


class Script:
    """A denoiser that says at each row what holds there. `row`: set it to how many rows are done.

    asked: see Asked. rows, steps: of the plan. scale, interval: of guidance.
    """

    def __init__(self, denoiser: Denoiser, asked: Asked, items: Sequence[Item], negative: str | Prompt | None, rows: int,
                 steps: int, scale: float, interval: Sequence[float] | None = None) -> None:  # fmt: skip
        self.denoiser, self.asked, self.items, self.negative = denoiser, asked, list(items), negative
        self.rows, self.steps, self.scale = rows, steps, float(scale)
        self.interval = (float(interval[0]), float(interval[1])) if interval else None
        self.row = 0
        self._said: dict[Any, tuple[Cond, Cond]] = {}

    @property
    def process(self) -> Process:
        return self.denoiser.process

    @property
    def cond(self) -> Cond:
        """What the items are told at this row (of several parts, the first)."""
        return self._pair([self._at(item[0])[0] for item in self.items], self._at(self.negative)[0])[0]

    def _at(self, prompt: Any) -> tuple[Any, ...]:
        """A text for each part of a prompt."""
        return prompt.at(self.row / self.rows, self.steps) if isinstance(prompt, Prompt) else (prompt,)

    def _pair(self, texts: Sequence[Any], negative: Any) -> tuple[Cond, Cond]:
        key = (tuple(texts), negative)
        if key not in self._said:
            items = [(text, style, seed) for text, (_, style, seed) in zip(texts, self.items, strict=True)]
            self._said[key] = self.asked(items, negative)
        return self._said[key]

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Tensor:
        """Guided x0 (B, *D); B: the items, or several views of each, item by item. cond is not used."""
        views = len(x_t) // len(self.items)
        texts, against = [self._at(item[0]) for item in self.items], self._at(self.negative)
        if all(len(said) == 1 for said in texts) and len(against) == 1:
            told, other = self._pair([said[0] for said in texts], against[0])
            guided = ClassifierFree(self.denoiser, self.scale, self._rows(other, views), self.interval)
            return guided(x_t, t, self._rows(told, views))
        return self._composed(x_t, t, texts, against, views)

    def _composed(self, x_t: Tensor, t: float | Tensor, texts: Sequence[tuple[Any, ...]], against: tuple[Any, ...],
                  views: int) -> Tensor:  # fmt: skip
        """Items of equal shares together."""
        scale = float(ClassifierFree(self.denoiser, self.scale, {}, self.interval).scales(t, 1)[0])
        others = [self._pair([said[0] for said in texts], said)[1] for said in against]
        groups: dict[tuple[float, ...], list[int]] = {}
        for i, item in enumerate(self.items):
            groups.setdefault(_shares(item[0]), []).append(i)
        out = torch.empty_like(x_t)
        for shares, members in groups.items():
            rows = [views * i + k for i in members for k in range(views)]
            conds = [self._rows(self._pair([said[min(k, len(said) - 1)] for said in texts], against[0])[0], views, rows)
                     for k in range(len(shares))]  # fmt: skip
            conds += [self._rows(other, views, rows) for other in others]
            scales = [scale * v for v in shares] + [(1.0 - scale) * v for v in _shares(self.negative)]
            out[rows] = Composed(self.denoiser, conds, scales, conds[-1])(x_t[rows], t)
        return out

    def _rows(self, cond: Cond, views: int, rows: Sequence[int] | None = None) -> Cond:
        """cond of each view, or of some; one that holds for all items alike is left as it is."""
        if len(self.items) == 1:  # one row serves as many views as there are
            count = views if rows is None else len(rows)
            return cond if count == 1 else {key: v.expand(count, *v.shape[1:]) for key, v in cond.items()}
        wide = {key: v.repeat_interleave(views, 0) if len(v) > 1 and views > 1 else v for key, v in cond.items()}
        return wide if rows is None else {key: v[rows] if len(v) > 1 else v for key, v in wide.items()}


def _shares(prompt: Any) -> tuple[float, ...]:
    return prompt.shares if isinstance(prompt, Prompt) else (1.0,)
