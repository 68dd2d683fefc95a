"""emoji-64 on one large GPU: a diffusion transformer of about 12.5M parameters (25 MB at half precision), native 64x64.

    unfog train recipes/emoji_64_gpu.py --out RUN --minutes 9            one slice, 9 minutes
    unfog train recipes/emoji_64_gpu.py --out RUN --minutes 9 --resume   the next ones; RUN is all that must be kept

Data: the shipped set. Not run yet on a GPU: time, cost and score are open. Checked on a CPU with --steps 2 and a small batch.
What the arithmetic says (forward about 7 GFLOP a picture, training 21): 12 million pictures and more in 30 minutes at 150
TFLOP/s. Width 384 (48 MB) would be over what ships. On several GPUs: torchrun --nproc-per-node N -m unfog train ...
"""

RECIPE = {
    "name": "emoji-64",
    "data": "emoji-64",
    "size": 64,
    "network": "dit",
    "settings": {"size": 64, "patch": 4, "width": 256, "depth": 14, "heads": 4, "text_dim": 384},
    "dropout": 0.1,
    "schedule": {"name": "cosine"},
    "prediction": "x0",
    "weight": "v",
    "weight_limit": 100.0,
    "noise_mean": 0.2,
    "noise_std": 1.3,
    "batch": 1024,
    "steps": 8000,
    "lr": 1e-3,
    "warm_up": 300,
    "decay": 0.3,
    "ema": 0.08,
    "accumulate": 1,
    "compile": True,
    "checkpoint_minutes": 3,
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
