"""Sound as numbers: one channel at 16 kHz in [−1, 1]; reading it in, changing its rate, naming its pitch."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from unfog.errors import UserError

RATE = 16_000  # Hz
SAMPLES = 16_384  # of one clip: 1.024 s
PEAK = 0.9  # of a clip that is learned from
QUIET = 1e-3  # a peak below this (−60 dB) is silence
FADE = 64  # samples (4 ms): what is cut out begins and ends at 0
NOTES = ("c", "c#", "d", "d#", "e", "f", "f#", "g", "g#", "a", "a#", "b")
FLATS = {"db": "c#", "eb": "d#", "gb": "f#", "ab": "g#", "bb": "a#"}
Wave = NDArray[np.float32]


def resample(wave: NDArray[np.floating], factor: float) -> Wave:
    """A wave (N,) at `factor` times its rate: (round(N·factor),), by cutting or widening its spectrum.

    The last 3 % below the lower of both bands' ends are faded out. Zeros are put around it, as a spectrum is of something that
    goes round.
    """
    if factor == 1 or not len(wave):
        return wave.astype(np.float32)
    pad = 256
    longer = np.concatenate([np.zeros(pad), wave, np.zeros(pad)])
    target = max(round(len(longer) * factor), 2)
    spectrum = np.fft.rfft(longer)
    kept = np.zeros(target // 2 + 1, complex)
    shared = min(len(spectrum), len(kept))
    kept[:shared] = spectrum[:shared]
    if factor < 1:
        place = np.linspace(0, 1, shared)
        kept[:shared] *= np.cos(np.clip((place - 0.97) / 0.03, 0, 1) * np.pi / 2) ** 2
    out = np.fft.irfft(kept, target) * (target / len(longer))
    first = round(pad * target / len(longer))
    return out[first : first + max(round(len(wave) * factor), 1)].astype(np.float32)


def faded(wave: Wave, begin: int = FADE, end: int = FADE) -> Wave:
    """The wave with its first and last samples brought in from 0 and out to 0."""
    out = wave.copy()
    begin, end = min(begin, len(out)), min(end, len(out))
    out[:begin] *= np.linspace(0, 1, begin, endpoint=False, dtype=np.float32)
    out[len(out) - end :] *= np.linspace(1, 0, end, dtype=np.float32)
    return out


def fitted(wave: Wave, samples: int = SAMPLES) -> Wave:
    """Exactly `samples` of it: zeros put behind, or cut off with a fade."""
    if len(wave) > samples:
        return faded(wave[:samples], 0, FADE)
    return np.concatenate([wave, np.zeros(samples - len(wave), np.float32)]).astype(np.float32)


def hertz(pitch: float) -> float:
    """Of a MIDI number: 69 is a4, 440 Hz."""
    return float(440.0 * 2.0 ** ((pitch - 69) / 12))


def midi(frequency: NDArray[np.floating] | float) -> NDArray[np.floating]:
    """The (broken) MIDI number of a frequency in Hz."""
    return 69 + 12 * np.log2(np.asarray(frequency, float) / 440.0)


def note_of(pitch: int) -> str:
    """60 -> "c4"."""
    return f"{NOTES[pitch % 12]}{pitch // 12 - 1}"


def pitch_of(word: str) -> int | None:
    """ "c4" -> 60, "bb3" -> 58; None where the word is no note."""
    found = re.fullmatch(r"([a-g](?:#|b)?)(-?\d{1,2})", word.lower())
    if not found:
        return None
    name = FLATS.get(found[1], found[1])
    return 12 * (int(found[2]) + 1) + NOTES.index(name) if name in NOTES else None


def soundfile():
    """The package that reads and writes sound files. Raises UserError naming the extra where it is missing."""
    try:
        import soundfile
    except (ImportError, OSError):  # the latter where its library is missing
        raise UserError("sound: reading and writing needs soundfile; pip install 'unfog[audio]'") from None
    return soundfile
