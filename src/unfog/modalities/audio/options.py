"""What a recipe of sounds may say of its data."""

from __future__ import annotations

from pydantic import Field

from unfog.modalities.contract import Options


class SoundOptions(Options):
    """The field `options` of a recipe."""

    only: list[str] = Field(default_factory=list, description="classes to take; []: all")
    shift: float = Field(0.5, ge=0, le=12, description="semitones by which a training clip is played faster or slower at most")
    delay: int = Field(256, ge=0, le=8192, description="samples by which a training clip begins later at most")
    gain: float = Field(6.0, ge=0, le=40, description="dB by which a training clip is played softer at most")
    space: str = Field("mel", pattern="^(mel|wave)$", description="mel: log-mel bands; wave: the samples themselves")
    told: bool = Field(True, description="true: the network is told speed, delay and gain, so that samples have none of them")
