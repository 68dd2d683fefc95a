"""Sounds as files and as pictures: WAV files that carry their own recipe; waveforms above spectrograms on one sheet.

A WAV file's bytes depend on the samples and the recipe alone. The recipe is sorted JSON in the comment of its INFO list. Source:
Multimedia Programming Interface and Data Specifications 1.0 (IBM and Microsoft 1991), chapters 2 and 3.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from unfog.errors import UserError
from unfog.modalities.audio import codec
from unfog.modalities.audio.sound import QUIET, RATE, SAMPLES, Wave, fitted

LONGEST_RECIPE = 100_000  # characters
WIDTH, WAVE_HEIGHT, BAND_HEIGHT = 256, 48, 128  # pixels of one item
MARGIN, LINE = 8, 15
PAPER, INK, LINE_COLOUR = (255, 255, 255), (40, 40, 40), (34, 94, 168)
# dark to bright, each of even steps in lightness
COLOURS = ((13, 12, 38), (66, 22, 98), (130, 38, 108), (192, 60, 89), (237, 108, 54), (251, 178, 64), (252, 244, 170))
RANGE = 5.5  # ln of bands from the darkest to the brightest


def to_bytes(raw: Any, recipe: Mapping[str, Any] | None = None) -> bytes:
    """A WAV file at 16 kHz: 16 bits a sample where these say all, else 24."""
    wave = np.asarray(raw, np.float64)
    if not np.isfinite(wave).all():
        raise UserError("sound: NaN or infinite samples cannot be written; make it again")
    coarse = np.clip(np.round(wave * 32768), -32768, 32767)
    if np.abs(coarse / 32768 - np.clip(wave, -1, 1)).max(initial=0) < 2**-24:
        width, data = 2, coarse.astype("<i2").tobytes()
    else:
        fine = np.clip(np.round(wave * 2**23), -(2**23), 2**23 - 1).astype("<i4")
        width, data = 3, fine.view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    form = struct.pack("<HHIIHH", 1, 1, RATE, RATE * width, width, 8 * width)
    parts = _part(b"fmt ", form)
    if recipe is not None:
        text = json.dumps(recipe, sort_keys=True, ensure_ascii=False, allow_nan=False).encode() + b"\0"
        parts += _part(b"LIST", b"INFO" + _part(b"ICMT", text))
    return _part(b"RIFF", b"WAVE" + parts + _part(b"data", data))


def _part(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def from_bytes(data: bytes, name: str) -> tuple[Wave, dict[str, Any]]:
    """The sound of any readable file, whole, one channel at 16 kHz, and the recipe that a file of unfog's carries ({} without).

    Raises UserError naming the file where it cannot be read or holds nothing to hear.
    """
    from unfog.modalities.audio.data import read_wave

    try:
        wave = _plain(data)
        return read_wave(data) if wave is None else wave, _recipe(data)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    except ValueError as error:
        raise UserError(f"{name}: {error}; give a WAV, FLAC or OGG file of a sound") from None


def _chunks(data: bytes) -> dict[bytes, bytes]:
    """The chunks of a RIFF file by name; {} where it is none or is cut off."""
    found: dict[bytes, bytes] = {}
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return found
    place = 12
    while place + 8 <= len(data):
        size = int.from_bytes(data[place + 4 : place + 8], "little")
        if place + 8 + size > len(data):
            return {}
        found.setdefault(data[place : place + 4], data[place + 8 : place + 8 + size])
        place += 8 + size + size % 2
    return found


def _plain(data: bytes) -> Wave | None:
    """What `to_bytes` wrote, without any package; None where it is another kind of file."""
    parts = _chunks(data)
    if len(parts.get(b"fmt ", b"")) != 16 or b"data" not in parts:
        return None
    kind, channels, rate, _, _, bits = struct.unpack("<HHIIHH", parts[b"fmt "])
    if (kind, channels, rate) != (1, 1, RATE) or bits not in (16, 24) or len(parts[b"data"]) % (bits // 8):
        return None
    if bits == 16:
        wave = (np.frombuffer(parts[b"data"], "<i2") / 32768).astype(np.float32)
    else:
        three = np.frombuffer(parts[b"data"], np.uint8).reshape(-1, 3)
        four = np.concatenate([np.zeros((len(three), 1), np.uint8), three], 1)
        wave = (np.ascontiguousarray(four).view("<i4")[:, 0] / 2**31).astype(np.float32)
    if np.abs(wave).max(initial=0) < QUIET:
        raise ValueError("silence" if len(wave) else "empty")
    return wave


def _recipe(data: bytes) -> dict[str, Any]:
    info = _chunks(data).get(b"LIST", b"")
    if info[:4] != b"INFO" or info[4:8] != b"ICMT":
        return {}
    text = info[12 : 12 + int.from_bytes(info[8:12], "little")].rstrip(b"\0")
    try:
        recipe = json.loads(text.decode()) if len(text) <= LONGEST_RECIPE else {}
    except (ValueError, RecursionError):
        return {}
    return recipe if isinstance(recipe, dict) else {}


def _coloured(values: np.ndarray) -> np.ndarray:
    """(H, W) in [0, 1] -> (H, W, 3) uint8."""
    at = np.clip(values, 0, 1) * (len(COLOURS) - 1)
    low = np.minimum(at.astype(int), len(COLOURS) - 2)
    table = np.array(COLOURS, float)
    return np.round(table[low] + (at - low)[..., None] * (table[low + 1] - table[low])).astype(np.uint8)


def picture(wave: Wave) -> Image.Image:
    """One clip (RGB): its waveform, and below it its mel spectrogram, low at the bottom."""
    clip = fitted(np.asarray(wave, np.float32))
    out = Image.new("RGB", (WIDTH, WAVE_HEIGHT + BAND_HEIGHT), PAPER)
    draw = ImageDraw.Draw(out)
    middle = WAVE_HEIGHT // 2
    draw.line((0, middle, WIDTH, middle), fill=(225, 225, 225))
    for x, part in enumerate(clip.reshape(WIDTH, SAMPLES // WIDTH)):
        top, bottom = (round(middle - v * (middle - 2)) for v in (float(part.max()), float(part.min())))
        draw.line((x, top, x, bottom), fill=LINE_COLOUR)
    values = codec.bands(torch.from_numpy(clip)[None])[0].numpy()[::-1]
    low = math.log(codec.FLOOR)
    colours = Image.fromarray(_coloured((values - low) / (max(float(values.max()), low + RANGE) - low)))
    out.paste(colours.resize((WIDTH, BAND_HEIGHT), Image.Resampling.BILINEAR), (0, WAVE_HEIGHT))
    return out


def render(raw: Sequence[Any], labels: Sequence[str]) -> Image.Image:
    """All clips on one sheet (RGB), row by row, each with its label below. Raises UserError where there are none."""
    if not len(raw):
        raise UserError("sheet: there are no sounds; give at least one")
    columns = min(max(math.ceil(math.sqrt(len(raw))), 1), 8)
    rows = math.ceil(len(raw) / columns)
    cell = (WIDTH + MARGIN, WAVE_HEIGHT + BAND_HEIGHT + LINE + MARGIN)
    sheet = Image.new("RGB", (columns * cell[0] + MARGIN, rows * cell[1] + MARGIN), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for i, wave in enumerate(raw):
        x, y = MARGIN + i % columns * cell[0], MARGIN + i // columns * cell[1]
        sheet.paste(picture(wave), (x, y))
        label = " ".join(str(labels[i]).split())[:40] if i < len(labels) else ""
        draw.text((x, y + WAVE_HEIGHT + BAND_HEIGHT + 1), label, fill=INK, font=font)
    return sheet
