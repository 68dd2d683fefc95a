"""A branch that learns hints: its batches, a run of it from a recipe, and the pictures made with it afterwards."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import unfog
from unfog.adapters import read_adapter
from unfog.cli.app import run
from unfog.errors import UserError
from unfog.modalities.image.codec import premultiply
from unfog.modalities.image.restyle import FILTERS, UNSEEN, restyled
from unfog.modalities.image.show import read_recipe
from unfog.networks.style import StyleReader
from unfog.networks.unet import UNet
from unfog.requests import TrainRequest
from unfog.training.run import run_recipe
from unfog.training.steering import paired, steered_corpora
from unfog.training.styling import primed

SETTINGS = {"unshuffle": 4, "widths": [16, 16], "blocks": [1, 1], "attention": [False, True], "embedding": 16}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny model of 16 pixels in `run`, and a branch trained beside it in `branch`."""
    place = tmp_path_factory.mktemp("steering")
    (place / "pictures").mkdir()
    lines = []
    for i in range(6):
        image = Image.new("RGBA", (16, 16))
        ImageDraw.Draw(image).rectangle((i, 3, 12, 9 + i), fill=(40 * i, 200, 90, 255))
        image.save(place / "pictures" / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": f"thing {i}", "style": ["round", "flat"][i % 2]}))
    (place / "pictures" / "metadata.jsonl").write_text("\n".join(lines))
    fields = {"name": "base", "data": str(place / "pictures"), "size": 16, "steps": 8, "batch": 4, "recolour": 0.0, "warm_up": 2,
              "defaults": {"steps": 2, "scale": 2.0, "sampler": "dpmpp_2m"}, "settings": SETTINGS, "lr": 0.01}  # fmt: skip
    (place / "base.json").write_text(json.dumps(fields))
    run_recipe(TrainRequest(source=place / "base.json", out=place / "run"))
    ours = {**fields, "name": "base-control", "start": str(place / "run"), "control": ["silhouette", "palette"]}
    (place / "control.json").write_text(json.dumps(ours))
    run_recipe(TrainRequest(source=place / "control.json", out=place / "branch"))
    Image.new("RGB", (30, 20), (200, 10, 10)).save(place / "hint.png")
    return place


def test_a_batch_has_hints_of_its_own_pictures_and_is_the_same_again(tiny_recipe, tiny_corpus):
    recipe = tiny_recipe(control=["silhouette", "palette", "lineart"], batch=8)
    corpus, held = steered_corpora(recipe, [tiny_corpus, tiny_corpus])
    assert corpus is held and steered_corpora(tiny_recipe(), [tiny_corpus])[0] is tiny_corpus
    x0, cond = corpus.batch(recipe, 3)
    again = corpus.batch(recipe, 3, slice(2, 5))
    assert torch.equal(again[0], x0[2:5]) and all(torch.equal(again[1][key], cond[key][2:5]) for key in cond)
    assert torch.equal(x0, tiny_corpus.batch(recipe, 3)[0])
    wanted = cond["control_strength"]
    assert set(wanted.sum(1).tolist()) <= {1.0, 2.0} and cond["control"].shape == (8, 6, 16, 16)
    for row, picture in enumerate(corpus.chosen(recipe, 3)):
        colour = tiny_corpus.pictures[picture, 0, 0].float() / 255  # of one colour, opaque
        own = [torch.ones(1), colour, torch.zeros(1)]
        for k, part in enumerate(cond["control"][row].split([1, 4, 1])):
            assert torch.allclose(part.mean((1, 2)), own[k] * wanted[row, k], atol=1e-5)


def test_exact_outlines_are_half_of_the_lines(tiny_recipe, tiny_corpus, tmp_path):
    for name in tiny_corpus.names[:10]:
        Image.new("L", (16, 16), 0).save(tmp_path / name)
    recipe = tiny_recipe(control=["lineart"], pairs={"lineart": str(tmp_path)})
    corpus = steered_corpora(recipe, [tiny_corpus])[0]
    assert len(paired("lineart", str(tmp_path), 16)) == 10
    lines = corpus._exact("lineart", torch.zeros(200, 1, 16, 16), np.arange(200) % 10, np.random.default_rng(0))
    assert set(lines.mean((1, 2, 3)).tolist()) == {0.0, 1.0} and 70 < lines.mean((1, 2, 3)).sum() < 130
    assert not corpus._exact("lineart", torch.zeros(10, 1, 16, 16), np.arange(10), None).any()  # measured as drawn


def test_maps_that_no_picture_shows_are_given_where_they_are(tiny_recipe, tiny_corpus, tmp_path):
    for i, name in enumerate(tiny_corpus.names[:4]):
        Image.new("RGB", (16, 16), (40 * i + 20, 0, 255)).save(tmp_path / name)
    recipe = tiny_recipe(control=["normals", "silhouette"], pairs={"normals": str(tmp_path)}, batch=64)
    corpus = steered_corpora(recipe, [tiny_corpus])[0]
    chosen, (_, cond) = corpus.chosen(recipe, 0), corpus.batch(recipe, 0)
    wanted, seen = cond["control_strength"], 0
    for row, picture in enumerate(chosen):
        given = cond["control"][row, :3].mean((1, 2))
        if tiny_corpus.names[picture] in {f"{i:02}.png" for i in range(4)} and wanted[row, 0]:
            seen += 1
            assert torch.allclose(given * 255, torch.tensor([40.0 * int(tiny_corpus.names[picture][:2]) + 20, 0, 255]))
        else:
            assert not given.any() and wanted[row, 1] == 1 and wanted[row, 0] == 0
    assert seen > 8
    _, known = corpus.known(np.array([0, 9]))  # the first kind, or what there is
    assert known["control_strength"].tolist() == [[1, 0], [0, 1]]
    for fields, message in (({"control": ["depth"]}, "give pairs with depth"),
                            ({"control": ["lineart"], "pairs": {"depth": "x"}}, "no kind that control names")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            tiny_recipe(**fields)


def test_a_run_leaves_a_branch_bound_to_its_model(place):
    card = read_adapter(place / "branch").card
    base = unfog.load(place / "run")
    assert card.kind == "control" and card.base.hash == base.hash and card.controls == {"silhouette": 1, "palette": 4}
    assert not (place / "branch" / "model").exists()
    for folder in ("branch", "branch/adapter"):
        assert unfog.load(place / "run", adapters=[place / folder]).controls == card.controls
    with pytest.raises(UserError, match="is there or not"):
        unfog.load(place / "run", adapters=[f"{place / 'branch'}:0.5"])
    with pytest.raises(UserError, match="was trained on base"):
        unfog.load("emoji-64", adapters=[place / "branch"])


def test_strength_and_interval(place):
    base, model = unfog.load(place / "run"), unfog.load(place / "run", adapters=[place / "branch"])

    def made(strength, interval=(0, 1), steps=4):
        asked = {"kind": "palette", "picture": Image.new("RGB", (16, 16), "red"), "strength": strength, "interval": interval}
        return np.asarray(model.generate("thing 1", seed=3, steps=steps, control=[asked])[0])

    plain = np.asarray(base.generate("thing 1", seed=3, steps=4)[0])
    assert (made(0.0) == plain).all() and (np.asarray(model.generate("thing 1", seed=3, steps=4)[0]) == plain).all()
    assert (made(1.0) != plain).any() and (made(1.0, (0, 0.5)) != made(1.0)).any()
    assert (made(1.0, (0.8, 1.0)) == plain).all()  # of four steps the last begins at 0.75


def test_a_picture_says_what_steered_it_and_is_made_again(place, tmp_path, capsys):
    def call(*more):
        return run(["generate", *map(str, more), "--model", str(place / "run"), "--out", str(tmp_path)])

    branch, hint = ["--adapter", place / "branch"], ["--control", f"palette={place / 'hint.png'}"]
    assert call("thing 1", "--seed", "3", *branch, *hint, "--control-strength", "0.8", "--control-interval", "0,0.9") == 0
    file = tmp_path / "thing-1-3.png"
    told, before = read_recipe(file)["control"], file.read_bytes()
    assert told[0] | {"hint": ""} == {"kind": "palette", "hint": "", "strength": 0.8, "interval": [0.0, 0.9]}
    assert call("--like", file, *branch, *hint) == 0 and file.read_bytes() == before
    assert len(list(tmp_path.glob("*.png"))) == 1
    Image.new("RGB", (9, 9), "blue").save(tmp_path / "other.jpg")
    capsys.readouterr()
    for more, message in (
        (["--like", file, *branch], "was made with control palette at strength 0.8"),
        (["--like", file, *branch, "--control", f"palette={tmp_path / 'other.jpg'}"], "another palette"),
        (["--like", file, *branch, *hint, "--control", f"silhouette={place / 'hint.png'}"], "without control silhouette"),
        (["thing", *hint], "base has no branch"), (["thing", *branch, *hint, *hint], "given twice"),
        (["thing", *branch, "--control", f"lineart={place / 'hint.png'}"], "has not learned lineart"),
        (["thing", *branch, "--control", f"pallete={place / 'hint.png'}"], "did you mean palette"),
        (["thing", "--control-strength", "1"], "give one with --control"), (["thing", *branch, "--control", "palette"], "KIND="),
    ):  # fmt: skip
        assert call(*more) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_bad_recipes_are_refused(place, tiny_recipe):
    with pytest.raises(ValueError, match="mean lineart"):
        tiny_recipe(control=["linart"])
    with pytest.raises(ValueError, match="choose one"):
        tiny_recipe(control=["lineart"], lora=4)
    fields = json.loads((place / "control.json").read_text())
    fields.pop("start")
    (place / "no.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match="control: tunes a model that is there"):
        run_recipe(TrainRequest(source=place / "no.json", out=place / "no"))


def test_references_show_another_thing_in_the_same_style(tiny_recipe, tiny_corpus):
    recipe = tiny_recipe(style_reference=True, batch=8)
    corpus = steered_corpora(recipe, [tiny_corpus])[0]
    x0, cond = corpus.batch(recipe, 1)
    again = corpus.batch(recipe, 1, slice(2, 5))
    assert torch.equal(again[0], x0[2:5]) and all(torch.equal(again[1][key], cond[key][2:5]) for key in cond)
    assert (cond["class"] == 2).all() and cond["image"].shape == (8, 1, 4, 16, 16)  # the style is not told by name
    chosen = np.arange(10)
    found = corpus.references(chosen, np.random.default_rng(0))
    assert (corpus.classes[found] == corpus.classes[chosen]).all() and (found != chosen).all()
    fewer = steered_corpora(tiny_recipe(style_reference=True, held_style="flat"), [tiny_corpus])[0]
    assert set(fewer.classes) == {1} and fewer.plain == 5 and set(fewer.names) == {f"{i:02}.png" for i in range(1, 13, 2)}
    with pytest.raises(UserError, match="did you mean flat"):
        steered_corpora(tiny_recipe(style_reference=True, held_style="flatt"), [tiny_corpus])


def test_a_reader_begins_by_saying_what_a_style_s_name_says(tiny_recipe, tiny_corpus):
    rng, pictures = np.random.default_rng(0), tiny_corpus.pictures.clone()
    for i, style in enumerate(tiny_corpus.classes):  # one style is reddish, one bluish, with some noise
        pictures[i, ..., :3] = torch.from_numpy(rng.integers(0, 90, (16, 16, 3), np.uint8))
        pictures[i, ..., 2 * style] += 120
    corpus = steered_corpora(tiny_recipe(style_reference=True), [replace(tiny_corpus, pictures=pictures)])[0]
    torch.manual_seed(0)
    base = UNet(channels=4, classes=2, **SETTINGS).eval()
    with torch.no_grad():
        for weight in base.parameters():  # modulations and the head begin at zero
            weight.add_(0.2 * torch.randn_like(weight))
    reader = StyleReader(base)
    assert primed(reader, base, corpus, 0) == 1.0
    with torch.no_grad():  # of what is like none of them, no more is said than names say
        strange = reader.named(50 * torch.randn(20, sum(reader.groups)))
        assert (strange.norm(dim=1) <= 1.0001 * reader.names.norm(dim=1).max()).all()
    looks = reader.looks(premultiply(pictures))
    assert looks.mean(0).abs().max() < 0.6 and 0.5 < looks.std(0).median() < 1.5  # measured: each number counts alike
    x, level = torch.randn(2, 4, 16, 16), torch.zeros(2)
    nothing = torch.full((2,), 2)
    with torch.no_grad():
        named = base(x, level, {"class": torch.tensor([0, 1])})
        without = base(x, level, {"class": nothing})
        shown = {"class": nothing, "image": premultiply(pictures[:2])[:, None], "image_mask": torch.ones(2, 1)}
        read = base(x, level, reader(shown))
    assert (read - named).norm() < 0.3 * (without - named).norm()


def test_filters_are_the_same_for_one_look_and_keep_what_is_clear():
    pictures = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 4), np.uint8)
    pictures[1] = pictures[0]
    for name, filter_ in {**FILTERS, **UNSEEN}.items():
        made = restyled(pictures, 5, {name: filter_})
        assert made.shape == pictures.shape and (made[0] == made[1]).all() and (made != pictures).any(), name
        assert (restyled(pictures, 5, {name: filter_}) == made).all()
        assert not restyled(np.zeros((1, 16, 16, 4), np.uint8), 5, {name: filter_}).any()
    assert not set(FILTERS) & set(UNSEEN)


def test_a_reader_of_style_trains_and_draws(place, tmp_path, capsys):
    fields = {**json.loads((place / "control.json").read_text()), "control": [], "style_reference": True, "name": "base-style"}
    (tmp_path / "style.json").write_text(json.dumps(fields))
    run_recipe(TrainRequest(source=tmp_path / "style.json", out=tmp_path / "style"))
    assert read_adapter(tmp_path / "style").card.kind == "style"
    picture = Image.new("RGBA", (20, 20))
    ImageDraw.Draw(picture).ellipse((3, 3, 16, 16), fill="orange")
    picture.save(tmp_path / "ref.png")
    base, model = (unfog.load(place / "run", adapters=more) for more in ((), (place / "branch", tmp_path / "style")))
    plain = np.asarray(base.generate("thing 1", seed=3)[0])

    def made(*wishes, **more):
        return np.asarray(model.generate("thing 1", seed=3, style_image=list(wishes), **more)[0])

    one, half = made(picture), made({"picture": picture, "weight": 0.5})
    assert (one != plain).any() and (half != one).any() and (made({"picture": picture, "weight": 0.0}) == plain).all()
    assert (made(picture, control=[f"palette={place / 'hint.png'}"]) != one).any()
    with pytest.raises(UserError, match="two styles"):
        made(picture, style="flat")

    def call(*more):
        return run(["generate", *map(str, more), "--model", str(place / "run"), "--out", str(tmp_path / "o")])

    asked = ["--adapter", tmp_path / "style", "--style-image", tmp_path / "ref.png"]
    assert call("thing 1", "--seed", "3", *asked, "--style-weight", "0.5") == 0
    file = tmp_path / "o" / "thing-1-3.png"
    before = file.read_bytes()
    assert read_recipe(file)["style_image"][0]["weight"] == 0.5
    assert call("--like", file, *asked) == 0 and file.read_bytes() == before and len(list(file.parent.iterdir())) == 1
    capsys.readouterr()
    assert call("--like", file, *asked[:2]) == 2 and "in the style of 1 pictures" in capsys.readouterr().err
    assert call("thing", "--style-weight", "1") == 2 and "--style-image" in capsys.readouterr().err
