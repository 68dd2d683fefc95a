"""Sound: clips of 1.024 s at 16 kHz, asked for by words ("snare", "violin a4", "seven")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unfog.modalities.audio.options import SoundOptions
from unfog.modalities.contract import Items, Measured, Modality
from unfog.modalities.contract import Space as AnySpace

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import nn

# how the shipped networks learn: the errors of x0 count as in v's space
LEARNED = {
    "prediction": "x0",
    "weight": "v",
    "weight_limit": 30.0,
    "noise_mean": 0.4,
    "noise_std": 1.5,
    "dropout": 0.0,
    "lr": 2e-3,
}
SMALL = {"unshuffle": 4, "widths": [64, 96, 128], "blocks": [1, 2, 1], "attention": [False, False, True], "embedding": 192}

TINY = {"unshuffle": 8, "widths": [32, 48], "blocks": [1, 1], "attention": [False, False], "embedding": 64}


def _open(path: Path, options: Any) -> Items:
    from unfog.modalities.audio.data import open_sounds

    return open_sounds(path, options)


def _fit(items: Items, options: Any) -> AnySpace:
    from unfog.modalities.audio.space import fit

    return fit(items, options)


def _space(card: dict[str, Any]) -> AnySpace:
    from unfog.modalities.audio.space import space

    return space(card)


def _measure(made: Sequence[Any], prompts: Sequence[str], real: Items, seed: int) -> list[Measured]:
    from unfog.modalities.audio.measure import measure

    return measure(made, prompts, real, seed)


def _render(raw: Sequence[Any], labels: Sequence[str]) -> Image:
    from unfog.modalities.audio.show import render

    return render(raw, labels)


def _to_bytes(raw: Any, recipe: Mapping[str, Any]) -> bytes:
    from unfog.modalities.audio.show import to_bytes

    return to_bytes(raw, recipe)


def _from_bytes(data: bytes, name: str) -> tuple[Any, dict[str, Any]]:
    from unfog.modalities.audio.show import from_bytes

    return from_bytes(data, name)


def _keep(space: Any, raw: Any, spec: str) -> NDArray[np.bool_]:
    from unfog.modalities.audio.space import keep

    return keep(space, raw, spec)


def _paste(space: Any, made: Any, raw: Any, spec: str) -> Any:
    from unfog.modalities.audio.space import paste

    return paste(made, raw, spec)


def bands(**settings: Any) -> nn.Module:
    """The U-Net on mel bands that is shown a pitch's harmonics (`network.py`)."""
    from unfog.modalities.audio.network import BandsUNet

    return BandsUNet(**settings)


def wave(**settings: Any) -> nn.Module:
    """The U-Net on samples (`network.py`)."""
    from unfog.modalities.audio.network import WaveUNet

    return WaveUNet(**settings)


MODALITY = Modality(
    name="audio",
    about="sounds of 1.024 s at 16 kHz: notes, drums, spoken words",
    open=_open,
    fit=_fit,
    space=_space,
    presets={
        "tiny": {"data": "drums-notes", "network": "bands", "settings": TINY, **LEARNED, "batch": 8, "steps": 20, "warm_up": 5,
                 "report_steps": 20, "defaults": {"steps": 8, "scale": 1.0, "sampler": "auto"}},
        "small": {"data": "drums-notes", "network": "bands", "settings": SMALL, **LEARNED, "batch": 32, "steps": 6000,
                  "warm_up": 200, "report_steps": 500, "defaults": {"steps": 20, "scale": 2.0, "sampler": "auto"}},
    },
    measure=_measure,
    render=_render,
    suffix=".wav",
    to_bytes=_to_bytes,
    from_bytes=_from_bytes,
    options=SoundOptions,
    networks={"bands": bands, "wave": wave},
    keep=_keep,
    paste=_paste,
)  # fmt: skip
