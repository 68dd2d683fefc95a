"""Tests compare numbers to the last digits of float32, so all of them run in it, whatever the processor is fastest in."""

import os

os.environ.setdefault("UNFOG_PRECISION", "float32")
