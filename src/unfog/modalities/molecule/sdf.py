"""Molecules as files: SDF (V2000) with the SMILES as title, hydrogens in place, and the recipe in a data field.

    >  <unfog>      the recipe as sorted JSON        >  <hydrogens>   how many the first atoms carry as model space counts them
Equal molecules and recipes give equal bytes. Source: BIOVIA, CTFile Formats 2020, chapters 3 and 7.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from unfog.errors import UserError, shown
from unfog.modalities.molecule.chem import Molecule, of_rdkit, rdkit, smiles_of, to_rdkit, whole
from unfog.modalities.molecule.data import usable

SUFFIX = ".sdf"
MOST = 999  # atoms that V2000 can hold


def to_bytes(raw: Molecule, recipe: Mapping[str, Any]) -> bytes:
    """An SDF file of one molecule; hydrogens that are only counted are placed by RDKit where the molecule is valid."""
    raw = replace(raw, xyz=np.nan_to_num(raw.xyz).clip(-9999, 9999).round(4))  # as the file will say, so that it reads back
    mol = to_rdkit(raw)
    title, full, places = "not a valid molecule", raw, raw.xyz
    if mol is not None:
        title, full = smiles_of(mol), of_rdkit(whole(mol), "atoms")
        places = np.concatenate([raw.xyz, full.xyz[len(raw) :]])
    i, j = np.nonzero(np.triu(full.orders, 1))
    if len(full) > MOST:
        raise UserError(f"a molecule of {len(full)} atoms: SDF (V2000) holds at most {MOST}")
    lines = [title, "  unfog", "", f"{len(full):3}{len(i):3}  0  0  0  0  0  0  0  0999 V2000"]
    for (x, y, z), element in zip(places.tolist(), full.elements, strict=True):
        lines.append(f"{x + 0.0:10.4f}{y + 0.0:10.4f}{z + 0.0:10.4f} {element:<3} 0  0  0  0  0  0  0  0  0  0  0  0")
    lines += [f"{a + 1:3}{b + 1:3}{full.orders[a, b]:3}  0" for a, b in zip(i.tolist(), j.tolist(), strict=True)]
    lines += [f"M  CHG  1 {a + 1:3} {full.charges[a]:3}" for a in np.flatnonzero(full.charges).tolist()]
    text = json.dumps(recipe, sort_keys=True, ensure_ascii=True, allow_nan=False)
    counts = " ".join(str(h) for h in raw.hydrogens.tolist())
    lines += ["M  END", ">  <hydrogens>", counts, "", ">  <unfog>", text, "", "$$$$", ""]
    return "\n".join(lines).encode()


def from_bytes(data: bytes, name: str) -> tuple[Molecule, dict[str, Any]]:
    """The first molecule of an SDF file, or of a line of SMILES, and its recipe ({} without one).

    Raises UserError naming the file.
    """
    chem = rdkit()
    mol = None
    if not name.lower().endswith((".smi", ".smiles", ".txt")):
        mol = next(iter(chem.ForwardSDMolSupplier(io.BytesIO(data), sanitize=False, removeHs=False)), None)
    elif words := data[:2000].decode("utf-8", "replace").replace("\0", " ").split():
        mol = chem.MolFromSmiles(words[0], sanitize=False)
    if mol is None:
        raise UserError(f"{name}: no molecule that RDKit can read; give an .sdf file or a line of SMILES")
    recipe: dict[str, Any] = {}
    if mol.HasProp("unfog"):
        try:
            found = json.loads(mol.GetProp("unfog"))
        except ValueError:
            raise UserError(f"{name}: its recipe is not readable as JSON; get the file again") from None
        recipe = found if isinstance(found, dict) else {}
    if mol.HasProp("hydrogens"):
        return _own(mol, mol.GetProp("hydrogens"), name), recipe
    made = usable(mol)
    if isinstance(made, str):
        raise UserError(f"{name}: {made}; give one whole molecule")
    return of_rdkit(made), recipe


def _own(mol: Any, field: str, name: str) -> Molecule:
    """As this project wrote it: the first atoms are those of model space, whether or not they make a valid molecule."""
    parts = field.split()
    if not parts or not all(p.isdigit() and int(p) < 10 for p in parts) or len(parts) > mol.GetNumAtoms():
        raise UserError(f"{name}: its field <hydrogens> is {shown(field)}, which does not fit its atoms; get the file again")
    n, atoms = len(parts), list(mol.GetAtoms())[: len(parts)]
    orders = np.asarray(rdkit().GetAdjacencyMatrix(mol, useBO=True))[:n, :n].round().clip(0, 3)
    return Molecule(
        tuple(a.GetSymbol() for a in atoms), np.array([a.GetFormalCharge() for a in atoms], np.int8),
        np.array([int(p) for p in parts], np.int8), orders.astype(np.int8),
        mol.GetConformer().GetPositions()[:n].astype(np.float32),
    )  # fmt: skip
