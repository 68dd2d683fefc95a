"""The shipped reader of style: pictures take the style of one that shows something else, as a classifier of its own says."""

import numpy as np
import pytest
from PIL import Image

import unfog
import unfog.data
from unfog.evaluation.scorer import Scorer
from unfog.modalities.image.data import PictureSet

STYLES = ("noto", "twemoji", "fluent-3d", "fluent-flat")  # what it was taught; openmoji was held out
PROMPTS = ("a red heart", "a dog", "a yellow car")


@pytest.fixture(scope="module")
def model():
    return unfog.load("emoji-64")


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """A picture of an umbrella and one of a banana in each style, as files."""
    data, folder = PictureSet.open(unfog.data.path("emoji-64")), tmp_path_factory.mktemp("references")
    found = {}
    for style in STYLES:
        for name in ("umbrella", "banana"):
            (row,) = (i for i, record in enumerate(data.records) if record.name == name and record.style == style)
            found[style, name] = folder / f"{style}-{name}.png"
            Image.fromarray(data.load(row)).save(found[style, name])
    return found


def made(model, reference, weight):
    wish = [{"picture": reference, "weight": weight}]
    return np.stack([np.asarray(model.generate(p, seed=k, steps=10, style_image=wish)[0]) for k, p in enumerate(PROMPTS)])


def test_the_style_of_a_reference_is_taken(model, references):
    scorer, right = Scorer.load(), {0.0: [], 1.0: []}
    for (style, _), reference in references.items():
        for weight, found in right.items():
            found += [said == style for said in scorer.styles(made(model, reference, weight))]
    assert len(right[1.0]) == 24 and np.mean(right[1.0]) > 0.55 and np.mean(right[1.0]) > np.mean(right[0.0]) + 0.2


def test_weight_0_is_the_model_and_what_the_reference_shows_is_not_taken(model, references):
    plain = np.stack([np.asarray(model.generate(p, seed=k, steps=10)[0]) for k, p in enumerate(PROMPTS)])
    assert (made(model, references["noto", "umbrella"], 0.0) == plain).all()
    heart = [made(model, references["fluent-flat", name], 1.0)[0] / 255 for name in ("umbrella", "banana")]
    for picture in heart:  # red, though the one reference is purple and the other yellow
        red, green, blue = (picture[..., :3] * picture[..., 3:]).sum((0, 1))
        assert red > 1.5 * max(green, blue)
