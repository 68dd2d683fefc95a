"""Items of any kind as a corpus: orders, draws, what the gate says of them, data that change between starts."""

import json

import numpy as np
import pytest
import torch

from unfog.errors import UserError
from unfog.modalities import modality
from unfog.modalities.contract import Items, Options
from unfog.requests import TrainRequest
from unfog.training import run_recipe
from unfog.training.item_corpus import item_corpora
from unfog.training.recipe import Recipe

KIND = modality("toy")
FIELDS = {"kind": "toy", **KIND.presets["tiny"], "batch": 8, "steps": 6, "report_steps": 6, "snapshots": 0, "warm_up": 1}


def items(count=40, prompts=("a", "b"), held=8, path=None):
    rng = np.random.default_rng(0)
    raw = [rng.normal(size=2) + 3 * (i % 2) for i in range(count)]
    return Items(path, raw, [prompts[i % len(prompts)] for i in range(count)], ["train"] * (count - held) + ["other"] * held,
                 [f"row {i}" for i in range(count)])  # fmt: skip


def corpora(found):
    return item_corpora(KIND, found, KIND.fit(found, Options()))


def test_each_epoch_takes_each_item_once():
    corpus, held = corpora(items())
    recipe = Recipe(**FIELDS)
    assert (corpus.plain, held.plain) == (32, 8)
    seen = [i for k in range(8) for i in corpus.chosen(recipe, k).tolist()]
    assert sorted(seen[:32]) == sorted(seen[32:]) == list(range(32)) and seen[:32] != seen[32:]


def test_rows_of_a_batch_are_those_of_the_whole():
    corpus, _ = corpora(items())
    recipe = Recipe(**FIELDS)
    x0, cond = corpus.batch(recipe, 3)
    part, own = corpus.batch(recipe, 3, slice(2, 5))
    assert torch.equal(x0[2:5], part) and torch.equal(cond["class"][2:5], own["class"])


def test_prompts_are_dropped_as_often_as_the_recipe_says():
    corpus, _ = corpora(items())
    recipe = Recipe(**{**FIELDS, "drop_text": 0.25, "batch": 64})
    told = torch.cat([corpus.batch(recipe, k)[1]["class"] for k in range(40)])
    assert abs(float((told == 2).double().mean()) - 0.25) < 0.03


def test_nothing_to_learn_from_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no item of split 'train'"):
        item_corpora(KIND, items(8, held=8, path=tmp_path), KIND.fit(items(), Options()))


def written(folder, rows):
    folder.mkdir(exist_ok=True)
    lines = [f"{x},{y},{label},{split}" for x, y, label, split in rows]
    (folder / "points.csv").write_text("\n".join(["x,y,label,split", *lines]) + "\n")
    (folder / "recipe.json").write_text(json.dumps({**FIELDS, "data": str(folder / "points.csv")}))
    return folder / "recipe.json"


def rows(count=40, copies=False, held=0):
    rng = np.random.default_rng(1)
    points = rng.normal(size=(count, 2)).round(4)
    found = [(1, 1, "a", "train") if copies else (*p, "ab"[i % 2], "train") for i, p in enumerate(points.tolist())]
    return found + [(*found[i][:3], "heldout") for i in range(held)]


def test_what_would_spoil_a_run_is_told(tmp_path):
    for name, data, said in (
        ("same", rows(copies=True), "all 40 items are the same"),
        ("held", rows(held=10), "10 of 10 held-out"),
    ):
        with pytest.raises(UserError, match=said):
            run_recipe(TrainRequest(source=written(tmp_path / name, data), out=tmp_path / name / "run"))


def test_data_that_changed_are_told_and_the_space_stays(tmp_path, capsys):
    recipe = written(tmp_path / "data", rows())
    run_recipe(TrainRequest(source=recipe, out=tmp_path / "run"))
    before = json.loads((tmp_path / "run" / "model" / "model.json").read_text())["space"]
    written(tmp_path / "data", [*rows(), (9, 9, "a", "train")])
    capsys.readouterr()
    run_recipe(TrainRequest(source=recipe, out=tmp_path / "run", resume=True, steps=8, force=True))
    assert "points.csv changed" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "model" / "model.json").read_text())["space"] == before


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"kind": "toi"}, "did you mean toy"),
        ({"size": 32}, "size: is for pictures"),
        ({"subject": "a cat", "start": "x"}, "subject: is for pictures"),
        ({"options": {"colour": 1}}, "options: field: 'colour' is unknown"),
        ({"network": "pionts"}, "did you mean points"),
    ],
)
def test_settings_that_do_not_fit_the_kind_are_one_line(fields, said, tmp_path):
    source = tmp_path / "recipe.json"
    source.write_text(json.dumps({**FIELDS, **fields}))
    with pytest.raises(UserError) as error:
        run_recipe(TrainRequest(source=source, out=tmp_path / "run"))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_file_of_a_kind_trains_without_a_recipe(tmp_path, capsys):
    written(tmp_path / "data", [*rows(), ("oops", 1, "a", "train")])
    source = tmp_path / "data" / "points.csv"
    run_recipe(TrainRequest(source=source, kind="toy", out=tmp_path / "run", steps=40))
    assert "left out 1 without two finite numbers" in capsys.readouterr().err
    card = json.loads((tmp_path / "run" / "model" / "model.json").read_text())
    assert (card["kind"], card["name"], card["training"]["steps"]) == ("toy", "points", 40)
