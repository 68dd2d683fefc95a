"""What evaluation says of molecules: are they possible, stable, new, in good shape, like the data, and as asked for?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfog.modalities.contract import Items, Measured
from unfog.modalities.molecule.chem import Molecule, smiles_of, valid
from unfog.modalities.molecule.conditions import asked_of, property_of
from unfog.modalities.molecule.geometry import CHECKS, checks, strain
from unfog.modalities.molecule.stability import stable

Array = NDArray[np.float64]
MOST = 500  # real molecules measured beside the made, where fewer were made
LEAST = 20  # for a distance of distributions


def measure(made: Sequence[Molecule], prompts: Sequence[str], real: Items, seed: int) -> list[Measured]:
    """The rows of a report for molecules made for prompts, each beside real held-out ones."""
    train, held = real.split("train"), real.split("heldout") or real.split("train")
    draw = np.random.default_rng([seed, 11])
    chosen = [real.raw[i] for i in draw.permutation(held)[: max(len(made), min(MOST, len(held)))]]
    ours, theirs = [valid(m) for m in made], [valid(m) for m in chosen]
    wanted = {make_up(m) for m in (*made, *chosen)}
    known = {_smiles(real.raw[i]) for i in train if make_up(real.raw[i]) in wanted}
    rows = [
        _share("fidelity", "valid", [m is not None for m in ours], [m is not None for m in theirs],
               "RDKit sanitises it, no radicals, largest part >= 90 % of the atoms"),
        *_new(ours, theirs, known), *_stability(made, chosen), *_geometry(ours, theirs),
    ]  # fmt: skip
    return [*rows, fcd(ours, theirs, [real.raw[i] for i in train], draw), *_asked(made, ours, prompts)]


def make_up(molecule: Molecule) -> tuple[tuple[str, int, int], ...]:
    """What equal molecules have in common at least, found faster than SMILES: elements, hydrogens and neighbours of all atoms."""
    near = (molecule.orders > 0).sum(1).tolist()
    return tuple(sorted(zip(molecule.elements, molecule.hydrogens.tolist(), near, strict=True)))


def _smiles(molecule: Molecule) -> str:
    found = valid(molecule)
    return smiles_of(found) if found is not None else ""


def _share(group: str, name: str, made: Sequence[bool], real: Sequence[bool], note: str = "", better: str = "higher") -> Measured:
    return Measured(group, name, np.array(made, float), np.array(real, float), "%", better, note)


def _new(ours: list[Any], theirs: list[Any], known: set[str]) -> list[Measured]:
    mine, real = ([smiles_of(m) for m in group if m is not None] for group in (ours, theirs))
    if not mine:
        return [Measured("coverage", "unique", float("nan"), note="no valid molecule was made")]

    def first(smiles: list[str]) -> list[bool]:
        places = {s: i for i, s in reversed(list(enumerate(smiles)))}  # the first of each
        return [places[s] == i for i, s in enumerate(smiles)]

    return [
        _share("coverage", "unique", first(mine), first(real), "of the valid ones, by SMILES without stereo"),
        _share("memory", "novel", [s not in known for s in mine], [s not in known for s in real],
               "of the valid ones: not among the training molecules"),
    ]  # fmt: skip


def _stability(made: Sequence[Molecule], chosen: Sequence[Molecule]) -> list[Measured]:
    rows = []
    for by_distance, how in ((False, "bonds as made, EDM's valences"), (True, "bonds read off distances by EDM's tables")):
        mine, real = ([stable(m, by_distance) for m in group] for group in (made, chosen))
        rows += [
            Measured("fidelity", f"atoms stable, {how}", np.concatenate(mine).astype(float), np.concatenate(real).astype(float),
                     "%", "higher"),
            _share("fidelity", f"molecules stable, {how}", [bool(x.all()) for x in mine], [bool(x.all()) for x in real]),
        ]  # fmt: skip
    return rows


def _geometry(ours: list[Any], theirs: list[Any]) -> list[Measured]:
    mine, real = ([checks(m) for m in group if m is not None] for group in (ours, theirs))
    if not mine:
        return []
    names = {"bonds": "bond lengths", "angles": "bond angles", "clashes": "no clashes", "flat": "flat rings and double bonds"}
    rows = [_share("fidelity", names[c], [x[c] for x in mine], [x[c] for x in real], "of the valid ones") for c in CHECKS]
    rows.append(_share("fidelity", "all four geometry checks", [all(x.values()) for x in mine], [all(x.values()) for x in real]))
    strains = [np.array([strain(m) for m in group if m is not None]) for group in (ours, theirs)]
    middle, beside = (float(np.nanmedian(x)) if np.isfinite(x).any() else float("nan") for x in strains)
    rows.append(Measured("fidelity", "strain, median kcal/mol", middle, beside, "", "lower", "MMFF94, above the nearest minimum"))
    return rows


def fcd(ours: list[Any], theirs: list[Any], train: Sequence[Molecule], draw: np.random.Generator) -> Measured:
    """Fréchet ChemNet distance to training molecules, beside that of as many held-out ones (the noise floor)."""
    mine, real = ([smiles_of(m) for m in group if m is not None] for group in (ours, theirs))
    count = min(len(mine), len(real))
    row = "FCD to the training molecules"
    if count < LEAST:
        return Measured("fidelity", row, math.nan, note=f"{count} valid molecules are too few")
    try:
        read = chemnet()
    except ImportError:
        return Measured("fidelity", row, math.nan, note="needs fcd-torch; pip install --no-deps fcd-torch==1.0.7")
    places = draw.permutation(len(train))[: max(5 * count, 2000)]
    base = read([s for i in places if (s := _smiles(train[i]))])
    made, floor = (frechet(read([group[i] for i in draw.permutation(len(group))[:count]]), base) for group in (mine, real))
    return Measured("fidelity", row, made, floor, "", "lower", f"ChemNet, {count} molecules each; more give less")


def chemnet() -> Any:
    """ChemNet's reader: SMILES -> features (n, 512). Raises ImportError where fcd-torch is not installed."""
    import torch
    from fcd_torch.fcd import FCD
    from fcd_torch.utils import SmilesDataset

    model = FCD(device="cpu").model

    def read(smiles: list[str]) -> Array:
        data = SmilesDataset(smiles, canonize=False)
        coded = torch.stack([torch.as_tensor(data[i]) for i in range(len(data))]).transpose(1, 2).float()
        with torch.no_grad():
            parts = [model(part) for part in coded.split(256)]
        return torch.cat(parts).double().numpy()

    return read


def frechet(a: Array, b: Array) -> float:
    """|mean a − mean b|² + tr(A + B − 2·(A^½ B A^½)^½) of features (n, D). Source: Preuer et al. 2018, arXiv:1803.09518."""
    first, second = np.cov(a.T), np.cov(b.T)
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(0)).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first) + np.trace(second) - 2 * cross)


def _asked(made: Sequence[Molecule], ours: list[Any], prompts: Sequence[str]) -> list[Measured]:
    told = [asked_of(prompt) for prompt in prompts]
    rows = []
    sizes = [float(len(m) == t["atoms"]) for m, t in zip(made, told, strict=True) if "atoms" in t]
    if sizes:
        rows.append(Measured("condition", "as many atoms as asked", np.array(sizes), None, "%", "higher"))
    logp = [(property_of(m, "logp"), t["logp"]) for m, t in zip(ours, told, strict=True) if m is not None and "logp" in t]
    if len(logp) > 1:
        found, wanted = np.array(logp).T
        beside = np.abs(found[:, None] - wanted).mean(0)
        rows.append(Measured("condition", "logP off by", np.abs(found - wanted), beside, "", "lower",
                             "beside it: the same molecules against the others' prompts"))  # fmt: skip
    rings = [(property_of(m, "rings") == t["rings"], t["rings"]) for m, t in zip(ours, told, strict=True)
             if m is not None and "rings" in t]  # fmt: skip
    if rings:
        rows.append(Measured("condition", "as many rings as asked", np.array([float(x) for x, _ in rings]), None, "%", "higher"))
    return rows
