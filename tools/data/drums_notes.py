"""Build the set drums-notes: one-second clips of twelve instruments, note by note, and of seven kinds of drums.

    python tools/data/drums_notes.py --cache CACHE --out src/unfog/data/drums-notes.zip

Notes are single keys of a recorded soundfont, played as it says (the sample of that key, its speed, its loop); drums are its
one-shots, those of two free drum kits and of Sonic Pi. Needs apt-get and dpkg-deb (only to fetch the pinned packages, whose
sha256 is checked) and unfog[audio]. Licences: NOTICE; no kit under the GPL is read.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from packages import run
from sounds import unpacked, write

from unfog.modalities.audio.sound import PEAK, RATE, SAMPLES, faded, note_of, resample

PACKAGES = {
    "fluid-soundfont-gm": (
        "fluid-soundfont-gm=3.1-5.3",
        "fluid-soundfont-gm_3.1-5.3_all.deb",
        "6f531493ac4e4d9772fd96b2488ea1790af81c196135fbdd25997da0781fc60e",
    ),
    "hydrogen-drumkits": (
        "hydrogen-drumkits=2017.09.19~dfsg-1",
        "hydrogen-drumkits_2017.09.19~dfsg-1_all.deb",
        "6ea3c6df9a67762e2362f946c695e619859126b19fbccf32a2e8f07dfd03b2f4",
    ),
    "sonic-pi-samples": (
        "sonic-pi-samples=3.2.2~repack-8",
        "sonic-pi-samples_3.2.2~repack-8_all.deb",
        "25f2312d2fae005e6ad0f4726b8ed3084e776006a5a132083506e960224ac79d",
    ),
}
# instrument: its program in General MIDI, its lowest and highest key here
INSTRUMENTS = {
    "acoustic grand piano": (0, 45, 84), "harpsichord": (6, 45, 84), "vibraphone": (11, 53, 84), "marimba": (12, 48, 84),
    "church organ": (19, 45, 84), "nylon guitar": (24, 45, 79), "violin": (40, 55, 84), "cello": (42, 45, 72),
    "trumpet": (56, 54, 82), "alto sax": (65, 49, 80), "clarinet": (71, 50, 84), "flute": (73, 60, 84),
}  # fmt: skip
# drum: keys of the soundfont's kits, instruments of the free kits' drumkit.xml, files of Sonic Pi
DRUMS = {
    "kick": ((35, 36), r"bass drum|^kick", r"bd_.*|drum_heavy_kick|drum_bass_.*|elec_.*_kick"),
    "snare": ((38, 40), r"snare", r"sn_.*|drum_snare_.*|elec_.*snare"),
    "tom": ((41, 43, 45, 47, 48, 50), r"\btom\b", r"drum_tom_.*|elec_fuzz_tom"),
    "hi-hat": ((42, 44, 46), r"hi-hat|\bhh\b", r"drum_cymbal_(closed|open|pedal)"),
    "cymbal": ((49, 51, 52, 53, 55, 57, 59), r"cymbal|crash|ride", r"drum_cymbal_(hard|soft)|drum_splash_.*|elec_cymbal"),
    "conga": ((60, 61, 62, 63, 64, 65, 66), r"conga|bongo", r"-"),
    "tabla": ((), r"tabla", r"tabla_.*"),
}
KITS = ("rumpf_kit_z01_h2", "Audiophob")  # CC BY 3.0 and CC0
HELD_OUT = 0.12
LONGEST = 0.97  # s of a note that is held, the rest is its release
QUALITY = 0.15
KEY_RANGE, LOOPS, KEY, COARSE, FINE, INSTRUMENT, SAMPLE = 43, 54, 58, 51, 52, 41, 53  # generators of the format


@dataclass(frozen=True)
class Sample:
    name: str
    wave: np.ndarray
    rate: int
    root: int
    cents: int
    loop: tuple[int, int]
    link: int  # its other channel
    stereo: bool


class SoundFont:
    """A .sf2 file: samples, and for each preset the zones that say which key plays which. Source: SoundFont 2.04."""

    def __init__(self, path: Path) -> None:
        self.bytes = path.read_bytes()
        self.parts: dict[str, tuple[int, int]] = {}
        for _, place, size in self._chunks(12, len(self.bytes)):
            for name, inner, length in self._chunks(place + 4, place + size):
                self.parts[name] = (inner, length)
        self.samples = self._rows("shdr", "<20sIIIIIBbHH")
        self.presets = self._rows("phdr", "<20sHHHIII")
        self.pcm = np.frombuffer(self.bytes, "<i2", self.parts["smpl"][1] // 2, self.parts["smpl"][0])

    def _chunks(self, place: int, end: int) -> Iterator[tuple[str, int, int]]:
        while place < end:
            size = struct.unpack_from("<I", self.bytes, place + 4)[0]
            yield self.bytes[place : place + 4].decode(), place + 8, size
            place += 8 + size + size % 2

    def _rows(self, name: str, form: str) -> list[tuple]:
        place, size = self.parts[name]
        step = struct.calcsize(form)
        return [struct.unpack_from(form, self.bytes, place + i) for i in range(0, size - step + 1, step)]

    def _zones(self, bags: list[tuple], rows: list[tuple], first: int, last: int, leaf: int) -> Iterator[dict[int, int]]:
        common: dict[int, int] = {}
        for i in range(first, last):
            own = dict(rows[bags[i][0] : bags[i + 1][0]])
            if leaf in own:
                yield {**common, **own}
            elif i == first:
                common = own

    def zones(self, bank: int, program: int) -> list[dict[int, int]]:
        """What the preset's instruments say, zone by zone, with the number of a sample each."""
        pbag, pgen, inst, ibag, igen = (
            self._rows(n, f) for n, f in (("pbag", "<HH"), ("pgen", "<HH"), ("inst", "<20sH"), ("ibag", "<HH"), ("igen", "<HH"))
        )
        found = []
        for row, after in zip(self.presets, self.presets[1:], strict=False):
            if (row[2], row[1]) == (bank, program):
                for zone in self._zones(pbag, pgen, row[3], after[3], INSTRUMENT):
                    number = zone[INSTRUMENT]
                    found += self._zones(ibag, igen, inst[number][1], inst[number + 1][1], SAMPLE)
        return found

    def sample(self, number: int) -> Sample:
        name, first, last, loop, end, rate, root, cents, link, kind = self.samples[number]
        wave = self.pcm[first:last].astype(np.float32) / 32768
        text = name.split(b"\0")[0].decode("latin-1").strip()
        return Sample(text, wave, rate, root, cents, (loop - first, end - first), link, kind in (2, 4))

    def note(self, program: int, key: int) -> np.ndarray | None:
        """The key held for LONGEST seconds, both channels mixed; None where the preset has no such key."""
        channels = {}
        for zone in self.zones(0, program):
            low, high = (zone.get(KEY_RANGE, 0x7F00) & 255, zone.get(KEY_RANGE, 0x7F00) >> 8)
            if low <= key <= high:
                channels.setdefault(zone[SAMPLE], zone)
        waves = [self._played(self.sample(number), zone, key) for number, zone in list(channels.items())[:2]]
        return np.mean(waves, axis=0) if waves else None

    def _played(self, sample: Sample, zone: dict[int, int], key: int) -> np.ndarray:
        def signed(value: int) -> int:
            return value - 65536 if value > 32767 else value

        shift = key - zone.get(KEY, sample.root) + signed(zone.get(COARSE, 0))
        speed = 2 ** ((shift + (signed(zone.get(FINE, 0)) + sample.cents) / 100) / 12) * sample.rate / RATE
        wave, (begin, end) = sample.wave, sample.loop
        needed = int(SAMPLES * speed) + 2
        if zone.get(LOOPS, 0) & 1 and end > begin + 8 and needed > end:
            turns = -(-(needed - end) // (end - begin))
            wave = np.concatenate([wave[:end], *[wave[begin:end]] * turns])
        wave = resample(wave[:needed], 1 / speed)[:SAMPLES]
        held = int(LONGEST * RATE)
        if len(wave) > held:
            wave = faded(wave, 0, len(wave) - held)
        return np.concatenate([wave, np.zeros(SAMPLES - len(wave), np.float32)])


def ended(wave: np.ndarray) -> np.ndarray:
    """At its peak, without the silence before and behind, faded out, at most one clip long."""
    loud = np.flatnonzero(np.abs(wave) > 1e-3 * np.abs(wave).max())
    wave = wave[max(loud[0] - 32, 0) : loud[-1] + 1][:SAMPLES]
    return faded(PEAK / np.abs(wave).max() * wave, 8, min(len(wave) // 8, 800)).astype(np.float32)


def notes(font: SoundFont) -> Iterator[tuple[dict, np.ndarray]]:
    for instrument, (program, low, high) in INSTRUMENTS.items():
        for key in range(low, high + 1):
            wave = font.note(program, key)
            if wave is not None:
                name = instrument.replace(" ", "-")
                yield {"file_name": f"{name}/{note_of(key).replace('#', 's')}.ogg", "text": f"{instrument} {note_of(key)}",
                       "class": instrument, "pitch": key, "source": "fluid", "group": f"{name}-{key}"}, ended(wave)  # fmt: skip


def drums_of_font(font: SoundFont) -> Iterator[tuple[str, str, np.ndarray]]:
    """(drum, sample's name, wave) of all kits, each sample once; the two channels of one are two clips."""
    seen = set()
    programs = sorted(row[1] for row in font.presets if row[2] == 128)
    for drum, (keys, _, _) in DRUMS.items():
        for program in programs:
            for zone in font.zones(128, program):
                sample = font.sample(zone[SAMPLE])
                if zone.get(KEY_RANGE, 0) & 255 in keys and sample.name not in seen:
                    seen.add(sample.name)
                    yield drum, sample.name, resample(sample.wave[: 2 * sample.rate], RATE / sample.rate)


def read(path: Path) -> np.ndarray:
    wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return resample(wave.mean(1)[: 2 * rate], RATE / rate)


def drums(font: SoundFont, root: Path) -> Iterator[tuple[dict, np.ndarray]]:
    found: list[tuple[str, str, str, np.ndarray]] = [("fluid", *row) for row in drums_of_font(font)]
    for kit in KITS:
        folder = root / "usr/share/hydrogen/data/drumkits" / kit
        text = (folder / "drumkit.xml").read_text(errors="replace")
        for part in re.findall(r"<instrument>.*?</instrument>", text, re.S):
            name, file = (re.search(f"<{tag}>(.*?)</{tag}>", part) for tag in ("name", "filename"))
            for drum, (_, pattern, _) in DRUMS.items():
                if name and file and re.search(pattern, name[1], re.I):
                    found.append((kit, drum, Path(file[1]).stem, read(folder / file[1])))
                    break
    for path in sorted(root.rglob("sonic-pi/samples/*.flac")):
        for drum, (_, _, pattern) in DRUMS.items():
            if re.fullmatch(pattern, path.stem):
                found.append(("sonic-pi", drum, path.stem, read(path)))
    for source, drum, name, wave in found:
        clean = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        group = re.sub(r"-[lr]$", "", clean)
        yield {"file_name": f"{drum}/{source}-{clean}.ogg", "text": drum, "class": drum, "source": source,
               "group": f"{source}-{group}"}, ended(wave)  # fmt: skip


def main(cache: Path, out: Path) -> None:
    root = unpacked(cache, PACKAGES)
    font = SoundFont(root / "usr/share/sounds/sf2/FluidR3_GM.sf2")
    items = [*notes(font), *drums(font, root)]
    rng = np.random.default_rng(20260101)
    for kind in [*INSTRUMENTS, *DRUMS]:  # of each, some groups: what was recorded together stays together
        groups = sorted({record["group"] for record, _ in items if record["class"] == kind})
        held = set(rng.permutation(groups)[: max(round(HELD_OUT * len(groups)), 2)].tolist())
        for record, _ in items:
            if record["class"] == kind:
                record["split"] = "heldout" if record["group"] in held else "train"
    for record, _ in items:
        del record["group"]
    write(out, items, QUALITY)
    for kind in [*INSTRUMENTS, *DRUMS]:
        of_kind = [record["split"] for record, _ in items if record["class"] == kind]
        print(f"{kind}: {of_kind.count('train')} + {of_kind.count('heldout')}")


if __name__ == "__main__":
    run(main, __doc__, "src/unfog/data/drums-notes.zip")
