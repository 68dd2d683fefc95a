"""emoji-64: text + style -> 64x64 RGBA emoji with real transparency.

    unfog train recipes/emoji_64.py --out RUN [--minutes M] [--resume]

On several cores, one process each (they average their weights every 32 steps):

    export WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 OMP_NUM_THREADS=1
    RANK=1 unfog train recipes/emoji_64.py --out RUN &  RANK=0 unfog train recipes/emoji_64.py --out RUN

Data: the shipped set, 8,074 training pictures in five styles (licences: NOTICE). 6.8M parameters, 14 MB at half precision.
The learning rate is constant until 70 % of `steps`: a run may be prolonged at any time, or ended by --resume with fewer --steps.

The shipped model: two processes on two cores, 11,100 steps of 2 x 64 = 1,420,800 pictures (176 epochs), some nine hours on a busy
machine, in four parts, each with a fresh optimiser:
  2,850 steps  without the finest level and the gate (the first 864 with noise of mean 0.4 and deviation 1.3)
  2,600 steps  the same, the rate falling from the 1,820th on
  2,850 steps  with both, the weights carried over by tools/weights/carried.py finer (--start), in bf16; the rate falls from the
               1,995th on. Steps took 1.3 s (bf16; 2.2 s in float32), 15 to 20 % more than without
  2,800 steps  from halfway between this and emoji-128, which had begun as it and learned from 704,000 pictures more in latents:
               tools/weights/carried.py mixed src/unfog/pretrained/emoji-64 --other src/unfog/pretrained/emoji-128 START
               unfog train recipes/emoji_64.py --out RUN --start START --steps 2800       (64 minutes; two processes)
Held-out x0 error at ln(sigma/alpha) = -2, -1, 0, 1, 2, 3 after each: .0063 .0097 .0202 .0494 .130 .276; .0054 .0086 .0187 .0463
.118 .234; .0028 .0070 .0170 .0437 .111 .217; .0027 .0067 .0160 .0419 .104 .190. While the rate is constant they hardly fall
(.0030 .0072 .0171 .0430 .107 .206 at step 2,000 of the last part; on training pictures from .149 to .135 at the highest level).
Score (benchmarks/results/emoji_64_evaluation.json, 1,536 pictures): an independent judge names 75 % as often as for real pictures
[70, 81] on training concepts, 63 % [57, 68] on held-out pairs, 62 % [51, 74] on held-out concepts (after the third part 58, 47,
56; after the first two 27, 27, 36 and 45, 39, 46); FD-lite0 268 (327; real held-out pictures 10.6); wrong style 15 % (17); of 500
none a copy, one a mirrored one (real ones: three and two).

Why a gate: normalised features of a width near that of a cell cannot hand pixels through; at ln(sigma/alpha) = -3.2 edges were
redrawn with five times the error of the noise that was left.
Why x0: with 64 numbers in a patch, predicting v (an earlier run, 25,600 pictures) asks the network to carry the noise itself
through its channels, which it cannot (arXiv:2511.13720 found the same); every picture was speckled.
"""

RECIPE = {
    "name": "emoji-64",
    "data": "emoji-64",
    "size": 64,
    "network": "unet",
    "settings": {"unshuffle": 2, "widths": [32, 64, 128, 192], "blocks": [1, 1, 2, 1],
                 "attention": [False, False, True, False], "embedding": 192, "text_dim": 384, "gated": True},
    "dropout": 0.0,
    "schedule": {"name": "cosine"},
    "prediction": "x0",
    "weight": "v",
    "weight_limit": 30.0,
    "noise_mean": 0.9,
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
