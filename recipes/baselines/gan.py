"""A GAN to hold diffusion against: the ring of 8, the grid of 25, or emoji faces of 16×16.

    python recipes/baselines/gan.py --data ring --seed 0
    python recipes/baselines/gan.py --data faces --seed 0 --out faces.png

Losses    relativistic, with a penalty on the critic's slope at data and at samples (R3GAN); or --loss non-saturating, the same
Trained   Adam without momentum, learning rate constant and then falling to 0, samples from an average of the weights
Cost      about 15 seconds of processor time a mixture, 45 the faces, on one core of an AVX2 machine
Reached   benchmarks/results/gan.json: five seeds of this, beside a diffusion model of the same time

--beside trains that diffusion model instead, --steps shortens a run. The parts: networks/mlp.py and networks/adversarial.py (the
networks), training/gan.py (losses and steps), claims/gan.py and claims/gan_pictures.py (what was tuned, and what is measured).
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from unfog.claims import gan, gan_pictures
from unfog.claims.modes import COUNTABLE, modes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=[*COUNTABLE, "faces"], default="ring")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="fewer than the tuned number: a shorter run")
    parser.add_argument("--loss", choices=["relativistic", "non-saturating"])
    parser.add_argument("--beside", action="store_true", help="the diffusion model instead")
    parser.add_argument("--out", type=Path, help="a picture of 64 samples (faces)")
    given = parser.parse_args()
    side = "diffusion" if given.beside else "gan"
    tuned = (gan_pictures if given.data == "faces" else gan).TUNED[side]
    tuned = replace(tuned, steps=given.steps or tuned.steps)
    if given.loss and side == "gan":
        tuned = replace(tuned, kind=given.loss)

    if given.data == "faces":
        run = gan_pictures.trained(side, given.seed, tuned)
        pictures = run.draw(64, 0)
        if given.out:
            gan_pictures.sheet(pictures, given.out)
    else:
        mixture = COUNTABLE[given.data]()
        run = gan.trained(side, mixture, [tuned], [given.seed])
        print(modes(mixture, run.draw(gan.SAMPLES, 1)[0].numpy()))
    print(
        f"{tuned.steps} steps, {run.weights:,} weights, {run.seconds:.0f} s of processor time, last loss {run.curve[-1][1]:.3f}"
    )


if __name__ == "__main__":
    main()
