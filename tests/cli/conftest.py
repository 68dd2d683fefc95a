"""A small deterministic model behind `unfog.load`, and a way to run the command line in this process."""

import hashlib
import json
from dataclasses import dataclass, field

import numpy as np
import pytest
from PIL import Image

import unfog
from unfog.cli import main
from unfog.errors import UserError
from unfog.modalities import modality
from unfog.modalities.contract import Modality
from unfog.requests import GenerateRequest, Progress, Result


@dataclass
class FakeModel:
    """Pictures are a hash of everything that a recipe names, so a lost field changes the pixels."""

    name: str = "emoji-64"
    hash: str = "0123abcd"
    styles: list[str] = field(default_factory=lambda: ["noto", "twemoji", "fluent-3d"])
    defaults: dict = field(default_factory=lambda: {"steps": 4, "scale": 2.0, "sampler": "ddim"})
    requests: list[GenerateRequest] = field(default_factory=list)
    broken_at: int | None = None  # index of the picture at which Ctrl-C arrives
    salt: str = ""
    kind: Modality = field(default_factory=lambda: modality("image"))

    def plan_hash(self, name):
        return None

    def stream(self, request):
        self.requests.append(request)
        if request.sampler not in (None, "ddim", "heun"):
            raise UserError(f"sampler: '{request.sampler}' is unknown; did you mean heun?")
        steps, total = request.steps or self.defaults["steps"], len(request.pictures())
        for index, (prompt, seed) in [(i, request.pictures()[i]) for part in request.batches() for i in part]:
            if index == self.broken_at:
                raise KeyboardInterrupt
            for step in range(steps):
                yield Progress(index * steps + step + 1, total * steps)
            recipe = {
                "prompt": prompt,
                "negative": request.negative,
                "style": request.style,
                "seed": seed,
                "sampler": request.sampler or self.defaults["sampler"],
                "steps": steps,
                "scale": self.defaults["scale"] if request.scale is None else request.scale,
                "model": self.name,
                "model_hash": self.hash,
                "version": "1.2.3",
            }
            key = hashlib.sha256((json.dumps(recipe, sort_keys=True) + self.salt).encode()).digest()
            pixels = np.random.default_rng(list(key)).integers(0, 256, (8, 8, 4), dtype=np.uint8)
            yield Result(Image.fromarray(pixels, "RGBA"), prompt, seed, index, 12.345, recipe)


@pytest.fixture
def model(monkeypatch, tmp_path):
    fake = FakeModel()

    def load(name):
        if name not in ("emoji-64", "my-model"):
            raise UserError(f"model: '{name}' is unknown; did you mean emoji-64?")
        return fake

    monkeypatch.setattr(unfog, "load", load, raising=False)
    monkeypatch.setattr(unfog, "__version__", "1.2.3", raising=False)
    monkeypatch.chdir(tmp_path)
    return fake


@pytest.fixture
def unfog_command(model, capfd):
    """command(*words) -> (exit code, lines of stdout, lines of stderr that are no progress)."""

    def command(*words):
        code = main([str(word) for word in words])
        out, err = capfd.readouterr()
        lines = [line for line in err.splitlines() if not line.startswith('{"event": ')]
        return code, out.splitlines(), lines

    return command
