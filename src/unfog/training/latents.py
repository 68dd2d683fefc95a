"""Latents of a corpus, made once and kept: OUT/latents/KEY.safetensors; and the run's own copy of its autoencoder.

KEY is of the pictures and of the autoencoder, so that neither can change unnoticed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from unfog.files import sha256, write_atomic, write_folder
from unfog.modalities.image.latent import CARD, WEIGHTS, LatentCodec, autoencoder_folder, read_autoencoder
from unfog.training.picture_corpus import PictureCorpus

FOLDER, COPY = "latents", "autoencoder"
CHUNK = 64  # pictures at once
PATIENCE = 10.0  # seconds after which a person is told how far it is


def kept_autoencoder(named: str, out: Path, leads: bool) -> LatentCodec:
    """The autoencoder that a run began with, which is kept in OUT/autoencoder: what happens to the folder named does not matter.

    Raises UserError where there is none.
    """
    own = out / COPY
    if (own / CARD).is_file():
        return read_autoencoder(own)[0]
    codec, _ = read_autoencoder(named)
    place = autoencoder_folder(named)
    if leads and place is not None:

        def write(temporary: Path) -> None:
            for name in (CARD, WEIGHTS):
                shutil.copy(place / name, temporary / name)

        write_folder(own, write)
    return codec


def latent_states(corpus: PictureCorpus, out: Path | None) -> None:
    """Give a corpus whose codec is an autoencoder its latents, from OUT/latents where they are there and whole."""
    codec = corpus.codec
    if not isinstance(codec, LatentCodec):
        return
    path = None if out is None else out / FOLDER / f"{_key(corpus, codec)}.safetensors"
    found = None if path is None else _kept(path, len(corpus.pictures))
    if found is None:
        found = _made(corpus.pictures, codec)
        if path is not None:
            _keep(path, found)
    corpus.latents = found


def _made(pictures: Tensor, codec: LatentCodec) -> Tensor:
    rows, began, told = [], time.monotonic(), 0.0
    for at in range(0, len(pictures), CHUNK):
        rows.append(codec.encode(pictures[at : at + CHUNK]).half().cpu())
        done, spent = min(at + CHUNK, len(pictures)), time.monotonic() - began
        if spent - told > PATIENCE:
            told = spent
            event = {"latents": done, "of": len(pictures), "a_second": round(done / spent, 1),
                     "eta_seconds": round((len(pictures) - done) * spent / done)}  # fmt: skip
            print(json.dumps(event), file=sys.stderr, flush=True)
    return torch.cat(rows)


def _key(corpus: PictureCorpus, codec: LatentCodec) -> str:
    digest = hashlib.sha256(json.dumps(codec.card()).encode())
    for name in sorted(codec.weights):
        digest.update(codec.weights[name].contiguous().numpy().tobytes())
    for at in range(0, len(corpus.pictures), CHUNK):
        digest.update(corpus.pictures[at : at + CHUNK].contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _digest(latents: Tensor) -> str:
    return sha256(latents.contiguous().numpy().tobytes())


def _keep(path: Path, latents: Tensor) -> None:
    from safetensors.torch import save

    write_atomic(path, save({"latents": latents.contiguous()}, {"sha256": _digest(latents)}))


def _kept(path: Path, count: int) -> Tensor | None:
    """What the file holds; None where there is none, or, aloud, where it is damaged."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            latents, said = file.get_tensor("latents"), file.metadata() or {}
        if len(latents) != count or said.get("sha256", "") != _digest(latents):
            raise ValueError("its sha256 differs")
    except (OSError, ValueError, SafetensorError) as error:
        print(f"unfog: {path}: damaged ({str(error)[:80]}); making these latents again", file=sys.stderr)
        return None
    return latents
