"""Pictures in tables and arrays: Parquet, the Arrow files of Hugging Face's save_to_disk, .npy and .npz.

The first two need pyarrow (the extra `unfog[parquet]`); no other package is.
"""

from __future__ import annotations

import json
import threading
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unfog.errors import UserError
from unfog.modalities.image.records import STYLES, TEXTS, Record, record_of
from unfog.modalities.image.sources import Source, too_large

IMAGES = ("image", "img", "picture", "photo", "jpg", "png", "webp")
LARGEST_GROUP = 1 << 32  # bytes of one row group's pictures, which are in memory at once
ARRAYS = {"pictures": ("pictures", "images", "image", "x", "x_train", "train_images", "data", "arr_0"),
          "texts": ("texts", "captions", "text", "prompts"),
          "labels": ("styles", "labels", "label", "y", "y_train", "train_labels", "classes")}  # fmt: skip
HELD_OUT = ("test", "validation", "valid", "val")


def _arrow(path: Path) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise UserError(f"{path}: reading it needs pyarrow; pip install 'unfog[parquet]'") from None
    return pyarrow


def _split(name: str) -> str:
    return "heldout_pair" if name.split("-")[0].split(".")[0] in HELD_OUT else "train"


class Shard:
    """One table: `column(row)` is a picture's bytes. Records of its rows come from the other columns."""

    def __init__(self, path: Path, schema: Any, rows: int, cell: Callable[[str, int], Any]) -> None:
        self.path, self.rows, self.schema, self._cell = path, rows, schema, cell
        self.stamp = f"{path.stat().st_size} {path.stat().st_mtime_ns}"
        self.image = _image_column(path, schema)

    def read(self, row: int) -> bytes:
        try:
            cell = self._cell(self.image, row)
        except _problems() as error:
            raise OSError(_said(error)) from None
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(data, bytes):  # a path in it is not followed: it is a stranger's
            raise OSError("the row holds no bytes of a picture")
        too_large("", len(data))
        return data

    def records(self, columns: Mapping[str, Sequence[Any]], name: str, split: str) -> list[Record]:
        """A record a row, named name[row]; class numbers become the names that the schema gives them."""
        classes = _classes(self.schema)
        found = []
        for row in range(self.rows):
            fields = {key: values[row] for key, values in columns.items()}
            for key, names in classes.items():
                value = fields.get(key)
                if isinstance(value, int) and 0 <= value < len(names):
                    fields[key] = names[value]
            try:
                found.append(record_of({"split": split, **fields}, f"{name}[{row}]", lists=("tags", "colors")))
            except ValueError as error:
                raise UserError(f"{self.path}: row {row} is not usable ({_said(error)}); mend or remove it") from None
        return found


def _said(error: Exception) -> str:
    return " ".join(str(error).split("\n")[:3])[:100]


def _problems() -> tuple[type[Exception], ...]:
    import pyarrow

    return (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError, IndexError, MemoryError, OverflowError)


def _image_column(path: Path, schema: Any) -> str:
    """The column of pictures: bytes, or a struct with bytes; by its name if there are several."""
    import pyarrow as pa

    def bytes_in(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return any(kind.field(i).name == "bytes" and bytes_in(kind.field(i).type) for i in range(kind.num_fields))
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    found = [field.name for field in schema if bytes_in(field.type)]
    if not found:
        raise UserError(
            f"{path}: no column holds pictures (bytes, or a struct with bytes); it has {', '.join(schema.names)[:100]}"
        )
    return next((name for name in IMAGES if name in found), found[0])


def _described(schema: Any, image: str) -> list[str]:
    """The columns that say something of a picture."""
    import pyarrow as pa

    def plain(kind: Any) -> bool:
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            return plain(kind.value_type)
        return any(
            test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_boolean)
        )

    wanted = {*TEXTS, *STYLES, *Record.model_fields} - {"file_name"}
    return [field.name for field in schema if field.name in wanted and field.name != image and plain(field.type)]


def _classes(schema: Any) -> dict[str, list[str]]:
    """Names of classes by column, as Hugging Face writes them into a schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {key: [str(n) for n in value["names"]] for key, value in features.items() if value.get("_type") == "ClassLabel"}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _joined(shards: list[tuple[str, Shard, list[Record]]]) -> Source:
    places = {record.file_name: (shard, row) for _, shard, records in shards for row, record in enumerate(records)}

    def read(name: str) -> bytes:
        shard, row = places[name]
        return shard.read(row)

    return Source(list(places), read, lambda name: places[name][0].stamp, [r for _, _, records in shards for r in records])


def parquet(path: Path) -> Source:
    """Rows of a .parquet or a folder of them; shards named test-... or validation-... are held out."""
    _arrow(path)
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    splits = [_split(file.name) for file in files]
    if "train" not in splits:  # a test set alone is what there is to train on
        splits = ["train"] * len(files)
    shards = []
    for file, split in zip(files, splits, strict=True):
        name = file.name if path.is_file() else file.relative_to(path).as_posix()
        try:
            shard, columns = _parquet_shard(file)
        except _problems() as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{file}: not a readable Parquet file ({_said(error)}); get it again") from None
        shards.append((name, shard, shard.records(columns, name, split)))
    return _joined(shards)


def _parquet_shard(path: Path) -> tuple[Shard, dict[str, list[Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    starts = np.cumsum([0] + [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)])
    kept: dict[int, Any] = {}  # the newest two row groups' pictures
    lock = threading.Lock()

    def cell(column: str, row: int) -> Any:
        group = int(np.searchsorted(starts, row, side="right")) - 1
        with lock:
            if group not in kept:
                if len(kept) > 1:
                    kept.pop(next(iter(kept)))
                batches, total = [], 0
                for batch in file.iter_batches(batch_size=64, row_groups=[group], columns=[column], use_threads=False):
                    total += batch.nbytes
                    if total > LARGEST_GROUP:
                        raise OSError(f"row group {group} has over {LARGEST_GROUP:,} bytes; write it anew with smaller ones")
                    batches.append(batch)
                kept[group] = pa.Table.from_batches(batches).column(0)
            return kept[group][row - int(starts[group])].as_py()

    shard = Shard(path, file.schema_arrow, file.metadata.num_rows, cell)
    table = file.read(columns=_described(file.schema_arrow, shard.image), use_threads=False)
    return shard, table.to_pydict()


def datasets(path: Path) -> Source:
    """A folder of Hugging Face's save_to_disk: one split, or several of which test and validation are held out."""
    pa = _arrow(path)
    parts = sorted(p.parent for p in path.glob("*/state.json")) if (path / "dataset_dict.json").is_file() else [path]
    splits = [_split(part.name) for part in parts]
    if "train" not in splits or len(parts) == 1:
        splits = ["train"] * len(parts)
    shards = []
    for part, split in zip(parts, splits, strict=True):
        for file in _arrow_files(part):
            try:
                with pa.memory_map(str(file)) as mapped:
                    table = pa.ipc.open_stream(mapped).read_all()
                table.validate(full=True)  # an offset out of bounds would end the process, not raise
                shard = Shard(file, table.schema, table.num_rows, _cells(table))
                columns = table.select(_described(table.schema, shard.image)).to_pydict()
            except _problems() as error:
                if isinstance(error, UserError):
                    raise
                raise UserError(f"{file}: not a readable Arrow file ({_said(error)}); save the data set again") from None
            name = file.relative_to(path).as_posix()
            shards.append((name, shard, shard.records(columns, name, split)))
    if not shards:
        raise UserError(f"{path}: a data set without data; save it again with save_to_disk")
    return _joined(shards)


def _cells(table: Any) -> Callable[[str, int], Any]:
    def cell(column: str, row: int) -> Any:
        return table.column(column)[row].as_py()

    return cell


def _arrow_files(part: Path) -> list[Path]:
    try:
        state = json.loads((part / "state.json").read_bytes())
        if state.get("_indices_data_files"):  # written by versions before 2.0: the rows are chosen by a second table
            raise UserError(f"{part}: chooses its rows by a second table; call flatten_indices() and save it again")
        names = [entry["filename"] for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{part / 'state.json'}: not readable ({_said(error)}); save the data set again") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not (part / name).is_file():
            raise UserError(f"{part / 'state.json'}: names {str(name)[:80]!r}, which is not there; save the data set again")
    return [part / name for name in names]


def arrays(path: Path) -> Source:
    """Pictures in .npy or .npz (or a folder of them): uint8, or float in [0, 1] or [-1, 1]; grey, RGB or RGBA.

    (N, H, W), (N, H, W, C) or (N, C, H, W). Texts and classes: other arrays of the .npz, or a .txt beside an .npy with a
    line a picture.
    """
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.suffix.lower() in (".npy", ".npz"))
    places: dict[str, tuple[Callable[[int], np.ndarray], int, str]] = {}
    records = []
    for file in files:
        pictures, texts, labels = _npz(file) if file.suffix.lower() == ".npz" else _npy(file)
        row = _rows_of(file, pictures)
        stamp = f"{file.stat().st_size} {file.stat().st_mtime_ns}"
        for kind, values in (("texts", texts), ("labels", labels)):
            if values is not None and len(values) != len(pictures):
                raise UserError(f"{file}: {len(values)} {kind} for {len(pictures)} pictures; give one for each")
        for i in range(len(pictures)):
            name = f"{file.name}[{i}]"
            fields = {"text": None if texts is None else texts[i], "label": None if labels is None else labels[i]}
            records.append(record_of(fields, name))
            places[name] = (row, i, stamp)
    return Source(list(places), lambda name: places[name][0](places[name][1]), lambda name: places[name][2], records)


def _npy(file: Path) -> tuple[np.ndarray, list[str] | None, None]:
    try:
        pictures = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, MemoryError, OverflowError) as error:
        raise UserError(f"{file}: not a readable array ({_said(error)}); save it with numpy.save, of numbers only") from None
    beside = file.with_suffix(".txt")
    try:
        return pictures, beside.read_text("utf-8-sig").splitlines() if beside.is_file() else None, None
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{beside}: not text in UTF-8; save it again as that") from None


def _npz(file: Path) -> tuple[np.ndarray, list[str] | None, list[str] | None]:
    try:
        archive = zipfile.ZipFile(file)
        names = {n.removesuffix(".npy"): n for n in archive.namelist()}
        chosen = {kind: next((key for key in keys if key in names), None) for kind, keys in ARRAYS.items()}
        if chosen["pictures"] is None:
            raise UserError(f"{file}: no array named {', '.join(ARRAYS['pictures'][:3])}; it has {', '.join(names)[:100]}")
        found = {kind: _member(archive, names[key]) for kind, key in chosen.items() if key is not None}
    except (ValueError, OSError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file}: not readable ({_said(error)}); save it with numpy.savez, no object arrays") from None
    texts, labels = ([_word(v) for v in np.ravel(found[kind])] if kind in found else None for kind in ("texts", "labels"))
    return found["pictures"], texts, labels


def _word(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _member(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array of a .npz; one whose head states another size than it has is refused before that much memory is taken."""
    info = archive.getinfo(name)
    if info.file_size > 1000 * info.compress_size + (1 << 28):  # deflate's limit is 1032: zeros, not pictures
        raise OSError(f"{name} grows to {info.file_size:,} bytes from {info.compress_size:,}")
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        head = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = head(member)
        if int(np.prod([1, *map(int, shape)], dtype=object)) * dtype.itemsize > info.file_size:
            raise OSError(f"{name} is shorter than it says")
    with archive.open(info) as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def _rows_of(file: Path, pictures: np.ndarray) -> Callable[[int], np.ndarray]:
    """A function from a number to a picture (H, W, 4) uint8. Raises UserError where the array is not pictures."""
    shape = pictures.shape
    first = pictures.ndim == 4 and shape[3] not in (1, 3, 4) and shape[1] in (1, 3, 4)
    if pictures.ndim == 3 and shape[2] in (1, 3, 4):
        raise UserError(f"{file}: {shape} looks like one picture; give (N, H, W) or (N, H, W, C)")
    if not (pictures.ndim == 3 or first or (pictures.ndim == 4 and shape[3] in (1, 3, 4))) or 0 in shape:
        raise UserError(f"{file}: pictures of shape {shape}; give (N, H, W), (N, H, W, C) or (N, C, H, W) with C 1, 3 or 4")
    scale, shift = 1.0, 0.0
    if pictures.dtype != np.uint8:
        if pictures.dtype.kind != "f":
            raise UserError(f"{file}: pictures of {pictures.dtype}; give uint8, or float in [0, 1] or [-1, 1]")
        ends = [(float(p.min()), float(p.max())) for p in (pictures[i : i + 64] for i in range(0, len(pictures), 64))]
        low, high = min(a for a, _ in ends), max(b for _, b in ends)
        if not (all(np.isfinite(e).all() for e in ends) and low >= -1 and high <= 1):
            raise UserError(f"{file}: float pictures from {low:g} to {high:g}; give values in [0, 1] or [-1, 1], or uint8")
        scale, shift = (255.0, 0.0) if low >= 0 else (127.5, 127.5)

    def picture(i: int) -> np.ndarray:
        values = np.asarray(pictures[i])
        if values.dtype != np.uint8:
            values = np.rint(values.astype(np.float32) * scale + shift).clip(0, 255).astype(np.uint8)
        values = values.transpose(1, 2, 0) if first else values[..., None] if values.ndim == 2 else values
        alpha = values[..., 3:] if values.shape[2] == 4 else np.full((*values.shape[:2], 1), 255, np.uint8)
        colour = values[..., :3] if values.shape[2] > 1 else np.repeat(values, 3, 2)
        return np.ascontiguousarray(np.concatenate([colour, alpha], 2))

    return picture
