"""emoji-128: text + style -> 128x128 RGBA emoji with real transparency, in the latents of an autoencoder of our own.

    python tools/data/emoji_128.py --cache CACHE --out data/emoji-128.zip
    unfog train recipes/emoji_128.py --out RUN [--minutes M] [--resume]

On several cores one process each, as emoji_64.py says. The latents are those of the shipped emoji-128-autoencoder. The run makes
those of all pictures once (RUN/latents) and keeps its own copy of the autoencoder (RUN/autoencoder), which the model folder
carries too.

The U-Net is emoji-64's, and works on the same 32x32 grid, on 8 numbers a cell where emoji-64 has 16. Its latents have unit
variance and share less with their neighbours than pixels, so that noise hides them sooner: training sees noise of mean 0, not
0.9.

The shipped model: emoji-64's weights carried over, then 2,200, again 3,300 and again 3,400 steps of two processes = 1,139,200
pictures (145 epochs) in four and a half hours of two cores shared with other work (bf16; 1.2 s a step alone); the last part from
between it and emoji-64, which had learned on meanwhile. In the first two parts the rate fell over 30 % of the steps:

    python tools/weights/carried.py latents src/unfog/pretrained/emoji-64 START --data data/emoji-128.zip
    unfog train recipes/emoji_128.py --out RUN --start START --steps 2200       # two processes, as in emoji_64.py
    unfog train recipes/emoji_128.py --out AGAIN --start RUN/model --steps 3300
    python tools/weights/carried.py mixed AGAIN/model --other src/unfog/pretrained/emoji-64 --share 0.4 MIXED
    unfog train recipes/emoji_128.py --out LAST --start MIXED --steps 3400

Held-out x0 error at ln(sigma/alpha) = -2, -1, 0, 1, 2, 3, of latents of unit variance: .0040 .0127 .0415 .141 .351 .502 after the
first run, .0036 .0112 .0375 .132 .341 .484 after the second, .0034 .0106 .0363 .131 .338 .476 after the third (on training
pictures .0039 .0130 .0436 .142 .359 .509 and .0038 .0122 .0415 .132 .315 .436).
Score (benchmarks/results/emoji_128_evaluation.json, 1,536 pictures): an independent judge names 84 % as often as for real ones
[79, 89] on training concepts, 68 % [62, 73] on held-out pairs, 80 % [67, 95] on held-out concepts (after the second run 76, 61
and 82, after the first 64, 53 and 69); FD-lite0 265 (292, 348; real held-out pictures 15.6); wrong style 16 % (18, 21); none of
500 a copy (real ones: six); 0.21 s a picture on one core beside other work.
"""

RECIPE = {
    "name": "emoji-128",
    "data": "data/emoji-128.zip",
    "size": 128,
    "autoencoder": "emoji-128-autoencoder",
    "network": "unet",
    "settings": {"unshuffle": 1, "widths": [32, 64, 128, 192], "blocks": [1, 1, 2, 1],
                 "attention": [False, False, True, False], "embedding": 192, "text_dim": 384, "gated": True},
    "dropout": 0.0,
    "schedule": {"name": "cosine"},
    "prediction": "x0",
    "weight": "v",
    "weight_limit": 30.0,
    "noise_mean": 0.0,
    "noise_std": 1.4,
    "batch": 64,
    "steps": 60000,
    "lr": 2e-3,
    "warm_up": 200,
    "decay": 0.6,
    "ema": 0.03,
    "average_steps": 32,
    "licences": [
        "Noto Emoji, Google LLC, Apache-2.0",
        "Twemoji, Twitter, Inc and other contributors, CC BY 4.0",
        "OpenMoji, https://openmoji.org, CC BY-SA 4.0",
        "Fluent Emoji, Microsoft Corporation, MIT",
    ],
    "report_steps": 500,
}  # fmt: skip

if __name__ == "__main__":
    import sys

    from unfog.cli import main

    main(["train", __file__, *sys.argv[1:]])
