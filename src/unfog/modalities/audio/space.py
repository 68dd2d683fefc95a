"""Model space of sounds: log-mel bands (1, 128, 64) or the samples themselves (1, 16384), and what prompts mean there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unfog.errors import UserError, shown, unknown
from unfog.modalities.audio import codec
from unfog.modalities.audio.data import split_prompt
from unfog.modalities.audio.network import NUMBERS
from unfog.modalities.audio.options import SoundOptions
from unfog.modalities.audio.sound import RATE, SAMPLES, Wave, faded, fitted, note_of, resample
from unfog.modalities.contract import ANY, Cond, Items

MOST = 512  # clips that mean and deviation are measured on
LEAST_STD = 0.05


@dataclass(frozen=True)
class SoundSpace:
    """What one set of sounds has fixed.

    classes: names, in the order of their numbers. pitches: of each class the lowest and highest MIDI number learned, () where it
    has none. mean (128,) and std: of ln bands ((1,) of samples). shift, delay, gain, told: see SoundOptions.
    """

    space: str
    classes: tuple[str, ...]
    pitches: tuple[tuple[int, ...], ...]
    mean: tuple[float, ...]
    std: float
    shift: float = 0.5
    delay: int = 256
    gain: float = 6.0
    told: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        return (1, codec.BANDS, codec.FRAMES) if self.space == "mel" else (1, SAMPLES)

    def card(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def network(self) -> dict[str, Any]:
        return {"channels": 1, "classes": len(self.classes), "text_dim": 0, "augment": NUMBERS}

    def encode(self, raw: Sequence[Any], rngs: Sequence[np.random.Generator] | None = None) -> tuple[Tensor, Cond]:
        """raw: waves (N,) at 16 kHz. With rngs each is played at another speed, later and softer, and cond["told"] (B, 3) says
        how (semitones, share of the longest delay, dB / 20)."""
        waves, told = [], torch.zeros(len(raw), 3)
        for i, wave in enumerate(raw):
            wave = np.asarray(wave, np.float32)
            if rngs is not None:
                wave, told[i] = self._moved(wave, rngs[i])
            waves.append(fitted(wave))
        x = torch.from_numpy(np.stack(waves)) if waves else torch.zeros(0, SAMPLES)
        values = codec.bands(x)[:, None] if self.space == "mel" else x[:, None]
        cond = {"told": told} if self.told else {}
        return (values - self._mean()) / self.std, cond

    def _moved(self, wave: Wave, rng: np.random.Generator) -> tuple[Wave, Tensor]:
        semitones, late, softer = rng.uniform(-self.shift, self.shift), rng.random() ** 2, rng.random() ** 2
        wave = resample(wave, 2 ** (-semitones / 12))
        delay = round(late * self.delay)
        later = np.concatenate([np.zeros(delay, np.float32), faded(wave, 8 if delay else 0, 0)])
        told = torch.tensor([semitones, delay / max(self.delay, 1), softer * self.gain / 20])
        return (later * 10 ** (-softer * self.gain / 20)).astype(np.float32), told

    def ask(self, prompts: Sequence[str | None], seeds: Sequence[int]) -> Cond:
        """cond["class"] (B,), the number of classes where none; cond["pitch"] (B, 2): a MIDI number and 1, or zeros."""
        kinds, notes = [], []
        for prompt, seed in zip(prompts, seeds, strict=True):
            kind, pitch = self._meant(prompt, seed)
            kinds.append(kind)
            notes.append([0.0, 0.0] if pitch is None else [float(pitch), 1.0])
        return {"class": torch.tensor(kinds), "pitch": torch.tensor(notes).reshape(-1, 2)}

    def _meant(self, prompt: str | None, seed: int) -> tuple[int, int | None]:
        if prompt is None or prompt.strip().lower() in ("", ANY):
            return len(self.classes), None
        name, pitch = split_prompt(prompt)
        draw = np.random.default_rng([seed, 77])
        if not name:  # a lone note: of whatever plays it
            assert pitch is not None, "a prompt that names nothing is a note"
            having = [i for i, span in enumerate(self.pitches) if span and span[0] <= pitch <= span[1]]
            if not having:
                raise UserError(f"prompt: nothing that was learned plays {prompt.strip()}; ask for {self._example()}")
            return int(draw.choice(having)), pitch
        kind = self._class(name)
        span = self.pitches[kind]
        if pitch is not None and not span:
            raise UserError(f"prompt: {self.classes[kind]} has no pitch; leave {note_of(pitch)} out")
        if pitch is not None and not span[0] <= pitch <= span[1]:
            told = f"{note_of(span[0])} to {note_of(span[1])}"
            raise UserError(f"prompt: {self.classes[kind]} was learned from {told}; {note_of(pitch)} is none of these")
        if pitch is None and span:
            pitch = int(draw.integers(span[0], span[1] + 1))
        return kind, pitch

    def _class(self, name: str) -> int:
        if name in self.classes:
            return self.classes.index(name)
        words = set(name.split())
        near = [i for i, known in enumerate(self.classes) if words <= set(re.split(r"[ -]", known))]
        if len(near) == 1:  # "piano" of "acoustic grand piano"
            return near[0]
        if near:
            raise UserError(f"prompt: {shown(name)} may be {' or '.join(self.classes[i] for i in near)}; say which")
        raise unknown("prompt", name, self.classes)

    def _example(self) -> str:
        for name, span in zip(self.classes, self.pitches, strict=True):
            if span:
                return f"{name} {note_of((span[0] + span[1]) // 2)}"
        return self.classes[0] if self.classes else ANY

    def decode(self, x0: Tensor, cond: Cond) -> list[Wave]:
        """Waves (16384,) in [−1, 1], on the grid of 16 bits."""
        values = x0.detach().float().cpu() * self.std + self._mean()
        if self.space == "mel":
            waves = torch.cat([codec.wave_of(one[None, 0].clamp(min=float(np.log(codec.FLOOR)))) for one in values])
        else:
            waves = values[:, 0]
        return list(waves.clamp(-1, 32767 / 32768).mul(32768).round().div(32768).numpy())

    def _mean(self) -> Tensor:
        return torch.tensor(self.mean)[:, None]


def fit(items: Items, options: SoundOptions) -> SoundSpace:
    """Classes and pitches of all prompts; mean and deviation of the training clips."""
    asked = [split_prompt(prompt) for prompt in items.prompts]
    classes = tuple(sorted({name for name, _ in asked if name not in ("", ANY)}))
    train = items.split("train") or list(range(len(items)))
    heard = {name: [pitch for kind, pitch in asked if kind == name] for name in classes}
    spans = [[pitch for pitch in heard[name] if pitch is not None] for name in classes]
    pitches = tuple((min(span), max(span)) if span else () for span in spans)
    if options.space == "wave":
        squares = [float(np.square(fitted(items.raw[i])).mean()) for i in train[:MOST]]
        mean, std = (0.0,), float(np.sqrt(np.mean(squares)))
    else:
        chosen = np.random.default_rng(0).permutation(train)[:MOST]
        values = torch.cat([codec.bands(torch.from_numpy(fitted(items.raw[i]))[None]) for i in chosen]).double()
        centre = values.mean((0, 2))
        mean = tuple(round(v, 4) for v in centre.tolist())
        std = float((values - centre[:, None]).square().mean().sqrt())
    std = round(max(std, LEAST_STD if options.space == "mel" else 1e-3), 4)
    return SoundSpace(options.space, classes, pitches, mean, std, options.shift, options.delay, options.gain, options.told)


def space(card: dict[str, Any]) -> SoundSpace:
    """From a model's card. Raises UserError where it is not one."""
    try:
        own = {f.name: card[f.name] for f in fields(SoundSpace)}
        pitches = tuple(tuple(int(p) for p in span) for span in own["pitches"])
        found = SoundSpace(**{**own, "classes": tuple(own["classes"]), "pitches": pitches, "mean": tuple(own["mean"])})
        sizes = {"mel": codec.BANDS, "wave": 1}
        if len(found.mean) != sizes[found.space] or len(pitches) != len(found.classes) or not found.std > 0:
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise UserError("model.json: its space of sounds is damaged; get the model again") from None
    return found


def kept(spec: str) -> NDArray[np.bool_]:
    """ "0-0.4,0.8-1": True for the samples (SAMPLES,) in these seconds. Raises UserError in one line."""
    out, end = np.zeros(SAMPLES, bool), SAMPLES / RATE
    for part in spec.split(","):
        found = re.fullmatch(r"\s*(\d*\.?\d+)\s*-\s*(\d*\.?\d+)?\s*", part)
        if not found:
            raise UserError(f"keep: {shown(part)} is no span of seconds; write such as 0-0.4,0.8-1")
        first, last = float(found[1]), float(found[2] or end)
        if not first < last or first >= end:
            raise UserError(
                f"keep: {shown(part.strip())} holds nothing of a clip of {end:.3f} s; give two seconds in it, the later last"
            )
        out[round(first * RATE) : round(last * RATE)] = True
    if out.all():
        raise UserError("keep: all of the clip; leave open what is to be made")
    return out


def keep(space: SoundSpace, raw: Any, spec: str) -> NDArray[np.bool_]:
    """True in model space where an item stays: samples, or frames of bands whose inner half hears nothing of what is open."""
    samples = kept(spec)
    if space.space == "wave":
        return np.broadcast_to(samples, space.shape).copy()
    reach = codec.WINDOW // 4  # within which a Hann window is above a half
    longer = np.pad(samples, reach, mode="edge")
    centres = np.arange(codec.FRAMES) * codec.HOP + codec.HOP // 2 + reach
    frames = np.array([longer[c - reach : c + reach].all() for c in centres])
    return np.broadcast_to(frames, space.shape).copy()


def paste(space: SoundSpace, made: Any, raw: Any, spec: str) -> Wave:
    """`made` with exactly the samples of `raw` where they were to stay.

    Phases of `made` in the gaps are found anew so that they meet what is kept (unless `made` is that very wave already); what
    step is left at an edge fades out within 8 ms of the open part.
    """
    samples, whole = kept(spec), fitted(np.asarray(raw, np.float32))
    made = fitted(np.asarray(made, np.float32))
    if not samples.any():
        return made
    apart = float(np.sqrt(np.square(made - whole)[samples].mean()))
    if apart > 0.1 * float(np.sqrt(np.square(whole)[samples].mean())) + 1e-4:
        known = torch.from_numpy(np.where(samples, whole, np.nan).astype(np.float32))
        made = codec.griffin_lim(codec.stft(torch.from_numpy(made)[None]).abs(), known)[0].numpy()
    edges = np.flatnonzero(samples[1:] != samples[:-1])
    out = made.copy()
    for edge in edges:
        inside, outside = (edge, edge + 1) if samples[edge] else (edge + 1, edge)
        step = float(whole[inside] - made[inside])
        way, count = (1 if outside > inside else -1), 128
        for k in range(count):
            place = outside + way * k
            if not 0 <= place < SAMPLES or samples[place]:
                break
            out[place] += step * (1 - k / count) ** 2
    out = np.round(np.clip(out, -1, 32767 / 32768) * 32768) / 32768
    return np.where(samples, whole, out).astype(np.float32)
