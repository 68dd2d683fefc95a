# Two commands do everything: `make demo` and `make test`. The environment is plain venv + pip in .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test lint clean

install: .venv/.installed

# --no-deps is not used: constraints.txt pins every package, so that each machine gets the same ones
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/unfog generate "a red apple" --seed 7 -n 4 --out out --grid out/demo.png

test: install
	$(BIN)/ruff check src tests tools recipes benchmarks
	$(BIN)/ruff format --check --quiet src tests tools recipes benchmarks
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4

clean:
	rm -rf .venv out
