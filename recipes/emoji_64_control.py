"""emoji-64-control: a branch beside emoji-64 that follows lines, edges, silhouettes, colours, small pictures, depth and normals.

    python tools/data/furniture.py --cache CACHE --out data
    unfog train recipes/emoji_64_control.py --out RUN [--minutes M] [--resume]

Writes RUN/adapter, bound to the emoji-64 that it was trained on by that model's hash (a new emoji-64 needs a new branch):

    unfog generate "a dog" --control lineart=sketch.png --adapter RUN
    cp -r RUN/adapter src/unfog/pretrained/emoji-64-control       # from then on without --adapter

Data: emoji-64's training pictures; of OpenMoji's every second line drawing is the black one that it was filled from
(emoji-64-lines, tools/data/lineart.py). Depth and normals are those of 820 models of furniture, four views each, a twentieth held
out (tools/data/furniture.py): no emoji has any. 3.4M weights, 6.7 MB at half precision. `start` and the settings above `control`
are emoji-64's own, and must be.

The shipped branch took 1,200 steps in 27 minutes of one core (bf16), and on to step 2,250 in 16 minutes of two. Held-out x0
error at ln(sigma/alpha) = -2 to 3, with the hint of line art: .0028 .0068 .0155 .0325 .0587 .0982 after the first, .0028 .0067
.0153 .0317 .0567 .0946 after the second (emoji-64 without: .0027 .0067 .0160 .0419 .104 .190).
benchmarks/results/control.json has how well it is followed.

A step of 64 takes some 1.3 s on one core in bf16 and 2.2 s in float32. The learning rate is constant until 60 % of `steps`: give
--steps what the time allows. It is high because the zero-initialised maps have to grow first: with the hint of low resolution
and no caption, at ln(sigma/alpha) from 1 to 3, the error after 20 steps of 16 was 0.79 of the model's alone at 1e-2 and 0.92 at
4e-3; with line art 0.97 at 4e-3; 83 steps of 64 at 1e-3 had moved nothing.
"""

RECIPE = {
    "name": "emoji-64-control",
    "data": "data/emoji-furniture-64.zip",
    "start": "emoji-64",
    "size": 64,
    "network": "unet",
    "settings": {"unshuffle": 2, "widths": [32, 64, 128, 192], "blocks": [1, 1, 2, 1],
                 "attention": [False, False, True, False], "embedding": 192, "text_dim": 384, "gated": True},
    "schedule": {"name": "cosine"},
    "prediction": "x0",
    "control": ["lineart", "softedge", "silhouette", "palette", "lowres", "depth", "normals"],
    "pairs": {"lineart": "emoji-64-lines", "depth": "data/furniture-64-depth.zip",
              "normals": "data/furniture-64-normals.zip"},
    "dropout": 0.0,
    "weight": "v",
    "weight_limit": 30.0,
    "noise_mean": 1.2,
    "noise_std": 1.4,
    "drop_text": 0.3,
    "drop_style": 0.2,
    "batch": 64,
    "accumulate": 2,
    "steps": 1200,
    "lr": 6e-3,
    "warm_up": 50,
    "decay": 0.4,
    "ema": 0.08,
    "licences": [
        "Noto Emoji, Google LLC, Apache-2.0",
        "Twemoji, Twitter, Inc and other contributors, CC BY 4.0",
        "OpenMoji, https://openmoji.org, CC BY-SA 4.0",
        "Fluent Emoji, Microsoft Corporation, MIT",
        "Models of furniture: Scopia, CC BY 3.0; Kator Legaz, CC BY 3.0; Reallusion, CC BY 3.0; contributors of Blend Swap, "
        "CC BY 3.0 and CC0",
    ],
    "report_steps": 250,
}  # fmt: skip

if __name__ == "__main__":
    import sys

    from unfog.cli import main

    main(["train", __file__, *sys.argv[1:]])
