"""Time series: forecasts with their distribution, filled gaps, synthesis; one variate or several, beside what is known ahead."""

from __future__ import annotations

from unfog.modalities.contract import Modality
from unfog.modalities.series.data import SeriesOptions, open_series
from unfog.modalities.series.measure import measure
from unfog.modalities.series.network import SeriesNetwork
from unfog.modalities.series.show import from_bytes, keep, paste, render, to_bytes
from unfog.modalities.series.space import fit_space, read_space

_SHARED = {"network": "series", "prediction": "v", "noise_mean": 0.3, "noise_std": 1.3, "drop_text": 0.0, "dropout": 0.0,
           "defaults": {"steps": 16, "scale": 1.0, "sampler": "dpmpp_2m"}}  # fmt: skip

MODALITY = Modality(
    name="series",
    about="time series: forecasts, gaps, synthesis",
    open=open_series,
    fit=fit_space,
    space=read_space,
    presets={
        "tiny": {**_SHARED, "data": "weather-weeks", "settings": {"width": 32, "depth": 1, "blocks": 1, "heads": 2}, "batch": 8,
                 "steps": 30, "warm_up": 5, "lr": 3e-3, "report_steps": 30},
        "small": {**_SHARED, "data": "series-m", "settings": {"width": 96, "depth": 2, "blocks": 2}, "batch": 64, "steps": 3000,
                  "lr": 2e-3},
    },
    measure=measure,
    render=render,
    suffix=".csv",
    to_bytes=to_bytes,
    from_bytes=from_bytes,
    options=SeriesOptions,
    networks={"series": SeriesNetwork},
    keep=keep,
    paste=paste,
)  # fmt: skip
