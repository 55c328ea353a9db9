# Two commands: `make demo` runs everything on the embedded data and builds the book, `make test` checks everything.
# CPU=1 with either command installs PyTorch without CUDA: 200 MB instead of 5 GB.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check --no-compile -c constraints.txt

# Packages are installed uncompiled; each module is then compiled when it is first imported, and not in every process anew.
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo test check benchmark clean help

help:
	@echo "make demo       run the notebooks on embedded data (no download) and build the book"
	@echo "make test       style, unit tests, README commands, notebooks, book"
	@echo "                CPU=1 with either takes PyTorch without CUDA: 200 MB instead of 5 GB"
	@echo "make benchmark  measure speed and memory on this machine"
	@echo "make clean      remove what was built (records and caches stay)"

demo: $(STAMP)
	$(BIN)/lscl reproduce demo

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests notebooks/0[0-4]*.ipynb notebooks/10*.ipynb -n 3 --dist loadfile --no-loadscope-reorder --durations 40 --nbval-lax --nbval-current-env --nbval-sanitize-with tests/nbval-sanitize.cfg -q

benchmark: $(STAMP)
	$(BIN)/python benchmarks/mini_run.py

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 5))' || { echo "Python 3.11.5 or newer is needed: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(if $(CPU),$(PIP) --no-deps --index-url https://download.pytorch.org/whl/cpu torch torchvision)
	$(PIP) -e '.[test]'
	touch $(STAMP)

clean:
	rm -rf _build results/executed
