"""A run that must end in time: planned anew by the clock, and a function of its recipe and the recorded plan alone."""

import json
from pathlib import Path

import pytest

from unfog.errors import UserError
from unfog.requests import EstimateRequest, TrainRequest, check
from unfog.training.budget import Budget, clock, recorded
from unfog.training.checkpoint import saved_steps
from unfog.training.loop import lr_at
from unfog.training.presets import PRESETS, Preset
from unfog.training.recipe import Recipe
from unfog.training.run import run_recipe

SETTINGS = {"unshuffle": 4, "widths": [16, 16], "blocks": [1, 1], "attention": [False, True], "embedding": 16}


def drive(budget, pace):
    """Steps until the run is over, `pace(step)` seconds each. -> the learning rates."""
    rates, step = [], 0
    while step < (recipe := budget(step)).steps:
        rates.append(lr_at(recipe, step) / recipe.lr)
        budget.time += pace(step)
        step += 1
    return rates


def a_budget(tmp_path, steps=1000, seconds=100.0):
    budget = Budget(tmp_path, Recipe(steps=steps, warm_up=1), seconds=seconds, now=lambda: budget.time)
    budget.time = 0.0
    return budget


@pytest.mark.parametrize(
    "pace", [lambda s: 0.3, lambda s: 0.04, lambda s: 0.1 if s < 500 else 0.3, lambda s: 0.1 * (1 + s % 2)],
    ids=["three times slower", "faster", "slower from the middle on", "uneven"],
)  # fmt: skip
def test_the_rate_falls_to_its_end_within_the_budget(tmp_path, pace):
    budget = a_budget(tmp_path)
    rates = drive(budget, pace)
    assert 80 < budget.time < 103
    assert rates[-1] < 0.05 and max(rates) == 1.0  # it has been at its height, and has come down
    last = len(rates) - rates[::-1].index(1.0)
    assert all(a >= b - 1e-9 for a, b in zip(rates[last:], rates[last + 1 :], strict=False))  # never up again while falling
    assert [entry["from"] for entry in budget.steps] == sorted(entry["from"] for entry in budget.steps)


def test_a_machine_that_keeps_its_pace_keeps_its_plan(tmp_path):
    budget = a_budget(tmp_path, steps=970)
    assert len(drive(budget, lambda s: 0.1)) == 970 and budget.steps == [{"from": 0, "steps": 970}]
    assert not (tmp_path / "plan.json").exists()


def test_a_recorded_plan_is_followed_to_the_letter(tmp_path):
    budget = a_budget(tmp_path)
    first = drive(budget, lambda s: 0.1 if s < 300 else 0.25)
    assert len(budget.steps) > 2
    again = recorded(tmp_path)
    assert again is not None and again.steps == budget.steps and again.recipe == budget.recipe
    again.time = 0.0
    assert drive(again, lambda s: 7.0) == first


def test_a_plan_that_cannot_be_read_is_one_line(tmp_path):
    assert recorded(tmp_path) is None
    for text in ("{", "[]", '{"steps": [], "recipe": {}, "preset": null}', '{"steps": [{"from": 0, "steps": 0}]}'):
        (tmp_path / "plan.json").write_text(text)
        with pytest.raises(UserError, match="is not the plan of a run") as caught:
            recorded(tmp_path)
        assert "\n" not in str(caught.value)


def test_cut_and_resumed_within_a_plan_is_the_run_that_was_not(tmp_path, picture_folder, one_thread, monkeypatch):
    """A plan that changes twice: stopped in between and resumed without a budget, it ends with the same bytes."""
    fields = {"data": str(picture_folder), "size": 16, "settings": SETTINGS, "steps": 12, "batch": 4, "warm_up": 1,
              "report_steps": 4, "checkpoint_minutes": 1e-9}  # fmt: skip
    plan = {"preset": None, "budget_seconds": 60.0, "recipe": Recipe.model_validate(fields).model_dump(),
            "steps": [{"from": 0, "steps": 12}, {"from": 3, "steps": 9}, {"from": 6, "steps": 8}]}  # fmt: skip
    source = tmp_path / "r.json"
    source.write_text(json.dumps(fields))

    def run(out, **more):
        out.mkdir(exist_ok=True)
        if not (out / "plan.json").exists():
            (out / "plan.json").write_text(json.dumps(plan))
        return run_recipe(TrainRequest(source=source, out=out, resume=True, **more))

    run(tmp_path / "whole")
    follow = Budget.__call__

    def until_five(self, step):
        if step == 5:
            raise KeyboardInterrupt
        return follow(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Budget, "__call__", until_five)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut")
    assert sorted(p.stem for p in (tmp_path / "cut" / "checkpoints").glob("*.json")) == ["0000003", "0000004"]
    run(tmp_path / "cut")
    for name in ("checkpoints/0000008.safetensors", "events.jsonl", "model/network.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    rates = [json.loads(line) for line in (tmp_path / "whole" / "events.jsonl").read_text().splitlines()]
    assert next(e["lr"] for e in rates if e["step"] == 8 and "lr" in e) == pytest.approx(1e-3 / (0.3 * 8))
    run(tmp_path / "cut", steps=9)  # a number of one's own ends the plan
    assert json.loads((tmp_path / "cut" / "plan.json").read_text())["steps"] == [{"from": 0, "steps": 9}]


def test_a_folder_is_resumed_without_saying_it_all_again(tmp_path, picture_folder, monkeypatch):
    """Preset, steps and the model to start from are those that the run began with."""
    small = {"size": 16, "settings": SETTINGS, "batch": 4, "report_steps": 100}
    monkeypatch.setitem(PRESETS, "small", Preset("16 px", 1.0, 0, small))
    out = tmp_path / "out"
    run_recipe(TrainRequest(source=picture_folder, out=out, steps=2))
    run_recipe(TrainRequest(source=picture_folder, out=out, resume=True))
    assert saved_steps(out) == [2]
    run_recipe(TrainRequest(source=picture_folder, out=out, resume=True, steps=3))
    assert saved_steps(out)[0] == 3 and recorded(out).at(0) == 3
    tuned = tmp_path / "tuned"
    run_recipe(TrainRequest(source=picture_folder, out=tuned, steps=1, start=str(out)))
    run_recipe(TrainRequest(source=picture_folder, out=tuned, resume=True, steps=2))
    assert saved_steps(tuned)[0] == 2
    assert json.loads((tuned / "model" / "model.json").read_text())["training"]["recipe"]["start"] == out.name


@pytest.mark.parametrize("kind", [TrainRequest, EstimateRequest])
@pytest.mark.parametrize(
    "text, seconds", [("45s", 45), ("30m", 1800), ("2h", 7200), ("1.5h", 5400), ("1d", 86400), (" 2 H ", 7200), (90, 90)]
)
def test_times(kind, text, seconds):
    assert check(kind, {"source": Path("x"), "budget": text}).budget == seconds


@pytest.mark.parametrize("text", ["", "10", "5x", "-3m", "h", "1h30m", "nan", "infh", "0s", "9999d", True, "1e3s", "٣m"])
def test_times_that_are_none(text):
    with pytest.raises(UserError, match="^budget: .*give a time such as 45s, 30m, 2h, 1.5h or 1d") as caught:
        check(TrainRequest, {"source": Path("x"), "budget": text})
    assert "\n" not in str(caught.value)


def test_times_for_people():
    assert [clock(s) for s in (4.567, 89, 100, 5400, 86400, 200_000)] == ["4.57 s", "89 s", "1.67 min", "1.5 h", "24 h", "2.31 d"]
