"""Text states, made once a caption and kept: OUT/text-states/KEY.safetensors, each with the sha256 of what it holds.

They are made in parts, so that a run killed meanwhile goes on where it was, and a damaged file costs its own part only.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from unfog.files import sha256, write_atomic
from unfog.training.picture_corpus import Encode, PictureCorpus

FOLDER = "text-states"
PART = 4096  # captions in a file: 100 MB
CHUNK = 256
PATIENCE = 10.0  # seconds after which a person is told how far it is


def text_states(corpus: PictureCorpus, encode: Encode, out: Path) -> None:
    """Give the corpus the states and masks of its captions, from OUT/text-states where they are there and whole."""
    captions, began, told, made = corpus.captions, time.monotonic(), 0.0, 0
    states, masks = [], []
    for first in range(0, len(captions), PART):
        part = captions[first : first + PART]
        path = out / FOLDER / f"{sha256(chr(10).join(part).encode())[:16]}.safetensors"
        found = _kept(path, len(part))
        if found is None:
            rows = []
            for at in range(0, len(part), CHUNK):
                rows.append(encode(part[at : at + CHUNK]))
                made += len(rows[-1][1])
                spent, done = time.monotonic() - began, first + at + len(rows[-1][1])
                if spent > PATIENCE and spent - told > PATIENCE:
                    told = spent
                    left = round((len(captions) - done) * spent / made)
                    event = {"captions": done, "of": len(captions), "a_second": round(made / spent), "eta_seconds": left}
                    print(json.dumps(event), file=sys.stderr, flush=True)
            found = torch.cat([s.half() for s, _ in rows]), torch.cat([m for _, m in rows])
            _keep(path, *found)
        states.append(found[0])
        masks.append(found[1])
    corpus.states, corpus.masks = torch.cat(states), torch.cat(masks)


def _digest(states: Tensor, masks: Tensor) -> str:
    return sha256(states.contiguous().numpy().tobytes() + masks.contiguous().numpy().tobytes())


def _keep(path: Path, states: Tensor, masks: Tensor) -> None:
    from safetensors.torch import save

    write_atomic(path, save({"states": states, "masks": masks}, {"sha256": _digest(states, masks)}))


def _kept(path: Path, count: int) -> tuple[Tensor, Tensor] | None:
    """What the file holds; None where there is none, or, aloud, where it is damaged."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            states, masks, said = file.get_tensor("states"), file.get_tensor("masks"), file.metadata() or {}
        if len(states) != count or len(masks) != count:
            raise ValueError(f"not of {count} captions")
        if said.get("sha256", "") != _digest(states, masks):
            raise ValueError("its sha256 differs")
    except (OSError, ValueError, SafetensorError) as error:
        print(f"unfog: {path}: damaged ({str(error)[:80]}); making these text states again", file=sys.stderr)
        return None
    return states, masks
