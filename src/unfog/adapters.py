"""Adapters: what fine-tuning learned, kept apart from the model that it was learned for.

A folder of `adapter.json` (kind, base, provenance), `adapter.safetensors` and `manifest.json`, a few kB to a few MB. Kind
"lora" holds low-rank changes of weights (`networks/lora.py`), "word" a learned word (`networks/words.py`), "control" a branch
that follows pictures (`networks/control.py`). It is asked for as
PATH or PATH:STRENGTH; a change of weights is taken `strength` times, a word is there (1) or not (0).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from unfog.errors import UserError, shown
from unfog.files import MANIFEST, load_weights, read_checked, sha256, write_weights
from unfog.requests import WORD

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
CARD = "adapter.json"
WEIGHTS = "adapter.safetensors"
STRONGEST = 4.0


class Base(BaseModel):
    """The model that an adapter belongs to."""

    name: str
    hash: str


class Card(BaseModel):
    """What adapter.json says."""

    model_config = ConfigDict(allow_inf_nan=False, frozen=True)

    format: int
    kind: Literal["lora", "word", "control", "style"]
    name: str
    base: Base
    rank: int = Field(1, ge=1)
    alpha: float = 1.0
    layers: list[str] = Field(default_factory=list)
    word: str = ""
    controls: dict[str, int] = Field(default_factory=dict)
    licences: list[str] = Field(default_factory=list)
    training: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class Adapter:
    """One adapter as it was read and asked for. tensors: of a lora `<layer>.a` and `<layer>.b`, of a word `vectors` (k, 384),
    of a control its branch's own."""

    folder: Path
    card: Card
    hash: str
    strength: float
    tensors: dict[str, Tensor]


def save_adapter(folder: Path, card: Card, tensors: Mapping[str, Tensor]) -> None:
    """Write an adapter's folder, whole or not at all."""
    write_weights(folder, WEIGHTS, tensors, CARD, card.model_dump())


def asked(wish: str | Path) -> tuple[Path, float | None]:
    """PATH[:STRENGTH] in its two parts. Raises UserError for a strength beyond ±4."""
    path, colon, number = str(wish).rpartition(":")
    if not colon or not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(nan|inf)", number, re.IGNORECASE):
        return Path(wish), None
    strength = float(number)
    if not (math.isfinite(strength) and abs(strength) <= STRONGEST):
        raise UserError(f"adapter: {shown(str(wish))}: strength {number} is no number from -{STRONGEST:g} to {STRONGEST:g}")
    return Path(path), strength


def read_adapter(wish: str | Path) -> Adapter:
    """Read and check an adapter's folder, or that of the run which made it, of PATH[:STRENGTH] (1 where none is given).

    Raises UserError naming the file that is missing, damaged, or not an adapter's.
    """
    path, strength = asked(wish)
    strength = 1.0 if strength is None else strength
    folder = path / "adapter" if (path / "adapter" / CARD).is_file() else path
    if not (folder / CARD).is_file():
        raise UserError(f"adapter: {path}: no {CARD} there; give an adapter's folder, or that of the run which made it")
    try:
        card = Card.model_validate(json.loads(read_checked(folder, CARD)))
    except UserError:
        raise
    except (ValidationError, ValueError, RecursionError):
        raise UserError(f"{folder / CARD}: not an adapter's card; get the adapter again") from None
    if card.format != FORMAT:
        raise UserError(f"{folder / CARD}: format {card.format} is not known to this unfog; update unfog")
    if card.kind != "lora" and strength not in (0.0, 1.0):
        raise UserError(f"adapter: {path}: a {card.kind} is there or not; give it strength 1 or 0, not {strength:g}")
    tensors = load_weights(folder, WEIGHTS)
    if card.kind == "word":
        from unfog.networks.text import WIDTH

        vectors = tensors.get("vectors")
        if vectors is None or vectors.ndim != 2 or vectors.shape[1] != WIDTH or not re.fullmatch(WORD, card.word):
            raise UserError(f"{folder}: not a word of this version of unfog; get the adapter again")
    return Adapter(folder, card, sha256((folder / MANIFEST).read_bytes())[:16], strength, tensors)


def either(wish: str | Path) -> Any:
    """An adapter of ours, or what is added to a folder of Stable Diffusion (`interop/added.py`); both have card and hash."""
    path, _ = asked(wish)
    if path.is_file() or any((path / name).is_file() for name in ("config.json", "vocab.json", "model_index.json")):
        from unfog.interop.added import read

        return read(wish)
    return read_adapter(wish)


def read_adapters(wishes: Sequence[str | Path], name: str, hash: str, any_base: bool = False) -> list[Adapter]:
    """The adapters to use on a model of this name and hash; those of strength 0 are checked and left out.

    Raises UserError where one is another model's (unless any_base: then its shapes must do), comes twice, or two have the
    same word.
    """
    found = [read_adapter(wish) for wish in wishes]
    for place, adapter in enumerate(found):
        base = adapter.card.base
        if base.hash != hash and not any_base:
            raise UserError(
                f"adapter: {adapter.folder} was trained on {base.name} {base.hash}, but {name} here is {hash}; "
                "give its own model, or --any-base to try it here"
            )
        if adapter.hash in [other.hash for other in found[:place]]:
            raise UserError(f"adapter: {adapter.folder} is given twice; give it once, with the strength that you want")
    used = [adapter for adapter in found if adapter.strength]
    words = [adapter.card.word for adapter in used if adapter.card.kind == "word"]
    for word in words:
        if words.count(word) > 1:
            raise UserError(f"adapter: two of them have learned {word}; give one")
    return used


def changed(weights: dict[str, Tensor], adapters: Sequence[Adapter]) -> dict[str, Tensor]:
    """A network's weights with the changes of all adapters added, in their order. Raises UserError where one does not fit."""
    for adapter in adapters:
        if adapter.card.kind == "lora":
            from unfog.networks.lora import merged

            try:
                weights = merged(weights, adapter.tensors, adapter.strength * adapter.card.alpha / adapter.card.rank)
            except UserError as error:
                raise UserError(f"{adapter.folder}: {error}") from None
    return weights


def words(adapters: Sequence[Adapter]) -> dict[str, Tensor]:
    """The learned words: vectors (k, 384) of each."""
    return {adapter.card.word: adapter.tensors["vectors"] for adapter in adapters if adapter.card.kind == "word"}


def recorded(adapters: Sequence[Adapter]) -> list[dict[str, Any]]:
    """What a picture's recipe says of the adapters that made it."""
    return [{"name": a.card.name, "hash": a.hash, "strength": a.strength} for a in adapters]


def with_shipped(recipe: object, wishes: Sequence[str]) -> list[str]:
    """The wishes, and those shipped add-ons that a recipe (what `recorded` wrote) names and nobody gave."""
    told = [entry.get("hash") for entry in recipe if isinstance(entry, dict)] if isinstance(recipe, list) else []
    folders = sorted(path.parent for path in (Path(__file__).parent / "pretrained").glob(f"*/{CARD}"))
    given = {either(wish).hash for wish in wishes}
    own = [folder for folder in folders if (hash := sha256((folder / MANIFEST).read_bytes())[:16]) in told and hash not in given]
    return [*wishes, *map(str, own)]


def like(where: str, recipe: object, wishes: Sequence[str]) -> list[str]:
    """The adapters that remake a picture, in its own order and strengths, found among the ones given.

    recipe: what `recorded` wrote there, from a stranger perhaps. Raises UserError naming the one that is missing, or too many,
    or asked for at another strength.
    """
    if not isinstance(recipe, list) or not all(
        isinstance(entry, dict) and isinstance(entry.get("hash"), str) and isinstance(entry.get("strength"), (int, float))
        for entry in recipe
    ):
        raise UserError(f"{where}: its recipe is damaged; give a PNG that unfog made and no other program changed")
    given = {(found := either(wish)).hash: (found, asked(wish)) for wish in wishes}
    chosen: list[str] = []
    for entry in recipe:
        told = f"{str(entry.get('name'))[:60]} {entry['hash'][:16]} at strength {entry['strength']:g}"
        if entry["hash"] not in given:
            raise UserError(f"{where}: was made with adapter {told}; give its folder with --adapter")
        adapter, (path, strength) = given.pop(entry["hash"])
        if strength is not None and strength != entry["strength"]:
            raise UserError(f"{where}: was made with adapter {told}, not {strength:g}; leave the strength out")
        chosen.append(f"{path}:{float(entry['strength'])!r}")
    for adapter, _ in given.values():
        raise UserError(f"{where}: was made without adapter {adapter.card.name} {adapter.hash}; leave it out")
    return chosen
