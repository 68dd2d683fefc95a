"""Sound: clips of 1.024 s at 16 kHz, asked for by words ("snare", "violin a4", "seven")."""

from __future__ import annotations

from unfog.modalities.audio.data import open_sounds
from unfog.modalities.audio.measure import measure
from unfog.modalities.audio.network import BandsUNet, WaveUNet
from unfog.modalities.audio.options import SoundOptions
from unfog.modalities.audio.show import from_bytes, render, to_bytes
from unfog.modalities.audio.space import fit, keep, paste, space
from unfog.modalities.contract import Modality

# how the shipped networks learn: the errors of x0 count as in v's space
LEARNED = {
    "prediction": "x0",
    "weight": "v",
    "weight_limit": 30.0,
    "noise_mean": 0.4,
    "noise_std": 1.5,
    "dropout": 0.0,
    "lr": 2e-3,
}
SMALL = {"unshuffle": 4, "widths": [64, 96, 128], "blocks": [1, 2, 1], "attention": [False, False, True], "embedding": 192}

TINY = {"unshuffle": 8, "widths": [32, 48], "blocks": [1, 1], "attention": [False, False], "embedding": 64}


MODALITY = Modality(
    name="audio",
    about="sounds of 1.024 s at 16 kHz: notes, drums, spoken words",
    open=open_sounds,
    fit=fit,
    space=space,
    presets={
        "tiny": {"data": "drums-notes", "network": "bands", "settings": TINY, **LEARNED, "batch": 8, "steps": 20, "warm_up": 5,
                 "report_steps": 20, "defaults": {"steps": 8, "scale": 1.0, "sampler": "auto"}},
        "small": {"data": "drums-notes", "network": "bands", "settings": SMALL, **LEARNED, "batch": 32, "steps": 6000,
                  "warm_up": 200, "report_steps": 500, "defaults": {"steps": 20, "scale": 2.0, "sampler": "auto"}},
    },
    measure=measure,
    render=render,
    suffix=".wav",
    to_bytes=to_bytes,
    from_bytes=from_bytes,
    options=SoundOptions,
    networks={"bands": BandsUNet, "wave": WaveUNet},
    keep=keep,
    paste=paste,
)  # fmt: skip
