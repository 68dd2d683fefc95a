"""Pictures that are no copies: each is held against the model's training pictures, and made again from other noise if asked.

    seed of try k = the first 62 bits of sha256("seed k"): of the picture alone, so any batch or shard resamples alike

A picture made again is made alone, and its recipe says of which seed it is the k-th try.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from unfog.errors import UserError
from unfog.evaluation.memory import Memory, Neighbour, data_of, memory
from unfog.requests import GenerateRequest, Progress, Result

TRIES = 4  # a copy comes again mostly where the prompt asks for what the training data shows in one way only


@dataclass(frozen=True)
class Checked:
    """A finished picture, what it copies (None: nothing), and what earlier tries of it copied."""

    result: Result
    near: Neighbour | None
    before: tuple[tuple[Result, Neighbour], ...] = ()


def seed_of(seed: int, k: int) -> int:
    """The seed of the k-th try, from 1, of a picture."""
    return int.from_bytes(hashlib.sha256(f"{seed} {k}".encode()).digest()[:8], "big") >> 2


def stream(model: Any, request: GenerateRequest, known: Memory | None = None) -> Iterator[Progress | Checked]:
    """Progress and checked pictures of a request, in order.

    Args: model, `unfog.model.Model`; request, with `novel` "warn" or "resample" and perhaps `against` and `tries`; known, what
        `memory` gave for its data, where it is at hand.
    Raises: UserError where the training data is not there, and what `Model.stream` raises.
    """
    if request.novel is None:
        raise UserError("novel: is not set; give warn or resample")
    known = known or memory(data_of(model, request.against))
    tries = (request.tries or TRIES) if request.novel == "resample" else 0
    plain = request.settled().model_copy(update={"novel": None, "against": None, "tries": None})
    for event in model.stream(plain):
        if isinstance(event, Progress):
            yield event
            continue
        first, before = event, []
        near = known.near([event.image])[0]
        for k in range(1, tries + 1):
            if near is None:
                break
            before.append((event, near))
            event = _again(model, plain, first, k, event.milliseconds)
            near = known.near([event.image])[0]
        yield Checked(event, near, tuple(before))


def _again(model: Any, request: GenerateRequest, first: Result, k: int, spent: float) -> Result:
    """The k-th try of a picture on which so many milliseconds are spent."""
    seed = seed_of(first.seed, k)
    alone = request.model_copy(update={"prompts": [first.prompt], "n": 1, "seed": seed, "batch": 1, "shard": None})
    made = next(event for event in model.stream(alone) if isinstance(event, Result))
    recipe = {**made.recipe, "novel": {"seed": first.seed, "try": k}}
    return replace(made, index=first.index, milliseconds=spent + made.milliseconds, recipe=recipe)


def generate(model: Any, prompt: str, *, known: Memory | None = None, **fields: Any) -> list[Checked]:
    """Checked pictures of a prompt; fields are those of GenerateRequest (novel "warn" unless said)."""
    from unfog.requests import check

    request = check(GenerateRequest, {"prompts": [prompt], "novel": "warn", **fields})
    return [event for event in stream(model, request, known) if isinstance(event, Checked)]
