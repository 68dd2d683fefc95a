"""Guidance: each turns a denoiser into a denoiser. One file each, one line in GUIDANCES."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from unfog.diffusion.denoisers import Denoiser
from unfog.diffusion.guidance.cfg import ClassifierFree
from unfog.diffusion.lookup import call, lookup

GUIDANCES: dict[str, Callable[..., Denoiser]] = {"cfg": ClassifierFree}


def guide(name: str, denoiser: Denoiser, **options: Any) -> Denoiser:
    """The guidance of GUIDANCES under `name` around `denoiser`; unknown names and options are UserErrors."""
    return call(lookup(GUIDANCES, name, "guidance"), f"guidance {name!r}", 1, denoiser, **options)
