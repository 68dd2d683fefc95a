"""emoji-64-style: a reader beside emoji-64 that draws what the prompt says in the style of a picture.

    unfog train recipes/emoji_64_style.py --out RUN [--minutes M] [--resume]

Writes RUN/adapter, bound to the emoji-64 that it was trained on by that model's hash:

    unfog generate "a dog" --style-image ref.png --style-weight 0.8 --adapter RUN
    cp -r RUN/adapter src/unfog/pretrained/emoji-64-style       # from then on without --adapter

Data: emoji-64's training pictures but those of `held_style`, which the reader is not shown (emoji-64 itself knows it by name);
half of them in looks made by filters (modalities/image/restyle.py), two more of which nobody is shown (UNSEEN): those measure
whether a style that neither the reader nor the model has seen is followed. 0.46M weights, 0.9 MB at half precision. `start` and
the settings above `style_reference` are emoji-64's own, and must be.

The shipped one: `--steps 500`, ten minutes of one core beside another training (bf16). Score
(benchmarks/results/style.json, 80 pictures): the style shown in 76 % (80 % where it is named, 24 % without a reference),
prompts found as often as without; of the held-out style, which the model reads by itself (steer.py), 88 %
are nearest to it. With `lr` 4e-3 and nothing kept, 900 steps made the reader forget what names say (50 %).
"""

RECIPE = {
    "name": "emoji-64-style",
    "data": "emoji-64",
    "start": "emoji-64",
    "size": 64,
    "network": "unet",
    "settings": {"unshuffle": 2, "widths": [32, 64, 128, 192], "blocks": [1, 1, 2, 1],
                 "attention": [False, False, True, False], "embedding": 192, "text_dim": 384, "gated": True},
    "schedule": {"name": "cosine"},
    "prediction": "x0",
    "style_reference": True,
    "held_style": "openmoji",
    "dropout": 0.0,
    "weight": "v",
    "weight_limit": 30.0,
    "noise_mean": 1.2,
    "noise_std": 1.4,
    "drop_text": 0.1,
    "batch": 64,
    "accumulate": 2,
    "steps": 1500,
    "lr": 2e-3,
    "warm_up": 50,
    "decay": 0.4,
    "ema": 0.08,
    "licences": [
        "Noto Emoji, Google LLC, Apache-2.0",
        "Twemoji, Twitter, Inc and other contributors, CC BY 4.0",
        "OpenMoji, https://openmoji.org, CC BY-SA 4.0",
        "Fluent Emoji, Microsoft Corporation, MIT",
    ],
    "report_steps": 250,
}  # fmt: skip

if __name__ == "__main__":
    import sys

    from unfog.cli import main

    main(["train", __file__, *sys.argv[1:]])
