"""Model space of rows: a number is its normal score, a category and what is missing are one-hots; a prompt tells cells."""

import re
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unfog.errors import UserError, unknown
from unfog.modalities.contract import ANY, Cond, Items, Options
from unfog.networks.mlp import MLP

Row = dict[str, str]  # of each column its text, "" where the cell is missing
FEW, MANY = 10, 100  # different texts: a column of numbers has more than FEW, one of categories MANY at most
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d\d?)?", re.IGNORECASE)
SCORES = np.array([-6.0, *np.linspace(-3, 3, 101), 6.0])  # at which a column's `values` are told; the ends lie beyond the data


def is_number(cells: Collection[str]) -> bool:
    return len({*cells} - {""}) > FEW and all(NUMBER.fullmatch(cell) for cell in cells if cell)


def code(c: dict[str, Any], text: str) -> list[float]:
    """[score] of a number, 2·(one-hot − share) of texts; 0 of a missing number. Raises UserError for what cannot stand here."""
    flags, ends = [2 * ((text == own) - share) for own, share in zip(c["texts"], c["shares"], strict=True)], np.array(c["values"])
    if text and not (NUMBER.fullmatch(text) if len(ends) else text in c["texts"]):
        raise unknown(c["name"], text, ["a number"] if len(ends) else c["texts"])
    if not len(ends) or not text:
        return [*[0.0] * bool(len(ends)), *flags]
    low, high = -np.interp(-float(text), -ends[::-1], SCORES), np.interp(float(text), ends, SCORES)
    return [float(low + high) / 2, *flags]  # many equal ones take up a stretch of scores


def cell(c: dict[str, Any], codes: np.ndarray) -> str:
    """The text of a code."""
    likely = codes[bool(c["values"]) :] / 2 + c["shares"]
    if not c["values"]:
        return c["texts"][int(likely.argmax())]
    return "" if (likely > 0.5).any() else f"{np.interp(codes[0], SCORES, c['values']):.{c['digits']}f}"


class TableSpace:
    """x0: the codes of all columns in a row. cond["given"]: those of the cells told (else 0), then which columns are told."""

    def __init__(self, columns: list[dict[str, Any]]) -> None:
        self.columns, self.names = columns, [c["name"] for c in columns]
        self.widths = [len(c["texts"]) + bool(c["values"]) for c in columns]
        self.shape, self.codes = (sum(self.widths),), lru_cache(100_000)(lambda k, text: code(columns[k], text))

    def card(self) -> dict[str, Any]:
        return {"columns": self.columns}

    def network(self) -> dict[str, Any]:
        return {"size": self.shape[0], "given": self.shape[0] + len(self.columns)}

    def encode(self, raw: Sequence[Row], rngs: Sequence[np.random.Generator] | None = None) -> tuple[Tensor, Cond]:
        """In training any cells of an item may be told, 0 to all of them equally often; this overrules its prompt."""
        x0 = torch.tensor([[v for k, name in enumerate(self.names) for v in self.codes(k, row.get(name, ""))] for row in raw])
        return x0, {} if rngs is None else self._given(x0, [rng.random(len(self.names)) < rng.random() for rng in rngs])

    def _given(self, x0: Tensor, told: Any) -> Cond:
        return {"given": torch.cat([x0 * torch.from_numpy(np.repeat(told, self.widths, 1)), torch.from_numpy(np.array(told))], 1)}

    def ask(self, prompts: Sequence[str | None], seeds: Sequence[int]) -> Cond:
        """Of "column=text column=text ..."."""
        names, rows = "|".join(sorted(map(re.escape, self.names), key=len, reverse=True)), []
        for prompt in prompts:
            before, *parts = re.split(rf"(?:^|[\s,]+)({names})=", "" if prompt in (None, ANY) else str(prompt).strip())
            if before:
                raise unknown("prompt", prompt, [ANY, *(f"{name}=..." for name in self.names)])
            rows.append(dict(zip(parts[::2], map(str.strip, parts[1::2]), strict=True)))
        return self._given(self.encode(rows)[0], [[name in row for name in self.names] for row in rows])

    def decode(self, x0: Tensor, cond: Cond) -> list[Row]:
        """Rows; what the network was told is there as told."""
        given = cond["given"].cpu().double().numpy()
        codes, told = given[:, : x0.shape[1]], given[:, x0.shape[1] :] > 0.5
        x = np.where(np.repeat(told, self.widths, 1), codes, x0.cpu().double().numpy())
        parts = np.split(x, np.cumsum(self.widths)[:-1], 1)
        return [{c["name"]: cell(c, part[i]) for c, part in zip(self.columns, parts, strict=True)} for i in range(len(x))]


def fit(items: Items, options: Options) -> TableSpace:
    columns = []
    for name in items.raw[0]:
        cells, train = [row[name] for row in items.raw], [items.raw[i][name] for i in items.split("train")]
        numbers = [float(text) for text in train if text] if is_number(cells) else []
        texts = sorted({*cells} & {""} if numbers else {*cells})
        if len(texts) > MANY:
            raise UserError(f"{items.path}: column {name} has {len(texts)} different texts, not up to {MANY}; take it out")
        values = np.quantile(numbers, torch.special.ndtr(torch.from_numpy(SCORES)).numpy()) if numbers else np.zeros(0)
        if numbers:
            values[[0, -1]] += (values[0] - values[-1], values[-1] - values[0])
        columns.append({"name": name, "texts": texts, "shares": [train.count(text) / len(train) for text in texts],
                        "values": values.tolist(), "digits": max(len(text.partition(".")[2]) for text in cells)})  # fmt: skip
    return TableSpace(columns)


def kept(own: TableSpace, raw: Row, spec: str) -> list[str]:
    """spec: names of columns between commas, or `known`: all that have a text in this row. Raises UserError."""
    names = [n for n in own.names if raw.get(n)] if spec == "known" else [n.strip() for n in spec.split(",")]
    for name in {*names} - {*own.names}:
        raise unknown("keep", name, ["known", *own.names])
    return names


def keep(own: TableSpace, raw: Row, spec: str) -> np.ndarray:
    return np.repeat([name in kept(own, raw, spec) for name in own.names], own.widths)


def paste(own: TableSpace, made: Row, raw: Row, spec: str) -> Row:
    return {**made, **{name: raw.get(name, "") for name in kept(own, raw, spec)}}


class RowNet(MLP):
    """Codes (B, size), log-SNR (B,), cond["given"] (B, given) -> (B, size). width and depth of the layers; dropout: not used."""

    def __init__(self, size: int, given: int, width: int = 256, depth: int = 4, dropout: float = 0.0) -> None:
        super().__init__(size + given, size, [0], width, depth, time=64, smooth=True)
        self.told = given

    def forward(self, x: Tensor, logsnr: Tensor | None = None, cond: Cond | None = None) -> Tensor:
        given = cond["given"].to(x) if cond else x.new_zeros(len(x), self.told)
        return super().forward(torch.cat([x, given], 1), logsnr)
