"""Points in the plane, of several classes: the smallest kind of data, and the one to copy for a kind of one's own."""

from __future__ import annotations

from unfog.modalities.contract import Modality
from unfog.modalities.toy.data import open_points, point_bytes, read_point
from unfog.modalities.toy.network import PointNet
from unfog.modalities.toy.show import measure, render
from unfog.modalities.toy.space import fit, keep, paste, space

MODALITY = Modality(
    name="toy",
    about="points in the plane, of several classes",
    open=open_points,
    fit=fit,
    space=space,
    presets={
        "tiny": {"data": "points", "network": "points", "prediction": "v", "noise_mean": 0.0, "batch": 128, "steps": 300,
                 "warm_up": 30, "report_steps": 150, "lr": 4e-3, "optimiser": "adamw", "dropout": 0.0,
                 "defaults": {"steps": 20, "scale": 1.0, "sampler": "auto"}},
    },
    measure=measure,
    render=render,
    suffix=".csv",
    to_bytes=point_bytes,
    from_bytes=read_point,
    networks={"points": PointNet},
    keep=keep,
    paste=paste,
)  # fmt: skip
