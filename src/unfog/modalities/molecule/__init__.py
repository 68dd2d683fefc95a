"""Small molecules: atoms, bonds and 3D places together. RDKit reads, checks and draws them (the extra `unfog[molecule]`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unfog.modalities.contract import Cond, Items, Measured, Modality, Options, Space

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn


def _open(path: Path, options: Any) -> Items:
    from unfog.modalities.molecule.data import open_molecules

    return open_molecules(path, options)


def _fit(items: Items, options: Any) -> Space:
    from unfog.modalities.molecule.space import MoleculeSpace

    rows = items.split("train")
    return MoleculeSpace.fit([items.raw[i] for i in rows], [items.prompts[i] for i in rows], options.hydrogens)


def _space(card: dict[str, Any]) -> Space:
    from unfog.modalities.molecule.space import MoleculeSpace

    return MoleculeSpace.of(card)


def _measure(made: Sequence[Any], prompts: Sequence[str], real: Items, seed: int) -> list[Measured]:
    from unfog.modalities.molecule.measure import measure

    return measure(made, prompts, real, seed)


def _render(raw: Sequence[Any], labels: Sequence[str]) -> Image:
    from unfog.modalities.molecule.show import render

    return render(raw, labels)


def _to_bytes(raw: Any, recipe: Mapping[str, Any]) -> bytes:
    from unfog.modalities.molecule.sdf import to_bytes

    return to_bytes(raw, recipe)


def _from_bytes(data: bytes, name: str) -> tuple[Any, dict[str, Any]]:
    from unfog.modalities.molecule.sdf import from_bytes

    return from_bytes(data, name)


def _network(**settings: Any) -> nn.Module:
    from unfog.modalities.molecule.network import MoleculeNet

    return MoleculeNet(**settings)


def _keep(space: Space, raw: Any, spec: str) -> NDArray[np.bool_]:
    from unfog.modalities.molecule.conditions import keep

    return keep(space, raw, spec)


def _align(x0: Tensor, known: Tensor, kept: Tensor) -> Tensor:
    from unfog.modalities.molecule.space import align

    return align(x0, known, kept)


def _paste(space: Space, made: Any, raw: Any, spec: str) -> Any:
    from unfog.modalities.molecule.conditions import paste

    return paste(space, made, raw, spec)


def _project(x: Tensor, cond: Cond | None) -> Tensor:
    from unfog.modalities.molecule.space import project

    return project(x, cond)


def _options() -> type[Options]:
    from unfog.modalities.molecule.data import MoleculeOptions

    return MoleculeOptions


SMALL: dict[str, Any] = {
    "data": "molecules-s", "network": "molecule", "settings": {}, "prediction": "x0", "weight": "v", "weight_limit": 30.0,
    "noise_mean": -0.3, "noise_std": 1.4, "batch": 128, "lr": 2e-3, "dropout": 0.0, "drop_text": 0.15,
    "defaults": {"steps": 50, "scale": 1.0, "sampler": "auto"},
}  # fmt: skip

MODALITY = Modality(
    name="molecule",
    about="small molecules in 3D: .sdf, .smi, .csv of SMILES, a .zip or folder of such",
    open=_open,
    fit=_fit,
    space=_space,
    presets={
        "small": SMALL,
        "tiny": {
            **SMALL,
            "options": {"most": 300},
            "settings": {"width": 32, "pair": 16, "depth": 2, "heads": 2},
            "batch": 16,
            "steps": 100,
            "warm_up": 5,
            "report_steps": 100,
        },
    },
    measure=_measure,
    render=_render,
    suffix=".sdf",
    to_bytes=_to_bytes,
    from_bytes=_from_bytes,
    options=_options(),
    networks={"molecule": _network},
    keep=_keep,
    paste=_paste,
    project=_project,
    align=_align,
    grows=True,
)
