"""Rows of a table: numbers and categories, some cells missing."""

from unfog.modalities.contract import Modality
from unfog.modalities.table.data import measure, open_table, read_row, render, row_bytes
from unfog.modalities.table.space import RowNet, TableSpace, fit, keep, paste

MODALITY = Modality(
    name="table", about="rows of a table: numbers and categories, cells may be missing", suffix=".csv", open=open_table, fit=fit,
    space=lambda card: TableSpace(card["columns"]), measure=measure, render=render, to_bytes=row_bytes, from_bytes=read_row,
    networks={"rows": RowNet}, keep=keep, paste=paste,
    presets={"tiny": {"data": "penguins", "network": "rows", "noise_mean": 0.0, "batch": 64, "steps": 500, "warm_up": 30,
                      "report_steps": 250, "lr": 2e-3, "optimiser": "adamw", "dropout": 0.0,
                      "defaults": {"steps": 20, "scale": 1.0, "sampler": "auto"}}},
)  # fmt: skip
