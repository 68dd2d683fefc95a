"""Folders of diffusers' whose label is wrong: which does unfog find, and does it ever refuse a right one?

    pip install -e '.[bench]' && python benchmarks/mislabelled.py [--effort 1]      writes benchmarks/results/mislabelled.json

Small networks of Stable Diffusion's layout are trained here, each with a truth of its own (what it predicts, its betas, zero
terminal SNR), on data of three kinds: emoji-64's pictures through a fixed map of colours, blurred noise, blobs. Each is written
as a folder with every label, right, wrong and left out, and loaded as anybody would. Then folders of random weights, with every
label: of these none may be refused for what its network is. --effort: a factor of the steps of training. --keep FOLDER: networks
are kept there, and those that lie there are not trained again.

    found      refused with a line about what its network predicts, or read as what it is in spite of its label
    missed     read as its wrong label says
    harmless   read as its label says, which is wrong, but by less than α = 0.03 at the last index, or of a network that says x0
"""

from __future__ import annotations

import argparse
import io
import json
import math
import shutil
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests/interop"))
ZERO = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
LINEAR = {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
TYPES = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
PROMPTS = ("", "", "a red apple", "cat on the moon")


@dataclass(frozen=True)
class Truth:
    """One network: what it predicts, with which noise, of which width, on latents of which side, for how many steps."""

    name: str
    prediction: str
    data: str
    steps: int
    side: int = 8
    widths: tuple[int, int] = (16, 32)
    noise: dict[str, Any] = field(default_factory=dict)
    zero: bool = False
    second: bool = False  # Stable Diffusion 2's U-Net: linear projections, heads by width
    seed: int = 0


TRUTHS = (
    Truth("eps", "eps", "emoji", 500),
    Truth("v", "v", "fields", 500, seed=1),
    Truth("v, zero SNR", "v", "emoji", 500, zero=True, second=True, seed=2),
    Truth("flow, U-Net", "flow", "emoji", 500, seed=10),
    Truth("flow, U-Net, short", "flow", "fields", 250, seed=3),
    Truth("x0", "x0", "emoji", 500, seed=4),
    Truth("v, short", "v", "emoji", 250, widths=(24, 48), second=True, seed=5),
    Truth("eps, linear betas", "eps", "fields", 400, side=12, noise=LINEAR, seed=6),
    Truth("eps, cosine, short", "eps", "blobs", 250, noise=COSINE, seed=7),
    Truth("v, zero SNR, short", "v", "blobs", 250, widths=(24, 48), zero=True, seed=8),
    Truth("flow, SD 3", "flow", "blobs", 200, seed=9),
)


# -- data ----------------------------------------------------------------------------------------------------------------------


def emoji(side: int, channels: int, seed: int) -> Callable[[int], torch.Tensor]:
    """512 pictures of emoji-64 on white, averaged to side x side; colours to channels by a fixed map."""
    from PIL import Image

    planes = []
    with zipfile.ZipFile(ROOT / "src/unfog/data/emoji-64.zip") as held:
        names = sorted(name for name in held.namelist() if name.endswith((".webp", ".png")))
        for name in names[:: len(names) // 512][:512]:
            with Image.open(io.BytesIO(held.read(name))) as opened:
                picture = opened.convert("RGBA")
            white = Image.new("RGBA", picture.size, "white")
            small = Image.alpha_composite(white, picture).convert("RGB").resize((side, side), Image.Resampling.BOX)
            planes.append(np.asarray(small, np.float32) / 127.5 - 1.0)
    rgb = torch.from_numpy(np.stack(planes)).permute(0, 3, 1, 2)
    colours, _ = torch.linalg.qr(torch.randn(channels, 3, generator=torch.Generator().manual_seed(77)))
    latents = torch.einsum("ck,nkhw->nchw", colours, rgb)
    latents = (latents - latents.mean((0, 2, 3), keepdim=True)) / latents.std()
    rng = torch.Generator().manual_seed(seed)
    return lambda n: latents[torch.randint(len(latents), (n,), generator=rng)]


def fields(side: int, channels: int, seed: int) -> Callable[[int], torch.Tensor]:
    """Blurred noise of unit variance, its power falling with the fourth power of the frequency above 1."""
    rng = torch.Generator().manual_seed(seed)
    f = torch.fft.fftfreq(side, 1 / side)
    power = (1.0 + f[:, None] ** 2 + f[None] ** 2) ** -2.0
    gain = (power / power.mean()).sqrt()
    return lambda n: torch.fft.ifft2(torch.fft.fft2(torch.randn(n, channels, side, side, generator=rng)) * gain).real


def blobs(side: int, channels: int, seed: int) -> Callable[[int], torch.Tensor]:
    """Three round spots a picture, each of its own place, width and colour; unit variance."""
    rng = torch.Generator().manual_seed(seed)
    at = (torch.arange(side) + 0.5) / side

    def drawn(n: int) -> torch.Tensor:
        place = torch.rand(n, 3, 2, generator=rng)
        width = 0.1 + 0.2 * torch.rand(n, 3, 1, 1, generator=rng)
        far = (at[:, None] - place[..., :1, None]) ** 2 + (at[None] - place[..., 1:, None]) ** 2
        spots = torch.exp(-0.5 * far / width**2)
        colour = torch.randn(n, 3, channels, generator=rng)
        return 2.0 * torch.einsum("nkhw,nkc->nchw", spots, colour)

    return drawn


DATA = {"emoji": emoji, "fields": fields, "blobs": blobs}


# -- training ------------------------------------------------------------------------------------------------------------------


def empty_folder(truth: Truth, place: Path) -> Path:
    """The folder with random weights."""
    import tiny
    import tiny_flow

    if truth.name.endswith("SD 3"):
        return tiny_flow.sd3(place, without=("text_encoder_3",))
    tiny.stable_diffusion(place)
    network_of(truth).save_pretrained(place / "unet")
    return place


def network_of(truth: Truth) -> Any:
    import tiny

    heads = {"attention_head_dim": (2, 4), "use_linear_projection": True} if truth.second else {}
    return tiny.unet(truth.seed, block_out_channels=truth.widths, layers_per_block=1, sample_size=truth.side, **heads)


def schedule_of(truth: Truth) -> Any:
    import tiny

    from unfog.interop.noise import Steps

    told = {"_class_name": "DDIMScheduler", **tiny.SD, **truth.noise, **(ZERO if truth.zero else {})}
    return Steps(Path("truth"), told).schedule()


def target(prediction: str, x0: torch.Tensor, eps: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    return {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0, "flow": eps - x0}[prediction]


def trained(truth: Truth, network: Any, space: Any, steps: int, batch: int = 16) -> list[float]:
    """Train a network of diffusers' on its truth; the mean loss of every tenth of the way."""
    joint = truth.name.endswith("SD 3")
    draw = DATA[truth.data](truth.side, 8 if joint else 4, truth.seed)
    told = space.ask(list(PROMPTS), [0] * len(PROMPTS))
    rng = torch.Generator().manual_seed(1000 + truth.seed)
    torch.manual_seed(truth.seed)
    network.train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.0, fused=True)
    schedule, losses = schedule_of(truth), []
    for step in range(steps):
        for group in optimiser.param_groups:  # up over 20 steps, then down to a tenth
            group["lr"] = 3e-3 * min((step + 1) / 20, 1.0) * (0.1 + 0.9 * math.cos(0.5 * math.pi * step / steps))
        x0 = draw(batch)
        eps = torch.randn(x0.shape, generator=rng)
        index = torch.randint(1000, (batch,), generator=rng)
        if truth.prediction == "flow":
            sigma = (index + 1.0) / 1000
            alpha, level = 1.0 - sigma, 1000 * sigma
        else:
            t = (index + 1.0).double() / 1000
            alpha, sigma, level = schedule.alpha(t).float(), schedule.sigma(t).float(), index
        alpha, sigma = alpha[:, None, None, None], sigma[:, None, None, None]
        which = torch.randint(len(PROMPTS), (batch,), generator=rng)
        text = told["text"][which, : 85 if joint else None]
        if joint:
            out = network(alpha * x0 + sigma * eps, encoder_hidden_states=text, pooled_projections=told["pooled"][which],
                          timestep=level, return_dict=False)[0]  # fmt: skip
        else:
            out = network(alpha * x0 + sigma * eps, level, text, return_dict=False)[0]
        loss = F.mse_loss(out, target(truth.prediction, x0, eps, alpha, sigma))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
    network.eval()
    tenth = max(steps // 10, 1)
    return [round(float(np.mean(losses[k : k + tenth])), 4) for k in range(0, steps, tenth)]


def made(truth: Truth, place: Path, effort: float, keep: Path | None) -> dict[str, Any]:
    """The folder of a trained network; what its training was like. keep: where trained networks lie, or will."""
    import unfog

    folder = empty_folder(truth, place)
    joint = truth.name.endswith("SD 3")
    component = folder / ("transformer" if joint else "unet")
    kept = keep and keep / "".join(c if c.isalnum() else "-" for c in truth.name)
    if kept is not None and (kept / "training.json").exists():
        shutil.copytree(kept, component, dirs_exist_ok=True)
        (component / "training.json").unlink()
        told: dict[str, Any] = json.loads((kept / "training.json").read_text())
        return told
    if joint:
        import tiny_flow

        network = tiny_flow.sd3_network()
    else:
        network = network_of(truth)
    steps, start = round(truth.steps * effort), time.process_time()
    losses = trained(truth, network, unfog.load(folder, "cpu").space, steps)
    size = sum(parameter.numel() for parameter in network.parameters())
    told = {"steps": steps, "parameters": size, "losses": losses, "seconds": round(time.process_time() - start, 1)}
    network.save_pretrained(component)
    if kept is not None:
        shutil.copytree(component, kept, dirs_exist_ok=True)
        (kept / "training.json").write_text(json.dumps(told))
    return told


# -- labels --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Label:
    """What a folder says: prediction is eps, v, x0, flow or None (nothing is said)."""

    prediction: str | None
    zero: bool = False

    @property
    def name(self) -> str:
        return f"{self.prediction or 'none'}{' zero' if self.zero else ''}"


LABELS = tuple(Label(said, zero) for zero in (False, True) for said in ("eps", "v", "x0", None)) + (Label("flow"),)


def labelled(folder: Path, label: Label, noise: dict[str, Any]) -> None:
    """Write the label into a folder."""
    import tiny

    index = folder / "model_index.json"
    told = json.loads(index.read_text())
    if label.prediction == "flow":
        name, fields = "FlowMatchEulerDiscreteScheduler", {"num_train_timesteps": 1000, "shift": 3.0}
    else:
        fields = table_of(noise, label)
        name = fields.pop("_class_name")
    told["scheduler"] = ["diffusers", name]
    index.write_text(json.dumps(told))
    tiny.noise(folder, name, **fields)


def read(folder: Path) -> dict[str, Any]:
    """As what `unfog.load` reads a folder: prediction, zero SNR and what was measured, or why it refuses."""
    import unfog
    from unfog.errors import UserError

    try:
        model = unfog.load(folder, "cpu")
    except UserError as error:
        return {"refused": str(error).replace(str(folder.parent), "").strip("/")}
    prediction, end = model.denoiser.prediction.name, float(model.denoiser.process.schedule.logsnr(1.0))
    if prediction == "flow":
        return {"prediction": prediction, "zero": False}
    return {"prediction": prediction, "zero": not math.isfinite(end), "figures": figures_of(model)}


def verdict(truth: Truth, label: Label, outcome: dict[str, Any]) -> str:
    """right, found, missed, harmless, or false refusal."""
    right = label == Label(truth.prediction, truth.zero)
    if "refused" in outcome:
        return "not read" if truth.name.startswith("flow, U-Net") and right else "false refusal" if right else "found"
    if outcome["prediction"] == truth.prediction and outcome["zero"] == truth.zero:
        return "right" if right else "found"
    same = outcome["prediction"] == truth.prediction
    slight = truth.prediction == "x0" or (not truth.zero and float(schedule_of(truth).alpha(1.0)) < 0.03)
    return "harmless" if same and slight else "missed"


def table_of(noise: dict[str, Any], label: Label) -> dict[str, Any]:
    """The settings of a label that is not flow."""
    import tiny

    fields = {"_class_name": "DDIMScheduler", **tiny.SD, **noise, **(ZERO if label.zero else {})}
    return fields | ({"prediction_type": TYPES[label.prediction]} if label.prediction else {})


def figures_of(model: Any) -> dict[str, float]:
    """What the probe measures of a loaded model."""
    from unfog.interop.folder import _nothing
    from unfog.interop.noise import Steps
    from unfog.interop.probe import probe

    plain = Steps(Path("plain"), table_of({}, Label(None))).plain()
    found = probe(model.denoiser, (model.space.codec.channels, 16, 16), lambda n: _nothing(model.space, n), "cpu", plain)
    return {name: round(value, 3) for name, value in found.figures.items()}


def random_ones(place: Path, count: int) -> dict[str, Any]:
    """Folders of random weights, of 1, 2 and XL, of three widths, half of them shaken: each read once, and then taken for every
    label that does not contradict itself. Refusals, and the largest figures of the probe."""
    import tiny
    import tiny_flow

    import unfog
    from unfog.errors import UserError
    from unfog.interop import folder as folders
    from unfog.interop.noise import Steps
    from unfog.interop.probe import probe

    large = {"text": 64, "addition_embed_type": "text_time", "addition_time_embed_dim": 8, "transformer_layers_per_block": (1, 2),
             "projection_class_embeddings_input_dim": 32 + 6 * 8}  # fmt: skip
    second = {"use_linear_projection": True, "attention_head_dim": (2, 4)}
    kinds = (("1", tiny.stable_diffusion(place / "1"), {}), ("2", tiny.stable_diffusion(place / "2", second=True), second),
             ("XL", tiny.stable_diffusion_xl(place / "XL"), {**second, **large}))  # fmt: skip
    labels = [label for label in LABELS if label.prediction in TYPES or not label.zero]
    labels = [label for label in labels if label.prediction != "flow" and label != Label("eps", True)]
    refused: list[str] = []
    most: dict[str, float] = {}
    for seed in range(count):
        kind, folder, fields = kinds[seed % 3]
        network = tiny.unet(seed, block_out_channels=((16, 32), (24, 48), (32, 64))[seed // 3 % 3], layers_per_block=1, **fields)
        (tiny_flow.shaken(network) if seed % 2 else network).save_pretrained(folder / "unet")
        model = unfog.load(folder, "cpu")
        measured: dict[bool, Any] = {}  # the same for every label of one schedule

        def once(denoiser: Any, *rest: Any, measured: dict[bool, Any] = measured) -> Any:
            zero = not math.isfinite(float(denoiser.process.schedule.logsnr(1.0)))
            if zero not in measured:
                measured[zero] = probe(denoiser, *rest)
            return measured[zero]

        folders.probe = once
        for label in labels:
            steps = Steps(folder, table_of({}, label))
            try:
                got = folders._denoiser(kind, model.denoiser.network, steps, model.space, None)
            except UserError as error:
                refused.append(f"{kind}, seed {seed}, {label.name}: {error}")
                continue
            if got.prediction.name != (label.prediction or "eps") or steps.zero == math.isfinite(float(
                    got.process.schedule.logsnr(1.0))):  # fmt: skip
                refused.append(f"{kind}, seed {seed}, {label.name}: read as {got.prediction.name}")
        folders.probe = probe
        for name, value in measured[False].figures.items():
            most[name] = round(max(most.get(name, 0.0), abs(value)), 3)
    return {"folders": count, "labels": [label.name for label in labels], "refused or changed": refused, "largest": most}


MARKS = {"right": "right", "found": "found", "missed": "MISSED", "harmless": "~", "false refusal": "FALSE", "not read": "-"}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--effort", type=float, default=1.0)
    parser.add_argument("--random", type=int, default=40)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--only", type=int, nargs="*", help="which of the networks, from 0; the others' figures stay as they are")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/mislabelled.json")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    import unfog

    told: dict[str, Any] = json.loads(options.out.read_text()) if options.only is not None and options.out.exists() else {}
    told["about"] = {"torch": torch.__version__, "unfog": unfog.__version__}
    rows: dict[str, Any] = told.setdefault("trained", {})
    print(f"{'':<22}" + "".join(f"{label.name:>10}" for label in LABELS))
    with tempfile.TemporaryDirectory() as place:
        for k, truth in enumerate(TRUTHS):
            if options.only is not None and k not in options.only:
                continue
            folder = Path(place) / f"folder{k}"
            row: dict[str, Any] = {"training": made(truth, folder, options.effort, options.keep), "labels": {}}
            for label in LABELS:
                labelled(folder, label, truth.noise)
                outcome = read(folder)
                row["labels"][label.name] = {**outcome, "verdict": verdict(truth, label, outcome)}
            rows[truth.name] = row
            marks = [MARKS[outcome["verdict"]] for outcome in row["labels"].values()]
            print(f"{truth.name:<22}" + "".join(f"{mark:>10}" for mark in marks), flush=True)
        if options.random:
            told["random"] = random_ones(Path(place), options.random)
            print(f"random: {options.random} folders, refused or changed: {told['random']['refused or changed'] or 'none'}")
    verdicts = [outcome["verdict"] for row in rows.values() for outcome in row["labels"].values()]
    told["counts"] = {mark: verdicts.count(mark) for mark in MARKS}
    print(told["counts"])
    options.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
