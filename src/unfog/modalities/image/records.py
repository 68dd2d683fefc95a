"""What each picture of a set shows: from metadata.jsonl or metadata.csv, files beside the pictures, or class sub-folders."""

from __future__ import annotations

import csv
import io
import json
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from unfog.errors import UserError
from unfog.modalities.image.sources import Read, Source

SUFFIXES = {".png", ".webp", ".jpg", ".jpeg", ".gif", ".bmp"}
METADATA = ("metadata.jsonl", "metadata.csv")
# what others call a caption and a class, the likeliest first
TEXTS = ("text", "caption", "captions", "prompt", "title", "description")
STYLES = ("style", "label", "labels", "class", "class_name", "category_name")


class Record(BaseModel):
    """What is known of one picture; only file_name is required, other fields are kept as they are."""

    file_name: str
    text: str = ""
    style: str = ""
    concept: str = ""
    name: str = ""
    tags: list[str] = Field(default_factory=list)
    colors: list[str] = Field(default_factory=list)
    category: str = ""
    split: str = "train"
    near_duplicates: list[str] = Field(default_factory=list)


def record_of(fields: Mapping[str, Any], file_name: str, lists: Sequence[str] = ()) -> Record:
    """A record from another's words for things: a caption is a text, a label a style, and a label alone the text too.

    lists: fields in which several entries stand in one string. Raises ValueError (pydantic's) where a field is not usable.
    """
    known: dict[str, Any] = {key: value for key, value in fields.items() if key in Record.model_fields and value is not None}
    for key in lists:
        if isinstance(known.get(key), str):
            known[key] = [word.strip() for word in known[key].replace(";", ",").split(",") if word.strip()]
    text, style = (_first(fields, words) for words in (TEXTS, STYLES))
    named = text or known.get("name") or "style" in known
    return Record.model_validate({**known, "file_name": file_name, "text": text if named else style, "style": style})


def _first(fields: Mapping[str, Any], words: Sequence[str]) -> str:
    for word in words:
        value = fields.get(word)
        if isinstance(value, (list, tuple)):  # several captions of one picture
            value = next(iter(value), None)
        if value is not None and str(value).strip():
            return str(value).strip()
    return ""


def find_records(path: Path, source: Source) -> list[Record]:
    """The records of a source that is files. Raises UserError naming the file and the line that is not usable."""
    tables = [n for n in METADATA if n in source.names]
    # or one a folder, whose names are relative to it
    tables = tables or [n for n in source.names if PurePosixPath(n).name in METADATA]
    if tables:
        return [record for name in tables for record in _table(path, source, name)]
    pictures = sorted(n for n in source.names if PurePosixPath(n).suffix.lower() in SUFFIXES)
    known = set(source.names)
    found, classes = [], []
    for name in pictures:
        fields = _beside(path, source, name, known)
        folder = PurePosixPath(*PurePosixPath(name).parts[source.depth :]).parent
        classes.append("" if fields else folder.name.replace("_", " "))
        found.append(Record(file_name=name, text=classes[-1]) if not fields else _made(path, name, fields))
    if len(set(classes)) > 1 and all(classes):  # nothing but sub-folders: then they are the classes
        found = [record.model_copy(update={"style": record.text}) for record in found]
    return found


def _made(path: Path, name: str, fields: Mapping[str, Any]) -> Record:
    try:
        return record_of(fields, name)
    except ValueError as error:
        raise UserError(f"{path}: what stands beside {name} is not usable ({_reason(error)}); mend or remove it") from None


def _beside(path: Path, source: Source, name: str, known: set[str]) -> dict[str, Any]:
    """What the files that share a picture's name say: .txt; in a tar also .json (fields) and .cls (a class)."""
    place = PurePosixPath(name)
    fields: dict[str, Any] = {}
    for suffix in source.sidecars:
        # WebDataset's key ends at the first dot, everyone else's at the last
        beside = [place.with_suffix(suffix).as_posix(), place.with_name(place.name.split(".")[0] + suffix).as_posix()]
        sidecar = next((n for n in beside if n in known), None)
        if sidecar is None:
            continue
        text = text_of(path, source.read, sidecar).strip()
        if suffix == ".json":
            fields |= _object(path, sidecar, text)
        else:
            fields["label" if suffix == ".cls" else "text"] = text
    return fields


def _object(path: Path, name: str, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError("no {...}")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: {name} is not usable ({_reason(error)}); mend or remove it") from None
    return found


def _table(path: Path, source: Source, name: str) -> list[Record]:
    """The records of one metadata file; its names are relative to its own folder."""
    folder, known = PurePosixPath(name).parent, set(source.names)
    text = text_of(path, source.read, name)
    rows = _lines(path, name, text) if name.endswith(".jsonl") else _rows(path, name, text)
    records = []
    for number, fields in rows:
        try:
            if not isinstance(fields, dict) or "file_name" not in fields:
                raise ValueError("it has no file_name")
            Record.model_validate({"file_name": fields["file_name"]})
            record = record_of(fields, (folder / fields["file_name"]).as_posix(), lists=("tags", "colors", "near_duplicates"))
        except (ValueError, ValidationError) as error:
            raise UserError(f"{path}: {name} line {number} is not usable ({_reason(error)}); mend or remove it") from None
        if record.file_name not in known:
            raise UserError(f"{path}: {name} names {record.file_name}, which is not there; remove the line")
        records.append(record)
    return records


def _lines(path: Path, name: str, text: str) -> Iterable[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}: {name} line {number} is not usable ({_reason(error)}); mend or remove it") from None


def _rows(path: Path, name: str, text: str) -> Iterable[tuple[int, Any]]:
    head = text.split("\n", 1)[0]
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count), strict=True)
    try:
        for fields in reader:
            if None in fields:
                raise UserError(f"{path}: {name} line {reader.line_num} has more fields than the first; put quotes around commas")
            yield reader.line_num, {key: value for key, value in fields.items() if value}
    except csv.Error as error:
        raise UserError(f"{path}: {name} line {reader.line_num} is not usable ({error}); mend or remove it") from None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split("\n")[:3])[:120]


def text_of(path: Path, read: Read, name: str) -> str:
    """A text file of a source. Raises UserError where it is not one."""
    try:
        data = read(name)
        assert isinstance(data, bytes)
        return data.decode("utf-8-sig")  # some editors put a byte-order mark first
    except UnicodeDecodeError:
        raise UserError(f"{path}: {name} is not text in UTF-8; save it again as that") from None
    except (OSError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:  # RuntimeError: an archive with a password
        raise UserError(f"{path}: {name} cannot be read ({str(error)[:80]}); repair or remove it") from None
