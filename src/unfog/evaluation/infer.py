"""What a network predicts, and whether its last level is pure noise, told from its own residuals.

    D_k(x_t) = c_skip·x_t + c_out·network(c_in·x_t)      read as k: x0, eps, v, flow, score, edm
    r_k = geometric mean over levels of  E|D_k − x0|² / w,   w = m²σ²/(α²m² + σ²),  m² = E x0²

No function of x_t comes nearer to x0 than E[x0 | x_t], so at every level the right reading has the least residual; 1 is
what the best linear guess reaches on white data as wide as the data. With data, r_k is the cost of reading k. Without,
each reading draws its own samples, and its cost is r_k/(least r of the others), both on those samples, times
max(u, 1/u)³ for u = their width/data_std: the right reading finds itself the best and draws data as wide as stated.

What cannot be told: another data_std of edm; a schedule's inner levels; zero terminal SNR where the other schedule
would end below α/σ = 0.03 (linear betas: 0.006), or from a v network on white data, whose output is 0 at any level. Only
a table's last level is surely trained on, so what a network says at t = 1 of another schedule is shown, not held against it.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from unfog.diffusion.denoisers import Cond, Network, Preconditioned
from unfog.diffusion.grids import make_grid
from unfog.diffusion.noise import Noise
from unfog.diffusion.plan import sample
from unfog.diffusion.predictions import PREDICTIONS, Prediction, prediction_from_config
from unfog.diffusion.processes import Process
from unfog.diffusion.samplers import make_plan
from unfog.errors import UserError, unknown
from unfog.files import MANIFEST, read_checked, sha256, write_manifest

if TYPE_CHECKING:
    from unfog.evaluation.verify import Row
    from unfog.model import Model

LEVELS = (-4.0, -2.0, 0.0, 2.0, 4.0)  # log-SNR; outside, readings differ little or networks are seldom trained
LOWEST = -8.0  # where own samples start, so that eps can be read on a schedule that ends in pure noise
# How many times the least cost the next must be. On nearly white data, the hardest, 1.37 and 1.6 were seen.
MARGINS = {"data": 1.2, "samples": 1.4}
# How many times the cost of the reading found a declared one must have to be refused: a network that is far from trained
# draws poor samples, so on those alone only a gross difference counts.
REFUSED = {"data": 1.2, "samples": 3.0}
WORST = 1.5  # a best reading that costs more is no denoiser
FLOOR = 1e-4  # of r: below it a network knows the data by heart, and two readings that do are equal
LEAST_END = 0.03  # α/σ at t = 1 from which a network's reply there shows whether it was trained on pure noise
SAMPLES, STEPS = 4, 10
ALONE = 1e-5  # of float32 outputs, alone and in a batch: convolutions of another batch size sum in another order
HEARD = 1e-4  # of an output's size, by which a condition must move it to be called heard


@dataclass(frozen=True)
class Inference:
    """What the residuals say.

    prediction: the reading that they point to, None where the margin is too small. costs: of each reading, rising.
    source: "data" or "samples". terminal: "zero", "not zero", "not measurable". spread: root mean square of the x0 that
    different pure noise leads to at t = 1, over data_std; None where there is no reading of it.
    """

    prediction: str | None
    costs: dict[str, float]
    source: str
    terminal: str
    spread: float | None

    @property
    def margin(self) -> float:
        """The second cost over the first; at least 1."""
        first, second, *_ = self.costs.values()
        return second / first

    def __str__(self) -> str:
        listed = ", ".join(f"{name} {cost:.3g}" for name, cost in list(self.costs.items())[:3])
        return f"{self.prediction or 'undecided'} (costs on {self.source}: {listed})"


def infer_prediction(
    network: Network,
    process: Process,
    *,
    data: Tensor | None = None,
    shape: Sequence[int] | None = None,
    cond: Cond | None = None,
    noise_input: str = "logsnr",
    candidates: Sequence[Prediction] | None = None,
    levels: Sequence[float] = LEVELS,
    seed: int = 0,
) -> Inference:
    """The prediction that explains a network, by residuals.

    network: as `Preconditioned` takes it. data (B, *D) in model space with its cond; or shape (*D) and a cond of batch
    SAMPLES, for the network's own samples. candidates: readings to choose from (default: all, with the process's data_std).
    Costs len(levels) evaluations with data (twice that where edm scales its input), about 100 without.
    """
    std = float(getattr(process, "data_std", 1.0))
    readings = list(candidates or (Prediction(name, std) for name in PREDICTIONS))
    denoisers = {r.name: Preconditioned(network, process, r, noise_input) for r in readings}
    if len(denoisers) < 2:
        raise UserError("candidates: one reading leaves nothing to infer; give at least two predictions")
    if data is not None:
        source, costs = "data", residuals(denoisers, data, cond, levels, seed)
        count, shape = len(data), data.shape[1:]
    elif shape is not None:
        count = SAMPLES
        source, costs = "samples", {n: _own_cost(denoisers, n, shape, cond, levels, seed, std) for n in denoisers}
    else:
        raise UserError("infer_prediction: give data, or the shape of an item")
    costs = dict(sorted(costs.items(), key=lambda pair: pair[1]))
    first, second, *_ = costs
    decided = costs[first] <= WORST and costs[second] >= MARGINS[source] * costs[first]
    name = first if decided else None
    terminal, spread = "not measurable", None
    if name is not None:
        terminal, spread = _end(denoisers[name], count, shape, cond, seed, std)
    return Inference(name, costs, source, terminal, spread)


@torch.no_grad()
def residuals(
    denoisers: dict[str, Preconditioned], x0: Tensor, cond: Cond | None, levels: Sequence[float], seed: int
) -> dict[str, float]:
    """r of each reading on x0 (B, *D); infinite where a reading is not finite. One evaluation serves all that share c_in."""
    schedule = next(iter(denoisers.values())).process.schedule
    logs: dict[str, list[float]] = {name: [] for name in denoisers}
    square = float(x0.double().square().mean())
    top, bottom = float(schedule.logsnr(0.0)), float(schedule.logsnr(1.0))
    noise = Noise(range(seed, seed + len(x0)))
    for i, level in enumerate(levels):
        t = float(schedule.time(min(max(level, bottom), top)))
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
        eps = noise.normal(x0.shape[1:], i, device=x0.device, dtype=x0.dtype)
        x_t = alpha * x0 + sigma * eps
        white = square * sigma**2 / (alpha**2 * square + sigma**2)
        said: dict[float, Tensor] = {}
        for name, denoiser in denoisers.items():
            scale = float(denoiser.prediction.c_in(alpha, sigma))
            key = round(scale, 9)  # c_in of edm is 1 up to rounding where α² + σ² = 1
            if key not in said:
                said[key] = denoiser.raw(x_t, t, cond)
            error = (denoiser.prediction.to_x0(said[key], x_t, alpha, sigma) - x0).double().square().mean()
            logs[name].append(math.log(max(float(error) / white, FLOOR)) if math.isfinite(error) and white else math.inf)
    return {name: math.exp(min(float(np.mean(values)), 700.0)) for name, values in logs.items()}


def _own_cost(
    denoisers: dict[str, Preconditioned],
    name: str,
    shape: Sequence[int],
    cond: Cond | None,
    levels: Sequence[float],
    seed: int,
    std: float,
) -> float:
    """The cost of one reading on samples that it draws itself; at most 1e6, for samples that are nothing."""
    denoiser = denoisers[name]
    schedule = denoiser.process.schedule
    begin = 1.0 if schedule.logsnr(1.0) >= LOWEST else float(schedule.time(LOWEST))
    plan = make_plan("dpmpp_2m", schedule, make_grid("logsnr", schedule, STEPS, start=begin))
    x = denoiser.process.prior(Noise(range(seed, seed + SAMPLES)).normal(shape, len(levels)), plan.start)
    drawn = sample(plan, lambda x_t, t: denoiser(x_t, t, cond), x)
    width = float(drawn.double().square().mean().sqrt()) / std
    if not math.isfinite(width) or not 0.05 < width < 20.0:
        return 1e6
    found = residuals(denoisers, drawn, cond, levels, seed)
    others = min(r for other, r in found.items() if other != name)
    return min(found[name] / others * max(width, 1.0 / width) ** 3, 1e6)


@torch.no_grad()
def _end(
    denoiser: Preconditioned, count: int, shape: Sequence[int], cond: Cond | None, seed: int, std: float
) -> tuple[str, float | None]:
    """Whether the network takes t = 1 for pure noise, and the spread that says so.

    On pure noise x0 is one answer for all; a network trained above zero SNR reads at least α/σ·data_std out of its input.
    """
    schedule, prediction = denoiser.process.schedule, denoiser.prediction
    if not math.isfinite(prediction.affine(0.0, 1.0).c_out):
        return "not zero", None  # eps and score cannot be learnt where they say nothing
    sigma = float(schedule.sigma(1.0))
    x = sigma * Noise(range(seed + 1000, seed + 1000 + count)).normal(shape, 0)
    x = torch.cat([x, -x])
    wide = None if cond is None else {key: torch.cat([value, value]) for key, value in cond.items()}
    x0 = prediction.to_x0(denoiser.raw(x, 1.0, wide), x, 0.0, sigma).double()
    # Pairs x, −x under one condition: half their difference is what the input alone changes.
    spread = float((0.5 * (x0[:count] - x0[count:])).square().mean().sqrt()) / std
    end = math.exp(0.5 * max(float(schedule.logsnr(1.0)), -100.0))
    if end >= LEAST_END:
        told = "zero" if spread < 0.25 * end else "not zero" if spread > 0.5 * end else "not measurable"
    else:
        told = "zero" if spread < 0.25 * LEAST_END else "not zero" if spread > 0.5 else "not measurable"
    return told, spread


def check_prediction(inference: Inference, declared: str) -> None:
    """Refuse a prediction that the residuals contradict. Raises: UserError with both, the figures, and what to do."""
    if declared not in inference.costs:
        raise unknown("prediction", declared, inference.costs)
    found, costs = inference.prediction, inference.costs
    if found is None or found == declared:
        return
    times = costs[declared] / costs[found]
    if times < REFUSED[inference.source]:
        return
    raise UserError(
        f"prediction: {declared!r} is declared, but the network's residuals on {inference.source} say {found!r} (cost "
        f"{costs[found]:.3g} against {costs[declared]:.3g}, {times:.3g} times as much); set prediction to {found!r}"
    )


def check_schedule(inference: Inference, process: Process, prediction: str) -> None:
    """Refuse a schedule whose last level the prediction or the network contradicts. Raises: UserError."""
    last = float(process.schedule.logsnr(1.0))
    if last == -math.inf and not math.isfinite(Prediction(prediction).affine(0.0, 1.0).c_out) and _discrete(process):
        raise UserError(
            f"schedule: it ends in pure noise (zero terminal SNR), where the prediction {prediction!r} says nothing; "
            "state the schedule without zero terminal SNR, or the prediction v, flow, x0 or edm"
        )
    if inference.spread is None:
        return
    if math.isfinite(last) and inference.terminal == "zero" and math.exp(0.5 * last) >= LEAST_END:
        raise UserError(
            f"schedule: it ends at log-SNR {last:.2f}, but at t = 1 the network does not heed its input (spread "
            f"{inference.spread:.2g}), as one trained with zero terminal SNR; state the schedule with zero terminal SNR"
        )
    if last == -math.inf and inference.terminal == "not zero" and _discrete(process):
        raise UserError(
            f"schedule: it ends in pure noise (zero terminal SNR), but at t = 1 the network reads x0 out of it (spread "
            f"{inference.spread:.2g} of the data's); state the schedule without zero terminal SNR"
        )


def _discrete(process: Process) -> bool:
    """Whether the schedule is a table, whose last level is one of those trained on; t = 1 itself has no weight elsewhere."""
    schedule = process.schedule
    while hasattr(schedule, "base"):
        schedule = schedule.base
    return hasattr(schedule, "betas")


# A model folder


def open_model(name: str) -> tuple[Model, Prediction | None, int]:
    """A model in float32, the prediction that its model.json states (None: none, or "unknown"), its number of checked files.

    A model that states none is read as v until another is told. Raises: UserError as `load` does, and for a damaged file.
    """
    from unfog import model as models

    shipped = Path(models.__file__).parent / "pretrained" / name
    folders = [place for place in (shipped, Path(name), Path(name) / "model") if (place / models.CARD).is_file()]
    if not folders:
        return models.load(name), None, 0  # which says what is wrong with the name
    folder = folders[0]
    try:
        card = json.loads(read_checked(folder, models.CARD))
        files = list(json.loads((folder / MANIFEST).read_bytes()))
        if not isinstance(card, dict):
            raise ValueError
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{folder / models.CARD}: not readable as JSON; get the model again") from None
    for file in files:
        read_checked(folder, file)
    stated = card.get("prediction")
    if stated is not None and (stated.get("name") if isinstance(stated, dict) else stated) != "unknown":
        return models.Model(folder, dtype=torch.float32), prediction_from_config(stated), len(files)
    with tempfile.TemporaryDirectory() as place:  # the same folder with a prediction filled in; it is read whole, then gone
        for file in files:
            shutil.copyfile(folder / file, Path(place) / file)
        (Path(place) / models.CARD).write_text(json.dumps({**card, "prediction": "v"}), encoding="utf-8")
        write_manifest(Path(place))
        model = models.Model(Path(place), dtype=torch.float32)
    model.folder, model.hash = folder, sha256((folder / MANIFEST).read_bytes())[:16]
    return model, None, len(files)


def _own_data(model: Model, count: int) -> tuple[Tensor, Cond] | None:
    """A few of the pictures that the model was trained on, with their conditions, where they are shipped or still there."""
    from unfog.data import path
    from unfog.modalities.image.data import PictureSet

    try:
        name = str((model.card.get("training") or {}).get("data") or "")
        data = PictureSet.open(name if len(Path(name).parts) > 1 or Path(name).suffix else path(name))
        train = data.split("train")
        chosen = train[:: max(1, len(train) // count)][:count]
        pictures = np.stack([data.load(i, model.size) for i in chosen])
    except (UserError, ValueError):
        return None
    records = [data.records[i] for i in chosen]
    styles = [r.style if r.style in model.styles else None for r in records]
    return model.codec.encode(pictures), model.condition([r.name or r.text for r in records], styles)


def examine(name: str, prediction: str | None = None, quick: bool = False) -> tuple[str, list[Row]]:
    """Whether a model folder is what it says: (name and hash, checks).

    prediction: instead of what model.json states. quick: fewer pictures and levels. Raises: UserError where the model is
    not usable, where its prediction cannot be told and none is given, or where a setting contradicts the network.
    """
    from unfog.evaluation.verify import Row

    model, stated, files = open_model(name)
    if prediction is not None:
        stated = Prediction(prediction) if stated is None or stated.name != prediction else stated
    process, network = model.denoiser.process, model.denoiser.network
    count, levels = (2, (-2.0, 1.0, 4.0)) if quick else (SAMPLES, LEVELS)
    std = float(getattr(process, "data_std", 1.0))
    candidates = [stated if stated and stated.name == k else Prediction(k, std) for k in PREDICTIONS]
    own = _own_data(model, count)
    if own is not None:
        found = infer_prediction(network, process, data=own[0], cond=own[1], candidates=candidates, levels=levels)
    else:
        cond = model.condition([""] * SAMPLES, [None] * SAMPLES)
        shape = model.space.shape
        found = infer_prediction(network, process, shape=shape, cond=cond, candidates=candidates, levels=levels)
    if stated is not None:
        check_prediction(found, stated.name)
    elif found.prediction is None:
        raise UserError(f"prediction: {model.name} states none and its residuals leave it open ({found}); give --prediction")
    chosen = stated or next(c for c in candidates if c.name == found.prediction)
    check_schedule(found, process, chosen.name)
    model.denoiser = Preconditioned(network, process, chosen, sigma_min=model.denoiser.sigma_min)
    last = float(process.schedule.logsnr(1.0))
    spread = "no reading" if found.spread is None else f"spread {found.spread:.2g}"
    rows = [
        ("files", f"{files} files with sha256", "as stated", True),
        ("prediction", stated.name if stated else "unknown", str(found), True),
        ("terminal SNR", "zero" if last == -math.inf else f"log-SNR {last:.3g}", f"{found.terminal}, {spread}", True),
        *_outputs(model),
    ]
    table = [Row(part="model", what=what, declared=declared, observed=seen, ok=ok) for what, declared, seen, ok in rows]
    return f"{model.name} ({model.hash})", table


@torch.no_grad()
def _outputs(model: Model) -> list[tuple[str, str, str, bool]]:
    """(what, declared, observed, ok) of what the network must do whatever it predicts."""
    denoiser, schedule = model.denoiser, model.denoiser.process.schedule
    styles: list[str | None] = [*model.styles[:1]] or [None]
    cond = model.condition(["a red apple"], styles)
    eps = Noise([1]).normal(model.space.shape, 0)
    middle = float(schedule.time(0.0))
    base = denoiser.raw(eps, middle, cond)
    size = float(base.square().mean().sqrt())

    def moved(other: Tensor) -> float:
        return float((other - base).square().mean().sqrt()) / max(size, 1e-12)

    places = [0.0, *(float(schedule.time(level)) for level in (10.0, 4.0, 0.0, -4.0, -10.0)), 1.0]
    finite = [bool(torch.isfinite(denoiser.raw(eps, min(max(t, 0.0), 1.0), cond)).all()) for t in places]
    rows = [("finite outputs", f"at {len(places)} levels, t from 0 to 1", f"at {sum(finite)}", all(finite))]
    heard = {"noise level": denoiser.raw(eps, float(schedule.time(4.0)), cond)}
    if model.card.get("text"):
        heard["text"] = denoiser.raw(eps, middle, model.condition(["a blue car"], styles))
    if len(model.styles) > 1:
        heard["style"] = denoiser.raw(eps, middle, model.condition(["a red apple"], model.styles[1:2]))
    for what, other in heard.items():
        change = moved(other)
        rows.append((f"{what} reaches the network", f"moves its output by > {HEARD:g}", f"{change:.2g}", change > HEARD))
    others = model.condition(["a red apple", "a blue car", ""], [*styles, None, None])
    batch = torch.cat([eps, Noise([2, 3]).normal(eps.shape[1:], 0)])
    gap = float((denoiser.raw(batch, middle, others)[:1] - base).abs().max()) / max(size, 1.0)
    rows.append(("alone = in a batch", f"to {ALONE:g}", f"{gap:.0e}" if gap else "same bits", gap <= ALONE))
    first, second = (model.generate("a red apple", seed=1, steps=3, scale=1.0)[0].tobytes() for _ in range(2))
    rows.append(("same seed twice", "same bytes", "same bytes" if first == second else "different", first == second))
    return rows
