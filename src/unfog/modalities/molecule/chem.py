"""A molecule as plain arrays, and what RDKit says of it: the only place where the two meet."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfog.errors import UserError


@dataclass(frozen=True, eq=False)
class Molecule:
    """n atoms, their bonds and places.

    elements (n,) symbols; charges (n,) formal; hydrogens (n,) that are bound to an atom and no atoms of their own; orders (n, n)
    0 to 3 (Kekulé), the same both ways; xyz (n, 3) in Å.
    """

    elements: tuple[str, ...]
    charges: NDArray[np.int8]
    hydrogens: NDArray[np.int8]
    orders: NDArray[np.int8]
    xyz: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.elements)

    def part(self, atoms: Sequence[int]) -> Molecule:
        """These atoms alone, in this order."""
        rows = list(atoms)
        return Molecule(tuple(self.elements[i] for i in rows), self.charges[rows], self.hydrogens[rows],
                        self.orders[np.ix_(rows, rows)], self.xyz[rows])  # fmt: skip


def rdkit(part: str = "Chem") -> Any:
    """RDKit's `Chem`, or another part such as "Chem.Crippen"; its log is silent.

    Raises: UserError naming the extra where RDKit is not installed.
    """
    try:
        found, log = importlib.import_module(f"rdkit.{part}"), importlib.import_module("rdkit.RDLogger")
    except ImportError:
        raise UserError("molecules need RDKit, which is not installed; pip install 'unfog[molecule]'") from None
    log.DisableLog("rdApp.*")
    return found


def refusal(mol: Any) -> str:
    """Why a parsed molecule is not taken, or ""."""
    atoms = list(mol.GetAtoms())
    if not atoms:
        return "no atoms"
    if len(rdkit().GetMolFrags(mol)) > 1:
        return "several fragments"
    if not all(atom.GetAtomicNum() for atom in atoms):
        return "atoms of no element"
    return "radicals" if any(atom.GetNumRadicalElectrons() for atom in atoms) else ""


def of_rdkit(mol: Any, hydrogens: str = "counted") -> Molecule:
    """Arrays of a sanitised molecule with a conformer. hydrogens: "counted" on their atoms, or "atoms" of their own."""
    chem = rdkit()
    mol = chem.RemoveAllHs(mol) if hydrogens == "counted" else chem.AddHs(mol, addCoords=True)
    chem.Kekulize(mol, clearAromaticFlags=True)
    atoms = list(mol.GetAtoms())
    orders = np.asarray(chem.GetAdjacencyMatrix(mol, useBO=True)).round().clip(0, 3)
    return Molecule(
        tuple(atom.GetSymbol() for atom in atoms), np.array([atom.GetFormalCharge() for atom in atoms], np.int8),
        np.array([atom.GetTotalNumHs() for atom in atoms], np.int8), orders.astype(np.int8),
        mol.GetConformer().GetPositions().astype(np.float32),
    )  # fmt: skip


def to_rdkit(molecule: Molecule, sanitise: bool = True) -> Any:
    """RDKit's molecule with exactly these atoms, bonds, hydrogens and places; None where it cannot be (an impossible valence)."""
    chem = rdkit()
    point = rdkit("Geometry").Point3D
    mol = chem.RWMol()
    for symbol, charge, hydrogens in zip(molecule.elements, molecule.charges, molecule.hydrogens, strict=True):
        atom = chem.Atom(symbol)
        atom.SetFormalCharge(int(charge))
        atom.SetNoImplicit(True)
        atom.SetNumExplicitHs(int(hydrogens))
        mol.AddAtom(atom)
    kinds = [None, chem.BondType.SINGLE, chem.BondType.DOUBLE, chem.BondType.TRIPLE]
    for i, j in np.argwhere(np.triu(molecule.orders, 1)):
        mol.AddBond(int(i), int(j), kinds[molecule.orders[i, j]])
    conformer = chem.Conformer(len(molecule))
    conformer.Set3D(True)
    for i, (x, y, z) in enumerate(molecule.xyz.tolist()):
        conformer.SetAtomPosition(i, point(x, y, z))
    mol.AddConformer(conformer)
    made = mol.GetMol()
    if sanitise:
        try:
            chem.SanitizeMol(made)
        except (ValueError, RuntimeError):  # RDKit's own exceptions are ValueErrors
            return None
    return made


def whole(mol: Any) -> Any:
    """With all hydrogens as atoms, in places."""
    return rdkit().AddHs(mol, addCoords=True)


def as_said(molecule: Molecule, hydrogens: str) -> Molecule:
    """The same with hydrogens "counted" or as "atoms"; as it is where it says so already, or is no valid molecule."""
    said = "atoms" if not molecule.hydrogens.any() and "H" in molecule.elements else "counted"
    mol = None if said == hydrogens else to_rdkit(molecule)
    return molecule if mol is None else of_rdkit(mol, hydrogens)


def largest(molecule: Molecule) -> list[int]:
    """Atoms of the largest connected part, in order."""
    left: set[int] = set(range(len(molecule)))
    best: list[int] = []
    while left:
        found, edge = [], [min(left)]
        left.discard(edge[0])
        while edge:
            i = edge.pop()
            found.append(i)
            near = [j for j in np.flatnonzero(molecule.orders[i]).tolist() if j in left]
            left.difference_update(near)
            edge += near
        best = found if len(found) > len(best) else best
    return sorted(best)


def valid(molecule: Molecule, share: float = 0.9) -> Any:
    """The sanitised molecule of its largest part if that holds at least `share` of the atoms and no radical, else None."""
    rows = largest(molecule)
    if not rows or len(rows) < share * len(molecule):
        return None
    mol = to_rdkit(molecule.part(rows))
    return None if mol is None or refusal(mol) else mol


def smiles_of(mol: Any) -> str:
    """Canonical SMILES without stereo and hydrogens."""
    chem = rdkit()
    return str(chem.MolToSmiles(chem.RemoveAllHs(mol), isomericSmiles=False))
