"""Build the set speech-digits: the ten digits and twenty more words, each spoken several times by one voice.

    python tools/data/speech_digits.py --cache CACHE --out src/unfog/data/speech-digits.zip

The words are cut out of Asterisk's recorded English prompts (Allison Smith; CC BY-SA 3.0) in their 16 kHz form, at the places
where pocketsphinx, which is told each prompt's text, hears them begin and end. Needs apt-get and dpkg-deb (only to fetch the
pinned packages, whose sha256 is checked), unfog[audio], av (its G.722 decoder) and pocketsphinx==5.1.1.
"""

from __future__ import annotations

import gzip
import re
from collections import Counter
from pathlib import Path

import av
import numpy as np
from packages import run
from pocketsphinx import Decoder
from sounds import unpacked, write

from unfog.modalities.audio.sound import PEAK, RATE, SAMPLES, faded

PACKAGES = {
    "asterisk-core-sounds-en-g722": (
        "asterisk-core-sounds-en-g722=1.6.1-1",
        "asterisk-core-sounds-en-g722_1.6.1-1_all.deb",
        "38c5261820b406dcb0ecb37675720da2b0864850690690352ca52707eb623806",
    ),
    "asterisk-core-sounds-en": (
        "asterisk-core-sounds-en=1.6.1-1",
        "asterisk-core-sounds-en_1.6.1-1_all.deb",
        "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50",
    ),
}
SAID = {"0": "zero", "1": "one", "2": "two", "3": "three", "4": "four", "5": "five", "6": "six", "7": "seven", "8": "eight",
        "9": "nine", "*": "star", "#": "pound"}  # fmt: skip
WORDS = [*SAID.values(), "press", "please", "message", "number", "conference", "extension", "call", "volume", "dial", "key",
         "again", "record", "password", "enter", "now", "mute", "menu", "first"]  # fmt: skip
# words that pocketsphinx does not know, in its own sounds
SOUNDS = {
    "unmute": "AH N M Y UW T", "umute": "AH N M Y UW T", "unmuted": "AH N M Y UW T AH D", "pbx": "P IY B IY EH K S",
    "digium": "D IH JH IY AH M", "iax": "AY EY EH K S", "undelete": "AH N D IH L IY T", "rerecord": "R IY R AH K AO R D",
    "touchtone": "T AH CH T OW N", "prepend": "P R IY P EH N D", "prepending": "P R IY P EH N D IH NG",
    "waldo's": "W AO L D OW Z", "forevermore": "F ER EH V ER M AO R",
}  # fmt: skip
HELD_OUT = 0.15
MARGIN = 240  # samples (15 ms) around a word, which are faded
SHORTEST = 0.14  # s
QUALITY = 0.15


def texts(root: Path) -> dict[str, list[str]]:
    """The words of each prompt, by its name."""
    path = root / "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
    out = {}
    for line in gzip.decompress(path.read_bytes()).decode().splitlines():
        if ":" in line and not line.startswith(";"):
            name, text = line.split(":", 1)
            plain = re.sub(r"\[.*?\]|\(.*?\)|<.*?>", " ", text.lower())
            words = [word.strip("'") for word in re.findall(r"[a-z']+|\d|[*#]", plain)]
            out[name.strip()] = [SAID.get(word, word) for word in words if word]
    return out


def read(path: Path) -> np.ndarray:
    """16-bit samples of a G.722 file."""
    with av.open(str(path), format="g722") as container:
        return np.concatenate([frame.to_ndarray().ravel() for frame in container.decode(audio=0)])


def places(decoder: Decoder, words: list[str], wave: np.ndarray) -> list[tuple[str, int, int]]:
    """(word, first sample, last sample) of each word said."""
    decoder.set_align_text(" ".join(words))
    decoder.start_utt()
    decoder.process_raw(wave.astype(np.int16).tobytes(), full_utt=True)
    decoder.end_utt()
    step = RATE // 100
    return [(s.word.split("(")[0], s.start_frame * step, (s.end_frame + 1) * step) for s in decoder.seg() or []]


def cut(wave: np.ndarray, first: int, last: int) -> np.ndarray | None:
    """One word at its peak, faded in and out, without silence around it; None where it is too short or too long for a clip."""
    piece = wave[max(first - MARGIN, 0) : last + MARGIN].astype(np.float32)
    loud = np.flatnonzero(np.abs(piece) > 0.02 * max(np.abs(piece).max(), 1))
    piece = piece[max(loud[0] - MARGIN, 0) : loud[-1] + MARGIN] if len(loud) else piece[:0]
    if not SHORTEST * RATE <= len(piece) <= SAMPLES:
        return None
    return faded(PEAK / np.abs(piece).max() * piece, MARGIN, MARGIN)


def main(cache: Path, out: Path) -> None:
    root = unpacked(cache, PACKAGES)
    folder = root / "usr/share/asterisk/sounds/en_US_f_Allison"
    decoder = Decoder(samprate=RATE, loglevel="FATAL", bestpath=False)
    for word, sounds in SOUNDS.items():
        decoder.add_word(word, sounds, word == list(SOUNDS)[-1])
    takes: dict[str, list[tuple[str, np.ndarray]]] = {word: [] for word in WORDS}
    for name, words in sorted(texts(root).items()):
        path = folder / f"{name}.g722"
        if not path.exists() or not set(words) & set(WORDS) or any(decoder.lookup_word(word) is None for word in words):
            continue
        wave, count = read(path), Counter()
        for word, first, last in places(decoder, words, wave):
            count[word] += 1
            piece = cut(wave, first, last) if word in takes else None
            if piece is not None:
                takes[word].append((f"{name.replace('/', '-')}-{count[word]}", piece))
    rng, items = np.random.default_rng(20260101), []
    for word, said in takes.items():
        held = set(rng.permutation(len(said))[: max(round(HELD_OUT * len(said)), 2)].tolist())
        for i, (name, piece) in enumerate(said):
            items.append(({"file_name": f"{word}/{name}.ogg", "text": word, "class": word, "source": "asterisk-core-sounds-en",
                           "split": "heldout" if i in held else "train"}, piece))  # fmt: skip
    write(out, items, QUALITY)
    print(", ".join(f"{word} {len(said)}" for word, said in takes.items()))


if __name__ == "__main__":
    run(main, __doc__, "src/unfog/data/speech-digits.zip")
