"""The training loop: one visible step, and around it data order, averaging, checkpoints, reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from unfog.requests import TrainRequest


def run_recipe(request: TrainRequest) -> Path:
    """Train by a recipe or on a folder of pictures (`unfog.training.run.run_recipe`); torch is loaded only now."""
    if request.ray is not None:
        from unfog.training.ray_train import run_ray

        return run_ray(request, request.ray)
    from unfog.training.run import run_recipe

    return run_recipe(request)
