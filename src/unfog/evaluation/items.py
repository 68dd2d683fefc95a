"""Evaluation of any kind of data: what the kind measures, how near samples come to the data and to single items, the cost.

Each figure stands beside that of real held-out items, measured in the same way.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from unfog.errors import UserError
from unfog.evaluation.fidelity import fidelity
from unfog.evaluation.near import Near
from unfog.evaluation.report import Beside, Figure, Measure, Report, mean, rate
from unfog.modalities.contract import ANY, Items, Measured, Modality, Space

if TYPE_CHECKING:
    from unfog.evaluation.samples import Asked
    from unfog.model import Model

LABEL = "FD-model space"  # of the distances taken there
WIDEST = 64  # numbers in an x0 up to which they are taken; wider kinds have features of their own
KNOWN = 10_000  # training items among which copies are looked for
SHOWN = 24
HELD_OUT = "held-out real"
Values = dict[tuple[str, str], tuple[NDArray[Any], list[str]]]  # of each sample, and what it is paired by


def items_at(kind: Modality, place: str | Path, told: dict[str, Any] | None = None) -> Items:
    """The items of a shipped data set or of a file or folder, read as a model's recipe says (`options`, told).

    Raises UserError where there are none.
    """
    from unfog.data import known

    options = kind.options.model_validate(told or {})
    return kind.open(known().get(str(place), Path(place)), options)


def measured(
    made: Sequence[Any], prompts: Sequence[str], kind: Modality, space: Space, data: Items, seed: int, force: bool
) -> tuple[list[Measure], dict[str, Any], Values]:
    """Rows, distances (for comparing), and values of each item, of samples made for prompts."""
    values: Values = {}
    rows: list[Measure] = []
    for found in kind.measure(made, prompts, data, seed) if kind.measure else []:
        rows.append(_row(found, len(made), max(len(data.split("heldout")), 1)))
        if isinstance(found.made, np.ndarray) and len(found.made) == len(made):
            values[found.name, "all"] = (found.made, [str(i) for i in range(len(made))])
    train, held = data.split("train"), data.split("heldout")
    known = [train[i] for i in np.random.default_rng(3).permutation(len(train))[:KNOWN]]
    spots, seen = space.encode(list(made))[0], space.encode([data.raw[i] for i in known])[0]
    unseen = space.encode([data.raw[i] for i in held])[0] if held else None
    estimates: dict[str, Any] = {}
    if spots[0].numel() <= WIDEST:
        flat = [None if x is None else x.flatten(1).double().numpy() for x in (spots, seen, unseen)]
        assert flat[0] is not None and flat[1] is not None
        distances, estimates = fidelity(flat[0], flat[1], flat[2], LABEL, None, force)
        rows = distances + rows
    near = Near.of(seen, unseen, 0.01)
    told = near(spots)
    apart = Beside(name=HELD_OUT, figure=Figure(value=told["copies_real"], n=len(near.real)))
    close = Beside(name=HELD_OUT, figure=Figure(value=told["nearest_real"], n=len(near.real)))
    copies = rate(near.copied(spots), [str(i) for i in range(len(spots))])
    rows.append(Measure(group="memory", name="nearer to a training item than 99 % of unseen ones are", of="all", unit="%",
                        better="lower", beside=[apart], figure=copies))  # fmt: skip
    rows.append(Measure(group="memory", name="median distance to the nearest training item", of="all", beside=[close],
                        figure=Figure(value=told["nearest"], n=len(spots))))  # fmt: skip
    return rows, estimates, values


def _row(found: Measured, count: int, held: int) -> Measure:
    def figure(value: NDArray[np.float64] | float, count: int) -> Figure:
        return mean(value) if isinstance(value, np.ndarray) else Figure(value=float(value), n=count)

    beside = [] if found.real is None else [Beside(name=HELD_OUT, figure=figure(found.real, held))]
    return Measure.model_validate({"group": found.group, "name": found.name, "of": "all", "figure": figure(found.made, count),
                                   "unit": found.unit, "better": found.better, "beside": beside, "note": found.note})  # fmt: skip


def made_by(model: Model, data: Items, asked: Asked) -> tuple[list[Any], list[str], float]:
    """Samples for prompts drawn from the data by the seed, the prompts, and seconds for one."""
    order = np.random.default_rng(asked.seed).permutation(len(data))
    prompts = [data.prompts[order[i % len(order)]] or ANY for i in range(asked.n)]
    start = time.perf_counter()
    made = model.make(prompts, [None] * asked.n, range(asked.seed, asked.seed + asked.n), asked.batch, asked.steps, asked.scale,
                      asked.sampler)  # fmt: skip
    return made, prompts, (time.perf_counter() - start) / asked.n


def sheets(kind: Modality, raw: Sequence[Any], labels: Sequence[str]) -> NDArray[np.uint8] | None:
    """Each item drawn, (N, H, W, 4); None where drawings differ in size."""
    drawn = [np.asarray(kind.render([item], [label]).convert("RGBA")) for item, label in zip(raw, labels, strict=True)]
    return np.stack(drawn) if len({d.shape for d in drawn}) == 1 else None


def report_of(name: str, model: Model | None, made: Sequence[Any], prompts: Sequence[str], kind: Modality, space: Space,
              data: Items, asked: Asked, force: bool, seconds: float | None) -> tuple[Report, dict[str, Any], Any]:  # fmt: skip
    """The report of samples of any kind, what comparing needs. Raises UserError where the space does not fit them."""
    from unfog import __version__
    from unfog.files import sha256

    start = time.perf_counter()
    try:
        rows, estimates, values = measured(made, prompts, kind, space, data, asked.seed, force)
    except (RuntimeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{name}: cannot be compared with {data.path} ({str(error).splitlines()[0][:80]}); give alike data"
        ) from None
    settings = {"kind": kind.name}
    if model is not None:
        sampler, scale = asked.sampler or model.defaults["sampler"], asked.scale
        shown = model.defaults["scale"] if scale is None else scale
        settings |= {"sampler": f"{sampler}, {asked.steps or model.defaults['steps']} steps, scale {shown:g}",
                     "seeds": f"{asked.seed} to {asked.seed + asked.n - 1}", "batch": str(asked.batch)}  # fmt: skip
        nfe = model.evaluations(asked.sampler, asked.steps, asked.scale)
        rows.append(Measure(group="cost", name="time an item", of=f"batch {asked.batch}", unit="s", better="lower",
                            figure=Figure(value=seconds, n=len(made))))  # fmt: skip
        rows.append(Measure(group="cost", name="network evaluations an item", of="guidance counted", better="lower",
                            figure=Figure(value=nfe, n=len(made))))  # fmt: skip
    digest = sha256(torch.cat([space.encode([data.raw[i]])[0].flatten() for i in range(min(len(data), 64))]).numpy().tobytes())
    own = model.hash if model is not None else sha256(space.encode(list(made[:64]))[0].numpy().tobytes())[:16]
    report = Report(subject=name, subject_hash=own, data=data.path.name, data_hash=digest[:16], samples=len(made),
                    settings=settings, measures=rows, warnings=[], seconds=round(time.perf_counter() - start, 1),
                    version=__version__)  # fmt: skip
    return report, estimates, values
