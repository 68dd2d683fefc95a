"""Pictures are decoded once; broken, changed and vanished files have a stated outcome each."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from unfog.errors import UserError
from unfog.modalities.image.data import PictureSet
from unfog.requests import TrainRequest
from unfog.training import began, pictures
from unfog.training.machine import memory
from unfog.training.picture_corpus import build_corpus
from unfog.training.pictures import Pile, kept_set
from unfog.training.run import run_recipe
from unfog.training.states import text_states

pytestmark = pytest.mark.usefixtures("one_thread")


def fill(folder, count, broken=(), size=(16, 16)):
    folder.mkdir(exist_ok=True)
    for i in range(count):
        path = folder / f"{i:03}.png"
        if i in broken:
            path.write_bytes(b"no picture")
        else:
            Image.new("RGBA", size, (i, 255 - i, 90, 255)).save(path)
        (folder / f"{i:03}.txt").write_text(f"thing {i}")
    return folder


@pytest.mark.parametrize(("count", "broken"), [(20, 1), (40, 2), (2, 1), (7, 1), (19, 1), (100, 5)])
def test_a_few_broken_pictures_are_left_out_aloud(tmp_path, tiny_recipe, capsys, count, broken):
    data = PictureSet.open(fill(tmp_path / "set", count, range(broken)))
    corpus = build_corpus(data, tiny_recipe(recolour=0.0))
    assert corpus.plain == count - broken and corpus.names == [f"{i:03}.png" for i in range(broken, count)]
    assert corpus.pictures[:, 0, 0, 0].tolist() == list(range(broken, count))
    assert [corpus.captions[n] for n in corpus.texts[:, 0]] == [f"thing {i}" for i in range(broken, count)]
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{broken} of {count} pictures cannot be read and are left out (000.png" in line
    assert all(f"{i:03}.png" in line for i in range(min(broken, 3))) and "003.png" not in line


@pytest.mark.parametrize(("count", "broken"), [(100, 6), (20, 2), (1, 1), (3, 2), (4, 4)])
def test_more_are_an_error_that_names_them(tmp_path, tiny_recipe, count, broken):
    data = PictureSet.open(fill(tmp_path / "set", count, range(broken)))
    with pytest.raises(UserError, match=f"{broken} of {count} pictures cannot be read .000.png.*repair or remove") as error:
        build_corpus(data, tiny_recipe(picture_memory=0), out=tmp_path / "out")
    assert "\n" not in str(error.value) and not list((tmp_path / "out" / "pictures").iterdir())


def same(a, b):
    return (torch.equal(a.pictures, b.pictures) and np.array_equal(a.texts, b.texts) and a.captions == b.captions
            and a.codec == b.codec and a.names == b.names and np.array_equal(a.classes, b.classes))  # fmt: skip


@pytest.mark.parametrize("buckets", [False, True])
def test_a_file_of_pictures_is_what_memory_would_hold_and_is_not_decoded_again(tmp_path, tiny_recipe, monkeypatch, buckets):
    fill(tmp_path / "set", 30, [4])
    for i in range(20, 30):
        Image.new("RGBA", (32, 16), (i, 200, 9, 255)).save(tmp_path / "set" / f"{i:03}.png")
    fields = {"recolour": 0.5, "buckets": buckets}
    data = PictureSet.open(tmp_path / "set")
    within = build_corpus(data, tiny_recipe(**fields), out=tmp_path / "a")
    assert not (tmp_path / "a").exists() and len(within.pictures) > within.plain == 29
    mapped = build_corpus(data, tiny_recipe(picture_memory=0, **fields), out=tmp_path / "b")
    assert isinstance(mapped.pictures.numpy().base, np.memmap) or mapped.mapped
    assert same(within, mapped) and sorted(p.suffix for p in (tmp_path / "b" / "pictures").iterdir()) == [".json", ".npy"]
    monkeypatch.setattr(PictureSet, "load", lambda *_: pytest.fail("decoded again"))
    again = build_corpus(PictureSet.open(tmp_path / "set"), tiny_recipe(picture_memory=0, **fields), out=tmp_path / "b")
    assert same(within, again) and (again.bucket is None or np.array_equal(again.bucket, within.bucket))


def test_kept_pictures_that_are_damaged_or_of_other_files_are_made_anew(tmp_path, tiny_recipe, capsys):
    fill(tmp_path / "set", 8)
    recipe, out = tiny_recipe(picture_memory=0, recolour=0.0), tmp_path / "out"
    whole = build_corpus(PictureSet.open(tmp_path / "set"), recipe, out=out)
    (file,) = (out / "pictures").glob("*.npy")
    del whole.pictures
    file.write_bytes(file.read_bytes()[:-50])
    assert build_corpus(PictureSet.open(tmp_path / "set"), recipe, out=out).pictures.shape[0] == 8
    assert "damaged" in capsys.readouterr().err
    Image.new("RGBA", (16, 16), (77, 0, 0, 255)).save(tmp_path / "set" / "000.png")
    changed = build_corpus(PictureSet.open(tmp_path / "set"), recipe, out=out)
    assert changed.pictures[0, 0, 0].tolist() == [77, 0, 0, 255]
    assert not file.exists() and len(list((out / "pictures").iterdir())) == 2  # the old ones take no room


def test_a_full_disk_leaves_nothing_half_written(tmp_path, tiny_recipe, monkeypatch):
    data = PictureSet.open(fill(tmp_path / "set", 8))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pictures.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        build_corpus(data, tiny_recipe(picture_memory=0), out=tmp_path / "out")
    assert not list((tmp_path / "out" / "pictures").iterdir())


def test_a_pile_on_the_disk_is_a_npy(tmp_path):
    pile = Pile((4, 4, 4), 9, tmp_path / "x.npy")
    rows = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 4), dtype=np.uint8)
    for i, row in enumerate(rows):
        pile.add(row)
        assert np.array_equal(pile.get(i // 2), rows[i // 2])
    assert not (tmp_path / "x.npy").exists()
    assert np.array_equal(pile.finish(), rows) and np.array_equal(np.load(tmp_path / "x.npy"), rows)
    assert 1 << 24 < memory() < 1 << 50


# a run whose data change


SETTINGS = {"unshuffle": 4, "widths": [16, 16], "blocks": [1, 1], "attention": [False, True], "embedding": 16}


@pytest.fixture
def run(tmp_path, capsys):
    """run(steps, **recipe fields): one more start of a run on the folder `set`; -> its lines on stderr that are no progress."""
    fill(tmp_path / "set", 24)

    def start(steps, resume=True, **fields):
        recipe = {"data": str(tmp_path / "set"), "size": 16, "settings": SETTINGS, "batch": 4, "warm_up": 1, "recolour": 0.0,
                  "accumulate": 1, "report_steps": 1000, "steps": steps, "decay": 0.0}  # fmt: skip
        (tmp_path / "r.json").write_text(json.dumps(recipe | fields))
        run_recipe(TrainRequest(source=tmp_path / "r.json", out=tmp_path / "out", resume=resume))
        return [line for line in capsys.readouterr().err.splitlines()
                if line.startswith("unfog: ") and "warning:" not in line]  # fmt: skip

    return start


def test_a_resumed_run_says_which_files_differ_and_goes_on(tmp_path, run):
    assert run(1, resume=False) == []
    said = json.loads((tmp_path / "out" / "data.json").read_text())
    assert said["pictures"] == 24 and len(said["fingerprint"]) == 64
    assert run(2) == []  # the same data: nothing to say
    Image.new("RGBA", (16, 16), (1, 1, 1, 255)).save(tmp_path / "set" / "003.png")
    (tmp_path / "set" / "005.txt").write_text("another word")
    Image.new("RGBA", (16, 16), (1, 1, 1, 255)).save(tmp_path / "set" / "zz.png")
    for i in (7, 8, 9):
        (tmp_path / "set" / f"{i:03}.png").unlink()
    (line,) = run(3)
    assert "not the data that the run began with: 2 changed, 1 new, 3 gone (003.png changed, 005.png changed, zz.png new)" in line
    assert "going on with what is there now" in line
    (tmp_path / "out" / "data.json").write_text("{}")
    assert "data.json: damaged" in run(4)[0]
    assert run(5) == []  # written anew


@pytest.mark.parametrize("kept", [False, True])
def test_a_run_whose_files_are_all_gone(tmp_path, run, kept):
    fields = {"picture_memory": 0 if kept else None}
    run(1, resume=False, **fields)
    for path in (tmp_path / "set").iterdir():
        path.unlink()
    if kept:
        (line,) = run(2, **fields)
        assert "no pictures found" in line and "going on with the 24 pictures kept in" in line
        (tmp_path / "set").rmdir()
        assert len(run(3, **fields)) == 1
    else:
        with pytest.raises(UserError, match="no pictures found"):
            run(2, **fields)


def test_a_file_deleted_under_way_does_not_matter(tmp_path, tiny_recipe):
    fill(tmp_path / "set", 8)
    data = PictureSet.open(tmp_path / "set")
    recipes = [tiny_recipe(recolour=0.0, picture_memory=memory) for memory in (None, 0)]
    corpora = [build_corpus(data, recipe, out=tmp_path / "out") for recipe in recipes]
    for path in (tmp_path / "set").iterdir():
        path.unlink()
    assert all(c.pictures[:, 0, 0, 0].tolist() == list(range(8)) for c in corpora)


def test_classes_and_colours_stay_those_of_the_start(tmp_path, run, capsys):
    """Else a class number would mean another class after the first file of one is gone."""
    styles = ["round", "flat"]
    lines = [json.dumps({"file_name": f"{i:03}.png", "text": "x", "style": styles[i % 2]}) for i in range(24)]
    (tmp_path / "set" / "metadata.jsonl").write_text("\n".join(lines))
    run(1, resume=False)
    before = began.recall(tmp_path / "out")
    (tmp_path / "set" / "metadata.jsonl").write_text("\n".join([*lines[1:], lines[0].replace("round", "spiky")]))
    said = run(2)
    assert "not the data" in said[0] and "the run did not know style spiky: learned as of no style" in said[1]
    card = json.loads((tmp_path / "out" / "model" / "model.json").read_text())
    assert card["styles"] == ["round", "flat"] == before["styles"] and card["codec"]["mean"] == before["mean"]


def test_nothing_kept_is_nothing_found(tmp_path):
    assert kept_set(tmp_path / "set", tmp_path) is None
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "x.json").write_text("[]")
    assert kept_set(tmp_path / "set", tmp_path) is None and began.recall(tmp_path) is None


# text states


def test_text_states_are_made_once_checked_and_in_parts(tmp_path, tiny_corpus, monkeypatch, capsys):
    monkeypatch.setattr("unfog.training.states.PART", 10)
    monkeypatch.setattr("unfog.training.states.CHUNK", 4)
    monkeypatch.setattr("unfog.training.states.PATIENCE", -1.0)
    calls = []

    def encode(words):
        calls.append(list(words))
        rows = [[float(sum(map(ord, w)) % 97)] * 6 for w in words]
        return torch.tensor(rows).reshape(len(words), 3, 2), torch.ones(len(words), 3, dtype=torch.bool)

    text_states(tiny_corpus, encode, tmp_path)
    want = encode(tiny_corpus.captions)[0].half()
    assert torch.equal(tiny_corpus.states, want) and [len(c) for c in calls[:-1]] == [4, 4, 2, 4, 4, 2, 4, 3]
    assert json.loads(capsys.readouterr().err.splitlines()[-1])["of"] == 27
    calls.clear()
    text_states(tiny_corpus, encode, tmp_path)
    assert not calls and torch.equal(tiny_corpus.states, want) and not capsys.readouterr().err
    files = sorted((tmp_path / "text-states").iterdir())
    assert len(files) == 3
    for damage in (lambda b: b[:-3], lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b"", lambda b: b"x" * len(b)):
        good = files[1].read_bytes()
        files[1].write_bytes(damage(good))
        text_states(tiny_corpus, encode, tmp_path)
        assert f"{files[1]}: damaged" in capsys.readouterr().err
        assert sum(map(len, calls)) in (10, 7) and torch.equal(tiny_corpus.states, want) and files[1].read_bytes() == good
        calls.clear()
    os.truncate(files[0], 0)  # and a killed run's part is the only one to be made again
