"""Do an atom's bonds add up to what its element allows? By the bonds as made, and by bonds read off distances.

    an atom is stable    Σ orders of its bonds + its hydrogens is one of VALENCES       a molecule: all its atoms
    order by distance    below single + 10 pm: 1; below double + 5 pm: 2; below triple + 3 pm: 3

The numbers are EDM's (bond lengths in pm, margins tuned by its authors on QM9's geometries), but for sulphur, of which EDM allows
four bonds alone, so that every thiol and sulphone would be unstable, and for charged atoms, which EDM does not know. Atoms
counted are those of the model: where hydrogens are counted on their atoms, each is one bond and no atom. In an aromatic
ring of carbon alone bonds are 139 to 140 pm long and read as single ones, in real molecules too.
Source: Hoogeboom et al. 2022, arXiv:2203.17003, app. E.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unfog.modalities.molecule.chem import Molecule

VALENCES: dict[tuple[str, int], tuple[int, ...]] = {
    ("H", 0): (1,), ("C", 0): (4,), ("N", 0): (3,), ("O", 0): (2,), ("F", 0): (1,), ("B", 0): (3,), ("Al", 0): (3,),
    ("Si", 0): (4,), ("P", 0): (3, 5), ("S", 0): (2, 4, 6), ("Cl", 0): (1,), ("As", 0): (3,), ("Br", 0): (1,), ("I", 0): (1,),
    ("N", 1): (4,), ("O", -1): (1,), ("S", -1): (1,), ("N", -1): (2,), ("C", -1): (3,), ("O", 1): (3,), ("S", 1): (3, 5),
    ("P", 1): (4,), ("B", -1): (4,),
}  # fmt: skip
MARGINS = (10, 5, 3)
_SINGLE = """H H 74 H C 109 H N 101 H O 96 H F 92 H B 119 H Si 148 H P 144 H As 152 H S 134 H Cl 127 H Br 141 H I 161
C C 154 C N 147 C O 143 C F 135 C Si 185 C P 184 C S 182 C Cl 177 C Br 194 C I 214 N N 145 N O 140 N F 136 N Cl 175 N Br 214
N S 168 N I 222 N P 177 O O 148 O F 142 O Br 172 O S 151 O P 163 O Si 163 O Cl 164 O I 194 F F 142 F S 158 F Si 160 F Cl 166
F Br 178 F P 156 F I 187 B Cl 175 Si Si 233 Si S 200 Si Cl 202 Si Br 215 Si I 243 Cl Cl 199 Cl P 203 Cl S 207 Cl Br 214
S S 204 S Br 225 S P 210 S I 234 Br Br 228 Br P 222 P P 221 I I 266"""
_DOUBLE = "C C 134 C N 129 C O 120 C S 160 N N 125 N O 121 O O 121 O P 150 P S 186"
_TRIPLE = "C C 120 C N 116 C O 113 N N 110"


def _table(text: str) -> dict[frozenset[str], int]:
    words = text.split()
    return {frozenset(words[i : i + 2]): int(words[i + 2]) for i in range(0, len(words), 3)}


LENGTHS = tuple(_table(text) for text in (_SINGLE, _DOUBLE, _TRIPLE))


def order_of(first: str, second: str, distance: float) -> int:
    """The order, 0 to 3, of a bond between two elements at a distance in Å."""
    pair, order = frozenset((first, second)), 0
    for length, margin in zip(LENGTHS, MARGINS, strict=True):
        if pair not in length or not 100 * distance < length[pair] + margin:
            break
        order += 1
    return order


def orders_by_distance(molecule: Molecule) -> NDArray[np.int8]:
    """(n, n) orders of all pairs of atoms, read off their distances."""
    n = len(molecule)
    orders = np.zeros((n, n), np.int8)
    length = np.linalg.norm(molecule.xyz[:, None] - molecule.xyz[None], axis=-1)
    for i in range(n):
        for j in range(i):
            orders[i, j] = orders[j, i] = order_of(molecule.elements[i], molecule.elements[j], float(length[i, j]))
    return orders


def stable(molecule: Molecule, by_distance: bool = False) -> NDArray[np.bool_]:
    """Which atoms are stable, (n,), by the bonds as made or by those that distances tell."""
    orders = orders_by_distance(molecule) if by_distance else molecule.orders
    bonds = orders.astype(int).sum(1) + molecule.hydrogens
    kinds = zip(molecule.elements, molecule.charges.tolist(), strict=True)
    return np.array([count in VALENCES.get(kind, ()) for count, kind in zip(bonds.tolist(), kinds, strict=True)], bool)
