"""Recipes: strict fields, Python files that are read and never run, and errors before anything is written."""

import json

import pytest

from unfog.errors import UserError
from unfog.requests import TrainRequest
from unfog.training.recipe import Recipe, read_recipe
from unfog.training.run import build_network, run_recipe


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def refused(path):
    with pytest.raises(UserError) as caught:
        read_recipe(path)
    message = str(caught.value)
    assert "\n" not in message and path.name in message
    return message


def test_unknown_option_names_the_nearest(tmp_path):
    assert "did you mean warm_up?" in refused(write(tmp_path / "a.json", {"warmup": 3}))
    assert "did you mean batch?" in refused(write(tmp_path / "b.json", {"bacth": 3}))


@pytest.mark.parametrize(
    "field, value", [("steps", 0), ("lr", -1), ("network", "transformer"), ("dropout", 1.0), ("size", "big")]
)
def test_wrong_values_name_the_field(tmp_path, field, value):
    assert f"{field}:" in refused(write(tmp_path / "a.json", {field: value}))


def test_a_python_recipe_is_read_and_never_run(tmp_path):
    mark = tmp_path / "mark"
    program = f"open({str(mark)!r}, 'w').write('run')\nRECIPE = {{'steps': 7}}\nraise SystemExit(3)\n"
    assert read_recipe(write(tmp_path / "a.py", program)).steps == 7
    assert not mark.exists()
    call = f"RECIPE = {{'steps': len(open({str(mark)!r}, 'w').name)}}"
    refused(write(tmp_path / "b.py", call))
    assert not mark.exists()


def test_json_and_python_say_the_same(tmp_path):
    fields = {"name": "x", "steps": 9, "settings": {"widths": [8, 16]}, "schedule": {"name": "linear"}, "lr": 0.5}
    a, b = write(tmp_path / "a.json", fields), write(tmp_path / "a.py", f'"""Words."""\n\nRECIPE = {fields!r}\n')
    assert read_recipe(a) == read_recipe(b) == Recipe(**fields)


@pytest.mark.parametrize("content", ["", "RECIPE = 3 +", "recipe = {}", "{'a': ", "\0"])
def test_files_that_hold_no_recipe(tmp_path, content):
    refused(write(tmp_path / "a.py", content))
    refused(write(tmp_path / "a.json", content))


def test_unreadable_files(tmp_path):
    refused(tmp_path / "none.json")
    (tmp_path / "binary.py").write_bytes(b"\xff\xfe\x00RECIPE")
    refused(tmp_path / "binary.py")
    refused(write(tmp_path / "list.json", [1, 2]))
    refused(write(tmp_path / "deep.json", "[" * 100_000))


def test_unknown_network_setting_is_one_line():
    with pytest.raises(UserError, match=r"network 'unet'.*depth"):
        build_network(Recipe(settings={"depth": 3}), {"channels": 4, "classes": 0})


def test_unreadable_pictures_are_named_and_nothing_is_written(tmp_path, picture_folder):
    for name in ("07.png", "09.png"):  # one of so few would be left out
        (picture_folder / name).write_bytes(b"\x89PNG\r\n\x1a\n not a picture")
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"2 of 12 pictures cannot be read \(07\.png is not a readable picture"):
        run_recipe(TrainRequest(source=picture_folder, out=out))
    assert not out.exists()


@pytest.mark.parametrize("name", ["none", "none.json"])
def test_a_source_that_is_not_there(tmp_path, name):
    with pytest.raises(UserError, match=name):
        run_recipe(TrainRequest(source=tmp_path / name, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
