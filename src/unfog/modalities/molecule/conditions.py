"""What may be asked of a molecule: "any", "9 atoms", "logp 2.5", "8 atoms logp 1 rings 0"; and what stays of one ("keep")."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from unfog.errors import UserError, shown, unknown
from unfog.modalities.contract import ANY
from unfog.modalities.molecule.chem import Molecule, rdkit

PROPERTIES = ("logp", "rings")  # Wildman-Crippen's estimate of log P (octanol/water); rings of the smallest set
WORDS = ("atoms", *PROPERTIES)
_PART = re.compile(r"\s*(?:(?P<count>\d+)\s+atoms?|(?P<word>[a-z]+)\s+(?P<value>[-+]?\d+(?:\.\d+)?))(?=\s|,|;|$)[\s,;]*")


def asked_of(prompt: str | None) -> dict[str, float]:
    """A prompt's numbers by name, {} where nothing is asked. Raises UserError naming what is not understood."""
    text = (prompt or "").strip().lower()
    if text in ("", ANY):
        return {}
    told: dict[str, float] = {}
    place = 0
    while place < len(text):
        found = _PART.match(text, place)
        word = "atoms" if found and found["count"] else (found or {"word": None})["word"]
        if found is None or word is None:
            strange = next((w for w in re.findall(r"[a-z]+", text[place:]) if w not in (*WORDS, "atom")), None)
            if strange:
                raise unknown(f"prompt {shown(prompt)}, word", strange, WORDS)
            raise UserError(f"prompt {shown(prompt)}: not understood; ask like '9 atoms', 'logp 2.5' or '8 atoms logp 1 rings 0'")
        if word not in WORDS:
            raise unknown(f"prompt {shown(prompt)}, word", word, WORDS)
        if word in told:
            raise UserError(f"prompt {shown(prompt)}: {word} is asked for twice; once is enough")
        told[word] = float(found["count"] or found["value"])
        if abs(told[word]) > 1000 or (word != "logp" and (told[word] < 0 or told[word] % 1)):
            raise UserError(f"prompt {shown(prompt)}: {told[word]:g} is no number for {word}")
        place = found.end()
    return told


def property_of(mol: Any, name: str) -> float:
    """One of PROPERTIES of a sanitised RDKit molecule."""
    if name == "rings":
        return float(mol.GetRingInfo().NumRings())
    return float(rdkit("Chem.Crippen").MolLogP(mol))


# one molecule in four each: so that a model hears of any part alone
ASKED = (("atoms", "logp", "rings"), ("logp",), ("rings",), ("atoms",))


def prompt_of(index: int, atoms: int, mol: Any) -> str:
    """What molecule number `index` is asked for by."""
    words = {"atoms": lambda: f"{atoms} atoms", "logp": lambda: f"logp {property_of(mol, 'logp'):.2f}",
             "rings": lambda: f"rings {property_of(mol, 'rings'):.0f}"}  # fmt: skip
    return " ".join(words[name]() for name in ASKED[index % len(ASKED)])


def kept_atoms(molecule: Molecule, spec: str) -> list[int]:
    """The atoms of `molecule` that `spec` names: "all", "0-5,8" (atoms, counted from 0), or SMARTS (its first match).

    Raises UserError where it names none.
    """
    text = spec.strip()
    if text == "all":
        return list(range(len(molecule)))
    if re.fullmatch(r"[\d\s,-]+", text):
        chosen: list[int] = []
        for part in text.replace(" ", "").split(","):
            first, _, last = part.partition("-")
            if not first.isdigit() or (last and not last.isdigit()):
                raise UserError(f"keep {shown(spec)}: not understood; give for example '0-5,8'")
            if not int(first) <= int(last or first) < len(molecule):
                raise UserError(f"keep {shown(spec)}: the molecule has atoms 0 to {len(molecule) - 1}")
            chosen += range(int(first), int(last or first) + 1)
        return sorted(set(chosen))
    chem = rdkit()
    from unfog.modalities.molecule.chem import to_rdkit

    pattern = chem.MolFromSmarts(text)
    if pattern is None:
        raise UserError(f"keep {shown(spec)}: no SMARTS; give for example 'c1ccccc1', '0-5' or 'all'")
    mol = to_rdkit(molecule)
    match = () if mol is None else mol.GetSubstructMatch(pattern)
    if not match:
        raise UserError(f"keep {shown(spec)}: the molecule holds no such part; look at its SMILES, or name its atoms")
    return sorted(match)


def keep(space: Any, raw: Molecule, spec: str) -> np.ndarray:
    """True in model space (N, C) for the places, elements and mutual bonds of the atoms that stay.

    How many hydrogens they have stays free, so that anything may grow on them.
    """
    rows = kept_atoms(raw, spec)
    held = np.zeros(space.shape, bool)
    here = np.zeros(space.atoms, bool)
    here[rows] = True
    held[here, : 3 + len(space.types)] = True
    start = 3 + space.kinds
    bonds = held[:, start:].reshape(space.atoms, space.atoms, -1)
    bonds[np.ix_(here, here)] = True
    held[:, start:] = bonds.reshape(space.atoms, -1)
    return held


def paste(space: Any, made: Molecule, raw: Molecule, spec: str) -> Molecule:
    """`made` with the kept atoms' places, elements and mutual bonds exactly as in `raw`."""
    rows = kept_atoms(raw, spec)
    elements, charges, orders, xyz = list(made.elements), made.charges.copy(), made.orders.copy(), made.xyz.copy()
    centre = raw.xyz.mean(0)
    shift = (raw.xyz[rows] - centre - made.xyz[rows]).mean(0)  # decoding takes the mean of all atoms off
    xyz = xyz + shift + centre
    for i in rows:
        elements[i] = raw.elements[i]
    charges[rows] = raw.charges[rows]
    orders[np.ix_(rows, rows)] = raw.orders[np.ix_(rows, rows)]
    xyz[rows] = raw.xyz[rows]
    return Molecule(tuple(elements), charges, made.hydrogens, orders, xyz)
