"""Model space of molecules: places, elements, hydrogens and bonds of all atoms in one table of numbers.

    row i of x0 (N, 3 + types + counts + 3·N):   xyz_i/scale  |  element and charge, one-hot  |  hydrogens, one-hot  |  order to
                                                 atom 1, ..., N: single, double, triple, one-hot (no bond: zeros)

One-hot parts are multiplied by CATEGORY and noised like any number; of noise the mean over places is taken off, and bonds are
made the same both ways (`project`), so that places lie in the zero-mean process. Against a process of categories apart
(diffusion/discrete.py) this keeps one x, one loss, one sampler, guidance and infill for all parts; so does EDM with its atoms.
Source: Hoogeboom et al. 2022 (EDM), arXiv:2203.17003, sec. 3.1 (zero mean), 3.3 (one-hot parts, scaled).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unfog.errors import UserError
from unfog.modalities.contract import Cond, Items
from unfog.modalities.molecule.chem import Molecule, as_said
from unfog.modalities.molecule.conditions import PROPERTIES, asked_of
from unfog.modalities.molecule.nearest import nearest
from unfog.modalities.molecule.network import ORDERS

CATEGORY = 1.0  # what a one-hot 1 becomes, beside places of deviation 1: elements and bonds settle a little before places do
FARTHEST = 8.0  # deviations that a property may be from the training molecules' mean


@dataclass(frozen=True)
class MoleculeSpace:
    """What a data set has set.

    atoms: N, the most of one molecule. types: [element, charge]. counts: of hydrogens that an atom may have (0: they are atoms).
    sizes: how many training molecules have 0, 1, ..., N atoms. scale: of places, in Å. means, deviations: of PROPERTIES.
    hydrogens: as in the options.
    """

    atoms: int
    types: list[list[Any]]
    counts: int
    sizes: list[int]
    scale: float
    means: list[float]
    deviations: list[float]
    hydrogens: str

    @staticmethod
    def fit(raw: Sequence[Molecule], prompts: Sequence[str], hydrogens: str) -> MoleculeSpace:
        """The space of these molecules; what their prompts say gives the properties' means and deviations."""
        told = [asked_of(prompt) for prompt in prompts]
        said = [np.array([t[name] for t in told if name in t] or [0.0]) for name in PROPERTIES]
        types = Counter((e, int(c)) for m in raw for e, c in zip(m.elements, m.charges, strict=True))
        n = max(map(len, raw))
        spread = np.sqrt(np.concatenate([(m.xyz - m.xyz.mean(0)).ravel() ** 2 for m in raw]).mean())
        return MoleculeSpace(
            n, [list(t) for t, _ in sorted(types.items(), key=lambda item: (-item[1], item[0]))],
            1 + max(int(m.hydrogens.max()) for m in raw) if hydrogens == "counted" else 0,
            np.bincount([len(m) for m in raw], minlength=n + 1).tolist(), round(float(spread), 4),
            [round(float(x.mean()), 4) for x in said], [round(float(max(x.std(), 1e-3)), 4) for x in said], hydrogens,
        )  # fmt: skip

    @staticmethod
    def of(card: dict[str, Any]) -> MoleculeSpace:
        """The space that a card states."""
        try:
            return MoleculeSpace(**card)
        except TypeError as error:
            raise UserError(f"the model's card does not describe molecules ({error}); get the model again") from None

    @property
    def kinds(self) -> int:
        """Numbers that say what an atom is."""
        return len(self.types) + self.counts

    @property
    def shape(self) -> tuple[int, int]:
        return self.atoms, 3 + self.kinds + ORDERS * self.atoms

    def card(self) -> dict[str, Any]:
        return asdict(self)

    def network(self) -> dict[str, Any]:
        return {"atoms": self.atoms, "types": len(self.types), "counts": self.counts, "numbers": len(PROPERTIES)}

    def encode(self, raw: Sequence[Molecule], rngs: Sequence[np.random.Generator] | None = None) -> tuple[Tensor, Cond]:
        """x0 (B, N, C) of molecules, turned at random where `rngs` are given, and "mask" (B, N)."""
        x0 = np.zeros((len(raw), *self.shape), np.float32)
        mask = np.zeros((len(raw), self.atoms), bool)
        place: dict[Any, int] = {tuple(t): i for i, t in enumerate(self.types)}
        for item, given in enumerate(raw):
            molecule = as_said(given, self.hydrogens)
            n = len(molecule)
            if n > self.atoms:
                raise UserError(f"a molecule of {n} atoms does not fit a model of at most {self.atoms}; leave it out")
            xyz = molecule.xyz - molecule.xyz.mean(0)
            if rngs is not None:
                xyz = xyz @ turn(rngs[item]).T
            x0[item, :n, :3] = xyz / self.scale
            for row, kind in enumerate(zip(molecule.elements, molecule.charges.tolist(), strict=True)):
                if kind not in place:
                    raise UserError(f"{kind[0]} with charge {kind[1]} is no atom of this model ({self.known()}); leave it out")
                x0[item, row, 3 + place[kind]] = CATEGORY
            if self.counts:
                hydrogens = molecule.hydrogens.astype(int)
                if (most := int(hydrogens.max())) >= self.counts:
                    raise UserError(f"an atom with {most} hydrogens: this model knows at most {self.counts - 1}; leave it out")
                x0[item, np.arange(n), 3 + len(self.types) + hydrogens] = CATEGORY
            i, j = np.nonzero(molecule.orders)
            x0[item, i, 3 + self.kinds + ORDERS * j + molecule.orders[i, j] - 1] = CATEGORY
            mask[item, :n] = True
        return torch.from_numpy(x0), {"mask": torch.from_numpy(mask)}

    def known(self) -> str:
        """Its atoms, for messages."""
        return " ".join(f"{e}{c:+d}" if c else e for e, c in self.types)

    def ask(self, prompts: Sequence[str | None], seeds: Sequence[int]) -> Cond:
        """ "mask" (B, N) and "numbers" (B, 2·PROPERTIES): each property in deviations from the mean, then 1 where it is given."""
        mask = torch.zeros(len(prompts), self.atoms, dtype=torch.bool)
        numbers = torch.zeros(len(prompts), 2 * len(PROPERTIES))
        share = np.cumsum(self.sizes) / max(sum(self.sizes), 1)
        for item, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
            told = asked_of(prompt)
            n = told.pop("atoms", None)
            if n is None:  # drawn by the item's own seed, as often as in the data
                n = int(np.searchsorted(share, np.random.default_rng([int(seed), 7]).random(), side="right"))
            elif not 1 <= n <= self.atoms:
                raise UserError(f"prompt {prompt!r}: this model makes 1 to {self.atoms} atoms, not {n:g}")
            mask[item, : min(int(n), self.atoms)] = True
            for k, name in enumerate(PROPERTIES):
                if name in told:
                    far = (told[name] - self.means[k]) / self.deviations[k]
                    if abs(far) > FARTHEST:
                        low, high = (self.means[k] + sign * FARTHEST * self.deviations[k] for sign in (-1, 1))
                        raise UserError(f"prompt {prompt!r}: {name} {told[name]:g} is far from all that this model learned from; "
                                        f"ask for {low if name == 'logp' else 0:.1f} to {high:.1f}")  # fmt: skip
                    numbers[item, k] = far
                    numbers[item, len(PROPERTIES) + k] = 1.0
        return {"mask": mask, "numbers": numbers}

    def decode(self, x0: Tensor, cond: Cond) -> list[Molecule]:
        """The nearest molecule of each x0 whose valences add up (`nearest`); places in Å, none moved."""
        values = project(x0.detach().float().cpu(), {"mask": cond["mask"].cpu()}).numpy()
        masks = cond["mask"].cpu().numpy()
        return [self._one(table[mask], mask) for table, mask in zip(values, masks, strict=True)]

    def _one(self, rows: np.ndarray, mask: np.ndarray) -> Molecule:
        n, start = len(rows), 3 + len(self.types)
        parts = rows / CATEGORY
        bonds = parts[:, 3 + self.kinds :].reshape(n, self.atoms, ORDERS)[:, mask]
        kinds = [(str(element), int(charge)) for element, charge in self.types]
        types, hydrogens, orders = nearest(kinds, parts[:, 3:start], parts[:, start : start + self.counts], bonds)
        return Molecule(
            tuple(kinds[t][0] for t in types), np.array([kinds[t][1] for t in types], np.int8), hydrogens, orders,
            rows[:, :3] * np.float32(self.scale),
        )  # fmt: skip


def fit(items: Items, options: Any) -> MoleculeSpace:
    """The space of a set's training molecules; options: MoleculeOptions, whose `hydrogens` says how they are told."""
    rows = items.split("train")
    return MoleculeSpace.fit([items.raw[i] for i in rows], [items.prompts[i] for i in rows], options.hydrogens)


def turn(rng: np.random.Generator) -> np.ndarray:
    """A random rotation (3, 3), evenly spread: a random unit quaternion's."""
    w, x, y, z = (q := rng.standard_normal(4)) / np.linalg.norm(q)
    return np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ], np.float32)  # fmt: skip


def project(x: Tensor, cond: Cond | None) -> Tensor:
    """x (B, N, C) with nothing outside cond["mask"] (B, N), places of mean 0, and bonds the same both ways, none to itself."""
    b, n, width = x.shape
    mask = None if cond is None else cond.get("mask")
    here = x.new_ones(b, n, 1) if mask is None else mask.to(x.device, x.dtype)[..., None]
    split = width - ORDERS * n
    places = x[..., :3] * here
    places = (places - places.sum(1, keepdim=True) / here.sum(1, keepdim=True).clamp_min(1)) * here
    bonds = x[..., split:].unflatten(-1, (n, ORDERS))
    bonds = (bonds + bonds.transpose(1, 2)) / 2 * (here[:, :, None] * here[:, None])
    bonds = bonds * (1 - torch.eye(n, device=x.device, dtype=x.dtype))[:, :, None]
    return torch.cat([places, x[..., 3:split] * here, bonds.flatten(2)], dim=-1)


def align(x0: Tensor, known: Tensor, kept: Tensor) -> Tensor:
    """x0 (B, N, C) shifted so that the mean of its kept places is theirs in `known`; kept (B or 1, N, C) bool.

    The process takes off the mean of all atoms, which nobody knows while some are still to be made.
    """
    held = kept[..., :1].expand(len(x0), -1, -1).to(x0)
    shift = ((known[..., :3].to(x0) - x0[..., :3]) * held).sum(1, keepdim=True) / held.sum(1, keepdim=True).clamp_min(1)
    return torch.cat([x0[..., :3] + shift, x0[..., 3:]], dim=-1)
