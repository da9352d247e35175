# `make demo` and `make test` need Python 3.11 or newer, pip and make; everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

.PHONY: demo emergence test extras bench fuzz docs lint clean
.DELETE_ON_ERROR:

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade 'pip>=25.1'

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(PIP) install --editable '.[report,tflite]'
	touch $@

# one stamp a dependency group of pyproject.toml
$(VENV)/.%: pyproject.toml | $(BIN)/python
	$(PIP) install --editable '.[tflite]' --group $*
	touch $@

demo: $(VENV)/.demo  ## fetch two trained networks, fit them, leave the JSON lines under out/
	mkdir -p out
	$(BIN)/python scripts/fetch_models.py minilm blazepose
	$(BIN)/teleojax fit models/minilm --group-by role
	$(BIN)/teleojax fit models/blazepose --group-by role
	$(BIN)/teleojax fit models/minilm -o out/minilm.jsonl
	$(BIN)/teleojax fit models/blazepose -o out/blazepose.jsonl
	@echo "One JSON line a tensor: out/minilm.jsonl out/blazepose.jsonl"
	@echo "The same as a page for a browser: $(BIN)/teleojax fit models/blazepose -o out/blazepose.html"

emergence: $(VENV)/.examples  ## train two small networks and see whether they near equilibrium; ARGS=--quick for a trial
	$(BIN)/python -m examples.emergence $(ARGS)

# a browser for the tests of the HTML page, which are skipped where there is none
$(VENV)/.browser: | $(BIN)/python
	@if { command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		export PATH="$$PATH:/usr/sbin:/sbin" DEBIAN_FRONTEND=noninteractive; \
		get='apt-get install -y --no-install-recommends chromium'; $$get || { apt-get update && $$get; } \
		|| echo "No Chromium could be installed: the tests of the page are skipped."; \
	else echo "No Chromium: the tests of the page are skipped. Install one, say with: sudo apt-get install chromium"; fi
	@touch $@

test: $(VENV)/.test $(VENV)/.browser  ## the whole suite
	$(BIN)/python -m pytest -n 2

extras:  ## each optional extra alone in a fresh environment, with its tests; ARGS='gguf onnx' for some
	$(PYTHON) scripts/check_extras.py $(ARGS)

bench: $(VENV)/.bench  ## measure speed beside the memory limit and peers; ARGS=--large for 8 GiB, ARGS=--quick for a trial
	$(BIN)/python -m pytest benchmarks --benchmark-only $(ARGS)

fuzz: $(VENV)/.fuzz  ## hostile bytes against every reader; SECONDS=1800 for longer, ARGS='--targets npz torch' for some
	$(BIN)/python -m tests.fuzz.fuzz_readers --seconds $(or $(SECONDS),120) $(ARGS)

docs: $(VENV)/.docs  ## the site, into out/site; all code on its pages is run
	$(BIN)/python scripts/fetch_models.py minilm blazepose
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

lint: $(VENV)/.lint  ## format, style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf $(VENV) out build dist .pytest_cache .ruff_cache .hypothesis
