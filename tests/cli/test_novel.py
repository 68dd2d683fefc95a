"""`unfog generate --novel`: copies are told, shown beside their original, made again, and remade from their recipe."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unfog.cli.novel import spelled_out
from unfog.evaluation.novel import seed_of
from unfog.modalities.image.show import read_recipe


@pytest.fixture
def data(unfog_command, tmp_path, monkeypatch):
    """A folder of pictures, one of which is what the model makes of "a cat" from seed 5."""
    monkeypatch.setenv("UNFOG_CACHE", str(tmp_path / "cache"))
    code, (path,), _ = unfog_command("generate", "a cat", "--seed", 5, "--out", "first")
    folder = tmp_path / "data"
    folder.mkdir()
    shutil.copy(path, folder / "known.png")
    rng = np.random.default_rng(0)
    for i in range(15):
        Image.fromarray(rng.integers(0, 256, (8, 8, 4), dtype=np.uint8)).save(folder / f"{i}.png")
    assert code == 0
    return folder


def test_novel_alone_means_warn():
    assert spelled_out(["generate", "--novel", "a cat"]) == ["generate", "--novel", "warn", "a cat"]
    assert spelled_out(["generate", "a cat", "--novel"]) == ["generate", "a cat", "--novel", "warn"]
    for said in (["--novel", "resample", "x"], ["--novel", "warn"], ["--", "--novel"], ["--novel=resample"]):
        assert spelled_out(said) == said


def test_a_copy_is_told_and_shown_beside_its_original(unfog_command, data):
    code, paths, err = unfog_command("generate", "a cat", "-n", 2, "--seed", 5, "--novel", "--against", data, "--out", "made")
    assert code == 0 and paths == ["made/a-cat-5.png", "made/a-cat-6.png"]
    (line,) = err
    assert line.startswith("unfog: --novel: made/a-cat-5.png is a copy of known.png (0.0") and "; both are in " in line
    beside = line.rsplit(" ", 1)[1]
    assert beside == "made/a-cat-5_near.png" and read_recipe(beside) == {"sheet": 2}
    with Image.open(beside) as sheet:
        assert sheet.width >= 2 * 8
    # the picture itself is what it is without the check
    assert Path(paths[0]).read_bytes() == Path("first/a-cat-5.png").read_bytes()
    again = unfog_command("generate", "a cat", "--seed", 5, "--novel", "--against", data, "--out", "made", "--json")
    row = json.loads(again[1][0])
    assert row["near"] == "known.png" and row["beside"] == beside  # the same sheet again, no second file


def test_a_copy_is_made_again_and_its_recipe_remakes_it(unfog_command, model, data):
    words = ["generate", "a cat", "-n", 2, "--seed", 5, "--novel", "resample", "--against", data, "--out", "made"]
    code, paths, err = unfog_command(*words)
    other = seed_of(5, 1)
    assert code == 0 and paths == [f"made/a-cat-{other}.png", "made/a-cat-6.png"]
    assert err == [f"unfog: --novel: seed 5 made a copy of known.png; made again from seed {other}"]
    recipe = read_recipe(paths[0])
    assert recipe["seed"] == other and recipe["novel"] == {"seed": 5, "try": 1} and "novel" not in read_recipe(paths[1])
    assert model.requests[-1].novel is None  # the model itself is asked for plain pictures
    code, (same,), err = unfog_command("generate", "--like", paths[0], "--out", "remade")
    assert code == 0 and err == [] and Path(same).read_bytes() == Path(paths[0]).read_bytes()


def test_tries_end_with_a_warning(unfog_command, model, data, monkeypatch):
    from unfog.evaluation import memory

    near = memory.Neighbour("known.png", 0, 9.0, 0.01, True)
    monkeypatch.setattr(memory.Memory, "near", lambda self, pictures: [near] * len(pictures))
    code, paths, err = unfog_command("generate", "a dog", "--seed", 1, "--novel", "resample", "--tries", 2, "--against", data)
    last = seed_of(1, 2)
    assert code == 0 and paths == [f"out/a-dog-{last}.png"]
    assert [line.split(";")[0] for line in err[:2]] == [
        f"unfog: --novel: seed {s} made a copy of known.png" for s in (1, seed_of(1, 1))
    ]
    assert err[2].startswith(f"unfog: --novel: {paths[0]} is a mirrored copy of known.png")


@pytest.mark.parametrize(
    "words, told",
    [
        (["--novel=often"], "novel: "),
        (["--against", "x"], "against: "),
        (["--tries", "3"], "tries: "),
        (["--novel", "--tries", "3"], "tries: "),
        (["--novel", "resample", "--tries", "0"], "tries: "),
        (["--novel", "--against", "nowhere/at-all"], "nowhere/at-all: no such folder or zip of pictures"),
    ],
)
def test_bad_words_are_one_line(words, told, unfog_command):
    code, out, err = unfog_command("generate", "a cat", *words)
    assert code == 2 and out == [] and len(err) == 1 and err[0].startswith(f"unfog: {told}")


def test_a_damaged_cache_is_told_and_made_anew(unfog_command, data, tmp_path):
    words = ["generate", "a cat", "--seed", 5, "--novel", "--against", data]
    first = unfog_command(*words)
    (kept,) = (tmp_path / "cache" / "known").iterdir()
    raw = bytearray(kept.read_bytes())
    raw[len(raw) // 2] ^= 1
    kept.write_bytes(bytes(raw))
    code, _, err = unfog_command(*words)
    assert code == 0 and len(err) == 2 and "damaged (its sha256 differs)" in err[0] and err[1] == first[2][0]
    assert unfog_command(*words)[2] == first[2]
    # a picture that comes or goes is another key
    Image.new("RGBA", (8, 8), (200, 10, 10, 255)).save(data / "new.png")
    unfog_command(*words)
    assert len(list((tmp_path / "cache" / "known").iterdir())) == 2


def test_a_model_that_names_no_data_asks_for_it(unfog_command, model):
    model.card = {"training": {}}
    code, _, err = unfog_command("generate", "a cat", "--novel")
    assert code == 2 and err == ["unfog: novel: emoji-64 does not say what it was trained on; give its data with --against"]
    model.card = {"training": {"data": "gone/pictures"}}
    code, _, err = unfog_command("generate", "a cat", "--novel")
    assert code == 2 and "gone/pictures, the data of emoji-64, is not there" in err[0]
