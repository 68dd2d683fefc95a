"""The contact sheet of the README: 64 prompts, of which some were trained on, some held out, some composed of both.

python tools/contact_sheet.py [--model emoji-64] [--out docs/contact-sheet.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

import unfog
from unfog.modalities.image.show import contact_sheet, save_png

SEEN = [
    "red apple", "pizza", "dog face", "cat face", "grinning face", "red heart", "sunflower", "rocket",
    "automobile", "house", "evergreen tree", "strawberry", "fish", "butterfly", "soccer ball", "guitar",
    "umbrella", "clock", "moon", "star", "fire", "snowman", "ghost", "robot",
    "crown", "bomb", "book", "camera", "bell", "key", "lemon", "mushroom",
]  # fmt: skip
COMPOSED = [
    "a blue cat", "a cactus with sunglasses", "a crimson fruit", "a green heart", "a yellow car", "a purple flower",
    "a pink house", "a happy sun", "a sad moon", "a golden star", "a white bird", "a black dog",
    "a red fish", "an orange ball", "a blue book", "a green snake",
]  # fmt: skip


def held_out(count: int) -> list[str]:
    """Names of concepts that training saw in no style."""
    from unfog.data import path
    from unfog.modalities.image.data import PictureSet

    data = PictureSet.open(path("emoji-64"))
    names = dict.fromkeys(data.records[i].name for i in data.split("heldout_concept"))
    plain = [n for n in names if n.isascii() and ":" not in n and len(n) < 24]
    return plain[:: max(len(plain) // count, 1)][:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji-64")
    parser.add_argument("--out", type=Path, default=Path("docs/contact-sheet.png"))
    arguments = parser.parse_args()
    model = unfog.load(arguments.model)
    new = held_out(64 - len(SEEN) - len(COMPOSED))
    prompts = SEEN + new + COMPOSED
    styles = [model.styles[i % len(model.styles)] for i in range(len(prompts))]
    pictures = model.make(prompts, list(styles), list(range(len(prompts))))
    labels = [f"{p}{' (held out)' if p in new else ''}" for p in prompts]
    save_png(contact_sheet([Image.fromarray(p) for p in pictures], labels, columns=8), arguments.out, {"sheet": len(prompts)})
    print(arguments.out)


if __name__ == "__main__":
    main()
