"""The autoencoder of emoji-128: 128x128 RGBA <-> 32x32 latents of 8 channels.

    python tools/data/emoji_128.py --cache CACHE --out data/emoji-128.zip
    unfog train recipes/emoji_128_autoencoder.py --out RUN [--minutes M] [--resume]

On two cores, one process each (they average their weights every 32 steps):

    export WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=29501 OMP_NUM_THREADS=1
    RANK=1 unfog train recipes/emoji_128_autoencoder.py --out RUN & RANK=0 unfog train recipes/emoji_128_autoencoder.py --out RUN

The shipped one took 3,000 steps (48,000 crops, 0.4 to 1.1 s a step on one busy AVX2 core, ended by --resume --steps 3000):
40.3 dB [40.0, 40.6] over the 889 held-out pictures (26.4 before the first step, 37.8 after 1,000), FD-lite0 to them 0.25 of the
noise floor.
The learning rate is constant until 70 % of `steps`: a run may be prolonged at any time, or ended by --resume with fewer --steps.
"""

RECIPE = {
    "learns": "autoencoder",
    "name": "emoji-128-autoencoder",
    "data": "data/emoji-128.zip",
    "size": 128,
    "crop": 64,
    "settings": {"factor": 4, "latent": 8, "width": 96, "encoder": 2, "decoder": 3, "fine_width": 48, "fine": 1},
    "batch": 16,
    "accumulate": 1,
    "steps": 12000,
    "lr": 2e-3,
    "warm_up": 100,
    "decay": 0.3,
    "ema": 0.08,
    "average_steps": 32,
    "snapshots": 0,
    "licences": [
        "Noto Emoji, Google LLC, Apache-2.0",
        "Twemoji, Twitter, Inc and other contributors, CC BY 4.0",
        "OpenMoji, https://openmoji.org, CC BY-SA 4.0",
        "Fluent Emoji, Microsoft Corporation, MIT",
    ],
    "report_steps": 1000,
}  # fmt: skip

if __name__ == "__main__":
    import sys

    from unfog.cli import main

    main(["train", __file__, *sys.argv[1:]])
