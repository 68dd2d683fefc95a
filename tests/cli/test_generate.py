"""`unfog generate` from words to files: good requests, bad ones, and pictures made again."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

import unfog
from unfog.cli import main, output
from unfog.modalities.image.show import read_recipe, save_png


def test_seeds_names_and_recipes(unfog_command, model):
    code, paths, err = unfog_command("generate", "a red apple", "a cat!", "-n", 4, "--seed", 7, "--out", "made")
    assert (code, err) == (0, [])
    expected = [f"made/{name}-{seed}.png" for name in ("a-red-apple", "a-cat") for seed in (7, 8, 9, 10)]
    assert paths == expected
    assert sorted(os.listdir("made")) == sorted(Path(path).name for path in expected)
    assert read_recipe(paths[2])["seed"] == 9
    assert read_recipe(paths[5])["prompt"] == "a cat!"


def test_options_reach_the_request(unfog_command, model):
    words = ["--style", "noto", "--steps", 3, "--scale", 1.5, "--seed", 0, "--sampler", "heun", "--negative", "blue", "--strict"]
    words += ["--aspect", "3:2", "--literal"]
    code, paths, _ = unfog_command("generate", "x", *words, "--batch", 8, "--model", "my-model")
    (request,) = model.requests
    assert code == 0 and paths == ["out/x-noto-0.png"]
    assert request.model_dump() == {
        "prompts": ["x"],
        "style": "noto",
        "n": 1,
        "seed": 0,
        "steps": 3,
        "scale": 1.5,
        "sampler": "heun",
        "aspect": "3:2",
        "negative": "blue",
        "batch": 8,
        "strict": True,
        "literal": True,
        "control": [],
        "style_image": [],
        "settings": {},
        "shard": None,
        "novel": None,
        "against": None,
        "tries": None,
    }


def test_prompts_that_look_like_options_or_files(unfog_command):
    code, paths, err = unfog_command("generate", "--seed", 1, "--", "--steps", "@home", "-1")
    assert (code, err) == (0, [])
    assert paths == ["out/steps-1.png", "out/home-1.png", "out/1-1.png"]


def test_json_lines(unfog_command):
    code, lines, _ = unfog_command("generate", "ein Apfel 🍎", "-n", 2, "--seed", 3, "--json")
    rows = [json.loads(line) for line in lines]
    assert code == 0
    assert [row["seed"] for row in rows] == [3, 4]
    assert all(set(row) == {"path", "seed", "prompt", "milliseconds"} for row in rows)
    assert all(row["prompt"] == "ein Apfel 🍎" and row["milliseconds"] == 12.3 for row in rows)
    assert all(read_recipe(row["path"])["seed"] == row["seed"] for row in rows)


def test_a_drawn_seed_is_reported_and_remakes_the_picture(unfog_command):
    _, (line,), _ = unfog_command("generate", "x", "--json", "--out", "a")
    row = json.loads(line)
    _, (path,), _ = unfog_command("generate", "x", "--seed", row["seed"], "--out", "b")
    assert Path(path).read_bytes() == Path(row["path"]).read_bytes()


def test_progress_is_json_lines_without_a_terminal(model, capfd):
    assert main(["generate", "x", "--steps", "500", "--seed", "1"]) == 0
    rows = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert 2 <= len(rows) <= 20  # 500 fast steps: the first, the last, and a few a second between them
    last = rows.pop()
    assert (last["event"], last["pictures"], last["seed"]) == ("done", 1, 1) and last["seconds"] >= 0
    assert all(row["event"] == "progress" and row["total"] == 500 for row in rows)
    assert rows[-1]["done"] == 500 and rows[-1]["eta_s"] == 0


def test_a_bar_on_a_terminal_leaves_stdout_to_the_results(model, capfd, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert main(["generate", "x", "--seed", "1"]) == 0
    out, err = capfd.readouterr()
    assert out == "out/x-1.png\n"
    assert '"event"' not in err and "first seed 1" in err


def test_the_same_picture_again_is_one_file_and_another_gets_its_own_name(unfog_command):
    first = unfog_command("generate", "x", "--seed", 1)[1]
    before = Path(first[0]).read_bytes()
    assert unfog_command("generate", "x", "--seed", 1)[1] == first
    assert unfog_command("generate", "x", "--seed", 1, "--scale", 9)[1] == ["out/x-1_2.png"]
    assert unfog_command("generate", "x", "--seed", 1, "--scale", 8)[1] == ["out/x-1_3.png"]
    assert unfog_command("generate", "x", "--seed", 1, "--scale", 9)[1] == ["out/x-1_2.png"]
    assert Path(first[0]).read_bytes() == before
    assert len(os.listdir("out")) == 3


def test_a_users_own_file_is_never_touched(unfog_command):
    os.mkdir("out")
    Path("out/x-1.png").write_text("mine")
    os.symlink("nowhere", "out/x-1_2.png")
    os.mkdir("out/x-1_3.png")
    assert unfog_command("generate", "x", "--seed", 1)[1] == ["out/x-1_4.png"]
    assert Path("out/x-1.png").read_text() == "mine"
    assert os.readlink("out/x-1_2.png") == "nowhere"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a red apple", "a-red-apple"),
        ("../../x", "x"),
        ("/etc/passwd\0", "etc-passwd"),
        ("..", "picture"),
        ("Crème  brûlée_№5", "creme-brulee-no5"),
        ("красное яблоко 🍎", "picture"),
        ("CON", "con"),
        ("a" * 300, "a" * 60),
        ("word " * 60, "-".join(["word"] * 12)),
        ("x\ny\t--z.", "x-y-z"),
    ],
)
def test_slugs(text, expected):
    assert output.slug(text) == expected


def test_hostile_prompts_stay_in_the_folder(unfog_command, tmp_path):
    code, paths, _ = unfog_command("generate", "../../x", "/abs", "🍎" * 300, "a" * 2000, "--seed", 1, "--out", "o")
    assert code == 0
    assert sorted(paths) == sorted(["o/x-1.png", "o/abs-1.png", "o/picture-1.png", f"o/{'a' * 60}-1.png"])
    assert os.listdir(tmp_path) == ["o"]


def test_grid(unfog_command):
    words = ("generate", "a", "b", "-n", 3, "--seed", 1, "--grid", "sheets/all.png")
    assert unfog_command(*words)[0] == 0
    with Image.open("sheets/all.png") as sheet:
        width, height = sheet.size
    assert width == 3 * (16 + 8) + 8 and height > 2 * (16 + 8)  # three seeds a row, two prompts, captions
    assert unfog_command(*words)[0] == 0  # its own sheet may be replaced
    save_png(Image.new("RGB", (4, 4)), "photo.png")
    before = Path("photo.png").read_bytes()
    code, out, err = unfog_command("generate", "a", "--grid", "photo.png", "--out", "new")
    assert (code, out, len(err)) == (2, [], 1) and "photo.png" in err[0]
    assert Path("photo.png").read_bytes() == before and not Path("new").exists()


BAD = {
    "no prompt": ([], "PROMPT"),
    "empty prompt": ([""], "prompts 1"),
    "blank prompt": (["a", "  "], "prompts 2"),
    "long prompt": (["a" * 2001], "2,001"),
    "huge prompt": (["a b" * 3_400_000], "10,200,000"),
    "broken text": (["\udcff"], "Unicode"),
    "unknown style": (["x", "--style", "notto"], "did you mean noto?"),
    "steps 0": (["x", "--steps", "0"], "steps"),
    "steps 7.5": (["x", "--steps", "7.5"], "whole number"),
    "steps word": (["x", "--steps", "many"], "--steps"),
    "steps long": (["x", "--steps", "9" * 10_000], "--steps"),
    "scale NaN": (["x", "--scale", "NaN"], "finite"),
    "scale inf": (["x", "--scale", "-inf"], "scale"),
    "scale word": (["x", "--scale", "big"], "--scale"),
    "seed -1": (["x", "--seed", "-1"], "seed"),
    "seed too large": (["x", "--seed", str(2**63)], "seed"),
    "last seed too large": (["x", "-n", "2", "--seed", str(2**63 - 1)], "seed"),
    "n 0": (["x", "-n", "0"], "n:"),
    "batch 0": (["x", "--batch", "0"], "batch"),
    "aspect 3x2": (["x", "--aspect", "3x2"], "aspect"),
    "unknown sampler": (["x", "--sampler", "hein"], "heun"),
    "missing model": (["x", "--model", "nope"], "did you mean emoji-64?"),
    "unknown option": (["x", "--sacle", "3"], "--scale"),
    "unknown short option": (["x", "-z"], "-z"),
    "option without value": (["x", "--seed"], "--seed"),
    "option twice": (["x", "--seed", "1", "--seed", "2"], "--seed"),
    "escape codes": (["--like", "a\x1b[31m\nb\udcff.png"], "a?[31m b?.png"),
    "out is a file": (["x", "--out", "file"], "file"),
    "out below a file": (["x", "--out", "file/deeper"], "file"),
    "grid no png": (["x", "--grid", "g.bmp"], ".png"),
    "grid is a folder": (["x", "--grid", "folder.png"], "folder.png"),
    "grid below a file": (["x", "--grid", "file/g.png"], "file"),
    "grid too full": (["x", "-n", "1001", "--grid", "g.png"], "1,001"),
    "like missing": (["--like", "none.png"], "none.png"),
    "like no picture": (["--like", "file"], "file"),
    "like a folder": (["--like", "folder.png"], "folder.png"),
    "like without recipe": (["--like", "bare.png"], "no recipe"),
    "like with half a recipe": (["--like", "half.png"], "missing"),
    "like with prompt": (["x", "--like", "bare.png"], "--like"),
    "like with option": (["--like", "bare.png", "--steps", "3"], "--steps"),
    "like with n": (["--like", "bare.png", "-n", "3"], "-n"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(case, unfog_command):
    words, says = BAD[case]
    Path("file").write_text("a file")
    os.mkdir("folder.png")
    Image.new("RGBA", (4, 4)).save("bare.png")
    save_png(Image.new("RGBA", (4, 4)), "half.png", {"prompt": "x", "seed": 1})
    before = sorted(os.listdir("."))
    code, out, err = unfog_command("generate", *words)
    assert code == 2
    assert out == []
    assert len(err) == 1 and len(err[0]) <= 520 and "Traceback" not in err[0]
    assert says in err[0]
    assert sorted(os.listdir(".")) == before and os.listdir("folder.png") == []


def test_folders_that_are_not_utf8(unfog_command):
    folder = os.fsdecode(b"caf\xe9")
    code, (path,), _ = unfog_command("generate", "x", "--seed", 1, "--out", folder, "--json")
    assert code == 0 and os.path.exists(json.loads(path)["path"])


def test_a_locked_folder_is_refused(unfog_command, monkeypatch):
    os.mkdir("locked")
    monkeypatch.setattr(os, "access", lambda place, how: Path(place).name != "locked")  # root may write anywhere
    code, _, err = unfog_command("generate", "x", "--out", "locked")
    assert code == 2 and len(err) == 1 and "locked" in err[0]


def test_a_full_disk_is_one_line_and_keeps_what_was_made(unfog_command, monkeypatch):
    real, calls = os.fsync, []

    def fsync(handle):
        calls.append(handle)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    code, out, err = unfog_command("generate", "x", "-n", 3, "--seed", 1)
    assert (code, out, len(err)) == (2, ["out/x-1.png"], 1)
    assert "No space left" in err[0]
    assert os.listdir("out") == ["x-1.png"]


def test_ctrl_c_keeps_finished_pictures(unfog_command, model):
    model.broken_at = 2
    code, out, err = unfog_command("generate", "x", "-n", 4, "--seed", 1)
    assert (code, out, err) == (130, ["out/x-1.png", "out/x-2.png"], ["unfog: stopped"])
    assert sorted(os.listdir("out")) == ["x-1.png", "x-2.png"]


def test_like_is_the_same_file(unfog_command, model):
    options = ["--style", "fluent-3d", "--steps", 9, "--scale", 3.3, "--sampler", "heun", "--negative", "red"]
    _, paths, _ = unfog_command("generate", "a cat", "-n", 3, "--seed", 2**62, *options, "--out", "a")
    original = Path(paths[1]).read_bytes()
    Path("renamed.png").write_bytes(original)
    code, made, err = unfog_command("generate", "--like", "renamed.png", "--out", "b")
    assert (code, err) == (0, [])
    assert made == [f"b/a-cat-fluent-3d-{2**62 + 1}.png"]
    assert Path(made[0]).read_bytes() == original
    # Beside the original it finds itself and writes nothing.
    assert unfog_command("generate", "--like", paths[1], "--out", "a")[1] == [paths[1]]
    assert len(os.listdir("a")) == 3


def test_like_refuses_another_model(unfog_command, model):
    _, (path,), _ = unfog_command("generate", "x", "--seed", 1)
    model.hash = "ffff0000"
    code, out, err = unfog_command("generate", "--like", path, "--out", "b")
    assert (code, out, len(err)) == (2, [], 1)
    assert "0123abcd" in err[0] and "ffff0000" in err[0] and "--model" in err[0]
    assert not Path("b").exists() and len(model.requests) == 1


def test_like_says_when_version_or_pixels_differ(unfog_command, model, monkeypatch):
    _, (path,), _ = unfog_command("generate", "x", "--seed", 1)
    with Image.open(path) as image:
        save_png(image, "older.png", {**read_recipe(path), "version": "1.0.0"})
    code, out, err = unfog_command("generate", "--like", "older.png", "--out", "b")
    assert (code, len(out), len(err)) == (0, 1, 1)
    assert "same pixels" in err[0] and "1.0.0" in err[0] and unfog.__version__ in err[0]
    model.salt = "another processor"
    code, out, err = unfog_command("generate", "--like", path, "--out", "c")
    assert (code, len(out), len(err)) == (1, 1, 1)
    assert "different pixels" in err[0]


@pytest.mark.parametrize("name", ["/etc", "../model", "//host/share", "C:\\x", "", 7])
def test_like_never_opens_a_path_named_in_a_picture(name, unfog_command, monkeypatch):
    _, (path,), _ = unfog_command("generate", "x", "--seed", 1)
    with Image.open(path) as image:
        save_png(image, "trap.png", {**read_recipe(path), "model": name})
    code, out, err = unfog_command("generate", "--like", "trap.png")
    assert (code, out, len(err)) == (2, [], 1) and "--model" in err[0]
    assert unfog_command("generate", "--like", "trap.png", "--model", "my-model")[0] == 0
