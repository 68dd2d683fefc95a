"""Clips wherever they lie: a folder or zip of WAV, FLAC, OGG and the like, with or without a metadata.jsonl.

A line of metadata.jsonl: {"file_name": ..., "text": "violin a4", "class": "violin", "pitch": 69, "split": "train"}; all but the
first may be left out. Without it, a file in a folder is asked for by the folder's name, and a note in its own name is its pitch.
What cannot be learned from is left out with a count. Of a sound longer than a clip the first clip is taken.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from unfog.errors import UserError
from unfog.modalities.audio.options import SoundOptions
from unfog.modalities.audio.sound import PEAK, QUIET, RATE, SAMPLES, Wave, faded, note_of, pitch_of, resample, soundfile
from unfog.modalities.contract import ANY, Items

METADATA = "metadata.jsonl"
SUFFIXES = {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf", ".w64"}
LARGEST = 512 * 2**20  # bytes of one file; a larger one is more likely an attack than a clip
FEWEST = 2  # clips


def read_wave(data: bytes, longest: float | None = None) -> Wave:
    """One channel at 16 kHz of a sound file, whole, or `longest` seconds from where it begins to sound.

    Raises ValueError in words where it is none, or holds nothing to hear.
    """
    package = soundfile()
    try:
        with package.SoundFile(io.BytesIO(data)) as file:
            rate = file.samplerate
            if not 1000 <= rate <= 768_000:
                raise ValueError(f"a rate of {rate} Hz")
            wave = file.read(frames=min(file.frames, 600 * rate), dtype="float32", always_2d=True)
    except (package.SoundFileError, RuntimeError, OSError, TypeError, zlib.error) as error:
        raise ValueError("no readable sound file") from error
    if not wave.size:
        raise ValueError("empty")
    if not np.isfinite(wave).all():
        raise ValueError("not all numbers (NaN or infinite)")
    mono = wave.mean(1)
    if longest is not None:
        begin = max(int(np.argmax(np.abs(mono) > 0.02 * np.abs(mono).max())) - round(0.05 * rate), 0)
        mono = mono[begin : begin + round(longest * rate)]
    out = resample(mono, RATE / rate)
    if np.abs(out).max(initial=0) < QUIET:
        raise ValueError("silence")
    return out


def first_clip(wave: Wave) -> Wave:
    """From where it begins to sound, at most one clip of it, at its peak."""
    loud = np.flatnonzero(np.abs(wave) > 0.02 * np.abs(wave).max())
    piece = wave[max(int(loud[0]) - 320, 0) :]
    piece = faded(piece[:SAMPLES], 0, 64) if len(piece) > SAMPLES else piece
    return (piece * (PEAK / max(float(np.abs(piece).max()), QUIET))).astype(np.float32)


def _bytes_of(path: Path) -> bytes:
    if path.stat().st_size > LARGEST:
        raise ValueError("larger than 512 MiB")
    return path.read_bytes()


def _listed(path: Path) -> tuple[dict[str, Callable[[], bytes]], bytes | None]:
    """Sound files by name, each to be read, and the metadata if there are any."""
    if path.is_dir():
        files: dict[str, Callable[[], bytes]] = {
            p.relative_to(path).as_posix(): partial(_bytes_of, p) for p in sorted(path.rglob("*"))
                 if p.is_file() and p.suffix.lower() in SUFFIXES and not p.name.startswith(".")}  # fmt: skip
        told = path / METADATA
        return files, told.read_bytes() if told.is_file() else None
    if path.suffix.lower() in SUFFIXES and path.is_file():
        return {path.name: partial(_bytes_of, path)}, None
    if not path.exists():
        raise UserError(f"{path}: not found; give a folder or .zip of sound files")
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{path}: neither a folder, a .zip nor a sound file ({str(error)[:60]}); give one of these") from None
    names = sorted(i.filename for i in archive.infolist() if Path(i.filename).suffix.lower() in SUFFIXES and i.file_size < LARGEST
                   and "__MACOSX" not in i.filename)  # fmt: skip
    told_of = archive.read(METADATA) if METADATA in archive.namelist() else None
    return {name: partial(archive.read, name) for name in names}, told_of


def _records(path: Path, data: bytes | None) -> dict[str, dict[str, Any]]:
    """metadata.jsonl by file name. Raises UserError naming the line."""
    out: dict[str, dict[str, Any]] = {}
    try:
        lines = (data or b"").decode().splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path}: {METADATA} is no UTF-8 text; save it as such") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            name = record["file_name"]
        except (ValueError, TypeError, KeyError):
            raise UserError(f'{path}: {METADATA} line {number} is no {{"file_name": ...}}; mend or remove it') from None
        pitch = record.get("pitch")
        if not isinstance(name, str) or not (pitch is None or isinstance(pitch, int | float) and 0 <= pitch <= 127):
            raise UserError(f"{path}: {METADATA} line {number}: file_name must be text and pitch a MIDI number of 0 to 127")
        out[name] = record
    return out


def prompt_of(name: str, record: dict[str, Any]) -> str:
    """What asks for a clip: its text; else its class and pitch; else its folder, and the note in its own name."""
    text = record.get("text")
    if isinstance(text, str) and text.strip():
        return " ".join(text.lower().split())
    place = Path(name)
    words = [w for w in place.stem.lower().replace("-", "_").split("_") if pitch_of(w) is not None]
    kind = record.get("class") or place.parent.name.lower().replace("_", " ")
    pitch = record.get("pitch")
    note = note_of(round(pitch)) if pitch is not None else words[-1] if words and kind else ""
    return f"{kind} {note}".strip() or ANY


def open_sounds(path: Path, options: SoundOptions | None) -> Items:
    """The clips there, each at most 1.024 s, one channel at 16 kHz, at its peak.

    Raises UserError where fewer than two can be read.
    """
    options = options or SoundOptions()
    files, told = _listed(path)
    records = _records(path, told)
    if not files:
        raise UserError(f"{path}: no sound files there; put {', '.join(sorted(SUFFIXES)[:6])} ... files there")
    skipped: Counter[str] = Counter()
    raw: list[Wave] = []
    prompts: list[str] = []
    splits: list[str] = []
    names: list[str] = []
    for name, read in files.items():
        record = records.get(name, {})
        prompt = prompt_of(name, record)
        if options.only and split_prompt(prompt)[0] not in options.only:
            continue
        try:
            wave = read_wave(read(), 1.2)
        except (ValueError, OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
            if isinstance(error, UserError):
                raise
            skipped[str(error) if isinstance(error, ValueError) else "no readable file"] += 1
            continue
        raw.append(first_clip(wave))
        prompts.append(prompt)
        splits.append(str(record.get("split") or "train"))
        names.append(name)
    if skipped:
        skipped = Counter(dict(skipped.most_common()))
    if len(raw) < FEWEST:
        why = "; ".join(f"{count} are {reason}" for reason, count in skipped.items()) or "too few of the classes asked for"
        raise UserError(f"{path}: only {len(raw)} of {len(files)} sounds can be used ({why}); add some")
    return Items(path, raw, prompts, splits, names, dict(skipped))


def split_prompt(prompt: str) -> tuple[str, int | None]:
    """ "violin a4" -> ("violin", 69); a lone note -> ("", pitch)."""
    words = prompt.lower().split()
    pitch = pitch_of(words[-1]) if words else None
    return " ".join(words[:-1] if pitch is not None else words), pitch
