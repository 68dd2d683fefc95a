"""`unfog edit`: what is kept is kept to the bit, the same words give the same file, mistakes are one line."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unfog.cli import main
from unfog.modalities.image.show import read_recipe


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """A picture of the size that emoji-64 makes, a colour wheel with a clear corner."""
    folder = tmp_path_factory.mktemp("pictures")
    y, x = np.mgrid[:64, :64]
    pixels = np.stack([4 * x, 4 * y, 255 - 4 * x, np.where(x + y < 20, 0, 255)], -1).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "wheel.png")
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    Image.fromarray(mask[:32]).save(folder / "half.png")
    return folder


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGBA"))


def test_outside_the_mask_nothing_changes(picture, tmp_path, capsys):
    words = [
        "edit",
        str(picture / "wheel.png"),
        "a red apple",
        "--keep",
        str(picture / "mask.png"),
        "--seed",
        "5",
        "--steps",
        "2",
    ]
    assert main([*words, "--out", str(tmp_path / "a"), "-n", "2"]) == 0
    paths = capsys.readouterr().out.split()
    assert len(paths) == 2
    before = pixels(picture / "wheel.png")
    for path in paths:
        after = pixels(path)
        assert (after[:, :32] == before[:, :32]).all() and (after[:, 32:] != before[:, 32:]).any()
    assert (pixels(paths[0]) != pixels(paths[1])).any()
    recipe = read_recipe(paths[0])
    assert recipe["edit"] and recipe["seed"] == 5 and recipe["strength"] == 1.0
    assert main([*words, "--out", str(tmp_path / "b")]) == 0
    again = capsys.readouterr().out.split()[0]
    assert Path(again).read_bytes() == Path(paths[0]).read_bytes()


def test_less_strength_changes_less(picture, tmp_path, capsys):
    before, apart = pixels(picture / "wheel.png").astype(float), []
    for strength in ("0.2", "0.9"):
        main(
            [
                "edit",
                str(picture / "wheel.png"),
                "a cat",
                "--strength",
                strength,
                "--seed",
                "1",
                "--steps",
                "10",
                "--out",
                str(tmp_path),
            ]
        )
        apart.append(np.abs(pixels(capsys.readouterr().out.split()[0]) - before).mean())
    assert apart[0] < 0.5 * apart[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{0}/none.png"], "none.png: cannot be read"),
        (["{0}/wheel.png", "--keep", "{0}/half.png"], "half.png: is 64x32, the picture 64x64"),
        (["{0}/wheel.png", "--keep", "{0}/none.png"], "none.png: cannot be read"),
        (["{0}/wheel.png", "--strength", "0"], "strength: 0.0 is not above 0"),
        (["{0}/wheel.png", "--mask", "{0}/mask.png", "--keep", "{0}/mask.png"], "mask: cannot be asked for together with keep"),
        (["{0}/wheel.png", "--canvas", "1,2"], "canvas: "),
        (["{0}/wheel.png", "--frames", "3"], "frames: are of a way towards something"),
        (["{0}/wheel.png", "a (cat:99)"], "prompt: the weight 99"),
        (["{0}/wheel.png", "--towards", "{0}/none.png"], "none.png: cannot be read"),
        (["{0}/notes.txt"], "not a readable picture"),
        (["{0}/wheel.png", "--style", "notto"], "did you mean noto?"),
    ],
)
def test_mistakes_are_one_line(picture, words, said, tmp_path, capsys):
    (picture / "notes.txt").write_text("no picture")
    assert main(["edit", *(word.format(picture) for word in words), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_edited_file_is_not_remade_from_its_recipe(picture, tmp_path, capsys):
    main(["edit", str(picture / "wheel.png"), "--strength", "0.1", "--seed", "1", "--steps", "4", "--out", str(tmp_path)])
    path = capsys.readouterr().out.split()[0]
    assert "wheel" in path
    assert main(["generate", "--like", path]) == 2
    assert "edit" in capsys.readouterr().err


def test_frames_have_names_in_order(picture, tmp_path, capsys):
    words = ["edit", str(picture / "wheel.png"), "a flag", "--towards-prompt", "a cat", "--frames", "3", "--steps", "2"]
    assert main([*words, "--seed", "1", "--out", str(tmp_path)]) == 0
    names = [Path(path).name for path in capsys.readouterr().out.split()]
    assert names == ["a-flag-001-1.png", "a-flag-002-1.png", "a-flag-003-1.png"]
    assert read_recipe(tmp_path / names[2])["frame"] == 2


def test_a_picture_of_another_size_is_told_of(picture, tmp_path, capsys):
    large = tmp_path / "large.png"
    with Image.open(picture / "wheel.png") as image:
        image.resize((150, 100)).save(large)
    assert main(["edit", str(large), "a cat", "--canvas", "0,0,20,0", "--steps", "1", "--seed", "1", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr()
    assert "the picture is 170x100, the model works on it at 73x43" in out.err
    assert (pixels(out.out.split()[0])[:, :150] == pixels(large)).all()


def test_a_control_on_the_command_line(picture, tmp_path, capsys):
    words = ["edit", str(picture / "wheel.png"), "a cat", "--mask", str(picture / "mask.png"), "--steps", "1", "--seed", "1"]
    hint = ["--control", f"silhouette={picture / 'wheel.png'}"]
    assert main([*words, *hint, "--control-strength", "0.7", "--control-interval", "0,0.8", "--out", str(tmp_path)]) == 0
    path = capsys.readouterr().out.split()[0]
    (told,) = read_recipe(path)["control"]
    assert (told["kind"], told["strength"], told["interval"]) == ("silhouette", 0.7, [0.0, 0.8])
    assert (pixels(path)[:, :32] == pixels(picture / "wheel.png")[:, :32]).all()
    for wrong, said in (
        (["--control-strength", "1"], "--control-strength: says how to follow a picture"),
        (["--style-weight", "1"], "--style-weight: says how much to follow a picture"),
        (["--any-base"], "--any-base: says how to use an adapter"),
        (["--adapter", str(picture)], "no adapter.json there"),
        ([*hint, "--tile"], "this tile goes"),
    ):
        assert main([*words[:3], *wrong, "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
