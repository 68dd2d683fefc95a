"""What a kind of data is: one `Modality` in one folder, and one line in `modalities/__init__.py`.

    raw (what files hold)  --encode-->  x0 (model space: about zero mean, unit variance)  --decode-->  raw
    prompt (what is asked for)  --ask-->  cond (what the network is told)

Training, sampling, guidance, infill, evaluation and the command line know a kind by these alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:  # a kind's light parts, such as reading files, are used where torch is not loaded
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor, nn

Cond: TypeAlias = dict[str, "Tensor"]
ANY = "any"  # the prompt that asks for nothing in particular
OWN = ("mask",)  # keys of cond that say what an item is made of, whatever was asked for


class Options(BaseModel):
    """A kind's own settings in a recipe (`options`); unknown ones are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Items:
    """Data at hand, item by item: what it is (raw), what it is asked for by, its split, its name in messages.

    prompts: ANY or "" where nothing is known. splits: "train", or any other word for an item held out. skipped: why how many
    were left out, told once aloud.
    """

    path: Path
    raw: Sequence[Any]
    prompts: Sequence[str]
    splits: Sequence[str]
    names: Sequence[str]
    skipped: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.raw)

    def split(self, name: str) -> list[int]:
        """Places of one split; of "heldout": of all but "train"."""
        return [i for i, own in enumerate(self.splits) if (own != "train" if name == "heldout" else own == name)]


class Space(Protocol):
    """Model space as one data set set it (means, classes, sizes). A model's card carries `card()`, `Modality.space` reads it.

    One with `reads = True` takes prompts in the language of `unfog.prompts`: its `ask` understands fragments with weights, and
    its `fits(text)` says whether a text is short enough. To all others a prompt is text, or words of their own.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one x0. Every item of a model has it; what is shorter is padded, and cond["mask"] says so."""
        ...

    def card(self) -> dict[str, Any]:
        """Plain values for model.json."""
        ...

    def network(self) -> dict[str, Any]:
        """Settings of the network that the data decide, such as channels and classes; a recipe's own come on top."""
        ...

    def encode(self, raw: Sequence[Any], rngs: Sequence[np.random.Generator] | None = None) -> tuple[Tensor, Cond]:
        """x0 (B, *shape) float32, and what the network is told of the items themselves ("mask" (bool) where something is no
        data, a past, ...). rngs: one an item, for training's random crops and turns; None: the item as it stands."""
        ...

    def ask(self, prompts: Sequence[str | None], seeds: Sequence[int]) -> Cond:
        """What the network is told for prompts; None: nothing (guidance's other branch). With the same keys for None as for a
        prompt. What a prompt leaves open (a length, say) is drawn from the item's own seed.

        Raises UserError naming what is not understood and the nearest that is.
        """
        ...

    def decode(self, x0: Tensor, cond: Cond) -> list[Any]:
        """raw of x0 (B, *shape); cond as the network was told."""
        ...


def without(cond: Cond, nothing: Cond) -> Cond:
    """Guidance's other branch (B): `nothing` (B or 1) said of the same items."""
    return {**cond, **{key: value.expand_as(cond[key]) for key, value in nothing.items() if key not in OWN}}


@dataclass(frozen=True)
class Measured:
    """One row of what a kind measures of samples, beside the same of real held-out items.

    made, real: a value an item (its mean is shown with an interval; real may be left out), or one number of all.
    group: one of evaluation.report.GROUPS, such as "fidelity" or "condition". better: "lower", "higher" or "".
    """

    group: str
    name: str
    made: NDArray[np.float64] | float
    real: NDArray[np.float64] | float | None = None
    unit: str = ""
    better: str = ""
    note: str = ""


class Placed(Protocol):
    """An item that a model cannot take as it is, where it can: `raw` to encode, `kept` (True where it stays, in raw's places),
    `frame` (what the model makes at once: raw's first axes, or less than they are), `padded` (raw holds more than the item), and
    a `note` for a person."""

    raw: Any
    kept: NDArray[np.bool_] | None
    frame: tuple[int, int]
    padded: bool
    note: str

    def back(self, made: Any) -> Any:
        """The item at its own size, with exactly what stays of it."""
        ...


@dataclass(frozen=True)
class Modality:
    """A kind of data. Heavy packages are imported inside the functions that need them.

    open(path, options): the items of a file or folder; raises UserError where too little can be read.
    fit(items, options): the space of a data set; space(card): the same from a model's card.
    presets: recipe fields by name; "tiny" names shipped `data` and trains on it in under 10 s on a CPU.
    networks: the kind's own, beside the shared ones: name -> builder(**settings), called network(x_t, logsnr, cond).
    measure(made, prompts, real, seed): what evaluation says of samples made for prompts, beside real held-out items.
    render(raw, labels): one sheet of items, RGB. suffix: of the files that samples become, such as ".wav".
    to_bytes(raw, recipe): a file's bytes, equal for equal items; the recipe stands in them. from_bytes(data, name): back, with {}
    where there is no recipe; raises UserError naming the file.
    keep(space, raw, spec): of `--keep SPEC`: True in model space (*shape) where an item is to stay as it is.
    paste(space, made, raw, spec): `made` with exactly what `raw` holds where it was to stay.
    place(space, raw, spec, canvas): items of any size (spec: of keep; canvas: what is added on the left, above, right, below).
    project(x, cond): onto what items can be (padding 0, centre of mass 0, ...): around the network, and on what it learns.
    align(x0, known, kept): x0 moved to where its kept part is known, where a model does not know where an item lies.
    grows: where part of an item is kept, a prompt may ask for more places (cond["mask"]) than the item has.
    """

    name: str
    about: str
    open: Callable[[Path, Any], Items]
    fit: Callable[[Items, Any], Space]
    space: Callable[[dict[str, Any]], Space]
    presets: Mapping[str, Mapping[str, Any]]
    measure: Callable[[Sequence[Any], Sequence[str], Items, int], list[Measured]] | None
    render: Callable[[Sequence[Any], Sequence[str]], Image]
    suffix: str
    to_bytes: Callable[[Any, Mapping[str, Any]], bytes]
    from_bytes: Callable[[bytes, str], tuple[Any, dict[str, Any]]]
    options: type[Options] = Options
    networks: Mapping[str, Callable[..., nn.Module]] = field(default_factory=dict)
    keep: Callable[[Any, Any, str], NDArray[np.bool_]] | None = None
    paste: Callable[[Any, Any, Any, str], Any] | None = None
    place: Callable[[Any, Any, str | None, tuple[int, int, int, int] | None], Placed] | None = None
    project: Callable[[Tensor, Cond | None], Tensor] | None = None
    align: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    grows: bool = False
