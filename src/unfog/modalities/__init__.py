"""Kinds of data: one folder each, one line in MODALITIES. `contract.py` says what a kind is."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from unfog.checks import lookup
from unfog.errors import UserError, unknown

if TYPE_CHECKING:
    from torch import nn

    from unfog.modalities.contract import Modality

MODALITIES: dict[str, str] = {
    "audio": "sounds of 1.024 s at 16 kHz: notes, drums, spoken words",
    "image": "pictures, with transparency",
    "molecule": "small molecules in 3D, their atoms and bonds",
    "series": "time series: forecasts, gaps, synthesis",
    "table": "rows of a table: numbers and categories, cells may be missing",
    "toy": "points in the plane, of several classes: the template for a kind of one's own",
}


def modality(name: str) -> Modality:
    """The kind of data of this name. Raises UserError naming the nearest."""
    lookup(MODALITIES, name, "kind")
    found: Modality = import_module(f"unfog.modalities.{name}").MODALITY
    return found


def build_network(kind: str, name: str, settings: Mapping[str, Any]) -> nn.Module:
    """A network of the kind's own or a shared one. Raises UserError for an unknown name or setting."""
    from unfog.networks import NETWORKS

    builders = {**NETWORKS, **modality(kind).networks}
    if name not in builders:
        raise unknown("network", name, builders)
    try:
        return builders[name](**settings)
    except TypeError as error:
        raise UserError(f"recipe: settings do not fit network {name!r} ({error}); remove the unknown one") from None
