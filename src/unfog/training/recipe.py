"""A recipe: every setting of a training run, checked before anything starts."""

from __future__ import annotations

import ast
import json
import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from unfog.checks import lookup
from unfog.errors import UserError
from unfog.modalities import MODALITIES, modality
from unfog.networks import NETWORKS
from unfog.requests import WORD
from unfog.schema import one_line


class LoopSettings(BaseModel):
    """What the loop itself needs, whatever it trains; unknown settings are refused."""

    model_config = ConfigDict(extra="forbid")

    steps: int = Field(10_000, ge=1)
    batch: int = Field(64, ge=1)
    accumulate: int = Field(2, ge=1, description="parts that a batch is worked through in: memory falls, the result stays; as "
                            "many processes that train together give the same bits as one")  # fmt: skip
    optimiser: Literal["muon", "adamw"] = Field("muon", description="muon for the inner matrices and AdamW for the rest, or "
                                                "AdamW for all: cheaper steps, more of them")  # fmt: skip
    lr: float = Field(1e-3, gt=0)
    warm_up: int = Field(200, ge=0)
    decay: float = Field(0.3, ge=0, le=1, description="last share of the run over which the learning rate falls to 0")
    clip: float = Field(1.0, gt=0)
    ema: float = Field(0.1, gt=0, lt=0.28, description="relative width of the weight average")
    snapshots: int = Field(16, ge=0, description="weight averages kept over the run, for `unfog average`; 0: none")
    average_steps: int = Field(0, ge=0, description="of several processes each takes a share of every batch if 0; "
                               "if n, batches of its own, and their weights are averaged every n steps")  # fmt: skip
    seed: int = Field(0, ge=0)
    parallel: Literal["replicate", "shard"] = Field("replicate", description="whether each of several processes holds all "
                                                    "weights, or an equal share of them")  # fmt: skip
    checkpoint_activations: bool = Field(False, description="true to keep of a block its input alone: less memory")
    compile: Literal["none", "blocks", "whole"] = Field("none", description="none, blocks or whole: pays on a GPU, costs minutes")
    checkpoint_minutes: float = Field(10, gt=0)
    report_steps: int = Field(500, ge=1, description="steps between held-out losses and sample grids")
    workers: int = Field(1, ge=0, le=2, exclude=True, description="threads that prepare the next batches; the result is the same "
                         "with any, so it is no part of what a model says of itself")  # fmt: skip

    @field_validator("compile", mode="before")
    @classmethod
    def _yes_or_no(cls, value: object) -> object:
        return {True: "whole", False: "none"}[value] if isinstance(value, bool) else value  # as recipes said it before


class Tuning(BaseModel):
    """How a model that is there is tuned (`training/tuning.py`)."""

    lora: int = Field(0, ge=0, le=1024, description="rank of the low-rank branches that alone train; 0: all weights do")
    lora_alpha: float | None = Field(None, gt=0, description="branches are scaled by this/lora; None: by 1")
    lora_targets: list[str] = Field(default_factory=list, description="parts of the names of layers that get them; []: all inner")
    subject: str | None = Field(None, min_length=1, max_length=200, description="what all pictures show: a rare word, its class")
    class_prompt: str | None = Field(None, min_length=1, max_length=200, description="its class, kept as it was; a word's start")
    prior_weight: float = Field(1.0, ge=0, le=100, description="weight of the start model's own pictures of the class")
    prior_count: int = Field(64, ge=1, le=10_000, description="how many of these are made")
    word: str | None = Field(None, pattern=f"^{WORD}$", description="a word to learn: <small letters, digits, hyphens>")
    word_vectors: int = Field(2, ge=1, le=16, description="the tokens that it takes")
    control: list[str] = Field(
        default_factory=list, description="kinds of hints that a branch learns to follow, the model frozen"
    )
    style_reference: bool = Field(False, description="true to learn to follow the style of a picture, the model frozen")
    held_style: str | None = Field(None, description="a style that this is not shown")
    pairs: dict[str, str] = Field(default_factory=dict, description="exact hints of kinds: a shipped set or a file of them, "
                                  "by the pictures' own file names")  # fmt: skip

    @model_validator(mode="after")
    def _one_way(self) -> Tuning:
        for way, needs, clash in (
            ("lora_alpha", "lora", ""), ("lora_targets", "lora", ""), ("class_prompt", "subject or word", ""),
            ("prior_weight", "subject", ""), ("prior_count", "subject", ""), ("word_vectors", "word", ""),
            ("word", "", "lora"), ("word", "", "subject"), ("pairs", "control", ""),
            ("held_style", "style_reference", ""), ("style_reference", "", "control"),
        ):  # fmt: skip
            if getattr(self, way) == type(self).model_fields[way].get_default(call_default_factory=True):
                continue
            if needs and not any(getattr(self, need) for need in needs.split(" or ")):
                raise ValueError(f"{way} goes with {needs}; leave it out or give {needs}")
            if clash and getattr(self, clash):
                raise ValueError(f"{way} and {clash} are two ways, and each leaves the network otherwise; choose one")
        if (self.control or self.style_reference) and (self.lora or self.subject or self.word):
            raise ValueError(
                "control and style_reference leave the model as it is; with them no other way of tuning, so choose one"
            )
        if len(set(self.control)) < len(self.control):
            raise ValueError("control names a kind twice; name each once")
        if self.subject and self.prior_weight and not self.class_prompt and " " not in self.subject:
            raise ValueError("subject names no class to keep; give class_prompt, or prior_weight 0")
        if self.prior_count != 64 and not self.prior_weight:
            raise ValueError("prior_count goes with a prior_weight above 0; leave it out")
        return self


class Pictures(BaseModel):
    """What only recipes of pictures have."""

    size: int = Field(64, ge=8, le=1024, description="pixels a side")
    buckets: bool = Field(False, description="true for pictures of several shapes with about size x size pixels, 1:2 to 2:1")
    picture_memory: float | None = Field(None, ge=0, exclude=True, description="GiB of memory that pictures may take before they "
                                         "go to a file in the run's folder; None: a quarter of what is free")  # fmt: skip
    drop_style: float = Field(0.1, ge=0, le=1, description="share of items trained without style alone")
    recolour: float = Field(0.1, ge=0, le=1, description="share of items with a turned hue and a caption that says so")
    autoencoder: str | None = Field(None, description="an autoencoder's folder, that of the run that made it, or the name "
                                    "of a shipped one: its latents are learned; None: pixels")  # fmt: skip
    augment: float = Field(0.0, ge=0, le=1, description="chance of each way of moving a training picture; the network is told, "
                           "so samples are not moved")  # fmt: skip


class Recipe(LoopSettings, Tuning, Pictures):
    """Settings of one training run."""

    kind: str = Field("image", description="the kind of data: image or another that `unfog models --kinds` lists")
    options: dict[str, Any] = Field(default_factory=dict, description="the kind's own settings")
    name: str = "my-model"
    data: str = Field("emoji-64", description="a shipped data set, or a folder, .zip, .tar, .parquet, .npy or .npz")
    start: str | None = Field(None, description="a shipped model or a model folder whose weights to begin with")
    network: str = Field("unet", description="unet, dit, or a network of the kind's own")
    settings: dict[str, Any] = Field(default_factory=dict, description="the network's own settings")
    dropout: float = Field(0.05, ge=0, lt=1)
    schedule: dict[str, Any] = Field(default_factory=lambda: {"name": "cosine"})
    prediction: Literal["x0", "eps", "v", "flow", "edm"] = "v"
    weight: str | None = Field(None, description="space in which errors count, such as v; None: the prediction's own")
    weight_limit: float = Field(100.0, gt=0, description="most that the weight may be")
    learned_weight: bool = Field(False, description="true to learn, beside the network, a weight for each noise level")
    noise_mean: float = Field(0.3, description="mean of ln(sigma/alpha) in training")
    noise_std: float = Field(1.3, gt=0, description="its standard deviation")
    drop_text: float = Field(0.1, ge=0, le=1, description="share of items trained with nothing told: no prompt, no style")
    licences: list[str] = Field(default_factory=list, description="credits that the model folder carries on")
    defaults: dict[str, Any] = Field(default_factory=lambda: {"steps": 20, "scale": 3.0, "sampler": "auto"})

    @model_validator(mode="after")
    def _of_its_kind(self) -> Recipe:
        lookup(MODALITIES, self.kind, "kind")
        if self.kind == "image":  # without loading a kind: reading a run's settings loads no torch
            lookup(NETWORKS, self.network, "network")
            if self.options:
                raise ValueError("options: pictures have none; leave them out")
            for own in ("augment", "buckets"):
                if self.autoencoder and getattr(self, own):
                    raise ValueError(f"{own} is for pixels, latents are made once before; leave {own} out, or autoencoder")
            if self.control:
                self._hints()
            return self
        kind = modality(self.kind)
        lookup({**NETWORKS, **kind.networks}, self.network, "network")
        for name, field in [
            *Pictures.model_fields.items(),
            *((n, Tuning.model_fields[n]) for n in ("subject", "word", "control", "style_reference")),
        ]:
            if getattr(self, name) != field.get_default(call_default_factory=True):
                raise ValueError(f"{name}: is for pictures, not for the kind {self.kind}; leave it out")
        try:
            kind.options.model_validate(self.options)
        except ValidationError as error:
            raise ValueError(f"options: {one_line(kind.options, error)}") from None
        return self

    def _hints(self) -> None:
        from unfog.modalities.image.controls import CONTROLS

        for name in self.control:
            lookup(CONTROLS, name, "control")
            if CONTROLS[name].given and name not in self.pairs:
                raise ValueError(f"control: no picture shows its {name} by itself; give pairs with {name}, or leave it out")
        for name in self.pairs:
            if name not in self.control:
                raise ValueError(f"pairs: {name} is no kind that control names; add it there, or leave it out")

    def told(self) -> dict[str, Any]:
        """For a card that is handed on: of the model that the run began from its name alone, not where it lay."""
        return {**self.model_dump(), "start": None if self.start is None else Path(self.start).name}

    @property
    def sigma_min(self) -> float:
        """σ/α above which 99.9 % of the training lies, at most 0.05 (what is left there is hardly seen)."""
        return min(float(f"{math.exp(self.noise_mean - 3.0 * self.noise_std):.3g}"), 0.05)


def read_recipe(path: Path) -> Recipe:
    """A recipe from a .json file, or the literal `RECIPE = {...}` of a .py file, which is parsed and never run.

    Raises UserError naming the file and the field.
    """
    return checked(fields_of(path), str(path))


def fields_of(path: Path) -> Any:
    """What such a file says, unchecked. Raises UserError naming the file where nothing can be read of it."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; give a recipe file or a folder of pictures") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file; give a recipe file or a folder of pictures") from None
    try:
        fields = json.loads(text) if path.suffix == ".json" else _literal(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:  # the last two: deeply nested brackets
        raise UserError(f"{path}: not a recipe ({str(error).splitlines()[0]}); see recipes/ for examples") from None
    if isinstance(fields, dict) and isinstance(fields.get("recipe"), dict):  # of a run's run.json
        fields = fields["recipe"]
    return fields


def checked(fields: Any, where: str) -> Recipe:
    """A recipe of these fields. Raises UserError naming `where` and the field."""
    try:
        return Recipe.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "value_error" and not first["loc"]:  # of several fields together: the message says all
            raise UserError(f"{where}: {first['ctx']['error']}") from None
        raise UserError(f"{where}: {one_line(Recipe, error)}") from None


def _literal(text: str) -> Any:
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and [getattr(t, "id", "") for t in node.targets] == ["RECIPE"]:
            return ast.literal_eval(node.value)
    raise ValueError("it has no line `RECIPE = {...}`")
