"""Molecules from files: .sdf (3D or flat), .smi, .csv with a column of SMILES, a .zip or folder of such; .sdf.gz too.

What cannot be read, has an impossible valence, several fragments, radicals or too many atoms is left out, with a count of each.
Where a file gives no 3D geometry, RDKit makes one (ETKDG with a fixed seed, relaxed by MMFF94, or by UFF where that lacks
parameters). Splits: a data field or column "split", else one molecule in ten by the hash of its SMILES is held out.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from unfog.errors import UserError
from unfog.modalities.contract import Items, Options
from unfog.modalities.molecule.chem import Molecule, of_rdkit, rdkit, refusal, smiles_of
from unfog.modalities.molecule.conditions import prompt_of

SUFFIXES = (".sdf", ".sdf.gz", ".smi", ".smiles", ".csv")
LARGEST = 1 << 31  # bytes of text unpacked
LEAST = 4  # molecules
Found = tuple[Any, str, str]  # an unsanitised RDKit molecule or None, its name, its split or ""


class MoleculeOptions(Options):
    """Settings of a recipe for molecules."""

    hydrogens: Literal["counted", "atoms"] = Field("counted", description="counted on the atom that they are bound to and placed "
                                                   "by RDKit afterwards, or atoms of their own")  # fmt: skip
    most: int = Field(0, ge=0, description="molecules that are read, from the start of a file; 0: all")
    max_atoms: int = Field(32, ge=2, le=128, description="larger molecules are left out; hydrogens count where they are atoms")


def open_molecules(path: Path, options: MoleculeOptions) -> Items:
    """The molecules of a file, .zip or folder. Raises UserError where fewer than LEAST can be used."""
    rdkit()
    raw: list[Molecule] = []
    prompts: list[str] = []
    splits: list[str] = []
    names: list[str] = []
    skipped: Counter[str] = Counter()
    for mol, name, split in _found(path):
        made = usable(mol, options.hydrogens, options.max_atoms)
        if isinstance(made, str):
            skipped[made] += 1
            continue
        count = made.GetNumHeavyAtoms() if options.hydrogens == "counted" else made.GetNumAtoms()
        smiles = "" if name and split else smiles_of(made)
        prompts.append(prompt_of(len(raw), count, made))
        raw.append(of_rdkit(made, options.hydrogens))
        splits.append(split or ("heldout" if hashlib.sha256(smiles.encode()).digest()[0] < 26 else "train"))
        names.append(name or smiles)
        if len(raw) == options.most:
            break
    if len(raw) < LEAST:
        why = ", ".join(f"{n} with {reason}" for reason, n in skipped.most_common()) or "nothing in it"
        raise UserError(f"{path}: {len(raw)} usable molecules, at least {LEAST} are needed ({why}); look at the file")
    if "train" not in splits:  # too few to hold any out
        splits = ["train"] * len(raw)
    return Items(path, raw, prompts, splits, names, dict(skipped))


def usable(mol: Any, hydrogens: str = "counted", most: int = 999) -> Any:
    """The molecule sanitised, with hydrogens and 3D places; or why not, as words. most: atoms, hydrogens where they are some."""
    chem = rdkit()
    if mol is None:
        return "unreadable text"
    try:
        if chem.SanitizeMol(mol, catchErrors=True) != chem.SanitizeFlags.SANITIZE_NONE:
            return "an impossible valence"
        if reason := refusal(mol):
            return reason
        if mol.GetNumHeavyAtoms() + (hydrogens == "atoms") * sum(a.GetTotalNumHs(True) for a in mol.GetAtoms()) > most:
            return f"more than {most} atoms"
        if mol.GetNumConformers() and mol.GetConformer().Is3D():
            return chem.AddHs(mol, addCoords=True)
        return conformer(mol) or "no 3D geometry"
    except (ValueError, RuntimeError):
        return "unreadable text"


def conformer(mol: Any) -> Any:
    """With hydrogens and one relaxed conformer (seed 1); None where RDKit finds none."""
    embed, fields = rdkit("Chem.rdDistGeom"), rdkit("Chem.rdForceFieldHelpers")
    mol = rdkit().AddHs(mol)
    settings = embed.ETKDGv3()
    settings.randomSeed, settings.maxIterations = 1, 50
    if embed.EmbedMolecule(mol, settings) < 0:
        return None
    if fields.MMFFHasAllMoleculeParams(mol):
        fields.MMFFOptimizeMolecule(mol, maxIters=2000)
    elif fields.UFFHasAllMoleculeParams(mol):
        fields.UFFOptimizeMolecule(mol, maxIters=2000)
    return mol


def _found(path: Path) -> Iterator[Found]:
    """Every record of every file at `path`."""
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and p.name.lower().endswith(SUFFIXES))
        if not files:
            raise UserError(f"{path}: holds no molecules; give {', '.join(SUFFIXES)} or a .zip or folder of such")
        for file in files:
            yield from _read(file.name, file.read_bytes(), file)
    elif path.suffix.lower() == ".zip":
        try:
            with zipfile.ZipFile(path) as archive:
                infos = [i for i in archive.infolist() if i.filename.lower().endswith(SUFFIXES)]
                if not infos:
                    raise UserError(f"{path}: holds no molecules; pack {', '.join(SUFFIXES)}")
                for info in infos:
                    if info.file_size > LARGEST:
                        raise UserError(f"{path}: {info.filename} unpacks to {info.file_size:,} bytes; split it")
                    yield from _read(info.filename, archive.read(info), path)
        except (zipfile.BadZipFile, EOFError) as error:
            raise UserError(f"{path}: not a whole zip archive ({error}); get it again") from None
    else:
        if not path.name.lower().endswith(SUFFIXES):
            raise UserError(f"{path}: not a file of molecules; give {', '.join(SUFFIXES)} or a .zip or folder of such")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: {error.strerror or error}; give a file of molecules") from None
        yield from _read(path.name, data, path)


def _read(name: str, data: bytes, path: Path) -> Iterator[Found]:
    lower = name.lower()
    if lower.endswith(".gz"):
        try:
            with gzip.open(io.BytesIO(data)) as file:
                data, lower = file.read(LARGEST), lower[:-3]
        except (OSError, EOFError) as error:
            raise UserError(f"{path}: not a whole .gz file ({error}); get it again") from None
    reader = next((r for suffix, r in READERS.items() if lower.endswith(suffix)), _smi)
    yield from reader(data, path)


def _sdf(data: bytes, path: Path) -> Iterator[Found]:
    for mol in rdkit().ForwardSDMolSupplier(io.BytesIO(data), sanitize=False, removeHs=False):
        if mol is None:
            yield None, "", ""
            continue
        given = mol.GetProp("split").strip() if mol.HasProp("split") else ""
        yield mol, mol.GetProp("_Name").strip() if mol.HasProp("_Name") else "", given


def _text(data: bytes, path: Path) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file; save it as UTF-8") from None


def _parsed(smiles: str) -> Any:
    return rdkit().MolFromSmiles(smiles, sanitize=False) if smiles else None


def _smi(data: bytes, path: Path) -> Iterator[Found]:
    for line in _text(data, path).splitlines():
        parts = line.split(None, 1)
        if parts and not line.startswith("#") and parts[0].lower() != "smiles":
            yield _parsed(parts[0]), parts[1].strip() if len(parts) > 1 else "", ""


def _csv(data: bytes, path: Path) -> Iterator[Found]:
    text = _text(data, path)
    table = csv.DictReader(io.StringIO(text))
    columns = {column.strip().lower(): column for column in table.fieldnames or [] if column}
    if "smiles" not in columns:
        raise UserError(f"{path}: has no column 'smiles'; it has {', '.join(list(columns)[:8]) or 'none'}; name one so")
    for row in table:
        split, name = (str(row.get(columns.get(key, ""), "") or "").strip() for key in ("split", "name"))
        yield _parsed((row[columns["smiles"]] or "").strip()), name, split


READERS: dict[str, Callable[[bytes, Path], Iterator[Found]]] = {".sdf": _sdf, ".csv": _csv}
