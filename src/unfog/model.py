"""A model folder, and items of its kind from it: pictures, sound, whatever `modalities` names.

A folder is `model.json` (network, process, prediction, space, defaults, provenance), `network.safetensors` and
`manifest.json` with a sha256 of each. `Model.stream` turns a request into events, `Model.generate` into items.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from unfog.adapters import changed, read_adapters, words
from unfog.diffusion import (
    Gaussian,
    Noise,
    Plan,
    State,
    begin,
    make_grid,
    make_plan,
    process_from_config,
    run,
    schedule_from_config,
)
from unfog.diffusion.denoisers import OneByOne, Preconditioned, one_thread
from unfog.diffusion.guidance.cfg import ClassifierFree
from unfog.diffusion.samplers import SAMPLERS, sampler_name
from unfog.errors import UserError, unknown
from unfog.files import load_weights, read_checked, sha256, write_weights
from unfog.modalities import build_network, modality
from unfog.modalities.contract import Cond, without
from unfog.modalities.image.latent import WEIGHTS as AUTOENCODER
from unfog.modalities.image.latent import LatentCodec
from unfog.modalities.image.space import PictureSpace
from unfog.parts import PLANS, Asking, Parts, folder_hash
from unfog.parts import add_plan as add_plan
from unfog.precision import fastest
from unfog.prompts import LANGUAGE, Prompt
from unfog.requests import GenerateRequest, Progress, Result, check
from unfog.script import Item, Script, beyond, read
from unfog.steer import Hints, Timed, hints_of, shipped, steered, told_of

if TYPE_CHECKING:
    import numpy as np

    from unfog.training.corpus import Corpus
    from unfog.training.recipe import Recipe

FORMAT = 1
WEIGHTS = "network.safetensors"
CARD = "model.json"


def save_model(folder: Path, recipe: Recipe, corpus: Corpus, network: torch.nn.Module, step: int, held_out: dict[str, float],
               processes: int = 1, averaged: bool = True) -> None:  # fmt: skip
    """Write a model folder whole: float16 weights, everything that sampling needs, what it was trained on.

    averaged: whether the weights are the run's average, or (False) those of the step itself.
    """
    process, seen = Gaussian(schedule_from_config(recipe.schedule)), "pictures_seen" if recipe.kind == "image" else "items_seen"
    card = {
        "format": FORMAT,
        "name": recipe.name,
        "kind": recipe.kind,
        "network": {"name": recipe.network, "settings": corpus.network_settings(recipe)},
        "process": process.config(),
        "prediction": recipe.prediction,
        "sigma_min": recipe.sigma_min,
        **corpus.card(recipe),
        "defaults": recipe.defaults,
        "training": {"data": recipe.data, "steps": step, "processes": processes, "averaged": averaged,
                     seen: step * recipe.batch * processes, "recipe": recipe.told(),
                     "held_out_loss": held_out},
        "licences": recipe.licences,
    }  # fmt: skip
    weights = {k: v.detach().cpu().half() for k, v in network.state_dict().items()}
    codec = getattr(corpus, "codec", None)
    others = {AUTOENCODER: codec.weights} if isinstance(codec, LatentCodec) else {}
    write_weights(folder, WEIGHTS, weights, CARD, card, others)


class Model:
    """A loaded model. `name`, `hash`, `styles` and `defaults` say what it is; `stream` and `generate` make pictures."""

    grids: Callable[[str, int, Sequence[int]], np.ndarray] | None = None

    @classmethod
    def of(cls, parts: Parts) -> Model:
        """A model of parts that were read elsewhere."""
        model = cls.__new__(cls)
        vars(model).update(vars(parts))
        return model

    def __init__(self, folder: Path, device: str | None = None, dtype: torch.dtype | None = None,
                 adapters: Sequence[str | Path] = (), any_base: bool = False) -> None:  # fmt: skip
        """Read and check a model folder, and adapters to use with it (PATH or PATH:STRENGTH; `unfog.adapters`).

        Raises UserError naming the file that is missing, damaged or too new, or the adapter that is another model's (unless
        any_base).
        """
        try:
            card = json.loads(read_checked(folder, CARD))
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{folder / CARD}: not readable as JSON; get the model again") from None
        if card.get("format") != FORMAT:
            raise UserError(f"{folder / CARD}: format {card.get('format')} is not known to this unfog; update unfog")
        kind = modality(card.get("kind", "image"))
        own = ("size", "codec") if kind.name == "image" else ("space",)
        needed = ("name", "network", "process", "prediction", "styles", "defaults", *own)
        missing = [key for key in needed if key not in card]
        if missing:
            raise UserError(f"{folder / CARD}: {', '.join(missing)} missing; get the model again, or try `unfog verify`")
        self.folder, self.card, self.kind = folder, card, kind
        self.name: str = card["name"]
        self.plans: dict[str, dict[str, Any]] = json.loads(read_checked(folder, PLANS)) if (folder / PLANS).is_file() else {}
        self.hash = folder_hash(folder)
        self.styles: list[str] = card["styles"]
        self.defaults: dict[str, Any] = card["defaults"]
        try:
            self.space = kind.space(card.get("space", card))
        except (UserError, KeyError, TypeError, ValueError, IndexError) as error:
            wrong = (
                str(error) if isinstance(error, UserError) else f"its space cannot be read ({error!r:.80}); get the model again"
            )
            raise UserError(f"{folder / CARD}: {wrong}") from None
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = dtype or fastest(self.device)
        self.adapters = read_adapters(adapters, self.name, self.hash, any_base)
        if isinstance(self.space, PictureSpace):
            self.space.words = words(self.adapters)
            if isinstance(self.space.codec, LatentCodec):
                self.space.codec.take(load_weights(folder, AUTOENCODER), self.device, self.dtype)
        whole = changed(load_weights(folder, WEIGHTS), self.adapters)
        weights = {k: v.to(self.device, self.dtype) for k, v in whole.items()}
        try:
            with torch.device("meta"):  # no time for first values that are overwritten at once
                network = build_network(kind.name, card["network"]["name"], card["network"]["settings"])
            network.load_state_dict(weights, assign=True)
        except (KeyError, TypeError, RuntimeError, UserError) as error:
            reason = str(error).strip().split("\n")[-1].strip()[:120]
            wrong = f"its network does not fit {WEIGHTS} or this unfog ({reason})"
            raise UserError(f"{folder / CARD}: {wrong}; get the model again") from None
        # as the file has them, each convolution would copy its weights into this order at every call
        # (ignore: torch's stubs of `to` lack the keyword, which its documentation has)
        network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        process = process_from_config(card["process"])
        lowest = card.get("sigma_min", 0.0)
        if isinstance(lowest, bool) or not isinstance(lowest, (int, float)) or not 0.0 <= lowest < 1.0:
            raise UserError(f"{folder / CARD}: sigma_min must be a number in [0, 1), got {lowest!r}; get the model again")
        network = steered(network, self.adapters)
        self.denoiser = Preconditioned(network, process, card["prediction"], sigma_min=lowest, project=kind.project)

    def plan(self, sampler: str | None = None, steps: int | None = None, share: float = 1.0,
             shape: Sequence[int] | None = None) -> Plan:  # fmt: skip
        """The plan of a sampler, or one learned here; share: its last steps; shape: of x0, if not the usual. UserError."""
        schedule = self.denoiser.process.schedule
        name = sampler or self.defaults["sampler"]
        if name in self.plans:
            plan = Plan.from_dict(self.plans[name]["plan"])
            if share != 1.0:
                raise UserError(f"sampler: {name} was learned for whole samplings; give another one for a part")
            if steps not in (None, plan.nfe):
                raise UserError(
                    f"steps: {name} is a plan of {plan.nfe} evaluations, not {steps}; leave steps out or learn another"
                )
            return plan
        steps = steps or self.defaults["steps"]
        # the weights of "auto" were learned for its own levels
        options = {"dimension": math.prod(self.space.shape)} if name == "auto" else {}
        if self.grids is not None and name != "auto":
            grid = self.grids(name, steps, shape or self.space.shape)
        else:
            grid = make_grid("auto" if name == "auto" else "logsnr", schedule, steps, **options)
        return make_plan(name, schedule, grid[-1 - max(round(share * steps), 1) :])

    def evaluations(self, sampler: str | None = None, steps: int | None = None, scale: float | None = None) -> int:
        """How often the network is asked for one picture: once a row of the plan, twice where guidance is on."""
        plan, interval = self.plan(sampler, steps), self.defaults.get("interval")
        chosen = self.defaults["scale"] if scale is None else scale
        guided = ClassifierFree(self.denoiser, chosen, {}, tuple(interval) if interval else None)
        return plan.nfe + sum(float(guided.scales(float(t), 1)[0]) != 1.0 for t in plan.t)

    @property
    def pictures(self) -> PictureSpace:
        """What only models of pictures have. Raises UserError for a model of another kind."""
        if not isinstance(self.space, PictureSpace):
            raise UserError(f"{self.name}: is a model of the kind {self.kind.name}, not of pictures; give one of pictures")
        return self.space

    @property
    def size(self) -> int:
        return self.pictures.size

    @property
    def buckets(self) -> list[tuple[int, int]]:
        return self.pictures.buckets

    @property
    def codec(self) -> Any:
        own: Any = self.space if isinstance(self.space, Asking) else self.pictures
        return own.codec

    def frame(self, aspect: str | None = None) -> tuple[int, int]:
        """Width and height of a picture: near the aspect W:H, or the squarest. Raises UserError where none is near."""
        return self.pictures.frame(aspect, self.name)

    def condition(self, prompts: Sequence[Any], styles: Sequence[str | None]) -> dict[str, Tensor]:
        """Conditions of (prompt, style) pairs; a style of None is the learnt "any style". Text is taken as it stands."""
        return self._told(self.pictures.ask(prompts, range(len(prompts)), styles))

    def _told(self, cond: dict[str, Tensor]) -> dict[str, Tensor]:
        """On the model's device, numbers in its own dtype."""
        return {k: v.to(self.device, self.dtype) if v.is_floating_point() else v.to(self.device) for k, v in cond.items()}

    def asked(self, items: Sequence[Item], negative: Any, settings: Mapping[str, Any] | None = None) -> tuple[Cond, Cond]:
        """What (prompt, style, seed) say, and guidance's other branch: nothing, or a negative prompt. Prompts: text as it
        stands, or fragments with weights (`networks/said.py`) where the space reads the prompt language."""
        if isinstance(self.space, Asking):
            cond, other = self.space.both([p for p, _, _ in items], negative, settings or {})
            return self._told(cond), self._told(other)
        if isinstance(self.space, PictureSpace):
            cond = self.condition([p for p, _, _ in items], [s for _, s, _ in items])
            # against a negative prompt the style stays, else the style itself would be pushed away from
            return cond, self.condition([negative or ""], [None if negative is None else items[0][1]])
        seeds = [seed for _, _, seed in items]
        cond = self._told(self.space.ask([p for p, _, _ in items], seeds))
        return cond, without(cond, self._told(self.space.ask([negative] * len(items), seeds)))

    def _settings(self, request: GenerateRequest) -> dict[str, Any]:
        name = request.sampler or self.defaults["sampler"]
        learned = self.plans.get(name)
        if learned is None and request.sampler is not None and request.sampler not in SAMPLERS:
            try:
                name = sampler_name(request.sampler)
            except UserError:
                raise unknown("sampler", request.sampler, [*SAMPLERS, *self.plans]) from None
        scale = learned["scale"] if learned else self.defaults["scale"]
        scale = scale if request.scale is None else request.scale
        steps = request.steps or (len(learned["plan"]["t"]) if learned else self.defaults["steps"])
        shape = {} if request.aspect is None else {"aspect": request.aspect}
        return {"sampler": name, "steps": steps, "scale": float(scale), "strict": request.strict, **shape}

    def plan_hash(self, name: str) -> str | None:
        """Which learned plan `name` is; None for a sampler."""
        return sha256(json.dumps(self.plans[name]["plan"]).encode())[:16] if name in self.plans else None

    def settled(self, request: GenerateRequest) -> dict[str, Any]:
        """Sampler, steps, scale, ... of a request, defaults filled in. Raises UserError for what the model does not know."""
        if request.style is not None and request.style not in self.styles:
            raise unknown("style", request.style, self.styles)
        if request.aspect is not None and not isinstance(self.space, Asking):  # refused before anything is made
            self.frame(request.aspect)
        for text in (*request.prompts, request.negative):
            read(self.space, text, request.literal)
        if isinstance(self.space, Asking):
            return {**self._settings(request), **self.space.settled(request)}
        if request.settings:
            raise UserError(f"settings: {self.name} has none of its own; leave out {', '.join(request.settings)}")
        if self.kind.name != "image":
            self.space.ask([*request.prompts, *([request.negative] if request.negative else [])],
                           range(len(request.prompts) + bool(request.negative)))  # fmt: skip
        return self._settings(request)

    def hints(self, request: GenerateRequest) -> Hints | None:
        """What steers a request; an add-on shipped for this model is taken where none was given. UserError where none fits."""
        if isinstance(self.space, Asking):
            return self.space.hints(request)
        for kind, wanted in (("control", request.control), ("style", request.style_image)):
            if wanted and all(adapter.card.kind != kind for adapter in self.adapters):
                self.adapters = [*self.adapters, *read_adapters([shipped(self.name, kind)], self.name, self.hash)]
                self.denoiser.network = steered(self.denoiser.network, self.adapters)  # type: ignore[arg-type]
        return hints_of(request, self) if request.control or request.style_image else None

    @property
    def controls(self) -> dict[str, int]:
        """The kinds of control that the model's branch knows, and the channels of each; without a branch none."""
        return next((a.card.controls for a in self.adapters if a.card.kind == "control"), {})

    def planned(self, request: GenerateRequest) -> Plan:
        """The plan by which each picture of a request is made. Raises UserError for what the model does not know."""
        settings = self.settled(request)
        return self.plan(settings["sampler"], settings["steps"], shape=self._shape(settings))

    def _shape(self, settings: Mapping[str, Any]) -> tuple[int, ...]:
        if isinstance(self.space, Asking):
            return self.space.shaped(settings)
        aspect = settings.get("aspect")
        return self.space.shape if aspect is None else self.codec.shape(*self.frame(aspect))

    def states(self, request: GenerateRequest, items: Sequence[tuple[str, str | None, int]], plan: Plan) -> Iterator[State]:
        """The making of one batch of (prompt, style, seed), by a request's other settings: every State, that of the noise first.

        Its last x is what `stream` decodes.
        """
        settings, negative = self.settled(request), read(self.space, request.negative, request.literal)
        read_ = [(read(self.space, prompt, request.literal), style, seed) for prompt, style, seed in items]
        return (state for state, _ in self._states(read_, negative, settings, plan, self.hints(request)))

    @torch.inference_mode()
    def _states(self, items: Sequence[Item], negative: str | Prompt | None, settings: dict[str, Any], plan: Plan,
                hints: Hints | None = None) -> Iterator[tuple[State, dict[str, Tensor]]]:  # fmt: skip
        strict = bool(settings.get("strict"))
        denoiser: Any = self.denoiser if hints is None else Timed(self.denoiser, hints, plan.t)
        denoiser = OneByOne(denoiser) if strict else denoiser
        asked: Any = partial(self._asked_alone if strict else self.asked, settings=settings)
        asked = asked if hints is None else partial(hints.beside, asked, self._told, settings["scale"])
        said = Script(denoiser, asked, items, negative, plan.nfe, settings.get("steps", plan.nfe), settings["scale"],
                      self.defaults.get("interval"))  # fmt: skip
        noise = Noise([seed for _, _, seed in items])
        first = begin(plan, self.denoiser.process.prior(noise.normal(self._shape(settings), 0), plan.start).to(self.device))
        yield first, said.cond
        for state in run(plan, said, first, noise):
            yield state, said.cond
            said.row = state.nfe

    def _asked_alone(self, items: Sequence[Item], negative: Any, settings: Mapping[str, Any]) -> tuple[Cond, Cond]:
        """`asked` of each item by itself: the text encoder's last bits, too, depend on what else is in its batch."""
        with one_thread():
            pairs = [self.asked([item], negative, settings) for item in items]
        told, other = ({key: torch.cat([pair[k][key] for pair in pairs]) for key in pairs[0][k]} for k in (0, 1))
        return told, other

    def _sample(self, items: Sequence[Item], negative: str | Prompt | None, settings: dict[str, Any], plan: Plan,
                hints: Hints | None = None) -> Iterator[tuple[int, list[Any] | None]]:  # fmt: skip
        """One batch of (prompt, style, seed): yields evaluations done, at last with the items; pictures are (H, W, 4) arrays."""
        for state, cond in self._states(items, negative, settings, plan, hints):
            if state.nfe:
                yield state.nfe, self.space.decode(state.x, cond) if state.done else None

    def stream(self, request: GenerateRequest) -> Generator[Progress | Result]:
        """Progress and results of a request, in order. Raises UserError for an unknown style or sampler."""
        from unfog import __version__

        request = request.settled()
        if request.novel is not None:  # this part knows no training data, and may not pass over what was asked
            raise UserError("novel: is answered by unfog.evaluation.novel.stream; call that, or leave novel out")
        settings, plan = self.settled(request), self.planned(request)
        wanted = request.pictures()
        batches = request.batches()
        total, done = plan.nfe * sum(map(len, batches)), 0
        learned, hints = self.plan_hash(settings["sampler"]), self.hints(request)
        extra: dict[str, Any] = {"plan": learned} if learned else {}
        extra |= told_of(self.adapters, request.control, request.style_image, hints)
        said = {text: read(self.space, text, request.literal) for text in (*request.prompts, request.negative)}
        for indices in batches:
            part = [wanted[index] for index in indices]
            start = time.perf_counter()
            asked = [(said[p], request.style, s) for p, s in part]
            for nfe, made in self._sample(asked, said[request.negative], settings, plan, hints):
                if made is None:
                    yield Progress(done + nfe * len(part), total)
                    continue
                spent = (time.perf_counter() - start) * 1000 / len(part)
                done += plan.nfe * len(part)
                yield Progress(done, total)
                for index, (prompt, seed), item in zip(indices, part, made, strict=True):
                    own = {"language": LANGUAGE} if beyond(self.space, [said[prompt], said[request.negative]]) else {}
                    recipe = {"prompt": prompt, "negative": request.negative, "style": request.style, "seed": seed, **settings,
                              **extra, **own, "model": self.name, "model_hash": self.hash, "version": __version__}  # fmt: skip
                    shown = Image.fromarray(item) if self.kind.name == "image" else item
                    yield Result(shown, prompt, seed, index, spent, recipe)

    def generate(self, prompt: str | GenerateRequest, **fields: Any) -> list[Any]:
        """Items of a prompt (pictures: PIL, straight RGBA). Fields are those of GenerateRequest (style, seed, n, steps, ...)."""
        request = prompt if isinstance(prompt, GenerateRequest) else check(GenerateRequest, {"prompts": [prompt], **fields})
        return [event.item for event in self.stream(request) if isinstance(event, Result)]

    def make(self, prompts: Sequence[str], styles: Sequence[str | None], seeds: Sequence[int], batch: int = 16,
             steps: int | None = None, scale: float | None = None, sampler: str | None = None) -> list[Any]:  # fmt: skip
        """Many items of the model's kind, each with its own prompt, style (None where the kind has none) and seed."""
        settings = {"scale": self.defaults["scale"] if scale is None else scale}
        plan = self.plan(sampler, steps)
        items = list(zip(prompts, styles, seeds, strict=True))
        made: list[Any] = []
        for first in range(0, len(items), batch):
            for _, found in self._sample(items[first : first + batch], None, settings, plan):
                made += found or []
        return made


def load(name: str | Path, device: str | None = None, adapters: Sequence[str | Path] = (), any_base: bool = False,
         prediction: str | None = None) -> Model:  # fmt: skip
    """A shipped model by name, a model folder, a training run's folder, or Stable Diffusion's (`unfog.interop`), and adapters.

    prediction: what a folder of Stable Diffusion's predicts, where it does not say so. Raises UserError where there is no model.
    """
    path = Path(name)
    if (path / "model_index.json").is_file() or path.is_file():
        from unfog.interop import load as theirs

        return theirs(path, device, adapters, prediction)
    if prediction is not None:
        raise UserError("prediction: an unfog model states what it predicts (`unfog verify` checks it); leave it out")
    shipped = Path(__file__).parent / "pretrained"
    known = sorted(p.parent.name for p in shipped.glob("*/model.json") if (p.parent / WEIGHTS).exists())
    if str(name) in known:
        return Model(shipped / str(name), device, None, adapters, any_base)
    for folder in (path, path / "model"):
        if (folder / CARD).is_file():
            return Model(folder, device, None, adapters, any_base)
    if (path / "adapter.json").is_file() or (path / "adapter" / "adapter.json").is_file():
        raise UserError(f"{path}: an adapter, not a whole model; give its base as the model and it with --adapter")
    if path.exists():
        raise UserError(f"{path}: no {CARD} there; give a model folder or one of: {', '.join(known)}")
    raise unknown("model", str(name), known)
