"""Weight averages kept over a run, and one of any width or moment made of them afterwards (`unfog average`).

OUT/averages/0000100.safetensors     "0.05/stem.conv.weight" ...: the averages of each width in float16
OUT/averages/0000100.json            step, widths, sha256; written last
The first ones are also what autoguidance wants: the same network after a part of its training.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from unfog.errors import UserError
from unfog.files import sha256, write_atomic
from unfog.requests import AverageRequest
from unfog.training.ema import PowerEMA, exponent, shares

FOLDER = "averages"


def average(request: AverageRequest) -> int:
    """Write the model folder of one average of a run. -> the step that it stands for. Raises UserError where there is none."""
    from safetensors.torch import save

    from unfog.files import MANIFEST, read_checked, write_folder
    from unfog.model import CARD, WEIGHTS

    model = request.run / "model"
    card = json.loads(read_checked(model, CARD))
    step, weights = reconstruct(request.run, request.ema, request.at)
    training = card.get("training", {})
    training |= {"steps": step, "ema": request.ema, "averaged": True}
    key = "items_seen" if "items_seen" in training else "pictures_seen"
    seen = training.get(key)
    if seen:
        batch, processes = training["recipe"]["batch"], training.get("processes", 1)
        training[key] = step * batch * processes
    training.pop("held_out_loss", None)  # was another's
    half = {key: value.half().contiguous() for key, value in weights.items()}
    others = [name for name in json.loads((model / MANIFEST).read_bytes()) if name.endswith(".safetensors") and name != WEIGHTS]
    kept_as_is = {name: read_checked(model, name) for name in others}  # the autoencoder of a model of latents

    def write(temporary: Path) -> None:
        for name, data in {WEIGHTS: save(half), **kept_as_is}.items():
            write_atomic(temporary / name, data)
        write_atomic(temporary / CARD, (json.dumps(card, indent=1, ensure_ascii=False) + "\n").encode())

    if request.out.exists() and not (request.out / CARD).is_file():
        raise UserError(f"--out: {request.out} exists and is no model folder; choose another place")
    write_folder(request.out, write)
    return step


def keep(out: Path, step: int, averages: Sequence[PowerEMA]) -> None:
    """Write the averages after `step`. The same bytes whenever the run comes by again."""
    from safetensors.torch import save

    tensors = {f"{average.sigma_rel:g}/{key}": value.detach().cpu().half().contiguous()
               for average in averages for key, value in average.network.state_dict().items()}  # fmt: skip
    data = save(tensors)
    stem = out / FOLDER / f"{step:07d}"
    said = {"step": step, "widths": [average.sigma_rel for average in averages], "sha256": sha256(data)}
    try:
        write_atomic(stem.with_suffix(".safetensors"), data)
        write_atomic(stem.with_suffix(".json"), (json.dumps(said) + "\n").encode())
    except OSError as error:
        raise UserError(
            f"{stem}.safetensors: cannot be written ({error.strerror or error}); make room and go on with --resume, "
            "or set snapshots to 0"
        ) from None


def kept(out: Path) -> list[int]:
    """Steps of which averages were kept, first to last."""
    return sorted(int(path.stem) for path in (out / FOLDER).glob("*.json") if path.stem.isdecimal())


def _read(out: Path, step: int) -> tuple[list[float], dict[str, Tensor]]:
    from safetensors.torch import load

    stem = out / FOLDER / f"{step:07d}"
    try:
        said = json.loads(stem.with_suffix(".json").read_bytes())
        data = stem.with_suffix(".safetensors").read_bytes()
        widths = [float(width) for width in said["widths"]]
        whole = said["sha256"] == sha256(data)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{stem}.json: cannot be read ({str(error)[:80]}); remove it and try again") from None
    if not whole:
        raise UserError(f"{stem}.safetensors: damaged (sha256 differs); remove {stem.name}.json and try again")
    return widths, load(data)


def reconstruct(out: Path, sigma_rel: float, at: int | None = None) -> tuple[int, dict[str, Tensor]]:
    """The average of width `sigma_rel` after step `at` (None: the last one kept). -> that step, float32 weights.

    Raises UserError where nothing was kept, or not so early.
    """
    steps = kept(out)
    if not steps:
        raise UserError(f"{out}: no averages were kept there; train with snapshots above 0 and at least as many steps")
    last = steps[-1] if at is None else at
    used = [step for step in steps if step <= last]
    if not used or last > steps[-1]:
        raise UserError(f"--at: averages were kept from step {steps[0]} to {steps[-1]}; give a step between them")
    parts = [(step, width) for step in used for width in _read(out, step)[0]]
    weights = shares([step for step, _ in parts], [exponent(width) for _, width in parts], last, sigma_rel)
    total: dict[str, Tensor] = {}
    for step in used:  # one file at a time in memory
        _, tensors = _read(out, step)
        for (of, width), weight in zip(parts, weights, strict=True):
            if of != step:
                continue
            prefix = f"{width:g}/"
            for key, value in tensors.items():
                if key.startswith(prefix):
                    name = key.removeprefix(prefix)
                    total[name] = total.get(name, torch.zeros((), dtype=torch.float64)) + float(weight) * value.double()
    return last, {key: value.float() for key, value in total.items()}
