"""The shipped branch of control: pictures follow what they are shown, by measures that were not trained on."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

import unfog

SIZE = 64


@pytest.fixture(scope="module")
def model():
    return unfog.load("emoji-64")


def drawn(draw):
    """A white sketch (256, 256), drawn on in black."""
    picture = Image.new("L", (256, 256), 255)
    draw(ImageDraw.Draw(picture))
    return picture


def overlap(picture, mask):
    """Intersection over union of a picture's opaque part (H, W, 4) and a mask."""
    seen = np.asarray(picture)[..., 3] > 127
    return (seen & mask).sum() / (seen | mask).sum()


def test_an_outline_is_filled(model):
    """A prompt's thing takes the shape of a sketched ellipse, whose inside nothing but its outline tells."""
    sketch = drawn(lambda d: d.ellipse((72, 16, 184, 240), outline=0, width=6))
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    inside = ((x - 32) / 14) ** 2 + ((y - 32) / 28) ** 2 < 1
    fields = {"style": "fluent-flat", "n": 4, "seed": 3, "steps": 10}

    def made(prompt, strength):
        return model.generate(prompt, control=[{"kind": "lineart", "picture": sketch, "strength": strength}], **fields)

    told = made("an avocado", 1.0)
    assert (
        np.mean([overlap(p, inside) for p in told]) > 0.7 > 0.6 > np.mean([overlap(p, inside) for p in made("an avocado", 0.0)])
    )
    # what is nearly always drawn in one shape keeps some of it, and wants more strength
    apples = made("a red apple", 2.0)
    assert (
        np.mean([overlap(p, inside) for p in apples])
        > 0.62
        > 0.55
        > np.mean([overlap(p, inside) for p in made("a red apple", 0.0)])
    )
    colour = np.mean([np.asarray(p)[inside][:, :3].mean(0) for p in apples], axis=0)
    assert colour[0] > 1.5 * colour[1] and colour[0] > 1.5 * colour[2]  # the prompt still says what colour it has


def test_a_silhouette_is_kept_and_strength_0_is_the_model(model):
    shape = drawn(lambda d: d.polygon([(40, 220), (128, 30), (216, 220)], fill=0))
    mask = np.asarray(shape.resize((SIZE, SIZE), Image.Resampling.BOX)) < 128
    fields = {"style": "noto", "n": 3, "seed": 1, "steps": 8}
    told = model.generate("a yellow star", control=[{"kind": "silhouette", "picture": shape}], **fields)
    assert min(overlap(p, mask) for p in told) > 0.85
    nothing = model.generate("a yellow star", control=[{"kind": "silhouette", "picture": shape, "strength": 0.0}], **fields)
    assert [p.tobytes() for p in nothing] == [p.tobytes() for p in model.generate("a yellow star", **fields)]
