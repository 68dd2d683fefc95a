"""What `unfog generate --novel` says and writes: which pictures are copies, beside what they copy."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unfog.cli import complain
from unfog.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from unfog.evaluation.memory import Memory
    from unfog.evaluation.novel import Checked
    from unfog.model import Model
    from unfog.requests import GenerateRequest, Progress, Result

HOW = ("warn", "resample")


def spelled_out(tokens: Sequence[str]) -> list[str]:
    """`--novel` alone means `--novel warn`: the words of a command line with that said."""
    end = list(tokens).index("--") if "--" in tokens else len(tokens)
    found: list[str] = []
    for i, token in enumerate(tokens):
        found.append(token)
        if token == "--novel" and i < end and (i + 1 >= len(tokens) or tokens[i + 1] not in HOW):
            found.append(HOW[0])
    return found


class Novelty:
    """Passes a model's events on, and keeps what was found of each picture until its file has a name."""

    def __init__(self, model: Model, request: GenerateRequest) -> None:
        """Reads the training data, or what is kept of it. Raises: UserError where it is not there."""
        from unfog.evaluation.memory import data_of, memory

        if model.kind.name != "image":
            raise UserError(f"novel: {model.name} makes no pictures; `unfog evaluate` says how near to its data it comes")
        self.model, self.request = model, request
        self.memory: Memory = memory(data_of(model, request.against))
        self._found: dict[int, Checked] = {}

    def stream(self) -> Generator[Progress | Result]:
        """As `Model.stream`."""
        from unfog.evaluation.novel import Checked, stream

        for event in stream(self.model, self.request, self.memory):
            if isinstance(event, Checked):
                self._found[event.result.index] = event
                yield event.result
            else:
                yield event

    def tell(self, result: Result, path: Path) -> dict[str, str]:
        """Say which tries were copies and whether the picture still is one, and write it beside its original.

        Returns: what a line of JSON says of it.
        """
        checked = self._found.pop(result.index)
        for earlier, near in checked.before:
            complain(f"--novel: seed {earlier.seed} made a copy of {near.name}; made again from seed {result.seed}")
        near_ = checked.near
        if near_ is None:
            return {}
        place = beside(result.image, self.memory.picture(near_, result.image.size), near_.name, path)
        how = "a mirrored copy" if near_.mirrored else "a copy"
        complain(f"--novel: {path} is {how} of {near_.name} ({near_.apart:.3f} apart); both are in {place}")
        return {"near": near_.name, "beside": str(place)}


def beside(image: Image.Image, original: Image.Image, name: str, path: Path) -> Path:
    """Write a picture and its original on one sheet, as NAME_near.png in the picture's folder; no foreign file is replaced."""
    from unfog.files import write_bytes
    from unfog.modalities.image.show import contact_sheet, png_bytes

    data = png_bytes(contact_sheet([image, original], [path.name, name], 2), {"sheet": 2})
    for k in range(1, 1_000):  # slugs hold no underscore, so no picture has such a name
        place = path.with_name(f"{path.stem}_near.png" if k == 1 else f"{path.stem}_near_{k}.png")
        if not os.path.lexists(place) and write_bytes(place, data, replace=False):
            return place
        if place.is_file() and place.read_bytes() == data:
            return place
    raise UserError(f"--out: {path.parent} holds 1,000 pictures named {path.stem}_near; choose another folder")
