"""emoji-128: text + style -> 128x128 RGBA emoji with real transparency, in the latents of an autoencoder of our own.

    python tools/data/emoji_128.py --cache CACHE --out data/emoji-128.zip
    unfog train recipes/emoji_128.py --out RUN [--minutes M] [--resume]

On several cores one process each, as emoji_64.py says. The latents are those of the shipped emoji-128-autoencoder. The run makes
those of all pictures once (RUN/latents) and keeps its own copy of the autoencoder (RUN/autoencoder), which the model folder
carries too.

The U-Net is emoji-64's, and works on the same 32x32 grid, on 8 numbers a cell where emoji-64 has 16. Its latents have unit
variance and share less with their neighbours than pixels, so that noise hides them sooner: training sees noise of mean 0, not
0.9.

The shipped model: emoji-64's weights carried over, then 2,200 steps of two processes = 281,600 pictures (36 epochs) in 75 minutes
of two cores shared with other work (bf16; 1.3 s a step alone):

    python tools/weights/carried.py latents src/unfog/pretrained/emoji-64 START --data data/emoji-128.zip
    unfog train recipes/emoji_128.py --out RUN --start START --steps 2200       # two processes, as in emoji_64.py

Held-out x0 error at ln(sigma/alpha) = -2, -1, 0, 1, 2, 3, of latents of unit variance: .0053 .0170 .0538 .168 .384 .551 after 500
steps, .0046 .0147 .0470 .153 .371 .548 after 1,000, .0040 .0127 .0415 .141 .351 .502 at the end, and still falling.
Score (benchmarks/results/emoji_128_evaluation.json, 1,536 pictures): an independent judge names 64 % as often as for real ones
[58, 70] on training concepts, 53 % [48, 58] on held-out pairs, 69 % [56, 83] on held-out concepts (emoji-64, whose weights these
began as, 58, 47 and 56); FD-lite0 348 (real held-out pictures 15.6); wrong style 21 %; no copies; 0.22 s a picture on one core.
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
    "decay": 0.3,
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
