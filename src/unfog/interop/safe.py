"""Reading a stranger's folder: JSON and safetensors only, checked by us before any library sees a byte, and nothing executed.

    safetensors file = 8 bytes: length h of the header (little-endian) · h bytes of JSON · the tensors' bytes, without gaps

Every refusal is one line that names the file, what is wrong, and what to do.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unfog.errors import UserError, shown

if TYPE_CHECKING:
    from torch import Tensor

PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl", ".pickle", ".joblib", ".h5", ".msgpack")
LARGEST_JSON = 2**20  # bytes of a config; a real one has a few thousand
LARGEST_HEADER = 2**24  # SDXL's network has 0.3 MB
LARGEST_WORDS = 2**24  # of a tokenizer's file; the largest in use has 2.5 MB
MOST_TENSORS = 50_000
DEEPEST = 40  # brackets within brackets
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1,
         "BOOL": 1}  # fmt: skip
# Keys by which a library is told to load and run code from the folder, or from the network.
RUNS_CODE = ("auto_map", "trust_remote_code", "custom_pipeline", "custom_pipelines", "custom_revision", "custom_module", "code",
             "module", "modules", "_target_", "target", "remote_code", "entry_point")  # fmt: skip
SAFER = (
    "convert it where you trust it, with diffusers' save_pretrained(..., safe_serialization=True), or get the .safetensors file"
)


def as_pickle(path: Path | str) -> UserError:
    return UserError(f"{path}: is a pickle, which can run any code when it is read; {SAFER}")


@dataclass(frozen=True)
class Entry:
    """One tensor as its file's header states it."""

    dtype: str
    shape: tuple[int, ...]
    file: Path


@dataclass(frozen=True)
class Weights:
    """The tensors of one component: what the headers say; `load` reads them."""

    where: Path
    entries: Mapping[str, Entry]

    def load(self) -> dict[str, Tensor]:
        """All tensors of `entries`, as stored. Raises UserError where one holds NaN or infinity."""
        import torch
        from safetensors import safe_open

        found: dict[str, Tensor] = {}
        for file in sorted({entry.file for entry in self.entries.values()}):
            with safe_open(str(file), "pt") as opened:
                for name in opened.keys():  # noqa: SIM118  (not a mapping)
                    if name not in self.entries:
                        continue
                    tensor = opened.get_tensor(name)
                    if tensor.is_floating_point() and tensor.numel():
                        wide = tensor.float() if tensor.element_size() == 1 else tensor
                        if not all(math.isfinite(float(edge)) for edge in torch.aminmax(wide)):
                            raise UserError(f"{file}: {shown(name)} holds values that are not finite; get the file again")
                    found[name] = tensor
        return found


class Folder:
    """A model folder whose files are read by name, never followed out of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        own = root.resolve()
        # the hub's cache keeps the files of snapshots/HASH as links into blobs/ beside it
        self.within = [own, *(place.parent / "blobs" for place in (own, *own.parents) if place.name == "snapshots")]

    def has(self, name: str) -> bool:
        return (self.root / name).exists() or (self.root / name).is_symlink()

    def file(self, name: str) -> Path:
        """A regular file inside the folder. Raises UserError where it is missing, leads out, or is no file."""
        path = self.root / name
        try:
            real = path.resolve(strict=True)
        except (OSError, RuntimeError, ValueError):  # RuntimeError: links in a circle
            raise UserError(f"{path}: is missing; get the whole folder again") from None
        if not any(real.is_relative_to(place) for place in self.within):
            raise UserError(f"{path}: is a link out of the folder; copy the file itself there")
        if not real.is_file():
            raise UserError(f"{path}: is no file; get the whole folder again")
        return path

    def bytes(self, name: str, largest: int) -> bytes:
        """A file's bytes; largest: how many it may have."""
        path = self.file(name)
        if path.stat().st_size > largest:
            raise UserError(f"{path}: has {path.stat().st_size:,} bytes, more than the {largest:,} that one of these may have")
        return path.read_bytes()

    def json(self, name: str, largest: int = LARGEST_JSON) -> dict[str, Any]:
        """A JSON object, its values checked (`check_values`)."""
        found = parse(self.bytes(name, largest), self.root / name)
        check_values(found, self.root / name)
        return found

    def text(self, name: str, largest: int = LARGEST_WORDS) -> str:
        try:
            return self.bytes(name, largest).decode("utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{self.root / name}: is no UTF-8 text; get the file again") from None

    def weights(self, component: str, stem: str) -> Weights:
        """The weights of a component: `stem`.safetensors, its shards, or its half-precision variant, headers checked."""
        place = f"{component}/" if component else ""
        for variant in ("", ".fp16"):
            whole = f"{place}{stem}{variant}.safetensors"
            index = f"{place}{stem}.safetensors.index{variant}.json"
            if self.has(whole):
                path = self.file(whole)
                return Weights(path, header(path))
            if self.has(index):
                return self._shards(place, index)
        folder = self.root / component
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            if path.suffix.lower() in PICKLES:
                raise as_pickle(path)
        raise UserError(f"{folder / stem}.safetensors: is missing; get the whole folder again")

    def _shards(self, place: str, index: str) -> Weights:
        told = parse(self.bytes(index, LARGEST_HEADER), self.root / index).get("weight_map")
        if not isinstance(told, dict) or not told or not all(isinstance(v, str) for v in told.values()):
            raise UserError(f"{self.root / index}: has no weight_map of names to files; get the folder again")
        entries: dict[str, Entry] = {}
        for shard in sorted(set(told.values())):
            if "/" in shard or "\\" in shard or shard.startswith("."):
                raise UserError(f"{self.root / index}: names the file {shown(shard)} outside of its folder; get it again")
            if Path(shard).suffix.lower() in PICKLES:
                raise as_pickle(self.root / f"{place}{shard}")
            for name, entry in header(self.file(f"{place}{shard}")).items():
                if name in entries:
                    raise UserError(f"{self.root / index}: {shown(name)} stands in two shards; get the folder again")
                if told.get(name) != shard:
                    raise UserError(f"{entry.file}: holds {shown(name)}, which {Path(index).name} does not place there")
                entries[name] = entry
        for name in told:
            if name not in entries:
                raise UserError(f"{self.root / index}: {shown(name)} is in none of its shards; get the folder again")
        return Weights(self.root / index, entries)


def parse(data: bytes, where: Path) -> dict[str, Any]:
    """A JSON object of finite values, each name once, at most DEEPEST deep. Raises UserError naming the file."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f"{where}: has {shown(twice)} twice; get the file again")
        return found

    def refuse(text: str) -> None:
        raise UserError(f"{where}: holds {text}; get the file again")

    deep = most = 0
    for byte in data[: 2**16]:  # brackets in strings count too, which no real file has forty of
        deep += (byte in b"[{") - (byte in b"]}")
        most = max(most, deep)
    if most > DEEPEST:
        raise UserError(f"{where}: is nested too deep to be a model's; get the file again")
    try:
        found = json.loads(data, object_pairs_hook=once, parse_constant=refuse)
    except UserError:
        raise
    except (ValueError, RecursionError):
        raise UserError(f"{where}: is not readable as JSON; get the file again") from None
    if not isinstance(found, dict):
        raise UserError(f"{where}: is not a JSON object; get the file again")
    return found


def check_values(value: Any, where: Path, key: str = "", deep: int = 0) -> None:
    """Refuse what no config has: keys that name code, numbers beyond any model, very long lists and texts, deep nests."""
    if deep > DEEPEST:  # `parse` looks at the beginning only
        raise UserError(f"{where}: is nested too deep to be a model's; get the file again")
    if isinstance(value, dict):
        for name, inner in value.items():
            if name.lower() in RUNS_CODE:
                raise UserError(f"{where}: {shown(name)} asks for code to be run, which unfog never does; remove it")
            check_values(inner, where, name, deep + 1)
    elif isinstance(value, list):
        if len(value) > 2000:
            raise UserError(f"{where}: {shown(key)} is a list of {len(value):,}; no model has that")
        for inner in value:
            check_values(inner, where, key, deep + 1)
    elif isinstance(value, bool) or value is None:
        return
    elif isinstance(value, (int, float)) and not (math.isfinite(value) and abs(value) < 1e12):
        raise UserError(f"{where}: {shown(key)} is {shown(value)}, beyond any model; get the file again")
    elif isinstance(value, str) and len(value) > 10_000:
        raise UserError(f"{where}: {shown(key)} is a text of {len(value):,} characters; get the file again")


def header(path: Path) -> dict[str, Entry]:
    """What a safetensors file says that it holds; every byte accounted for once. Raises UserError."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as opened:
            first = opened.read(9)
            # a pickle's first byte is also the least of one header's length in 32, behind which a brace stands
            pickled = first[:1] == b"\x80" and first[8:9] != b"{"
            if pickled or first[:4] == b"PK\x03\x04" or path.suffix.lower() in PICKLES:
                raise as_pickle(path)
            length = int.from_bytes(first[:8], "little")
            if len(first) < 9 or first[8:9] != b"{":
                raise UserError(f"{path}: is no safetensors file; get it again")
            if length > min(LARGEST_HEADER, size - 8):
                raise UserError(f"{path}: its header claims {length:,} bytes; get the file again")
            raw = first[8:9] + opened.read(length - 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); get the file again") from None
    told = parse(raw, path)
    extra = told.pop("__metadata__", {})
    if not isinstance(extra, dict) or not all(isinstance(v, str) for v in extra.values()):
        raise UserError(f"{path}: its metadata are no texts; get the file again")
    if not told or len(told) > MOST_TENSORS:
        raise UserError(f"{path}: holds {len(told):,} tensors; no model has that")
    spans, entries = [], {}
    for name, entry in told.items():
        try:
            dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            whole = all(type(n) is int and 0 <= n < 2**48 for n in (*shape, begin, end)) and len(shape) <= 8
        except (KeyError, TypeError, ValueError):
            whole = False
        if not whole or dtype not in BYTES or len(name) > 500:
            raise UserError(f"{path}: its entry {shown(name)} is damaged; get the file again")
        if end - begin != math.prod(shape) * BYTES[dtype]:
            raise UserError(
                f"{path}: {shown(name)} has {end - begin:,} bytes, its shape {list(shape)} wants others; get it again"
            )
        spans.append((begin, end, name))
        entries[name] = Entry(dtype, shape, path)
    place = 0
    for begin, end, name in sorted(spans):
        if begin < place:
            raise UserError(f"{path}: {shown(name)} overlaps another tensor; get the file again")
        if begin > place:
            raise UserError(f"{path}: {begin - place:,} bytes before {shown(name)} belong to nothing; get the file again")
        place = end
    if place != size - 8 - length:
        word = "less" if place > size - 8 - length else "more"
        raise UserError(f"{path}: holds {word} than its header says ({size - 8 - length:,} bytes, not {place:,}); get it again")
    return entries


def check_shapes(wanted: Mapping[str, tuple[int, ...]], weights: Weights, ignored: Iterable[str] = ()) -> None:
    """Refuse a tensor that is missing, of another shape, or too many. ignored: ends of names that old files have beside."""
    for name, shape in wanted.items():
        found = weights.entries.get(name)
        if found is None:
            raise UserError(f"{weights.where}: {shown(name, 90)} is missing; get the folder again")
        if found.shape != tuple(shape):
            raise UserError(
                f"{found.file}: {shown(name, 90)} has shape {list(found.shape)}, config.json wants {list(shape)}; get it again"
            )
    for name, entry in weights.entries.items():
        if name not in wanted and not name.endswith(tuple(ignored)):
            raise UserError(f"{entry.file}: {shown(name, 90)} is no part of the network of config.json; get the folder again")
