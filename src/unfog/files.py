"""Files that are whole or absent: atomic writes, a sha256 manifest for a folder of weights, checked reads."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unfog.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "manifest.json"
LONGEST_RECIPE = 100_000  # characters; a recipe is a prompt and a few numbers


def write_atomic(path: Path, data: bytes) -> None:
    """Write to a temporary name in the same folder, flush to the disk, rename: a reader sees all or nothing, even after a
    power cut (the folder is flushed too, where the system can)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(partial, path)
        _flush_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes, replace: bool = True) -> bool:
    """Write a file under a temporary name, then give it its own: nothing half-written is ever seen.

    Returns: False, with nothing changed, where `replace` is False and the name is taken.
    Raises: UserError where the file cannot be written.
    """
    temporary = path.with_name(f".unfog-{secrets.token_hex(8)}.part")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave the name with no content
        if replace:
            os.replace(temporary, path)
            return True
        return _name_if_free(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); choose another place") from None
    finally:
        temporary.unlink(missing_ok=True)


def _name_if_free(temporary: Path, path: Path) -> bool:
    """Move the file to its name unless that is taken."""
    try:
        os.link(temporary, path)  # unlike a rename, fails where the name is taken, with no moment in between
        return True
    except FileExistsError:
        return False
    except OSError:  # file systems without hard links (FAT, some network folders)
        if os.path.lexists(path):
            return False
        os.replace(temporary, path)
        return True


def recipe_from(text: str) -> dict[str, Any] | None:
    """The recipe that stands in a file as JSON; None where it is damaged or far too long to be one."""
    try:
        recipe = json.loads(text) if len(text) <= LONGEST_RECIPE else None
    except (ValueError, RecursionError):  # RecursionError: deeply nested brackets
        recipe = None
    return recipe if isinstance(recipe, dict) else None


def _flush_folder(folder: Path) -> None:
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_manifest(folder: Path) -> None:
    """Record the sha256 of every file in `folder`; safetensors alone would load a flipped bit without a word."""
    digests = {p.name: sha256(p.read_bytes()) for p in sorted(folder.iterdir()) if p.is_file() and p.name != MANIFEST
               and not p.name.startswith(".")}  # fmt: skip
    write_atomic(folder / MANIFEST, (json.dumps(digests, indent=1) + "\n").encode())


def read_checked(folder: Path, name: str) -> bytes:
    """A file's bytes after comparing them with the manifest. Raises UserError naming the file."""
    try:
        digests = json.loads((folder / MANIFEST).read_bytes())
        data = (folder / name).read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: missing; the folder is not a whole unfog model, get it again") from None
    except ValueError:
        raise UserError(f"{folder / MANIFEST}: not readable as JSON; get the model again") from None
    if not isinstance(digests, dict) or digests.get(name) != sha256(data):
        raise UserError(f"{folder / name}: the file is damaged (sha256 differs from {MANIFEST}); get the model again")
    return data


def load_weights(folder: Path, name: str) -> dict[str, Tensor]:
    """The tensors of a checked safetensors file."""
    from safetensors.torch import load

    return load(read_checked(folder, name))


def write_weights(folder: Path, weights: str, tensors: Mapping[str, Tensor], card: str, told: Mapping[str, Any],
                  others: Mapping[str, Mapping[str, Tensor]] | None = None) -> None:  # fmt: skip
    """Write a folder of a file `weights` (safetensors) and a JSON `card` that tells of them, whole or not at all.

    others: files of further weights, by their names.
    """
    from safetensors.torch import save

    def write(temporary: Path) -> None:
        for file, held in {weights: tensors, **(others or {})}.items():
            write_atomic(temporary / file, save({name: tensor.contiguous() for name, tensor in held.items()}))
        write_atomic(temporary / card, (json.dumps(told, indent=1, ensure_ascii=False) + "\n").encode())

    write_folder(folder, write)


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Fill a new folder through `write(temporary)`, add the manifest, and swap it in whole for `folder`."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    previous = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    import shutil

    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        write(temporary)
        write_manifest(temporary)
        if folder.exists():
            os.replace(folder, previous)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if previous.exists():
            if folder.exists():
                shutil.rmtree(previous)
            else:
                os.replace(previous, folder)
