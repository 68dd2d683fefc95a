"""What may be asked of `unfog edit`: one request, in which each way of changing an item has its own fields. No torch here."""

from __future__ import annotations

import secrets
from pathlib import Path

from pydantic import Field

from unfog.errors import UserError
from unfog.requests import DRAWN_SEEDS, LARGEST_SEED
from unfog.schema import LONGEST_PROMPT, Name, Real, Request, Whole
from unfog.wishes import Controls, Styles

USUAL = {"keep": 1.0, "again": 0.6, "original": 0.75}  # strength where none is given: kept parts, all anew, text diffs
FRAMES = 7


class EditRequest(Request):
    """An item changed in one of four ways, each with a prompt:

    made anew from some noise on (strength), around what is kept (mask or keep; canvas; tile); reworded (original);
    varied (variations); led towards another (towards, towards_prompt, towards_seed).
    """

    item: Path = Field(description="the file to change, of the model's kind")
    prompt: str = Field("", max_length=LONGEST_PROMPT, description="what it is to be, or leave it out for anything")
    mask: str | None = Field(None, min_length=1, max_length=2_000,
                             description="a picture of the item's size, white where it may change, or leave it out")  # fmt: skip
    keep: str | None = Field(None, min_length=1, max_length=2_000, description="what stays as it is, as the kind says it "
                             "(pictures: a picture of the same size, white where it may change), or leave it out")  # fmt: skip
    strength: Real | None = Field(None, gt=0, le=1, description="a number above 0, at most 1, the share of the way back "
                                  "into noise, or leave it out for 1 with mask, keep or canvas, 0.6 without")  # fmt: skip
    canvas: str | None = Field(None, pattern=r"^\d{1,4}(,\d{1,4}){3}$", description="left,top,right,bottom: pixels to add on "
                               "each side, such as 0,0,64,0, or leave it out")  # fmt: skip
    tile: bool = Field(False, strict=True, description="true for a picture whose edges meet when it is laid beside itself")
    original: str | None = Field(None, max_length=LONGEST_PROMPT, description="what the item is now, of which prompt is the "
                                 "change, or leave it out")  # fmt: skip
    variations: Real | None = Field(None, ge=0, le=1, description="a number from 0 (the item itself) to 1 (another one), or "
                                    "leave it out")  # fmt: skip
    towards: Path | None = Field(None, description="another file of the same kind, or leave it out")
    towards_prompt: str | None = Field(None, max_length=LONGEST_PROMPT, description="what it is to become, or leave it out")
    towards_seed: Whole | None = Field(None, ge=0, le=LARGEST_SEED, description="a seed whose noise to go to, or leave it out")
    frames: Whole | None = Field(None, ge=2, le=1_000, description="a whole number from 2 to 1000, or leave it out for 7")
    style: Name | None = Field(None, description="a style of the model, or leave it out for any style")
    negative: str | None = Field(None, max_length=LONGEST_PROMPT, description="what to avoid, or leave it out")
    steps: Whole | None = Field(None, ge=1, le=1_000, description="a whole number from 1 to 1000, or leave it out")
    scale: Real | None = Field(None, ge=0, le=100, description="a number from 0 to 100 (1 = no guidance), or leave it out")
    sampler: Name | None = Field(None, description="a sampler's name, or leave it out for the model's default")
    literal: bool = Field(False, strict=True, description="true to take prompts as plain text, whatever signs they hold")
    control: Controls = Field(default_factory=list, max_length=16, description="pictures to follow, each KIND=PICTURE[:STRENGTH]")
    style_image: Styles = Field(default_factory=list, max_length=8, description="pictures of a style, each PICTURE[:WEIGHT]")
    settings: dict[Name, Name] = Field(default_factory=dict, max_length=20, description="names and values that only this model "
                                       "knows, but for size, which is the item's")  # fmt: skip
    n: Whole = Field(1, ge=1, le=10_000, description="a whole number from 1 to 10000, how many are made")
    seed: Whole | None = Field(None, ge=0, le=LARGEST_SEED - 10_000, description="a whole number from 0, or leave it out")

    @property
    def leads(self) -> bool:
        """Whether it goes towards another item, prompt or seed."""
        return not (self.towards is None and self.towards_prompt is None and self.towards_seed is None)

    @property
    def way(self) -> str:
        """Which of the four ways it is."""
        if self.leads:
            return "towards"
        return "variations" if self.variations is not None else "again" if self.original is None else "original"

    def _agree(self) -> None:
        """Raises UserError for the first option that says something else than the way does."""
        way = self.way
        given = [name for name in ("mask", "keep", "strength", "canvas", "original", "variations", "frames", "negative")
                 if getattr(self, name) is not None]  # fmt: skip
        given += ["tile"] * self.tile + ["n"] * (self.n > 1)
        alone = {"again": ("frames",), "original": ("variations", "frames", "canvas", "tile"),
                 "variations": ("original", "frames", "canvas", "tile", "strength"),
                 "towards": ("original", "variations", "mask", "keep", "canvas", "tile", "strength", "n")}[way]  # fmt: skip
        if self.frames is not None and way != "towards":
            raise UserError("frames: are of a way towards something; give towards, towards_prompt or towards_seed with it")
        pairs = [(name, way) for name in given if name in alone]
        pairs += [("mask", "keep")] if self.mask is not None and self.keep is not None else []
        pairs += [("towards_seed", "towards")] if self.towards is not None and self.towards_seed is not None else []
        pairs += [("canvas", "tile")] if self.canvas is not None and self.tile else []
        if pairs:
            raise UserError(f"{pairs[0][0]}: cannot be asked for together with {pairs[0][1]}; leave one of them out")
        if self.canvas is not None and not any(map(int, self.canvas.split(","))):
            raise UserError("canvas: adds nothing; give left,top,right,bottom in pixels, such as 0,0,64,0")

    @property
    def kept(self) -> str | None:
        """What stays, however it was said."""
        return self.mask if self.mask is not None else self.keep

    def settled(self, again: float = USUAL["again"]) -> EditRequest:
        """The same request with a seed drawn at random, and the usual strength and frames where none were given.

        again: the usual strength where all is made anew.
        Raises UserError where options contradict one another.
        """
        self._agree()
        update: dict[str, object] = {"seed": secrets.randbelow(DRAWN_SEEDS) if self.seed is None else self.seed}
        if self.strength is None and self.way in ("again", "original"):
            holds = self.kept is not None or self.canvas is not None
            update["strength"] = USUAL["original"] if self.way == "original" else USUAL["keep"] if holds else again
        if self.leads:
            update["frames"] = self.frames or FRAMES
        return self.model_copy(update=update)
