"""emoji-128's network on pixels instead of latents, for benchmarks/latent_quality.py to hold against it; ships no model.

    python tools/data/emoji_128.py --cache CACHE --out data/emoji-128.zip
    python tools/weights/carried.py pixels src/unfog/pretrained/emoji-64 START --data data/emoji-128.zip
    unfog train recipes/baselines/emoji_128_pixels.py --out RUN --start START --minutes M

Squares of 4x4 pixels become channels at once, so that the U-Net works on the same 32x32 grid as in latents. Four pixels stand
where emoji-64 has one, so it takes twice the noise to hide as much: mean 0.9 + ln 2.
"""

RECIPE = {
    "name": "emoji-128-pixels",
    "data": "data/emoji-128.zip",
    "size": 128,
    "network": "unet",
    "settings": {"unshuffle": 4, "widths": [32, 64, 128, 192], "blocks": [1, 1, 2, 1],
                 "attention": [False, False, True, False], "embedding": 192, "text_dim": 384, "gated": True},
    "dropout": 0.0,
    "schedule": {"name": "cosine"},
    "prediction": "x0",
    "weight": "v",
    "weight_limit": 30.0,
    "noise_mean": 1.6,
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
