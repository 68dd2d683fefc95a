"""Is the geometry of a molecule possible? Checks in the manner of PoseBusters, and the strain by a force field.

Against RDKit's bounds matrix (the distances that its distance geometry allows), heavy atoms alone:
    bonds, angles    distance of atoms one or two bonds apart within 25 % of its bounds
    clashes          none farther apart in the graph closer than 70 % of its lower bound
    flat             atoms of aromatic rings of 5 and 6, and of double bonds with their neighbours, within 0.25 Å of a plane
    strain           MMFF94 energy above that of the nearest minimum, hydrogens relaxed first, kcal/mol
Source: Buttenschoen et al. 2024, arXiv:2308.05777, table 4 (checks and tolerances; there energies are compared otherwise).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfog.modalities.molecule.chem import rdkit, whole

STRETCH, CLASH, FLAT = 0.25, 0.30, 0.25  # the last in Å
CHECKS = ("bonds", "angles", "clashes", "flat")


def checks(mol: Any) -> dict[str, bool]:
    """CHECKS of a sanitised molecule with a conformer: whether each is passed."""
    chem = rdkit()
    full = whole(mol)
    bounds = np.asarray(rdkit("Chem.rdDistGeom").GetMoleculeBoundsMatrix(full))
    upper, lower = np.triu(bounds, 1), np.tril(bounds, -1).T
    steps = np.asarray(chem.GetDistanceMatrix(full))
    xyz = np.asarray(full.GetConformer().GetPositions())
    apart = np.linalg.norm(xyz[:, None] - xyz[None], axis=-1)
    heavy = np.array([atom.GetAtomicNum() > 1 for atom in full.GetAtoms()])
    pairs = np.triu(heavy[:, None] & heavy, 1)

    def within(distance: int) -> bool:
        chosen = pairs & (steps == distance)
        low, high = lower * (1 - STRETCH), upper * (1 + STRETCH)
        return bool(((apart >= low) & (apart <= high))[chosen].all())

    far = pairs & (steps > 2)
    flat = all(off_plane(xyz[list(group)]) <= FLAT for group in planar(full))
    return {"bonds": within(1), "angles": within(2), "clashes": bool((apart >= lower * (1 - CLASH))[far].all()), "flat": flat}


def planar(mol: Any) -> list[tuple[int, ...]]:
    """Groups of heavy atoms that lie in one plane: aromatic rings, and double bonds of carbon with their neighbours."""
    chem = rdkit()
    rings = [ring for ring in mol.GetRingInfo().AtomRings() if len(ring) in (5, 6)
             and all(mol.GetAtomWithIdx(i).GetIsAromatic() for i in ring)]  # fmt: skip
    double = chem.MolFromSmarts("[#6,#7,#8,#16;!r]=[C;!r;X3](~[!#1])~[!#1]")
    return [*rings, *mol.GetSubstructMatches(double)]


def off_plane(xyz: NDArray[Any]) -> float:
    """The farthest that a point (n, 3) lies off the best plane, in Å."""
    centred = xyz - xyz.mean(0)
    normal = np.linalg.svd(centred, full_matrices=False)[2][-1]
    return float(np.abs(centred @ normal).max())


def strain(mol: Any) -> float:
    """kcal/mol above the nearest minimum by MMFF94; NaN where the force field lacks parameters."""
    fields, full = rdkit("Chem.rdForceFieldHelpers"), whole(mol)
    settings = fields.MMFFGetMoleculeProperties(full)
    if settings is None:
        return float("nan")
    field = fields.MMFFGetMoleculeForceField(full, settings)
    field.Initialize()
    hydrogens = [atom.GetIdx() for atom in full.GetAtoms() if atom.GetAtomicNum() == 1]
    if hydrogens:
        rest = fields.MMFFGetMoleculeForceField(full, settings)
        rest.Initialize()
        for atom in full.GetAtoms():
            if atom.GetAtomicNum() > 1:
                rest.AddFixedPoint(atom.GetIdx())
        _relax(rest, 500)
    before = field.CalcEnergy()
    _relax(field, 2000)
    return float(before - field.CalcEnergy())


def _relax(field: Any, steps: int) -> None:
    try:
        field.Minimize(maxIts=steps)
    except RuntimeError:  # RDKit's line search gives up where there is nothing left to gain
        return
