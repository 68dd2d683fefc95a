"""emoji-64: text + style -> 64x64 RGBA emoji with real transparency.

    python recipes/emoji_64.py --out runs/emoji-64 [--minutes M] [--resume]     or     unfog train recipes/emoji_64.py ...

Data: the shipped set, 8,074 training pictures of 1,757 concepts in five styles (licences: NOTICE).
"""

RECIPE = {
    "name": "emoji-64",
    "data": "emoji-64",
    "size": 64,
    "network": "unet",
    "settings": {"unshuffle": 4, "widths": [96, 192, 256], "blocks": [1, 2, 1], "attention": [False, True, False],
                 "embedding": 192, "text_dim": 384},
    "dropout": 0.05,
    "schedule": {"name": "cosine"},
    "prediction": "v",
    "noise_mean": 0.4,
    "noise_std": 1.3,
    "batch": 64,
    "steps": 60000,
    "lr": 2e-3,
    "warm_up": 100,
    "decay": 0.3,
    "ema": 0.08,
    "report_steps": 400,
}  # fmt: skip

if __name__ == "__main__":
    import sys

    from unfog.cli import main

    main(["train", __file__, *sys.argv[1:]])
