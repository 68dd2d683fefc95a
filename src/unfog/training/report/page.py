"""The page: facts, warnings, curves, samples over time."""

from __future__ import annotations

import base64
import statistics
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

from unfog.page import Alarm, Facts, html, whole
from unfog.page.plot import Series, line_plot
from unfog.page.style import COLOURS
from unfog.training.progress import clock
from unfog.training.report.read import Run, number
from unfog.training.report.words import smoothed, warnings

SHEETS = 12  # at most so many, spread over the run
WIDEST = 960  # pixels of a sheet in the page


def page(run: Run) -> str:
    """The whole HTML file of a run."""
    name = str(run.about.get("name") or run.folder.name)
    body = [f"<h1>{escape(name)}</h1>", f'<p class="sub">{escape(_state(run))}</p>']
    body += [html(Alarm(warnings(run))), html(Facts(_facts(run)))]
    drawn = [svg for svg in plots(run) if svg]
    if drawn:
        body.append('<h2>Curves</h2><div class="plots">' + "\n".join(f"<div>{svg}</div>" for svg in drawn) + "</div>")
    sheets = _sheets(run)
    if sheets:
        body.append("<h2>Samples of the weight average</h2>" + "\n".join(sheets))
    if run.recipe:
        body.append("<h2>Settings</h2><details><summary>every setting of the recipe</summary>"
                    + html(Facts(sorted((str(k), v) for k, v in run.recipe.items()))) + "</details>")  # fmt: skip
    return whole(f"{name}: training report", "\n".join(body))


def _state(run: Run) -> str:
    steps = number(run.recipe.get("steps"))
    at = f"step {run.last:,}" + (f" of {steps:,.0f}" if steps else "")
    done = "finished" if steps and run.last >= steps else "not finished: still going on, or stopped"
    return f"{at}, {done}" if steps else at


def _facts(run: Run) -> list[tuple[str, Any]]:
    about, recipe = run.about, run.recipe
    facts: list[tuple[str, Any]] = []
    if recipe:
        facts.append(("data", _data(run)))
        parameters = number(about.get("parameters"))
        learns = recipe.get("learns")  # of an autoencoder
        size = f", {parameters / 1e6:.1f}M parameters" if parameters else ""
        facts.append(("network", f"{learns or recipe.get('network')}{size}, {recipe.get('size')} pixels a side"))
        facts.append(("training", f"batch {recipe.get('batch')}, lr {recipe.get('lr')}, "
                      + ("" if learns else f"predicts {recipe.get('prediction')}, dropout {recipe.get('dropout')}, ")
                      + f"average {recipe.get('ema')}, seed {recipe.get('seed')}"))  # fmt: skip
    if about.get("device"):
        count = about.get("processes", 1)
        facts.append(("machine", f"{about['device']} {about.get('dtype', '')}" + (f", {count} processes" if count != 1 else "")))
    timed = [line for line in run.timing if number(line.get("seconds")) is not None]
    if timed:
        facts.append(("time", f"{clock(sum(line['seconds'] for line in timed))} in all"
                      + (f", taken up again at {_steps(run.restarts)}" if run.restarts else "") + _when(run)))  # fmt: skip
        speeds = [value for line in timed if (value := number(line.get("items_per_s")))]
        waits = [value for line in timed if (value := number(line.get("waiting"))) is not None]
        if speeds and waits:
            share = f"{statistics.median(waits):.1%} of the time waiting for data"
            facts.append(("speed", f"{statistics.median(speeds):,.1f} items/s, {share}"))
        memory = [value for line in timed if (value := number(line.get("memory_mib")))]
        if memory:
            facts.append(("peak memory", f"{max(memory):,.0f} MiB"))
        facts.append(("a step's parts", _parts(timed)))
    if run.reports:
        last = run.reports[-1]
        held = {level: number(last["held_out"].get(level)) for level in run.levels}
        errors = last.get("held_out_se")
        told = []
        for level, loss in held.items():
            error = number(errors.get(level)) if isinstance(errors, dict) else None
            told.append(f"{level}: {loss:.4g}" + (f" ± {error:.2g}" if error is not None else "") if loss is not None else level)
        if told:
            facts.append((f"held-out loss, step {last['step']:,}", "; ".join(told)))
        decibels = number(last["held_out"].get("psnr"))  # of an autoencoder
        if decibels is not None:
            facts.append((f"held-out PSNR, step {last['step']:,}", f"{decibels:.2f} dB"))
    return facts


def _data(run: Run) -> str:
    about = run.about
    told = [str(run.recipe.get("data"))]
    for key, words in (
        ("pictures", "pictures"),
        ("items", "items"),
        ("recoloured", "recoloured"),
        ("held_out", "held out"),
        ("captions", "captions"),
    ):
        if number(about.get(key)) is not None:
            told.append(f"{about[key]:,} {words}")
    styles = about.get("styles")
    if isinstance(styles, list) and styles:
        told.append("styles " + ", ".join(map(str, styles)))
    return "; ".join(told)


def _steps(steps: Sequence[int]) -> str:
    """Step 10, or steps 10, 20, 30 and 4 more."""
    told = ", ".join(f"{step:,}" for step in steps[:5])
    return f"step{'s' if len(steps) > 1 else ''} {told}" + (f" and {len(steps) - 5} more" if len(steps) > 5 else "")


def _when(run: Run) -> str:
    moments = []
    for line in (run.timing[0], run.timing[-1]):
        try:
            moments.append(datetime.fromisoformat(str(line.get("at"))).strftime("%Y-%m-%d %H:%M"))
        except ValueError:
            return ""
    return f", from {moments[0]} to {moments[1]} UTC"


def _parts(timed: Sequence[Any]) -> str:
    sums: dict[str, float] = {}
    for line in timed:
        parts = line.get("parts")
        for part, seconds in parts.items() if isinstance(parts, dict) else ():
            sums[str(part)] = sums.get(str(part), 0.0) + (number(seconds) or 0.0)
    whole = sum(sums.values()) or 1.0
    return ", ".join(f"{part} {seconds / whole:.1%}" for part, seconds in sorted(sums.items(), key=lambda pair: -pair[1]))


def plots(run: Run) -> list[str]:
    """Every curve that the run has figures for."""
    steps, marks = [line["step"] for line in run.steps], run.restarts
    loss, grad, largest, lr = ([number(line.get(key)) for line in run.steps] for key in ("loss", "grad", "grad_max", "lr"))
    bins = [(level, i * (len(COLOURS) - 1) // max(len(run.levels) - 1, 1)) for i, level in enumerate(run.levels)]

    def by_bin(key: str, words: str = "", dashed: bool = False) -> list[Series]:
        return [Series(f"{level}{words}", *run.of(key, level), colour=colour, dashed=dashed) for level, colour in bins]

    trained = any("train" in line for line in run.reports)

    def ratio(over: str, under: str) -> list[Series]:
        pairs = [(run.of(over, level), run.of(under, level)[1], level, colour) for level, colour in bins]
        return [Series(level, at, _ratio(top, below), colour=colour) for (at, top), below, level, colour in pairs]

    copies = [Series(words, *run.of(key), colour=colour, dashed=dashed) for key, words, colour, dashed in
              (("copies", "samples", 5, False), ("copies_real", "real unseen pictures", 1, True))]  # fmt: skip
    near = [Series(words, *run.of(key), colour=colour, dashed=dashed) for key, words, colour, dashed in
            (("nearest", "samples", 5, False), ("nearest_real", "real unseen pictures", 1, True))]  # fmt: skip
    at = [line["step"] for line in run.timing]  # a start has no speed, which leaves a gap there
    speed, waiting, memory = ([number(line.get(key)) for line in run.timing] for key in ("items_per_s", "waiting", "memory_mib"))
    return [
        line_plot("Training loss", [Series("as measured", steps, loss, 1, faint=True),
                                    Series("smoothed", steps, smoothed(loss), 1)], "loss", log=True, marks=marks),
        line_plot("Loss at fixed noise, by ln(sigma/alpha)", by_bin("held_out", " held out" if trained else "")
                  + by_bin("train", " train", True), "loss", log=True, marks=marks),
        line_plot("Held-out pictures and their reconstructions", [Series("PSNR", *run.of("held_out", "psnr"), colour=1)], "dB",
                  marks=marks),
        line_plot("Held-out loss over that of training pictures", ratio("held_out", "train"), "ratio", marks=marks),
        line_plot("Gradient norm before clipping", [Series("largest", steps, largest, 4, faint=True),
                                                    Series("mean", steps, grad, 1)], "norm", log=True, marks=marks),
        line_plot("Learning rate", [Series("", steps, lr, 1)], "lr", zero=True, marks=marks),
        line_plot("Held-out loss of the weights over that of their average", ratio("raw", "held_out"), "ratio", marks=marks),
        line_plot("Distance of the average from the weights", [Series("", *run.of("ema_distance"), 1)], "relative", zero=True,
                  marks=marks),
        line_plot("Copies: share nearer to a training picture than most real ones", copies, "share", zero=True, marks=marks),
        line_plot("Distance to the nearest training picture (median)", near, "RMS", zero=True, marks=marks),
        line_plot("Throughput", [Series("", at, speed, 1)], "items/s", zero=True, marks=marks),
        line_plot("Share of the time spent waiting for data", [Series("", at, waiting, 5)], "share", zero=True, marks=marks),
        line_plot("Peak memory", [Series("", at, memory, 2)], "MiB", zero=True, marks=marks),
    ]  # fmt: skip


def _ratio(over: Sequence[float | None], under: Sequence[float | None]) -> list[float | None]:
    return [a / b if a is not None and b else None for a, b in zip(over, under, strict=True)]


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the numbers 0 ... count − 1, evenly spread, with the first and the last."""
    if count <= most:
        return list(range(count))
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})


def _sheets(run: Run) -> list[str]:
    out = []
    for i in reversed(spread(len(run.samples), SHEETS)):
        step, path = run.samples[i]
        try:
            kept = path.stat()
            uri = _embedded(path, kept.st_mtime_ns, kept.st_size)
        except (OSError, ValueError, SyntaxError):
            continue  # being written, or no picture
        out.append(f'<figure><figcaption>step {step:,}</figcaption><img alt="samples at step {step}" src="{uri}"/></figure>')
    return out


@lru_cache(maxsize=64)  # a run draws its page at every report, with mostly the same sheets
def _embedded(path: Path, _changed: int, _size: int) -> str:
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.width <= WIDEST:
                image.load()
                data = path.read_bytes()
            else:
                small = image.convert("RGB").resize((WIDEST, max(1, round(image.height * WIDEST / image.width))))
                file = BytesIO()
                small.save(file, "PNG")
                data = file.getvalue()
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from None
    return "data:image/png;base64," + base64.b64encode(data).decode()
