"""`unfog generate`: pictures from text, or items of whatever kind a model makes; or one again from the recipe inside it."""

from __future__ import annotations

import json as json_
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unfog.cli import complain
from unfog.cli.options import Count, Flag, Real, Repeated, Whole, named_values
from unfog.errors import UserError, unknown

if TYPE_CHECKING:
    from unfog.modalities.contract import Modality
    from unfog.model import Model
    from unfog.requests import GenerateRequest, Result

DEFAULT_MODEL = "emoji-64"
ANY = "any"  # asks a model of another kind than pictures for nothing in particular
MOST_ON_A_SHEET = 1_000


def generate(
    *prompts: str,
    style: str | None = None,
    n: Count | None = None,
    seed: Whole | None = None,
    steps: Whole | None = None,
    scale: Real | None = None,
    sampler: str | None = None,
    aspect: str | None = None,
    negative: str | None = None,
    batch: Whole | None = None,
    strict: Flag = False,
    shard: str | None = None,
    literal: Flag = False,
    model: str | None = None,
    adapter: Repeated = None,
    any_base: Flag = False,
    control: Repeated = None,
    control_strength: Real | None = None,
    control_interval: str | None = None,
    style_image: Repeated = None,
    style_weight: Real | None = None,
    prediction: str | None = None,
    set: Repeated = None,
    like: Path | None = None,
    out: Path = Path("out"),
    grid: Path | None = None,
    novel: str | None = None,
    against: Path | None = None,
    tries: Whole | None = None,
    json: Flag = False,
) -> int:
    """Make pictures from text, or what else a model makes, and print the path of each one.

    Put each prompt in quotes; several prompts make several pictures. A file
    is named by prompt, style and seed and carries the recipe that remakes it.
    No picture is ever overwritten: the same picture again leaves its file
    alone, another picture of that name becomes name_2.png.

    Try:
      unfog generate "a red apple"
      unfog generate "a cat" "a dog" --style noto -n 4 --seed 7 --grid pets.png
      unfog generate "a green hat" --steps 50 --scale 3 --json
      unfog generate "a cat" "a dog" -n 1000 --seed 0 --shard 3/16
      unfog generate --like out/a-red-apple-7.png
      unfog generate "a sks cat in the rain" --adapter my-cat:0.8
      unfog generate "a red heart" -n 8 --novel resample
      unfog generate "a (red:1.5) apple" "[a cat:a dog:0.4]" "fire::2 ice::1"
      unfog generate "a dog" --control lineart=sketch.png --control palette=colours.png:0.5

    Parameters
    ----------
    prompts
        What to draw, each in quotes. Models of other kinds say in their page what they understand; without a prompt they make
        anything.
    style
        One of the model's styles (see `unfog models`); without it, any.
    n
        Pictures of each prompt, 1 to 10000; without it, 1.
    seed
        The first picture's seed: -n 4 --seed 7 makes seeds 7, 8, 9, 10. Without it one is drawn; it is in
        the name.
    steps
        Steps from noise to picture, 1 to 1000; more is finer and slower.
    scale
        How closely to follow the prompt, 0 to 100; 1 = no guidance.
    sampler
        How to step from noise to picture.
    aspect
        The picture's shape as width:height, such as 3:2, of a model trained with several (see its
        model.json); without it, the squarest.
    negative
        What to avoid.
    batch
        Pictures made at once. 1, the default, makes each picture byte-identical to itself made alone; more
        is faster, and pictures may differ from that in their last bits.
    strict
        Make every bit of a picture independent of batch and threads; slower.
    shard
        i/N makes the i-th of N equal shares of the job only (--seed is needed): the same names and bytes as
        in the whole job, each in one share, so that N machines can work on it.
    literal
        Take prompts as plain text, whatever brackets and colons they hold (docs/prompts.md).
    model
        The name of a shipped model (see `unfog models`), a model folder, or one in the layout of diffusers (Stable Diffusion,
        Flux); without it, emoji-64.
    adapter
        An adapter's folder as PATH or PATH:STRENGTH (-4 to 4; 1 without, 0 = as if it were not there); for Stable Diffusion also
        LoRA, ControlNet, IP-Adapter, ... (docs/stable-diffusion.md). Repeatable.
    any_base
        Use adapters on another model than the one they were trained on, where the shapes fit.
    control
        A picture to follow, as KIND=PICTURE or KIND=PICTURE:STRENGTH (0 to 2; 1 = as learned): lineart, softedge, silhouette,
        palette, lowres; `unfog control` shows what is seen of it; for Stable Diffusion the folder's name of a ControlNet or
        T2I-Adapter. Repeatable, each kind once.
    control_strength
        The strength of all --control that name none.
    control_interval
        The shares of the sampling, as 0,0.8, in which --control acts; without it, all of it.
    style_image
        A picture whose style to follow, not what it shows, as PICTURE or PICTURE:WEIGHT. Repeatable; in place of --style.
    style_weight
        How much, 0 to 2, for all --style-image that say none; 1 without.
    prediction
        eps or v: what the network of a folder of Stable Diffusion's predicts, where the folder does not say.
    set
        NAME=VALUE, a setting that only this model knows; of Stable Diffusion's size=768x512, of XL also original, target
        (WIDTHxHEIGHT) and crop (LEFT,TOP), of 3 and Flux tokens=256 (of T5), of Flux guidance=3.5, with a ControlNet guess=on.
        Repeatable.
    like
        Remake this picture byte for byte from the recipe inside it; refused where the model is another one.
    out
        The folder for the pictures, made if need be.
    grid
        Also write all pictures onto one contact sheet, a .png file.
    novel
        Hold each picture against the model's training data. warn, or nothing behind it: tell of each that is
        a copy, and write it beside its original as NAME_near.png; resample: make it again from other noise.
    against
        The training data for --novel: a shipped set, folder or archive; without it, what the model's card names.
    tries
        How often --novel resample makes a picture again, 1 to 100; without it, 4.
    json
        Print one JSON object a picture: path, seed, prompt, milliseconds.
    """
    import unfog
    from unfog.cli import output
    from unfog.cli.novel import Novelty
    from unfog.cli.progress import watch

    settings: dict[str, Any] = {"style": style, "n": n, "seed": seed, "steps": steps, "scale": scale, "sampler": sampler}
    settings |= {"aspect": aspect, "negative": negative, "batch": batch, "strict": strict or None, "shard": shard}
    settings |= {"literal": literal or None, "novel": novel, "against": against, "tries": tries}
    settings |= {"settings": named_values(set) or None}
    from unfog.cli.control import asked as controls_asked
    from unfog.cli.control import styles_asked

    followed = controls_asked(control, control_strength, control_interval)
    styled = styles_asked(style_image, style_weight)
    given = {key: value for key, value in settings.items() if value is not None}
    early = None
    if not prompts and like is None and model is not None:
        early = unfog.load(model, adapters=adapter or (), any_base=any_base, prediction=prediction)
        prompts = () if early.kind.name == "image" else (ANY,)
    steer = ({"control": followed} if followed else {}) | ({"style_image": styled} if styled else {})
    request, original = _asked_like(like, prompts, given, model) if like else (_asked(prompts, {**given, **steer}), None)
    pictures = sum(map(len, request.batches()))
    before = output.namesakes(request.prompts, request.style) if request.shard else {}
    output.check_folder(out)
    if grid is not None:
        output.check_sheet(grid)
        if pictures > MOST_ON_A_SHEET:
            raise UserError(f"--grid: a sheet holds {MOST_ON_A_SHEET:,}, not {pictures:,}; make fewer pictures")

    if like is not None and original is not None:
        from unfog import adapters

        recorded = original.get("adapters", [])
        adapter = adapters.like(f"--like: {like}", recorded, adapters.with_shipped(recorded, adapter or []))
    elif any_base and not adapter:
        raise UserError("--any-base: says how to use an adapter; give one with --adapter")
    name = model if model is not None else _model_of(original, like)
    told: dict[str, Any] = {"adapters": adapter, "any_base": any_base} if adapter else {}
    told |= {"prediction": prediction} if prediction is not None else {}
    loaded = early or unfog.load(name, **told)
    what = "picture" if loaded.kind.name == "image" else "item"
    _check_model(loaded, request, original, like)
    if original is not None and (followed or styled or {"control", "style_image"} & original.keys()):
        from unfog.cli.control import remade

        request = remade(loaded, request, original, f"--like: {like}", followed, styled)
    if request.control or request.style_image:
        loaded.hints(request)  # refused before anything is made
    made: list[Result] = []
    path = out
    novelty = Novelty(loaded, request) if request.novel else None
    start = time.monotonic()
    with closing(novelty.stream() if novelty else loaded.stream(request)) as events:
        for result in watch(events, f"{pictures} {what}s" if pictures > 1 else f"1 {what}"):
            if original is not None and "novel" in original:  # of which seed it was a further try: no pixel depends on it
                result.recipe["novel"] = original["novel"]
            path = output.keep(result, out, loaded.kind, before.get(result.prompt, 0))
            line: dict[str, Any] = {"path": str(path), "seed": result.seed, "prompt": result.prompt}
            line |= novelty.tell(result, path) if novelty else {}
            print(json_.dumps({**line, "milliseconds": round(result.milliseconds, 1)}) if json else path, flush=True)
            if grid is not None:
                made.append(result)
    if made and grid is not None:  # a shard of a small job may have none
        _sheet(request, made, grid, loaded.kind)
    _report(pictures, request.seed, time.monotonic() - start)
    return _compare(like, original, path) if like is not None and original is not None else 0


def _report(pictures: int, seed: int | None, seconds: float) -> None:
    """How many, from which seed on, how long: the last line on stderr."""
    if sys.stderr.isatty():
        line = f"{pictures} in {seconds:.1f} s, first seed {seed}"
    else:
        line = json_.dumps({"event": "done", "pictures": pictures, "seed": seed, "seconds": round(seconds, 1)})
    print(line, file=sys.stderr)


def _asked(prompts: Sequence[str], given: Mapping[str, Any]) -> GenerateRequest:
    """The request that the words on the command line make."""
    from unfog.requests import GenerateRequest, check

    if not prompts:
        raise UserError('PROMPT: is missing; give one in quotes, as in: unfog generate "a red apple"')
    return check(GenerateRequest, {"prompts": list(prompts), **given}).settled()


def _asked_like(
    like: Path, prompts: Sequence[str], given: Mapping[str, Any], model: str | None
) -> tuple[GenerateRequest, dict[str, Any]]:
    """The request that made an item, and the recipe that says so."""
    from unfog.requests import from_recipe

    options = ["-n" if key == "n" else f"--{key}" for key in given]
    if prompts or options:
        extra = ", ".join([*(["the prompt"] if prompts else []), *options])
        raise UserError(f"--like: remakes one picture exactly as it was; leave out {extra}")
    recipe = _recipe_in(like, model)
    if recipe.get("edit"):
        raise UserError(f"--like: {like} was made by `unfog edit` of another file; edit that again with its recipe's settings")
    return from_recipe(recipe), recipe


def _recipe_in(like: Path, model: str | None) -> dict[str, Any]:
    """The recipe inside a file: a PNG's, or, beside a model, one of its kind's. Raises UserError where there is none."""
    import unfog
    from unfog.modalities.image.show import read_recipe

    kind = unfog.load(model).kind if model is not None and like.suffix.lower() != ".png" else None
    if kind is None:
        if like.suffix.lower() != ".png" and like.is_file():
            raise UserError(f"--like: {like} is no PNG; give the model that made it with --model")
        return read_recipe(like)
    try:
        recipe = kind.from_bytes(like.read_bytes(), str(like))[1]
    except OSError as error:
        raise UserError(f"{like}: cannot be read ({error.strerror or error}); give a file that unfog made") from None
    if not recipe:
        raise UserError(f"{like}: carries no recipe; give a file that unfog made and no other program saved again")
    return recipe


def _check_model(loaded: Model, request: GenerateRequest, recipe: Mapping[str, Any] | None, like: Path | None) -> None:
    """Refuse a style that the model lacks, and a model that did not make the picture to be remade."""
    if recipe is not None and loaded.hash != recipe["model_hash"]:
        raise UserError(
            f"--like: {like} was made by {recipe['model']} {recipe['model_hash']}, "
            f"but {loaded.name} here is {loaded.hash}; give the model that made it with --model"
        )
    if recipe is not None and recipe.get("plan") != loaded.plan_hash(request.sampler or ""):
        raise UserError(f"--like: {like} was made by another {request.sampler} than this one; give its model with --model")
    if request.style is not None and request.style not in loaded.styles:
        raise unknown("style", request.style, loaded.styles)


def _model_of(recipe: dict[str, Any] | None, like: Path | None) -> str:
    """The default model, or the one a recipe names: never a path, for pictures come from strangers."""
    if recipe is None:
        return DEFAULT_MODEL
    name = recipe["model"]
    if not isinstance(name, str) or not name.strip() or set(name) & set("/\\:"):
        raise UserError(f"--like: {like} names no shipped model; give the model that made it with --model")
    return name


def _sheet(request: GenerateRequest, made: list[Result], file: Path, kind: Modality) -> None:
    """One row a prompt where the pictures of a prompt fit in a row, else about a square."""
    from unfog.cli.output import make_folder
    from unfog.modalities.image.show import contact_sheet, save_png

    made = sorted(made, key=lambda result: result.index)
    columns = request.n if len(request.prompts) > 1 and 1 < request.n <= 16 and not request.shard else None
    labels = [f"{result.seed}: {result.prompt}" for result in made]
    make_folder(file.parent)
    if kind.name == "image":
        sheet = contact_sheet([result.image for result in made], labels, columns)
    else:
        sheet = kind.render([result.item for result in made], [result.prompt for result in made])
    # The mark by which a later run knows that it may replace this file.
    save_png(sheet, file, {"sheet": len(made)})


def _compare(like: Path, recipe: dict[str, Any], path: Path) -> int:
    """Say so where the new picture is not the old one; 1 where even the pixels differ."""
    from PIL import Image

    import unfog

    if path.read_bytes() == like.read_bytes():
        return 0
    same, other = False, "different pixels" if path.suffix == ".png" else "different content"
    if path.suffix == ".png":
        with Image.open(like) as before, Image.open(path) as after:
            same = (before.mode, before.size, before.tobytes()) == (after.mode, after.size, after.tobytes())
    whose = f"{like} was made by unfog {recipe['version']}, this is {unfog.__version__}"
    why = whose if recipe["version"] != unfog.__version__ else "made on another processor or with other libraries"
    complain(f"--like: {path} has {'the same pixels but another file' if same else other} ({why})")
    return 0 if same else 1
