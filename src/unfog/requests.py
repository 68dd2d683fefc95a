"""What may be asked of unfog, and what it answers: one schema for Python, command line, file and HTTP.

A request is a frozen pydantic model that refuses unknown fields, wrong types and NaN; `check` turns whatever
pydantic finds into one line that names the field, what is wrong, and what to give instead. The answer to a
`GenerateRequest` is a stream of `Progress` and `Result` events. Nothing here loads torch.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from unfog.errors import UserError
from unfog.schema import LONGEST_PROMPT, Name, Prompt, Real, Request, Span, Whole
from unfog.schema import check as check
from unfog.wishes import Controls, Styles

if TYPE_CHECKING:
    from PIL.Image import Image

LARGEST_SEED = 2**63 - 1
MOST_PROMPTS = 1_000
WORD = r"<[a-z0-9][a-z0-9-]{0,38}>"  # a learned word: in angle brackets, so that it hides no word of a language
# Drawn seeds stay short enough to be read aloud and to fit every program's integer.
DRAWN_SEEDS = 2**31


def shard_of(text: str) -> tuple[int, int]:
    """(i, N) of "i/N", i from 1 to N. Raises ValueError where it is anything else."""
    first, slash, last = text.partition("/")
    if not (slash and first.isascii() and first.isdecimal() and last.isascii() and last.isdecimal()):
        raise ValueError("is not i/N")
    if not 1 <= int(first) <= int(last) <= 1_000_000:
        raise ValueError("is not one of 1/N to N/N with N at most 1,000,000")
    return int(first), int(last)


class GenerateRequest(Request):
    """Pictures from text: each prompt with the seeds seed, seed + 1, ..., seed + n - 1."""

    prompts: list[Prompt] = Field(
        min_length=1,
        max_length=MOST_PROMPTS,
        description=f"1 to {MOST_PROMPTS:,} prompts, each of 1 to {LONGEST_PROMPT:,} characters",
    )
    style: Name | None = Field(None, description="a style of the model, or leave it out for any style")
    steps: Whole | None = Field(
        None, ge=1, le=1_000, description="a whole number from 1 to 1000, or leave it out for the model's default"
    )
    scale: Real | None = Field(
        None, ge=0, le=100, description="a number from 0 to 100 (1 = no guidance), or leave it out for the model's default"
    )
    n: Whole = Field(1, ge=1, le=10_000, description="a whole number from 1 to 10000, the pictures of each prompt")
    seed: Whole | None = Field(
        None,
        ge=0,
        le=LARGEST_SEED,
        description="a whole number from 0 with seed + n - 1 at most 2**63 - 1, or leave it out to draw one",
    )
    sampler: Name | None = Field(None, description="a sampler's name, or leave it out for the model's default")
    aspect: str | None = Field(
        None,
        pattern=r"^[1-9]\d{0,3}:[1-9]\d{0,3}$",
        description="width:height such as 3:2, of a model that knows it, or leave it out for its usual shape",
    )
    negative: str | None = Field(
        None, max_length=LONGEST_PROMPT, description=f"what to avoid, in at most {LONGEST_PROMPT:,} characters"
    )
    batch: Whole = Field(
        1,
        ge=1,
        le=4_096,
        description="a whole number from 1 to 4096, the pictures made at once; "
        "1 makes each byte-identical to itself made alone, more is faster and may differ in the last bits",
    )

    strict: bool = Field(
        False,
        strict=True,
        description="true for pictures whose every bit is the same in any batch and with any number of threads",
    )

    literal: bool = Field(
        False, strict=True, description="true to take prompts as plain text, whatever signs of the prompt language they hold"
    )

    settings: dict[Name, Name] = Field(
        default_factory=dict, max_length=20, description="names and values that only this model knows, such as size: 768x512"
    )
    shard: str | None = Field(
        None,
        max_length=20,
        description="i/N for the i-th of N shares of the pictures, i from 1 to N, with a seed; or leave it out for all",
    )

    control: Controls = Field(default_factory=list, max_length=16, description="pictures to follow, each KIND=PICTURE[:STRENGTH]")
    style_image: Styles = Field(default_factory=list, max_length=8, description="pictures of a style, each PICTURE[:WEIGHT]")

    novel: Literal["warn", "resample"] | None = Field(
        None, description="warn or resample, for pictures held against the training data, or leave it out"
    )
    against: Path | None = Field(
        None, description="the training data to hold pictures against, or leave it out for what the model's card names"
    )
    tries: Whole | None = Field(
        None, ge=1, le=100, description="a whole number from 1 to 100, the most times a copy is made again, or leave it out for 4"
    )

    @field_validator("against")
    @classmethod
    def _against_is_asked(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and info.data.get("novel") is None:
            raise ValueError("is given without novel")
        return value

    @field_validator("tries")
    @classmethod
    def _tries_are_asked(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("novel") != "resample":
            raise ValueError("is given, but nothing is made again without novel resample")
        return value

    @field_validator("shard")
    @classmethod
    def _shard_is_one(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None:
            shard_of(value)
            if info.data.get("seed") is None:
                raise ValueError("without a seed would be a share of no common job")
            if len(set(info.data.get("prompts", []))) < len(info.data.get("prompts", [])):
                raise ValueError("would share the same prompt out twice")
        return value

    @field_validator("negative")
    @classmethod
    def _empty_is_none(cls, value: str | None) -> str | None:
        return value or None  # so that two requests that mean the same have the same recipe

    @field_validator("seed")
    @classmethod
    def _last_seed_fits(cls, value: int | None, info: ValidationInfo) -> int | None:
        n = info.data.get("n", 1)
        if value is not None and value + n - 1 > LARGEST_SEED:
            raise ValueError(f"and n = {n} lead past the largest seed")
        return value

    def settled(self) -> GenerateRequest:
        """The same request with a seed drawn at random where none was given."""
        if self.seed is not None:
            return self
        return self.model_copy(update={"seed": secrets.randbelow(DRAWN_SEEDS)})

    def pictures(self) -> list[tuple[str, int]]:
        """(prompt, seed) of each picture in the order of `Result.index`: prompt by prompt, seeds rising.

        Raises: UserError where no seed is set (see `settled`).
        """
        if self.seed is None:
            raise UserError("seed: none is set; give one, or call settled() to draw one")
        return [(prompt, self.seed + k) for prompt in self.prompts for k in range(self.n)]

    def batches(self) -> list[range]:
        """Which pictures are made at once: indices into `pictures()`, of this shard's batches only.

        A shard takes every N-th batch of the whole job, so that each picture has the same company in its batch as there.
        """
        total, size = len(self.prompts) * self.n, 1 if self.strict else self.batch  # strict: each alone, so nothing can depend
        first, every = shard_of(self.shard) if self.shard else (1, 1)
        starts = range(0, total, size)[first - 1 :: every]
        return [range(start, min(start + size, total)) for start in starts]


KIND = "a kind of data that `unfog models --kinds` lists, or leave it out for pictures"
PRESET = "tiny, small, base, large or dit-small, or leave it out to have one chosen"
BUDGET = "a time such as 45s, 30m, 2h, 1.5h or 1d, or leave it out"


class TrainRequest(Request):
    """Train a model by a recipe file, or on a folder or zip of one's own pictures."""

    source: Path = Field(description="a recipe file (.json), or pictures: a folder, .zip, .tar, .parquet, .npy or .npz")
    out: Path = Field(Path("unfog-model"), description="the model folder to write")
    steps: Whole | None = Field(
        None, ge=1, le=100_000_000, description="a whole number from 1, or leave it out for the recipe's own"
    )
    minutes: Real | None = Field(
        None, gt=0, le=60 * 24 * 365, description="minutes above 0 after which to stop and save, or leave it out"
    )
    start: Name | None = Field(None, description="a shipped model's name or a model folder to begin with, or leave it out")
    kind: Name | None = Field(None, description=KIND)
    preset: Name | None = Field(None, description=PRESET)
    budget: Span | None = Field(None, gt=0, le=86400 * 366, description=BUDGET)
    force: bool = Field(False, strict=True, description="true to train in spite of what the checks at the start find")
    resume: bool = Field(False, strict=True, description="true to go on from the last checkpoint in `out`")
    ray: Whole | None = Field(
        None, ge=1, le=10_000, description="a whole number from 1, the workers of Ray to train in, or leave it out to train here"
    )
    lora: Whole | None = Field(None, ge=1, le=1024, description="a rank from 1 to 1024, or leave it out to train all weights")
    lora_alpha: Real | None = Field(None, gt=0, le=1e6, description="a number above 0, or leave it out for lora itself")
    lora_targets: list[Name] | None = Field(None, min_length=1, description="parts of layers' names, or leave it out")
    subject: Prompt | None = Field(None, max_length=200, description='what all pictures show, such as "sks cat", or leave it out')
    class_prompt: Prompt | None = Field(None, max_length=200, description='the subject\'s class, such as "cat", or leave it out')
    prior_weight: Real | None = Field(None, ge=0, le=100, description="a number from 0 to 100, or leave it out for 1")
    prior_count: Whole | None = Field(None, ge=1, le=10_000, description="a whole number from 1 to 10000, or leave it out for 64")
    word: str | None = Field(None, pattern=f"^{WORD}$",
                             description="small letters, digits and hyphens in angle brackets, such as <my-cat>")  # fmt: skip
    word_vectors: Whole | None = Field(None, ge=1, le=16, description="a whole number from 1 to 16, or leave it out for 2")
    track: list[Name] = Field(default_factory=list, description="names of trackers: tensorboard, trackio, wandb")


class AverageRequest(Request):
    """A model of other averaged weights, made of those that a run kept."""

    run: Path = Field(description="a training run's folder")
    ema: Real = Field(0.1, gt=0, lt=0.28, description="a number above 0 and below 0.28, the width of the average over the run")
    at: Whole | None = Field(None, ge=1, description="a whole number from 1, the step to stop at, or leave it out for the last")
    out: Path = Field(description="the model folder to write")


class EstimateRequest(Request):
    """Measure what a training run would take on this machine, without training."""

    source: Path = Field(description="a recipe file (.json), or a data folder or .zip")
    kind: Name | None = Field(None, description=KIND)
    preset: Name | None = Field(None, description=PRESET)
    budget: Span | None = Field(None, gt=0, le=86400 * 366, description=BUDGET)
    steps: Whole | None = Field(
        None, ge=1, le=100_000_000, description="a whole number from 1, or leave it out for the recipe's own"
    )
    start: Name | None = Field(None, description="a shipped model's name or a model folder to begin with, or leave it out")


class ReportRequest(Request):
    """Draw the curves of a run, finished or still going, as one HTML file."""

    run: Path = Field(description="the folder that a run writes, its --out")
    out: Path | None = Field(None, description="the .html file to write, or leave it out for report.html in the run's folder")


class EvaluateRequest(Request):
    """Compare what models make, or samples in folders, with a set of data."""

    models: list[Name] = Field(min_length=1, max_length=8, description="names of shipped models, model folders, folders or .zips "
                               "of pictures, or .npy files of numbers; the others are compared with the first")  # fmt: skip
    against: str | None = Field(None, min_length=1, description="the name of a shipped data set, a data folder or .zip, or a "
                                ".npy file; or leave it out for emoji-64 (other kinds: the model's training data)")  # fmt: skip
    kind: Name | None = Field(None, description=KIND)
    n: Whole = Field(256, ge=2, le=1_000_000, description="a whole number from 2 to 1000000, the samples to make or to read")
    seed: Whole = Field(0, ge=0, le=LARGEST_SEED - 1_000_000, description="a whole number from 0, the first seed")
    sampler: str | None = Field(None, description="a sampler, or leave it out for the model's own")
    steps: Whole | None = Field(None, ge=1, le=1000, description="a whole number from 1 to 1000, or leave it out")
    scale: Real | None = Field(None, ge=0, le=100, description="a number from 0 to 100, or leave it out")
    batch: Whole = Field(16, ge=1, le=4096, description="a whole number from 1, the pictures made at once")
    reader: str = Field("lite0", description="the feature function: lite0, pixels or inception")
    likelihood: Whole = Field(16, ge=0, le=100_000, description="a whole number from 0, the pictures, seen and unseen, "
                              "whose likelihood is bounded; 0: none")  # fmt: skip
    force: bool = Field(False, description="true to print also what so few samples cannot tell, marked")
    out: Path | None = Field(None, description="the file to write the report to, .json or .html, or leave it out")


class FitRequest(Request):
    """Learn a plan of few evaluations for one model and store it in its folder."""

    model: Name = Field(description="a model folder, or the name of a shipped model together with `out`")
    nfe: Whole = Field(ge=3, le=50, description="a whole number from 3 to 50, the network evaluations of the plan")
    minutes: Real = Field(5.0, gt=0, le=60 * 24, description="minutes above 0 in which to learn")
    seeds: Whole = Field(
        16, ge=2, le=10_000, description="a whole number from 2, the pictures to learn from, and as many to test on"
    )
    name: Name | None = Field(None, pattern=r"^[a-z0-9][a-z0-9-]*$",
                              description="small letters, digits and hyphens, or leave it out for fit-NFE")  # fmt: skip
    prompts: Path | None = Field(None, description="a text file with a prompt a line, or leave it out for the model's own data")
    out: Path | None = Field(
        None, description="a folder for a copy of the model with the plan, or leave it out to add it to the model"
    )


class ForecastRequest(Request):
    """Samples of what a table of time series does not hold: the steps after its end, or its missing values."""

    table: Path = Field(description="a CSV file: time and a column a variate, or series,time,value")
    model: Name = Field("series-m", description="a shipped model's name or a model folder, of the kind series")
    horizon: Whole | None = Field(
        None, ge=1, le=10_000, description="a whole number from 1 to 10000, the steps to forecast, or leave it out"
    )
    limit: Whole | None = Field(None, ge=1, description="a whole number from 1: longer horizons are refused; or leave it out")
    samples: Whole = Field(200, ge=2, le=10_000, description="a whole number from 2 to 10000")
    quantiles: list[Real] = Field([0.025, 0.1, 0.5, 0.9, 0.975], min_length=1, max_length=99,
                                  description="numbers above 0 and below 1, rising")  # fmt: skip
    time: Name | None = Field(None, description="the column of times, or leave it out for time, date, ...")
    target: list[Name] = Field(default_factory=list, description="the columns to forecast, or leave it out for all")
    covariates: list[Name] = Field(default_factory=list, description="columns that are known over the horizon too")
    seasons: list[Whole] = Field(default_factory=list, description="seasons in steps, such as 12, or leave it out: by the times")
    fill: bool = Field(False, strict=True, description="true to fill missing values instead")
    score: bool = Field(False, strict=True, description="true to hold back the last horizon and score its forecast")
    seed: Whole = Field(0, ge=0, le=LARGEST_SEED, description="a whole number from 0")

    @field_validator("quantiles")
    @classmethod
    def _rising(cls, value: list[float]) -> list[float]:
        if any(not 0 < q < 1 for q in value) or any(b <= a for a, b in zip(value, value[1:], strict=False)):
            raise ValueError("are not rising numbers between 0 and 1")
        return value

    @field_validator("seasons")
    @classmethod
    def _season_fits(cls, value: list[int]) -> list[int]:
        if any(not 1 <= m <= 400 for m in value) or len(value) > 2:
            raise ValueError("are not one or two whole numbers from 1 to 400")
        return value

    @field_validator("score")
    @classmethod
    def _one_task(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("fill"):
            raise ValueError("scores a forecast; leave out fill")
        return value


class VerifyRequest(Request):
    """Check what samplers, predictions and guidances declare, or that a model folder is what it says."""

    model: Name | None = Field(None, description="the name of a shipped model or a model folder, or leave it out for the matrix")
    prediction: Name | None = Field(
        None, description="what the model's network predicts, or leave it out for what model.json states"
    )
    quick: bool = Field(False, strict=True, description="true for fewer checks in about ten seconds")
    out: Path | None = Field(None, description="the file to write the report to, or leave it out")

    @field_validator("prediction")
    @classmethod
    def _of_a_model(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("model") is None:
            raise ValueError("is given without a model")
        return value


class ClaimsRequest(Request):
    """Measure what the field claims of diffusion models on the models and mixtures at hand."""

    names: list[Name] = Field(default_factory=list, max_length=100, description="names of claims, or leave them out for all")
    quick: bool = Field(False, strict=True, description="true for few samples and wide intervals, in about two minutes")
    seed: Whole = Field(0, ge=0, le=2**31, description="a whole number from 0 to 2147483648")
    out: Path = Field(Path("unfog-claims"), description="the folder for results and plots; the page stands beside it")
    resume: bool = Field(False, strict=True, description="true to keep what the folder holds from the same settings")
    page: bool = Field(False, strict=True, description="true to draw the page again without measuring")


@dataclass(frozen=True)
class Progress:
    """`done` of `total` units of work of the whole request (never falling), with a preview now and then."""

    done: int
    total: int
    preview: Image | None = None


@dataclass(frozen=True)
class Result:
    """One finished item (a picture: PIL, straight-alpha RGBA), where it stands in the request, and all that remakes it.

    `recipe` has the keys prompt, negative, style, seed, sampler, steps, scale, strict, model, model_hash and version,
    plan (its sha256) where the sampler is a plan learned for this model, aspect and settings where asked for, adapters (name,
    hash, strength) where there are any, language where a prompt uses the prompt language, control (kind, hint's sha256, strength,
    interval) and style_image where pictures steered it, and novel
    (seed, try) where it was made again because that seed gave a copy.
    """

    item: Any
    prompt: str
    seed: int
    index: int
    milliseconds: float
    recipe: dict[str, Any]

    @property
    def image(self) -> Image:
        """The item, of a model of pictures."""
        picture: Image = self.item
        return picture


def from_recipe(recipe: Mapping[str, Any]) -> GenerateRequest:
    """The request that remakes one picture from the recipe inside it.

    Raises: UserError where the recipe lacks what a picture depends on.
    """
    needed = ("prompt", "negative", "style", "seed", "sampler", "steps", "scale", "model", "model_hash", "version")
    missing = [key for key in needed if key not in recipe]
    if missing:
        raise UserError(f"recipe: {', '.join(missing)} missing; give a picture that unfog made")
    for key in ("seed", "steps", "scale", "sampler", "model", "model_hash"):
        if recipe[key] is None:
            raise UserError(f"recipe: {key} is not set; give a picture that unfog made")
    fields = {key: recipe[key] for key in ("negative", "style", "seed", "sampler", "steps", "scale")}
    fields |= {key: recipe[key] for key in ("aspect", "settings") if key in recipe}
    # a picture whose recipe names no language was made of the plain text, perhaps before there was one
    texts = [text for text in (recipe["prompt"], recipe["negative"]) if isinstance(text, str)]
    if "language" not in recipe and any(re.search(r"[\\()\[\]]|::", text) or len(text) > 30 for text in texts):
        fields["literal"] = True
    return check(GenerateRequest, {"prompts": [recipe["prompt"]], "strict": recipe.get("strict", False), **fields})
