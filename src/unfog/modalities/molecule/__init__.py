"""Small molecules: atoms, bonds and 3D places together. RDKit reads, checks and draws them (the extra `unfog[molecule]`)."""

from __future__ import annotations

from typing import Any

from unfog.modalities.contract import Modality
from unfog.modalities.molecule.conditions import keep, paste
from unfog.modalities.molecule.data import MoleculeOptions, open_molecules
from unfog.modalities.molecule.measure import measure
from unfog.modalities.molecule.network import MoleculeNet
from unfog.modalities.molecule.sdf import from_bytes, to_bytes
from unfog.modalities.molecule.show import render
from unfog.modalities.molecule.space import MoleculeSpace, align, fit, project

SMALL: dict[str, Any] = {
    "data": "molecules-s", "network": "molecule", "settings": {}, "prediction": "x0", "weight": "v", "weight_limit": 30.0,
    "noise_mean": -0.3, "noise_std": 1.4, "batch": 128, "lr": 2e-3, "dropout": 0.0, "drop_text": 0.15,
    "defaults": {"steps": 50, "scale": 1.0, "sampler": "dpmpp_2m_sde"},
}  # fmt: skip

MODALITY = Modality(
    name="molecule",
    about="small molecules in 3D: .sdf, .smi, .csv of SMILES, a .zip or folder of such",
    open=open_molecules,
    fit=fit,
    space=MoleculeSpace.of,
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
    measure=measure,
    render=render,
    suffix=".sdf",
    to_bytes=to_bytes,
    from_bytes=from_bytes,
    options=MoleculeOptions,
    networks={"molecule": MoleculeNet},
    keep=keep,
    paste=paste,
    project=project,
    align=align,
    grows=True,
)
