"""`unfog edit`: a picture, a sound, whatever a model makes, changed: parts of it kept, or all made anew from some noise on."""

from __future__ import annotations

import json as json_
from contextlib import closing
from pathlib import Path
from typing import Any

from unfog.cli.options import Count, Flag, Real, Whole
from unfog.errors import UserError


def edit(
    item: Path,
    prompt: str = "",
    /,
    *,
    keep: str | None = None,
    strength: Real | None = None,
    model: str = "emoji-64",
    style: str | None = None,
    negative: str | None = None,
    n: Count = 1,
    seed: Whole | None = None,
    steps: Whole | None = None,
    scale: Real | None = None,
    sampler: str | None = None,
    out: Path = Path("out"),
    json: Flag = False,
) -> None:
    """Change a file of the model's kind and print the path of each result. The file itself stays as it is.

    Try:
      unfog edit cat.png "a dog" --strength 0.5
      unfog edit cat.png "a cat with a hat" --keep mask.png
      unfog edit point.csv ring --model my-points --keep x

    Parameters
    ----------
    item
        The file to change, of the size that the model makes.
    prompt
        What it is to be; without it, anything.
    keep
        What stays as it is, to the bit, in the kind's own words: for pictures a picture of the same size, white where it may
        change; for sound the seconds 0-0.4,0.8-1; see the kind's page.
    strength
        How far back into noise, above 0 to 1: little changes little. Without it, 1 with --keep, 0.6 without.
    model
        The name of a shipped model or a model folder.
    style
        One of the model's styles; without it, any.
    negative
        What to avoid.
    n
        How many are made, with the seeds --seed, --seed + 1, ...
    seed
        The first seed; without it one is drawn.
    steps
        Steps of a whole sampling; less strength takes fewer.
    scale
        How closely to follow the prompt; 1 = no guidance.
    sampler
        How to step.
    out
        The folder for the results.
    json
        Print one JSON object a result: path, seed, prompt, milliseconds.
    """
    import unfog
    from unfog.cli import output
    from unfog.cli.progress import watch
    from unfog.editing import edit as edited
    from unfog.edits import EditRequest
    from unfog.requests import check

    fields: dict[str, Any] = {"item": item, "prompt": prompt, "keep": keep, "strength": strength, "style": style, "n": n,
                              "negative": negative, "seed": seed, "steps": steps, "scale": scale, "sampler": sampler}  # fmt: skip
    request = check(EditRequest, fields).settled()
    output.check_folder(out)
    loaded = unfog.load(model)
    try:
        data = item.read_bytes()
    except OSError as error:
        raise UserError(
            f"{item}: cannot be read ({error.strerror or error}); give a file of the kind {loaded.kind.name}"
        ) from None
    raw, _ = loaded.kind.from_bytes(data, str(item))
    with closing(edited(loaded, raw, request)) as events:
        for result in watch(events, f"{n} of {item.name}"):
            named = result if result.prompt else type(result)(**{**vars(result), "prompt": item.stem})
            path = output.keep(named, out, loaded.kind)
            line = {"path": str(path), "seed": result.seed, "prompt": result.prompt}
            print(json_.dumps({**line, "milliseconds": round(result.milliseconds, 1)}) if json else path, flush=True)
