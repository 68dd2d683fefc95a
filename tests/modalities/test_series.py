"""Tables of time series: reading, outline, windows and back, scores, measures."""

import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from unfog.errors import UserError
from unfog.modalities import modality
from unfog.modalities.series.data import SeriesOptions, cuts, from_frame, open_series, read_tables, to_frame
from unfog.modalities.series.forecast import Sampler, fill, forecast
from unfog.modalities.series.measure import distance, measure, standard
from unfog.modalities.series.network import SeriesNetwork
from unfog.modalities.series.scores import crps, inside, quantile_crps, seasonal_naive, usual_step
from unfog.modalities.series.show import from_bytes, keep, paste, render, to_bytes
from unfog.modalities.series.space import SeriesSpace, chosen, fit_space, read_space
from unfog.modalities.series.table import Clock, Table, even
from unfog.modalities.series.window import AHEAD, LENGTH, PAST, VARIATES, ahead_of, free, window


def a_table(rows=150, columns=2, seed=0, **changes):
    rng = np.random.default_rng(seed)
    t = np.arange(rows)[:, None]
    values = 50 + 0.1 * t + 8 * np.sin(2 * np.pi * t / 12 + np.arange(columns)) + rng.normal(size=(rows, columns))
    table = Table("t", values, tuple("abcdefghij"[:columns]), Clock("month", 2000 * 12), (12,), "monthly", ahead=12)
    return replace(table, **changes)


# reading


def test_long_and_wide_files_say_the_same():
    wide = read_tables(b"time,u,v\n2024-01-01,1,10\n2024-01-02,2,\n2024-01-03,3,30\n", "w.csv")[0]
    long = read_tables(b"series,time,value\nu,2024-01-01,1\nu,2024-01-02,2\nu,2024-01-03,3\nv,2024-01-01,10\n", "l.csv")
    assert wide.columns == ("u", "v") and [table.name for table in long] == ["u", "v"]
    assert np.array_equal(wide.values[:, 0], long[0].values[:, 0])
    assert np.isnan(wide.values[1, 1]) and wide.frequency == "daily" and wide.seasons == (7,)


def test_newest_first_is_turned_round():
    table = read_tables(b"date,x\n2024-01-04,4\n2024-01-03,3\n2024-01-01,1\n", "r.csv")[0]
    assert table.times()[0].startswith("2024-01-01") and np.array_equal(table.values[[0, 2, 3], 0], [1, 3, 4])


def test_only_the_wanted_columns_are_read():
    text = b"date,shop,x\n2024-01-01,a,1\n2024-01-02,b,2\n2024-01-03,a,3\n"
    assert read_tables(text, "w.csv", only=["x"])[0].columns == ("x",)
    with pytest.raises(UserError, match="w.csv: shop at 2024-01-01 is 'a', not a finite number .*--target"):
        read_tables(text, "w.csv")
    with pytest.raises(UserError, match="y"):
        read_tables(text, "w.csv", only=["y"])


@pytest.mark.parametrize("cell, wrong", [("1e31", "too large"), ("-3e200", "too large"), ("50,13", "point for decimals")])
def test_numbers_that_cannot_be_used_say_why(cell, wrong):
    with pytest.raises(UserError, match=f"n.csv: x at 2024-01-02.*{wrong}"):
        read_tables(f"date;x\n2024-01-01;1\n2024-01-02;{cell}\n2024-01-03;3\n".encode(), "n.csv")


def test_a_row_that_lacks_is_a_missing_value():
    table = read_tables(b"time,x\n2024-01-01T00:00,1\n2024-01-01T01:00,2\n2024-01-01T04:00,5\n2024-01-01T05:00,6\n", "h.csv")[0]
    assert np.array_equal(np.isnan(table.values[:, 0]), [False, False, True, True, False, False])
    assert table.times()[3] == "2024-01-01T03:00:00" and table.seasons == (24, 168)


@pytest.mark.parametrize("first, frequency, third", [
    (["2024-01-31", "2024-02-29", "2024-03-31"], "monthly", "2024-03-31"),
    (["2023-11-01", "2024-02-01", "2024-05-01"], "quarterly", "2024-05-01"),
    (["2022", "2023", "2024"], "other", "2024"),
    (["2022-06-30", "2023-06-30", "2024-06-30"], "yearly", "2024-06-30"),
    (["2024-01-01 02:00+02:00", "2024-01-01 02:30+02:00", "2024-01-01 03:00+02:00"], "half-hourly", "2024-01-01T01:00:00"),
])  # fmt: skip
def test_clocks_are_read_and_written(first, frequency, third):
    clock, places = even(first, "x")
    assert clock.frequency == frequency and places.tolist() == [0, 1, 2]
    assert clock.text(2) == third


@pytest.mark.parametrize("data, said", [
    (b"time,x\n2024-01-01,1\n2024-01-02,2\n2024-01-03,3\n2024-01-04T07:00,4\n", "unequal time steps"),
    (b"time,x\n2024-01-01,1\n2024-01-01,2\n", "comes twice"),
    (b"time,x\n2024-01-02,1\n2024-01-01,2\n2024-01-03,2\n", "rising"),
    (b"time,x\n2024-01-01,1\n2024-01-02,inf\n", "not a finite number"),
    (b"time,x\n2024-01-01,1\n2024-01-02,two\n", "'two'"),
    (b"time,x\nyesterday,1\ntoday,2\n", "yesterday"),
    (b"time,x\n2024-01-01,1,2\n", "fields"),
    (b"time,x,x\n2024-01-01,1,2\n", "one name"),
    (b"time,x\n", "no rows"),
    (b"\xff\xfe\x00", "UTF-8"),
    (b"time,x\n1,1\n2024-01-02,2\n", "one kind"),
    (b"time,x\n1,1\n2,2\n90,3\n", "more than half"),
    (b"time\n2024-01-01\n", "no column"),
])  # fmt: skip
def test_bad_files_are_refused_in_one_line(data, said):
    with pytest.raises(UserError) as error:
        read_tables(data, "file.csv")
    assert said in str(error.value) and "\n" not in str(error.value) and "file.csv" in str(error.value)


def test_bad_series_of_many_are_skipped_with_a_count(tmp_path):
    good = "".join(f"{name},{t},{t % 7}\n" for name in "abc" for t in range(40))
    bad = "n,0,1\nn,1,oops\n" + "short,0,1\nshort,1,2\n" + "uneven,0,1\nuneven,5,2\nuneven,7,2\n"
    (tmp_path / "s.csv").write_text("series,time,value\n" + good + bad)
    items = open_series(tmp_path / "s.csv", SeriesOptions(held_out=6, horizon=6))
    assert items.skipped == {"values that are no numbers": 1, "unequal time steps": 1, "shorter than 8": 1}
    assert len(items.split("train")) == 3 and len(items.split("heldout")) == 3


def test_what_is_held_out_is_never_in_a_training_item(tmp_path):
    rows = "".join(f"{t},{t}\n" for t in range(200))
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        archive.writestr("a.csv", "time,x\n" + rows)
        archive.writestr("sets.csv", "file,group,frequency,season,horizon,held_out,train,weight\na.csv,g,daily,7,10,40,yes,5\n")
    items = open_series(tmp_path / "d.zip", SeriesOptions())
    assert max(items.raw[i].values.max() for i in items.split("train")) == 159
    assert [len(items.raw[i]) for i in items.split("heldout")] == [170, 180, 190, 200]
    assert len(items.split("train")) == 5 and len({len(items.raw[i]) for i in items.split("train")}) == 5
    assert items.raw[0].seasons == (7,) and items.names[0] == "g/a"


def test_the_last_cut_of_a_table_is_the_table():
    assert [len(t) for t in cuts(a_table(100, 1, weight=4))][-1] == 100
    assert len(cuts(a_table(10, 1))) == 1


@pytest.mark.slow
def test_the_shipped_set_holds_out_the_ends():
    from unfog.data import path

    items = open_series(path("series-m"), SeriesOptions())
    groups = [items.names[i].partition("/")[0] for i in items.split("heldout")]
    assert [groups.count(group) for group in ("m3", "tourism", "m1")] == [3003, 1311, 0]
    own = {items.names[i]: items.raw[i] for i in items.split("train") if items.names[i].startswith("m3")}
    for i in items.split("heldout")[:4000:97]:
        if items.names[i] in own:
            assert len(own[items.names[i]]) == len(items.raw[i]) - items.raw[i].ahead


def test_pandas_goes_in_and_comes_out():
    pandas = pytest.importorskip("pandas")
    months = pandas.date_range("2024-01-01", periods=3, freq="MS")
    frame = pandas.DataFrame({"x": [1.0, np.nan, 3.0], "y": [4, 5, 6]}, index=months)
    table = from_frame(frame)
    assert table.frequency == "monthly" and table.columns == ("x", "y")
    back = to_frame(table)
    assert np.array_equal(back.to_numpy(), frame.to_numpy(), equal_nan=True) and list(back.index) == list(frame.index)
    with pytest.raises(UserError, match="no finite number"):
        from_frame(pandas.DataFrame({"time": [1, 2], "x": ["a", "b"]}))


# windows


def test_values_come_back_from_windows():
    space, table = SeriesSpace({"monthly": 1.3}), a_table()
    x0, cond = space.encode([table])
    back = space.values(x0, cond)[0, :2, PAST : PAST + 12]
    assert np.allclose(back, table.values[-12:].T, rtol=1e-5)
    known = space.values(x0, cond)[0, :2, :PAST]
    assert np.allclose(known, table.values[-12 - PAST : -12].T, rtol=1e-5)
    assert cond["mask"][0, :2, PAST : PAST + 12].all() and int(cond["mask"].sum()) == 24
    assert not (cond["mask"] & cond["known"]).any()


def test_nothing_told_depends_on_what_is_to_be_found():
    table = a_table()
    changed = table.values.copy()
    changed[-12:] = 1e6
    _, told = SeriesSpace().encode([table])
    _, other = SeriesSpace().encode([replace(table, values=changed)])
    assert all(torch.equal(told[key], other[key]) for key in told)


@pytest.mark.parametrize("scale, shift", [(1000.0, 0.0), (1e-4, 0.0), (3.0, 2000.0)])
def test_model_space_has_no_unit(scale, shift):
    table = a_table(seed=3)
    x0, _ = SeriesSpace().encode([table])
    # an affine change may turn a product of seasons into a sum; only pure scaling leaves every number as it was
    moved, _ = SeriesSpace().encode([replace(table, values=table.values * scale + shift)])
    assert torch.allclose(x0, moved, atol=1e-2 if not shift else 2.0)


def test_every_training_window_is_finite_and_holds_something_to_find():
    tables = [a_table(rows, columns, seed=rows) for rows, columns in ((9, 1), (30, 1), (150, 2), (400, 9))]
    broken = tables[2].values.copy()
    broken[np.random.default_rng(1).random(broken.shape) < 0.3] = np.nan
    constant = Table("c", np.full((60, 1), 7.0), ("x",), seasons=(7,), frequency="daily", ahead=7)
    tables += [replace(tables[2], values=broken), constant, replace(constant, values=np.zeros((60, 1)))]
    raw = [tables[i % len(tables)] for i in range(70)]
    x0, cond = SeriesSpace().encode(raw, [np.random.default_rng(i) for i in range(70)])
    assert tuple(x0.shape) == (70, VARIATES, LENGTH) and torch.isfinite(x0).all()
    assert all(torch.isfinite(value.float()).all() for value in cond.values())
    assert (cond["mask"].flatten(1).sum(1) > 0).float().mean() > 0.9
    again, _ = SeriesSpace().encode(raw, [np.random.default_rng(i) for i in range(70)])
    assert torch.equal(x0, again)


def test_covariates_are_known_ahead_and_bounds_hold():
    table = a_table(covariates=("b",))
    w = window(table, 138, 12)
    assert w.known[-AHEAD : -AHEAD + 12, 1].all() and not w.known[-AHEAD:, 0].any()
    rain = replace(a_table(200, 1), values=np.maximum(np.random.default_rng(0).normal(size=(200, 1)), 0))
    x0, cond = SeriesSpace().encode([rain])
    low = SeriesSpace.values(torch.full_like(x0, -5.0), cond)[0, 0, PAST]
    assert low == 0.0


def test_what_is_asked_for_without_a_past():
    space = SeriesSpace({"monthly": 1.0, "yearly": 2.0}, {"monthly": (60, 90), "yearly": (20, 20)})
    cond = space.ask(["monthly", "yearly", "any", None], [1, 2, 3, 4])
    sizes = cond["mask"].flatten(1).sum(1)
    assert 60 <= sizes[0] <= 90 and sizes[1] == 20 and not cond["known"].any()
    made = space.decode(torch.randn(4, VARIATES, LENGTH), cond)
    assert [len(table) for table in made] == sizes.tolist() and made[1].frequency == "yearly"
    with pytest.raises(UserError, match="monthly"):
        space.ask(["monthli"], [0])
    assert read_space(space.card()) == space


# the network, forecasts and filling


@pytest.fixture(scope="module")
def sampler():
    from unfog.diffusion import Gaussian, Preconditioned, schedule_from_config

    torch.manual_seed(0)
    space = SeriesSpace({"monthly": 1.0})
    network = SeriesNetwork(**space.network(), width=16, depth=1, blocks=1, heads=2).eval()
    with torch.no_grad():
        network.head.weight.normal_(std=0.02)
    denoiser = Preconditioned(network, Gaussian(schedule_from_config({"name": "cosine"})), "v", sigma_min=0.03)
    return Sampler.of(denoiser, space, steps=4)


def _moved(network, cond, key, change):
    x, level = torch.randn(2, VARIATES, LENGTH, generator=torch.Generator().manual_seed(1)), torch.zeros(2)
    before = network(x, level, cond)
    return before, network(x, level, {**cond, key: change(cond[key])})


def test_the_network_answers_where_it_is_asked(sampler):
    network = sampler.denoiser.network
    _, cond = sampler.space.encode([a_table(), a_table(columns=1, seed=2)])
    before, after = _moved(network, cond, "given", lambda g: g + 1.0)
    assert (before[~cond["mask"]] == 0).all() and not torch.equal(before, after)
    x = torch.randn(2, VARIATES, LENGTH)
    told = network(x, torch.zeros(2), cond)
    kept = {key: cond[key] for key in ("known", "mask", "given")}
    assert torch.allclose(told, network(x, torch.zeros(2), {**kept, "state": network.prepare(cond)}), atol=1e-6)
    alone = network(x[1:], torch.zeros(1), {key: value[1:] for key, value in cond.items()})
    assert torch.allclose(alone, told[1:], atol=1e-5)


def test_a_forecast_is_a_function_of_its_seed_and_goes_beyond_a_window(sampler):
    table = a_table(60)
    made = forecast(sampler, table, 30, 5, 7)
    assert made.shape == (5, 30, 2) and np.isfinite(made).all()  # a window of months reaches 24 steps
    assert ahead_of(table) == 24
    assert np.allclose(made[2:], forecast(sampler, table, 30, 3, 9), rtol=1e-4)
    assert not np.allclose(made[0], made[1])
    shifted = forecast(sampler, replace(table, values=table.values * 10), 12, 5, 7)
    assert np.allclose(shifted, 10 * made[:, :12], rtol=1e-2)


def test_filling_leaves_what_is_there(sampler):
    table = a_table(150)
    values = table.values.copy()
    values[20:30, 0], values[75:140, 1], values[-3:, 0], values[0, 1] = np.nan, np.nan, np.nan, np.nan
    made = fill(sampler, replace(table, values=values), 3, 0)
    there = np.isfinite(values)
    assert np.isfinite(made).all() and (made[:, there] == values[there]).all()
    assert np.abs(made[:, 20:30, 0] - table.values[20:30, 0]).mean() < 8  # a season's swing is 16
    assert (made[0] != made[1]).any()


def test_more_variates_than_a_window_holds_go_in_groups(sampler):
    table = a_table(60, 10)
    assert forecast(sampler, table, 6, 2, 0).shape == (2, 6, 10)
    with pytest.raises(UserError, match="covariates"):
        forecast(sampler, replace(table, covariates=table.columns[:8]), 6, 2, 0)


# scores, measures, files


def test_crps_of_samples_is_that_of_their_distribution():
    rng, truth = np.random.default_rng(0), np.array([0.3, -2.0])
    samples = rng.normal(size=(4000, 2))
    from math import erf, exp, pi, sqrt

    def normal(y):
        cdf, pdf = 0.5 * (1 + erf(y / sqrt(2))), exp(-y * y / 2) / sqrt(2 * pi)
        return y * (2 * cdf - 1) + 2 * pdf - 1 / sqrt(pi)

    assert np.allclose(crps(samples, truth), [normal(y) for y in truth], atol=0.02)
    small = rng.normal(size=(7, 2))
    by_hand = np.abs(small - truth).mean(0) - 0.5 * np.abs(small[:, None] - small[None]).mean((0, 1))
    assert np.allclose(crps(small, truth), by_hand)
    levels = (np.arange(99) + 1) / 100
    assert np.allclose(quantile_crps(np.quantile(samples, levels, axis=0), levels, truth), crps(samples, truth), atol=0.02)


def test_crps_against_properscoring():
    scoring = pytest.importorskip("properscoring")
    rng = np.random.default_rng(0)
    samples, truth = rng.normal(size=(50, 6)), rng.normal(size=6)
    assert np.allclose(crps(samples, truth), scoring.crps_ensemble(truth, samples.T))


def test_coverage_mase_unit_and_naive():
    samples = np.arange(1.0, 101.0)[:, None]
    assert inside(samples, np.array([50.0]), 0.8) and not inside(samples, np.array([95.0]), 0.8)
    past = np.tile([1.0, 5.0, 3.0], 6) + np.arange(18)
    assert usual_step(past, 3) == pytest.approx(3.0)
    made = seasonal_naive(past, 3, 6, 10, np.random.default_rng(0))
    assert np.allclose(made[:, :3], past[-3:] + 3) and np.allclose(made[:, 3:], past[-3:] + 6)  # its past errors are all 3


def test_measures_tell_noise_from_the_real_thing(tmp_path):
    rows = "".join(f"{name},{t},{np.sin(2 * np.pi * t / 7) + 0.1 * ((t * 7919 + ord(name)) % 13):.4f}\n"
                   for name in "abcdefgh" for t in range(90))  # fmt: skip
    (tmp_path / "s.csv").write_text("series,time,value\n" + rows)
    items = open_series(tmp_path / "s.csv", SeriesOptions(season=[7]))
    real = [items.raw[i] for i in items.split("train")]
    noise = [replace(t, values=np.random.default_rng(i).normal(size=t.values.shape)) for i, t in enumerate(real)]
    like, unlike = measure(real, ["other"] * 8, items, 0), measure(noise, ["other"] * 8, items, 0)
    assert len(like) == 5
    for near, far in zip(like[:2], unlike[:2], strict=True):
        assert near.made < far.made
    assert distance(np.arange(10.0), np.arange(10.0) + 2) == pytest.approx(2)
    assert standard(np.array([1.0, np.nan, 3.0])).tolist() == pytest.approx([-1.2247, 0, 1.2247], abs=1e-3)


def test_a_file_carries_its_recipe_and_comes_back():
    kind, table = modality("series"), a_table(20)
    data = to_bytes(table, {"seed": 3})
    back, recipe = from_bytes(data, "t.csv")
    assert recipe == {"seed": 3} and np.allclose(back.values, table.values) and back.frequency == "monthly"
    assert kind.suffix == ".csv" and to_bytes(table, {"seed": 3}) == data
    assert from_bytes(b"time,x\n1,2\n2,3\n", "t.csv")[1] == {} and (back.ahead, back.seasons) == (table.ahead, (12,))
    assert render([table, table], ["one", "two"]).size == (240, 240)


def test_keeping_rows_and_filling_in_the_generic_way():
    space, table = SeriesSpace(), a_table(30, 1, ahead=0)
    stays = keep(space, table, "0-9,11")
    assert stays.shape == space.shape and stays[0, LENGTH - 30 : LENGTH - 20].all() and stays.sum() == 11
    made = replace(table, values=table.values + 1)
    pasted = paste(space, made, table, "0-9,11").values
    assert (pasted[:10] == table.values[:10]).all() and (pasted[12:] == made.values[12:]).all()
    holes = table.values.copy()
    holes[5:9] = np.nan
    holed = replace(table, values=holes)
    x0, cond = space.encode([holed])
    assert cond["mask"].sum() == 4 and torch.equal(torch.from_numpy(keep(space, holed, "known")), cond["known"][0])
    assert (paste(space, made, holed, "known").values[9:] == table.values[9:]).all()
    with pytest.raises(UserError, match="one column"):
        keep(space, a_table(30, 2, ahead=0), "1-3")
    for spec in ("-3", "rows", "30", "9-8"):
        with pytest.raises(UserError, match="rows from 0 to 29"):
            keep(space, table, spec)


def test_free_windows_and_fit():
    table = a_table(300, 1)
    w = free(table, 300, 0)
    assert w.real.all() and not w.known.any()
    from pathlib import Path

    from unfog.modalities.contract import Items

    items = Items(Path("x"), [table], ["monthly"], ["train"], ["t"])
    space = fit_space(items, None)
    x0, cond = space.encode([table] * 40, [np.random.default_rng(i) for i in range(40)])
    assert 0.5 < float(x0[cond["mask"]].std()) < 1.6
    assert chosen(table, np.random.default_rng(0)).table.name == "t"
