"""emoji-64 on one large GPU: a diffusion transformer of about 23M parameters, native 64x64.

    unfog train recipes/emoji_64_gpu.py --out RUN --minutes 9            one slice, 9 minutes
    unfog train recipes/emoji_64_gpu.py --out RUN --minutes 9 --resume   the next ones; RUN is all that must be kept

Data: the shipped set. Not run yet on a GPU: time, cost and score are open. Checked on a CPU with --steps 2 and a small batch.
What the arithmetic says (forward 13.8 GFLOP a picture, training 41): 6 to 10 million pictures in 30 minutes at 150 to 250
TFLOP/s. The weights (46 MB at half precision) are over what ships; a run that is worth shipping is distilled or uses width 256.
"""

RECIPE = {
    "name": "emoji-64",
    "data": "emoji-64",
    "size": 64,
    "network": "dit",
    "settings": {"size": 64, "patch": 4, "width": 384, "depth": 12, "heads": 6, "text_dim": 384},
    "dropout": 0.1,
    "schedule": {"name": "cosine"},
    "prediction": "v",
    "noise_mean": 0.2,
    "noise_std": 1.3,
    "batch": 1024,
    "steps": 8000,
    "lr": 1e-3,
    "warm_up": 300,
    "decay": 0.3,
    "ema": 0.08,
    "compile": True,
    "checkpoint_minutes": 3,
    "report_steps": 1000,
}  # fmt: skip

if __name__ == "__main__":
    import sys

    from unfog.cli import main

    main(["train", __file__, *sys.argv[1:]])
