"""`unfog plot`: grids over settings, films of a picture's making, the forward process, loss by noise level, copies."""

from __future__ import annotations

import json as json_
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import App

from unfog.cli.options import Count, Flag, Listed, Real, Whole

if TYPE_CHECKING:
    from unfog.plots import Drawn

app = App(
    name="plot",
    help="""Draw a plot of a model: grid, film, forward, loss or copies.

Try:
  unfog plot grid emoji-64 "a red apple" --x steps=5,10,20 --y scale=1,3,7
  unfog plot film emoji-64 "a cat" --seed 7
  unfog plot forward emoji-64
  unfog plot loss emoji-64 my-model --out loss.svg
  unfog plot copies emoji-64
""",
)


def _drawn(kind: str, fields: dict[str, Any], out: Path | None, suffix: str, json: bool) -> None:
    """Ask, draw, write, and say where; the numbers behind it instead, with json."""
    from unfog.plots import PLOTS, stream
    from unfog.plots.drawn import check_place
    from unfog.requests import check

    asks, becomes = PLOTS[kind]
    request = check(asks, {key: value for key, value in fields.items() if value is not None})
    path = out or Path(f"{kind}{suffix}")
    check_place(path, becomes.SUFFIXES)
    from unfog.cli.progress import watch

    drawings: Iterator[Drawn] = watch(stream(kind, request), kind)
    for drawn in drawings:
        drawn.save(path)
        print(json_.dumps({"path": str(path), **drawn.facts}) if json else path, flush=True)


@app.command
def grid(
    model: str,
    prompt: str | None = None,
    /,
    *,
    x: str,
    y: str | None = None,
    z: str | None = None,
    n: Count | None = None,
    seed: Whole | None = None,
    steps: Whole | None = None,
    scale: Real | None = None,
    sampler: str | None = None,
    style: str | None = None,
    negative: str | None = None,
    untimed: Flag = False,
    out: Path | None = None,
    json: Flag = False,
) -> None:
    """Draw pictures over two or three settings, from the same seeds in all cells, with what each cell cost.

    Each picture is the one that `unfog generate` gives for these settings. NFE are evaluations of the network
    for one picture, guidance included.

    Try:
      unfog plot grid emoji-64 "a red apple" --x steps=5,10,20 --y scale=1,3,7 --z sampler=ddim,dpmpp_2m
      unfog plot grid emoji-64 --x "prompt=a cat,a dog" --y style=noto,openmoji --seed 7 --out pets.png

    Parameters
    ----------
    model
        The name of a shipped model (see `unfog models`) or a model folder.
    prompt
        What to draw, in quotes; not where an axis goes over prompts.
    x
        What changes from column to column: steps, scale, sampler, seed, style or prompt, as in steps=5,10,20.
        Values that hold commas are parted by |.
    y
        What changes from row to row.
    z
        What changes from block to block.
    n
        Pictures of each cell, 1 to 16; without it, 1.
    seed
        The first seed; without it, 0.
    steps
        Steps where no axis goes over them; without it, the model's own. So with the other settings.
    scale
        How closely to follow the prompt, 0 to 100; 1 = no guidance.
    sampler
        How to step from noise to picture.
    style
        One of the model's styles; without it, any.
    negative
        What to avoid.
    untimed
        Leave out milliseconds, so that the same command gives the same file.
    out
        The .png file to write; without it, grid.png.
    json
        Print one JSON object: path, and each cell's settings and cost.
    """
    fields = {"model": model, "prompt": prompt, "x": x, "y": y, "z": z, "n": n, "seed": seed, "steps": steps, "scale": scale,
              "sampler": sampler, "style": style, "negative": negative, "timed": False if untimed else None}  # fmt: skip
    _drawn("grid", fields, out, ".png", json)


@app.command
def film(
    model: str,
    prompt: str,
    /,
    *,
    n: Count | None = None,
    seed: Whole | None = None,
    steps: Whole | None = None,
    scale: Real | None = None,
    sampler: str | None = None,
    style: str | None = None,
    negative: str | None = None,
    frames: Whole | None = None,
    at: Listed | None = None,
    out: Path | None = None,
    json: Flag = False,
) -> None:
    """Draw how a picture comes out of noise: x_t, and what the model takes the picture to be, step by step.

    Try:
      unfog plot film emoji-64 "a red apple" --seed 7
      unfog plot film emoji-64 "a cat" -n 3 --steps 50 --at 0,5,10,25,50 --out cats.png

    Parameters
    ----------
    model
        The name of a shipped model (see `unfog models`) or a model folder.
    prompt
        What to draw, in quotes.
    n
        Pictures under each other, 1 to 16; without it, 1.
    seed
        The first seed; without it, 0.
    steps
        Steps from noise to picture; without it, the model's own.
    scale
        How closely to follow the prompt, 0 to 100; 1 = no guidance.
    sampler
        How to step from noise to picture.
    style
        One of the model's styles; without it, any.
    negative
        What to avoid.
    frames
        Steps to show, evenly spread, 2 to 64; without it, 8.
    at
        The steps to show, as in 0,5,10: 0 is the noise.
    out
        The .png file to write; without it, film.png.
    json
        Print one JSON object: path, settings, each frame's time and log-SNR.
    """
    fields = {"model": model, "prompt": prompt, "n": n, "seed": seed, "steps": steps, "scale": scale, "sampler": sampler,
              "style": style, "negative": negative, "frames": frames, "at": at}  # fmt: skip
    _drawn("film", fields, out, ".png", json)


@app.command
def forward(
    model: str | None = None,
    /,
    *,
    picture: Path | None = None,
    data: str | None = None,
    number: Whole | None = None,
    schedule: str | None = None,
    size: Whole | None = None,
    prompt: str | None = None,
    style: str | None = None,
    seed: Whole | None = None,
    t: Listed | None = None,
    logsnr: Listed | None = None,
    out: Path | None = None,
    json: Flag = False,
) -> None:
    """Draw what the forward process makes of a picture, with alpha, sigma and SNR, and what a model sees in it.

    Try:
      unfog plot forward emoji-64
      unfog plot forward emoji-64 --picture apple.png --prompt "a red apple" --logsnr 6,3,0,-3,-6
      unfog plot forward --schedule linear --t 0,0.25,0.5,0.75,1

    Parameters
    ----------
    model
        The name of a shipped model or a model folder: its schedule, its size, and E[x0 | x_t] in a second row.
    picture
        A picture's file; without it, one of the data.
    data
        The name of a shipped data set, or data as for `unfog train`; without it, the model's own.
    number
        Which picture of the data, from 1; without it, the first that the model was not trained on.
    schedule
        Without a model: cosine, linear, vp, edm, ...
    size
        Without a model: pixels a side; without it, 64.
    prompt
        What the model is told of the picture; without it, nothing.
    style
        The style that the model is told.
    seed
        The noise's seed; without it, 0.
    t
        Times to show, in [0, 1], as in 0,0.25,0.5,1.
    logsnr
        Log-SNRs to show, instead of t; without either, 6 to -6.
    out
        The .png file to write; without it, forward.png.
    json
        Print one JSON object: path, and t, alpha, sigma, SNR of each column.
    """
    fields = {"model": model, "picture": picture, "data": data, "number": number, "schedule": schedule, "size": size,
              "prompt": prompt, "style": style, "seed": seed, "t": t, "logsnr": logsnr}  # fmt: skip
    _drawn("forward", fields, out, ".png", json)


@app.command
def loss(
    *models: str,
    data: str | None = None,
    n: Count | None = None,
    levels: Listed | None = None,
    own: Flag = False,
    relative: Flag = False,
    out: Path | None = None,
    json: Flag = False,
) -> None:
    """Draw loss by noise level on training and on held-out pictures, with 95 % intervals, of one or more models.

    Models of other predictions can be held against each other: the error of x0 is counted in units of what
    would be left open if pixels had nothing to do with each other.

    Try:
      unfog plot loss emoji-64
      unfog plot loss emoji-64 my-model --data my-pictures/ -n 256 --out loss.svg
      unfog plot loss emoji-64 my-model --relative

    Parameters
    ----------
    models
        Names of shipped models or model folders, 1 to 6.
    data
        The name of a shipped data set, or data as for `unfog train`; without it, each model's own.
    n
        Pictures of each split; without it, 64.
    levels
        Values of ln(sigma/alpha), as in -2,-1,0,1,2,3.
    own
        Each model's own loss instead, which those of other predictions cannot be held against.
    relative
        Losses over those of the first model, on the same pictures with the same noise, so that small
        differences show; of one model, held-out losses over training losses.
    out
        The file to write: .svg, or with matplotlib .png or .pdf; without it, loss.svg.
    json
        Print one JSON object: path, and each curve's figures.
    """
    fields = {"models": list(models), "data": data, "n": n, "levels": levels, "own": own or None,
              "relative": relative or None}  # fmt: skip
    _drawn("loss", fields, out, ".svg", json)


@app.command
def copies(
    model: str,
    /,
    *,
    data: str | None = None,
    n: Count | None = None,
    unseen: Whole | None = None,
    seed: Whole | None = None,
    roc: Flag = False,
    out: Path | None = None,
    json: Flag = False,
) -> None:
    """Draw how far the detector of copies can be trusted: what it finds of planted copies, moved, recoloured,
    encoded, resized, ..., and what it wrongly finds of pictures that are none, over its threshold.

    Try:
      unfog plot copies emoji-64
      unfog plot copies my-model -n 500 --roc --out copies.png

    Parameters
    ----------
    model
        The name of a shipped model or a model folder, among whose training pictures copies are looked for.
    data
        The name of a shipped data set, or data as for `unfog train`; without it, the model's own.
    n
        Copies planted of each kind; without it, 100.
    unseen
        Pictures that are no copies; without it, 500.
    seed
        Which pictures are copied; without it, 0.
    roc
        Draw what is found over what is wrongly found instead.
    out
        The file to write: .svg, or with matplotlib .png or .pdf; without it, copies.svg.
    json
        Print one JSON object: path, thresholds, false positives, recall by kind.
    """
    fields = {"model": model, "data": data, "n": n, "unseen": unseen, "seed": seed, "roc": roc or None}
    _drawn("copies", fields, out, ".svg", json)
