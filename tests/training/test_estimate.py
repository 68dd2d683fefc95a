"""What a run takes, told before it: the parts add up, the measured ones are right, budgets and presets are kept."""

import dataclasses
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from unfog.errors import UserError
from unfog.modalities.image.data import PictureSet
from unfog.requests import EstimateRequest, TrainRequest
from unfog.training import estimate as module
from unfog.training import estimate_data
from unfog.training.estimate import Speed, estimate, fitted, measure_data, measure_steps, planned, reckon
from unfog.training.machine import Peak, resident, since_start
from unfog.training.presets import CHOSEN, PRESETS, preset
from unfog.training.recipe import Recipe
from unfog.training.run import build_network, run_recipe, settle

SETTINGS = {"unshuffle": 4, "widths": [16, 16], "blocks": [1, 1], "attention": [False, True], "embedding": 16}
TINY = {"size": 16, "settings": SETTINGS, "batch": 4, "recolour": 0.0}
SPEED = Speed(1_000_000, 0.5, 4.0, 1.0, 100, 0, 12_000_000, 5_000)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(20):
        Image.fromarray(rng.integers(0, 256, (20, 20, 4), dtype=np.uint8)).save(folder / f"{i:02}.png")
        (folder / f"{i:02}.txt").write_text(f"thing {i}", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def data(pictures):
    return measure_data(PictureSet.open(pictures), Recipe(**TINY))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_recipe_whose_network_can_be_built(name):
    recipe = preset(name).recipe(name="x", data="y")
    with torch.device("meta"):
        network = build_network(recipe, {"channels": 4, "classes": 0})
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    told = preset(name).about.split(" of ")[1].split("M")[0]
    assert float(told) == pytest.approx(millions, rel=0.04)
    assert recipe.prediction == "x0" and recipe.weight == "v" and f"{recipe.size} px" in preset(name).about
    sides = recipe.settings.get("unshuffle", 4) * 2 ** (len(recipe.settings.get("widths", [0])) - 1)
    assert recipe.size % sides == 0


def test_presets_are_ordered_and_unknown_ones_named():
    assert [PRESETS[n].cost for n in CHOSEN] == sorted((PRESETS[n].cost for n in CHOSEN), reverse=True)
    assert [PRESETS[n].wanted for n in CHOSEN] == sorted((PRESETS[n].wanted for n in CHOSEN), reverse=True)
    assert PRESETS[CHOSEN[-1]].wanted == 0  # one always fits
    with pytest.raises(UserError, match="did you mean small"):
        preset("smal")


def test_the_parts_add_up(data):
    recipe = Recipe(**TINY, steps=1000, report_steps=300)
    found = reckon(recipe, data, SPEED, start=5.0)
    assert found.setup_seconds == 5.0 + data.seconds and found.reports == 4
    work = 1000 * 0.5 + 4 * 4.0
    assert found.total_seconds == pytest.approx(found.setup_seconds + work + 1.0)  # one checkpoint, at the end
    assert found.first_grid_seconds == pytest.approx(found.setup_seconds + 300 * 0.5 + 4.0)
    assert found.seconds_per_1000_steps == 500 and found.pictures == 4000 and found.epochs == 200
    longer = reckon(recipe.model_copy(update={"steps": 4000}), data, SPEED, start=5.0)
    assert longer.total_seconds == pytest.approx(longer.setup_seconds + 4000 * 0.5 + 14 * 4.0 + 4 * 1.0)  # three more on the way
    assert longer.disk_bytes - found.disk_bytes == 12_000_000 + 10 * 5200 + 300 * 120
    assert json.loads(json.dumps(found.as_dict()))["steps"] == 1000 and "1,000 steps" in str(found)


def test_a_data_set_is_reckoned_from_a_part_of_it(data, pictures, monkeypatch):
    assert (data.pictures, data.captions) == (20, 21)
    assert data.bytes_kept == 20 * 16 * 16 * 4 + 21 * 32 * (384 * 2 + 1)
    monkeypatch.setattr(estimate_data, "SAMPLE", 5)
    monkeypatch.setattr(estimate_data, "CAPTIONS", 4)
    part = measure_data(PictureSet.open(pictures), Recipe(**TINY))
    assert part.corpus.plain == 5 and (part.pictures, part.captions, part.bytes_kept) == (20, 21, data.bytes_kept)


@pytest.mark.slow
def test_steps_are_those_of_training(data):
    """They hold weights, gradients, averages and momentum; the checkpoint's size is the file's; random numbers stay."""
    state = torch.get_rng_state()
    found = measure_steps(Recipe(**TINY | {"batch": 128}), data, None, longest=0.3)
    assert torch.equal(state, torch.get_rng_state())
    parameters = sum(p.numel() for p in build_network(Recipe(**TINY), {"channels": 4, "classes": 0}).parameters())
    # weights, two averages, and of the optimiser one or two numbers a weight
    assert found.parameters == parameters and 4 * 4 * parameters < found.checkpoint_bytes < 5 * 4 * parameters + 200_000
    assert found.peak > 5 * 4 * parameters and found.step > 0 and found.report > 0


def test_a_budget_is_filled_and_not_overrun(data):
    for name in ("tiny", "base"):
        recipe = fitted(PRESETS[name].recipe(), data, SPEED, 3600, 20.0, name)
        found = reckon(recipe, data, SPEED, start=20.0)
        least = max(3000, 1000 * 20 // recipe.batch)
        assert recipe.steps == least or 0.9 * 3600 < found.total_seconds <= 3600
        assert found.reports * SPEED.report < 0.15 * found.total_seconds and recipe.warm_up <= recipe.steps / 10
    many = dataclasses.replace(data, pictures=100_000)
    found = reckon(fitted(PRESETS["tiny"].recipe(), many, SPEED, 3600, 20.0, "tiny"), many, SPEED, start=20.0)
    assert 0.93 * 3600 < found.total_seconds <= 3600 and found.first_grid_seconds < 60


@pytest.mark.slow
def test_a_budget_that_holds_nothing_says_what_would(pictures):
    source = TrainRequest(source=pictures, preset="tiny", budget="2s")
    with pytest.raises(UserError, match=r"^budget: 2 s hold 0 steps, as set-up takes .*; give .* or more"):
        planned(source, *settle(source))


@pytest.mark.parametrize("rate, expected", [(1e-3, "large"), (0.012, "base"), (0.1, "small"), (2.0, "tiny")])
def test_the_largest_preset_that_learns_enough_is_chosen(pictures, monkeypatch, rate, expected):
    """rate: seconds a picture that tiny takes; the others as many times longer as their cost says."""

    def measured(recipe, data, model, longest=6.0):
        cost = next(p.cost for p in PRESETS.values() if p.fields["settings"] == recipe.settings)
        return dataclasses.replace(SPEED, step=rate * cost * recipe.batch, report=0.1)

    right = module.measure_data
    monkeypatch.setattr(module, "measure_data", lambda *args: dataclasses.replace(right(*args), pictures=100_000, seconds=9.0))
    monkeypatch.setattr(module, "measure_steps", measured)
    request = TrainRequest(source=pictures, budget="24h")
    recipe, found = planned(request, *settle(request))
    assert found.preset == expected and recipe.settings == PRESETS[expected].fields["settings"]
    assert 0.9 * 86400 < found.total_seconds <= 86400 and recipe.name == pictures.stem and recipe.data == str(pictures)


def test_no_option_is_an_hour_and_steps_of_ones_own_are_not_measured(pictures, monkeypatch):
    monkeypatch.setattr(module, "measure_steps", lambda *_, **__: SPEED)
    request = TrainRequest(source=pictures)
    _, found = planned(request, *settle(request))
    assert found.budget_seconds == 3600
    for fields in ({"steps": 7}, {"start": "x", "steps": 3}):
        request = TrainRequest(source=pictures, **fields)
        recipe = Recipe(**TINY, steps=7)
        assert planned(request, recipe, None, object() if "start" in fields else None) == (recipe, None)


def test_several_processes_have_no_budget(pictures, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    request = TrainRequest(source=pictures, budget="1h")
    with pytest.raises(UserError, match="budget: several processes.*--steps or --minutes"):
        planned(request, *settle(request))
    request = TrainRequest(source=pictures)
    recipe, data, model = settle(request)
    assert planned(request, recipe, data, model) == (recipe, None)


def test_presets_do_not_go_with_recipes_and_models(tmp_path, pictures):
    source = tmp_path / "r.json"
    source.write_text(json.dumps({**TINY, "data": str(pictures)}))
    with pytest.raises(UserError, match="preset: .*has settings of its own"):
        settle(TrainRequest(source=source, preset="tiny"))
    with pytest.raises(UserError, match="preset: emoji-64 has a network of its own"):
        settle(TrainRequest(source=pictures, preset="tiny", start="emoji-64"))


def test_few_pictures_are_not_given_a_large_network(pictures, monkeypatch):
    monkeypatch.setattr(module, "measure_steps", lambda *_, **__: SPEED)
    request = TrainRequest(source=pictures, budget="30d")
    recipe, found = planned(request, *settle(request))
    assert found.preset in ("small", "tiny") and recipe.steps == 3000  # twenty would be learned by heart


@pytest.mark.slow
def test_a_recipe_is_estimated_and_its_faults_are_told(tmp_path, pictures):
    source = tmp_path / "r.json"
    settings = {**SETTINGS, "text_dim": 384}
    source.write_text(json.dumps({**TINY, "settings": settings, "data": str(pictures), "steps": 40, "lr": 5.0, "warm_up": 4}))
    found = estimate(EstimateRequest(source=source))
    assert found.steps == 40 and found.preset is None and found.budget_seconds is None and found.size == 16
    assert ["lr: 5 is far" in f.text and f.degree == "error" for f in found.warnings][0]
    assert not list(tmp_path.glob("unfog*")) and estimate(EstimateRequest(source=source, steps=8)).steps == 8
    within = estimate(EstimateRequest(source=source, budget="5m"))
    assert 200 < within.total_seconds <= 300 and within.steps > 100


def test_memory_that_is_missing_is_told(data, monkeypatch):
    found = reckon(Recipe(**TINY), data, SPEED, start=1.0)
    monkeypatch.setattr(module, "memory", lambda: 0)
    monkeypatch.setattr(module, "resident", lambda: 1000)
    monkeypatch.setattr(module, "crowded", lambda: True)
    texts = [f.text for f in module.with_machine(found).warnings]
    assert "raise accumulate" in texts[0] and "OMP_NUM_THREADS=1" in texts[1]


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="only Linux can set the peak back")
def test_a_peak_is_what_was_held_between():
    with Peak() as first:
        block = np.ones(10_000_000)
        del block
    with Peak() as second:
        pass
    assert 75e6 < first.growth < 110e6 and second.growth < 20e6 and resident() > 50e6
    assert 0 < since_start() < 86400


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="only Linux can set the peak back")
def test_a_peak_counts_what_fits_into_memory_that_was_given_back():
    """The C library keeps freed blocks between living ones: what is put there later is held all the same."""
    for _ in range(2):
        blocks = [bytearray(b"1" * size) for _ in range(400) for size in (100_000, 2000)]
        pins = blocks[1::2]
        del blocks
        with Peak() as peak:
            blocks = [bytearray(b"1" * 100_000) for _ in range(400)]
        assert 35e6 < peak.growth < 60e6 and len(pins) == len(blocks)


@pytest.mark.slow
def test_a_budgeted_run_ends_by_its_plan_with_a_low_rate(tmp_path, pictures):
    source, out = tmp_path / "r.json", tmp_path / "out"
    source.write_text(json.dumps({**TINY, "settings": {**SETTINGS, "text_dim": 384}, "data": str(pictures), "warm_up": 4}))
    run_recipe(TrainRequest(source=source, out=out, budget=45.0))
    rates = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    last = [event for event in rates if "lr" in event][-1]
    plan = json.loads((out / "plan.json").read_text())
    assert last["step"] == plan["steps"][-1]["steps"] and last["lr"] < 0.15 * 1e-3
