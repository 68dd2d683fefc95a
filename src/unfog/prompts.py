r"""The prompt language, read in linear time: words that weigh more or less, that come and go, and parts that are combined.

    (word:1.3)  (word) = 1.1  [word] = 1/1.1    weights; nested ones multiply, and the product ends at 10
    [from:to:0.4]  [word:0.4]  [word::0.4]      from one to the other, added, removed: at a share of the sampling, or a step > 1
    [a|b|c]                                     another one each step
    red cat::2 blue dog::1                      parts with weights; what follows the last number has weight 1
    \( \) \[ \] \: \| \\                        the character itself

Brackets without a partner and empty ones, single colons outside of brackets, bars outside of square ones and other backslashes
are text. One pass finds partners, one what each pair means, so 100,000 nested brackets are read like any other text.
docs/prompts.md is the page. The signs are those that people know from other programs; the reading is our own.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import NamedTuple

from unfog.errors import UserError, shown

LANGUAGE = 1  # its version, which recipes of prompts that use it carry
UP, DOWN = 1.1, 1 / 1.1  # (word) and [word]
MOST = 10.0  # a weight, written or multiplied
STEPS = 20  # of a sampling that is not said to have another number
NUMBER = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*")
LONGEST_NUMBER = 24  # characters: what is longer is text, and need not be looked at
SIGN = re.compile(r"\\[\\()\[\]:|]|[()\[\]:|]")
PARTNER = {")": "(", "]": "["}
AFTER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?=\s|$)")  # a part's weight, right behind its ::


class Fragment(NamedTuple):
    """Text that weighs `weight` times what it does plainly."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True)
class Arm:
    """What holds between a pair of signs: weight; from `begin` to before `end` (a share up to 1, above that a step); in turn
    `turn` of `turns` steps."""

    weight: float = 1.0
    begin: float = 0.0
    end: float = math.inf
    turn: int = 0
    turns: int = 1

    def holds(self, progress: float, step: int) -> bool:
        def reached(when: float) -> bool:
            return progress >= when - 1e-9 if when <= 1.0 else step >= when

        return reached(self.begin) and not (math.isfinite(self.end) and reached(self.end)) and step % self.turns == self.turn

    @property
    def lasts(self) -> bool:
        return self.begin == 0.0 and self.end == math.inf and self.turns == 1


@dataclass(frozen=True)
class Part:
    """One piece between `::`. ops: text, an Arm where one begins, None where the latest ends."""

    ops: tuple[str | Arm | None, ...]
    weight: float = 1.0

    @property
    def changes(self) -> bool:
        """Whether what holds depends on the progress."""
        return any(isinstance(op, Arm) and not op.lasts for op in self.ops)

    def at(self, progress: float, steps: int = STEPS) -> tuple[Fragment, ...]:
        """What holds at a share in [0, 1] of a sampling of `steps` steps, neighbours of one weight joined, without empty ones."""
        step = int(progress * steps + 1e-6)
        found: list[tuple[float, list[str]]] = []
        open_: list[tuple[float, bool]] = [(1.0, True)]
        for op in self.ops:
            weight, alive = open_[-1]
            if isinstance(op, Arm):
                open_.append((min(weight * op.weight, MOST), alive and op.holds(progress, step)))
            elif op is None:
                open_.pop()
            elif alive and op:
                if found and found[-1][0] == weight:
                    found[-1][1].append(op)
                else:
                    found.append((weight, [op]))
        return tuple(Fragment("".join(texts), weight) for weight, texts in found)


@dataclass(frozen=True)
class Prompt:
    """source: as it was given. parts: at least one; their weights' sum is above 0."""

    source: str
    parts: tuple[Part, ...]

    @property
    def plain(self) -> bool:
        """Whether it is text and no more, so that it means what it meant before there was a language."""
        return len(self.parts) == 1 and self.parts[0].ops in ((self.source,), ())

    @property
    def changes(self) -> bool:
        return any(part.changes for part in self.parts)

    @property
    def shares(self) -> tuple[float, ...]:
        """The parts' weights, with a sum of 1."""
        whole = sum(part.weight for part in self.parts)
        return tuple(part.weight / whole for part in self.parts)

    def at(self, progress: float, steps: int = STEPS) -> tuple[tuple[Fragment, ...], ...]:
        """What holds of each part."""
        return tuple(part.at(progress, steps) for part in self.parts)


def escape(text: str) -> str:
    r"""The prompt that means exactly this text: a backslash before what would be a sign. Text without signs stays as it is."""
    return re.sub(r"[\\()\[\]|]|(?<=:):", r"\\\g<0>", text)


def plain(text: str) -> Prompt:
    """The prompt that is this text, signs and all."""
    return Prompt(text, (Part((text,) if text else ()),))


def parse(text: str) -> Prompt:
    """A prompt read. Time and memory are linear in its length.

    Raises UserError, one line, for a weight out of range, a time that is neither share nor step, `[a:b:c:0.5]` (which colon is
    text?), an empty part, and parts whose weights do not sum to more than 0.
    """
    signs = [(found.start(), found.group()) for found in SIGN.finditer(text)]
    if not signs:
        return plain(text)
    return Prompt(text, _parts(text, signs, _meanings(text, signs, _partners(signs))))


def _partners(signs: list[tuple[int, str]]) -> dict[int, int]:
    """Of each bracket that has a partner, which sign that is. One that closes takes the nearest that it can; those in between
    are left alone."""
    partners: dict[int, int] = {}
    waiting: list[int] = []
    count = {"(": 0, "[": 0}
    for i, (_, sign) in enumerate(signs):
        if sign in count:
            waiting.append(i)
            count[sign] += 1
        elif sign in PARTNER and count[PARTNER[sign]]:
            while True:
                last = waiting.pop()
                count[signs[last][1]] -= 1
                if signs[last][1] == PARTNER[sign]:
                    break
            partners[last], partners[i] = i, last
    return partners


class _Sign(NamedTuple):
    """What a sign does: ops, after which reading goes on at `resume`; a part ends there, with this weight, where it has one."""

    ops: tuple[str | Arm | None, ...]
    resume: int
    weight: float | None = None


def _meanings(text: str, signs: list[tuple[int, str]], partners: dict[int, int]) -> dict[int, _Sign]:
    """What the signs do that are not text."""
    found: dict[int, _Sign] = {}
    inside: list[tuple[int, list[int], list[int]]] = []  # open pairs: the sign, its own colons, its own bars
    skipped = -1
    for i, (place, sign) in enumerate(signs):
        if sign[0] == "\\":
            found[i] = _Sign((sign[1],), place + 2)
        elif i in partners and partners[i] > i:
            inside.append((i, [], []))
        elif i in partners:
            first, colons, bars = inside.pop()
            pair = _round if sign == ")" else _square
            pair(text, signs, first, i, colons, bars, found)
        elif sign == ":" and inside:
            inside[-1][1].append(i)
        elif sign == "|" and inside and signs[inside[-1][0]][1] == "[":
            inside[-1][2].append(i)
        elif sign == ":" and i != skipped and i + 1 < len(signs) and signs[i + 1] == (place + 1, ":"):
            number = AFTER.match(text[place + 2 : place + 3 + LONGEST_NUMBER])
            whole = number is not None and len(number.group()) <= LONGEST_NUMBER
            weight, behind = (float(number.group()), number.end()) if number is not None and whole else (1.0, 0)
            found[i] = _Sign((), place + 2 + behind, weight)
            skipped = i + 1
    return found


def _number(text: str, first: int, last: int) -> float | None:
    """The number that stands alone between two places."""
    if last - first > LONGEST_NUMBER:
        return None
    found = NUMBER.fullmatch(text, first, last)
    return float(found.group(1)) if found else None


def _hollow(text: str, signs: list[tuple[int, str]], first: int, last: int) -> bool:
    return last == first + 1 and not text[signs[first][0] + 1 : signs[last][0]].strip()


def _round(text: str, signs: list[tuple[int, str]], first: int, last: int, colons: list[int], bars: list[int],
           found: dict[int, _Sign]) -> None:  # fmt: skip
    """(text) and (text:weight)."""
    start, end = signs[first][0], signs[last][0]
    if _hollow(text, signs, first, last):
        return
    weight = _number(text, signs[colons[-1]][0] + 1, end) if colons and colons[-1] == last - 1 else None
    if weight is not None and not 0.0 <= weight <= MOST:
        raise UserError(f"prompt: the weight {weight:g} of {shown(text[start : end + 1])} is not from 0 to {MOST:g}; "
                        "to avoid something give a negative prompt")  # fmt: skip
    found[first] = _Sign((Arm(UP if weight is None else weight),), start + 1)
    found[last] = _Sign((None,), end + 1)
    if weight is not None:  # the number is passed over
        found[colons[-1]] = _Sign((), end)


def _square(text: str, signs: list[tuple[int, str]], first: int, last: int, colons: list[int], bars: list[int],
            found: dict[int, _Sign]) -> None:  # fmt: skip
    """[text], [a|b], [from:to:when], [text:when] and [text::when]."""
    start, end = signs[first][0], signs[last][0]
    if _hollow(text, signs, first, last):
        return
    arms, between, closing = [Arm(DOWN)], [], last
    when = _number(text, signs[colons[-1]][0] + 1, end) if colons and colons[-1] == last - 1 and not bars else None
    if bars:
        arms, between = [Arm(turn=k, turns=len(bars) + 1) for k in range(len(bars) + 1)], bars
    elif when is not None:
        if when < 0.0 or (when > 1.0 and when % 1.0):
            raise UserError(f"prompt: {when:g} in {shown(text[start : end + 1])} is no time; give a share from 0 to 1 or a "
                            "step, a whole number above 1")  # fmt: skip
        if len(colons) > 3 or (len(colons) == 3 and signs[colons[1]][0] != signs[colons[2]][0] - 1):
            raise UserError(f"prompt: {shown(text[start : end + 1])} has {len(colons)} colons; write [from:to:when], and \\: for "
                            "a colon that is text")  # fmt: skip
        closing, between = colons[-1], colons[-2:-1]
        arms = [Arm(end=when), Arm(begin=when)] if between else [Arm(begin=when)]
    found[first] = _Sign((arms[0],), start + 1)
    for arm, i in zip(arms[1:], between, strict=True):
        found[i] = _Sign((None, arm), signs[i][0] + 1)
    if closing != last:
        found[closing] = _Sign((), end)
    found[last] = _Sign((None,), end + 1)


def _parts(text: str, signs: list[tuple[int, str]], meanings: dict[int, _Sign]) -> tuple[Part, ...]:
    parts: list[Part] = []
    ops: list[str | Arm | None] = []
    place = 0

    def close(weight: float) -> None:
        texts = [i for i, op in enumerate(ops) if isinstance(op, str)]
        if not any(str(ops[i]).strip() for i in texts):
            raise UserError(f"prompt: part {len(parts) + 1} is empty; write words before ::, or \\:: for text")
        if parts or weight_seen:  # spaces around :: belong to neither part
            ops[texts[0]] = str(ops[texts[0]]).lstrip()
            ops[texts[-1]] = str(ops[texts[-1]]).rstrip()
        parts.append(Part(tuple(ops), weight))
        ops.clear()

    weight_seen = False
    for i in range(len(signs)):
        meaning = meanings.get(i)
        if meaning is None:
            continue
        if signs[i][0] > place:
            ops.append(text[place : signs[i][0]])
        ops.extend(meaning.ops)
        place = meaning.resume
        if meaning.weight is not None:
            weight_seen = True
            close(meaning.weight)
    if place < len(text):
        ops.append(text[place:])
    if not weight_seen:
        return (Part(tuple(ops)),)
    if any(isinstance(op, str) and op.strip() for op in ops):
        close(1.0)
    whole = sum(part.weight for part in parts)
    if not whole > 0.0 or max(abs(part.weight) for part in parts) > MOST * whole:
        raise UserError(f"prompt: the parts' weights {', '.join(f'{p.weight:g}' for p in parts[:8])} sum to {whole:g}; give ones "
                        "that sum to more than 0, and to a tenth of the largest")  # fmt: skip
    return tuple(parts)
