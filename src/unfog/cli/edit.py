"""`unfog edit`: a picture, a sound, whatever a model makes, changed: parts of it kept, reworded, varied, led towards another."""

from __future__ import annotations

import json as json_
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from unfog.cli.options import Count, Flag, Real, Repeated, Whole, named_values
from unfog.errors import UserError


def edit(
    item: Path,
    prompt: str = "",
    /,
    *,
    mask: str | None = None,
    keep: str | None = None,
    strength: Real | None = None,
    canvas: str | None = None,
    tile: Flag = False,
    original: Annotated[str | None, Parameter(name="--from")] = None,
    variations: Real | None = None,
    towards: Path | None = None,
    towards_prompt: str | None = None,
    towards_seed: Whole | None = None,
    frames: Whole | None = None,
    model: str = "emoji-64",
    adapter: Repeated = None,
    any_base: Flag = False,
    control: Repeated = None,
    control_strength: Real | None = None,
    control_interval: str | None = None,
    style_image: Repeated = None,
    style_weight: Real | None = None,
    set: Repeated = None,
    style: str | None = None,
    negative: str | None = None,
    n: Count = 1,
    seed: Whole | None = None,
    steps: Whole | None = None,
    scale: Real | None = None,
    sampler: str | None = None,
    literal: Flag = False,
    out: Path = Path("out"),
    json: Flag = False,
) -> None:
    """Change a file of the model's kind and print the path of each result. The file itself stays as it is.

    Try:
      unfog edit cat.png "a dog" --strength 0.5
      unfog edit cat.png "a cat with a hat" --mask mask.png
      unfog edit cat.png "a cat in a garden" --canvas 32,0,32,0
      unfog edit wall.png "a brick wall" --strength 0.7 --tile
      unfog edit apple.png "a green apple" --from "a red apple"
      unfog edit cat.png --variations 0.3 -n 4
      unfog edit cat.png "a cat" --towards dog.png --towards-prompt "a dog" --frames 7
      unfog edit cat.png "a dog" --strength 0.9 --control lineart=sketch.png
      unfog edit point.csv ring --model my-points --keep x

    Parameters
    ----------
    item
        The file to change. Pictures may have any size; others the one that the model makes.
    prompt
        What it is to be; without it, anything.
    mask
        For pictures: a picture of the same size, white where it may change. All else stays, to the bit.
    keep
        What stays as it is, to the bit, in the kind's own words: for pictures the same as mask; for sound the seconds
        0-0.4,0.8-1; see the kind's page.
    strength
        How far back into noise, above 0 to 1: little changes little. Without it, 1 with --mask, --keep or --canvas, 0.75 with
        --from, else 0.6.
    canvas
        Pixels to add as left,top,right,bottom: the picture stays, what is around it is drawn.
    tile
        Make a picture whose edges meet when it is laid beside itself.
    original
        What the item is now: only what the prompt says otherwise is changed.
    variations
        Items like this one, from 0 (itself) to 1 (another).
    towards
        Another file of the kind: frames from the one to the other.
    towards_prompt
        Frames to what this prompt says; with --towards, what the other file is.
    towards_seed
        Frames to the noise of this seed.
    frames
        How many, both ends included; without it, 7.
    model
        The name of a shipped model or a model folder.
    adapter
        What is added to the model, as PATH or PATH:STRENGTH, as with `unfog generate`. Repeatable.
    any_base
        Use adapters on another model than the one they were trained on, where the shapes fit.
    control
        A picture to follow, as KIND=PICTURE or KIND=PICTURE:STRENGTH (see `unfog generate`), fitted into the frame as the item
        is; not with --tile or a --canvas beyond the model's frame. Repeatable, each kind once.
    control_strength
        The strength of all --control that name none.
    control_interval
        The shares of the way to the result, as 0,0.8, in which --control acts; without it, all of it.
    style_image
        A picture whose style to follow, not what it shows, as PICTURE or PICTURE:WEIGHT. Repeatable; in place of --style.
    style_weight
        How much, 0 to 2, for all --style-image that say none; 1 without.
    set
        NAME=VALUE, a setting that only this model knows, but for size, which is the item's (see `unfog generate`). Repeatable.
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
    literal
        Take prompts as plain text, whatever brackets and colons they hold.
    out
        The folder for the results.
    json
        Print one JSON object a result: path, seed, prompt, milliseconds.
    """
    import unfog
    from unfog.cli import output
    from unfog.cli.control import asked as controls_asked
    from unfog.cli.control import styles_asked
    from unfog.cli.progress import watch
    from unfog.editing import edit as edited
    from unfog.editing import open_item
    from unfog.edits import EditRequest
    from unfog.requests import check

    fields: dict[str, Any] = {"item": item, "prompt": prompt, "mask": mask, "keep": keep, "strength": strength, "canvas": canvas,
                              "tile": tile, "original": original, "variations": variations, "towards": towards,
                              "towards_prompt": towards_prompt, "towards_seed": towards_seed, "frames": frames, "style": style,
                              "n": n, "negative": negative, "seed": seed, "steps": steps, "scale": scale, "sampler": sampler,
                              "literal": literal, "control": controls_asked(control, control_strength, control_interval),
                              "style_image": styles_asked(style_image, style_weight), "settings": named_values(set)}  # fmt: skip
    if any_base and not adapter:
        raise UserError("--any-base: says how to use an adapter; give one with --adapter")
    request = check(EditRequest, fields).settled()
    output.check_folder(out)
    loaded = unfog.load(model, adapters=adapter or (), any_base=any_base)
    raw = open_item(loaded, item)
    with closing(edited(loaded, raw, request)) as events:
        for result in watch(events, f"{request.frames or n} of {item.name}"):
            if result.index == 0 and "resized" in result.recipe:
                print(f"{item}: {result.recipe['resized']}", file=sys.stderr)
            name = result.prompt or item.stem
            if request.leads:
                name = f"{name[:48]} {result.index + 1:03}"
            path = output.keep(replace(result, prompt=name), out, loaded.kind)
            line = {"path": str(path), "seed": result.seed, "prompt": name}
            print(json_.dumps({**line, "milliseconds": round(result.milliseconds, 1)}) if json else path, flush=True)
