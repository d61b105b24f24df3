# Everything a person or a pipeline runs. Each target installs what it needs by itself.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
PY     := $(VENV)/bin/python
READY  := $(VENV)/.ready

TARGET ?= mobile
SAMPLE ?= code_lm
# What `make validate` runs, one after the other.
SAMPLES ?= code_lm digits docstring_classifier
# Threads per test process: two processes share the cores.
TEST_THREADS ?= 1

# Waiting threads sleep: spinning ones make work beside others on the same cores ten times slower.
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help install export plan devices validate check format test test-slow samples bench clean distclean

help: ## this list
	@echo "make export TARGET=mobile                        export the embedded sample language model"
	@echo "make export TARGET=edge SAMPLE=digits            another sample: code_lm, docstring_classifier, digits"
	@echo "make export TARGET=edge MODEL=DIR DATA=x.jsonl   your own model and data (OUT=dist/name, ARGS='--seed 1')"
	@echo
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14
	@echo
	@echo "targets: $(basename $(notdir $(wildcard targets/*.toml)))"

# The torch pin goes first: a looser range elsewhere would fetch gigabytes of CUDA packages.
$(READY): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { echo "make: Python 3.11 is missing; install it or set PYTHON=..." >&2; exit 2; }
	@test -x $(PY) || "$(PYTHON)" -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[samples,dev]"
	@touch $@

install: $(READY) ## create .venv with pinned dependencies

# The last line a failing run prints is the tool's reason; make adds its own after it. A target that
# does not exist is refused before a sample is trained for minutes.
export: $(READY) ## run the whole chain for TARGET
ifdef MODEL
	@$(PY) -m exporter export "$(MODEL)" --target "$(TARGET)" $(if $(DATA),--data "$(DATA)") $(if $(OUT),--out "$(OUT)") $(ARGS)
else
	@$(PY) -m exporter targets "$(TARGET)" >/dev/null
	@sample="$$($(PY) -m sample_models $(SAMPLE))" && \
	$(PY) -m exporter export "$$sample/model" --data "$$sample/data" --target "$(TARGET)" \
	  --out "$(or $(OUT),dist/$(SAMPLE)-$(TARGET))" $(ARGS)
endif

plan: $(READY) ## say what export would do, without doing it
ifdef MODEL
	@$(PY) -m exporter plan "$(MODEL)" --target "$(TARGET)" $(if $(DATA),--data "$(DATA)") $(ARGS)
else
	@$(PY) -m exporter targets "$(TARGET)" >/dev/null
	@sample="$$($(PY) -m sample_models $(SAMPLE))" && \
	$(PY) -m exporter plan "$$sample/model" --data "$$sample/data" --target "$(TARGET)" $(ARGS)
endif

devices: $(READY) ## fetch the emulators of every device (no root, about a minute)
	@$(PY) -m exporter devices install $(DEVICES)

# Artifacts that are there are taken as they are; `make export` makes them anew.
validate: $(READY) ## run the sample artifacts on TARGET's emulated devices (SAMPLES="code_lm digits")
	@$(PY) -m exporter devices install --target "$(TARGET)"
	@worst=0; for sample in $(SAMPLES); do \
	  test -f "dist/$$sample-$(TARGET)/manifest.json" || \
	    $(MAKE) --no-print-directory export TARGET="$(TARGET)" SAMPLE="$$sample" || true; \
	  $(PY) -m exporter check "dist/$$sample-$(TARGET)" --on profile || worst=$$?; \
	done; exit $$worst

samples: $(READY) ## train every sample model (about 15 minutes, once)
	@for sample in code_lm digits docstring_classifier; do $(PY) -m sample_models $$sample || exit; done

format: $(READY) ## rewrite the code in the house style
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

check: $(READY) ## format, lint, types, import direction
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) -m pytest -q tests/test_imports.py

test: $(READY) ## all tests that take seconds
	OMP_NUM_THREADS=$(TEST_THREADS) $(PY) -m pytest -n 2 --dist loadfile -m "not slow" -rs

test-slow: $(READY) ## the tests that train the samples and kill runs at every stage
	$(PY) -m pytest -m slow

bench: $(READY) ## every sample on every target, as a table (an hour the first time)
	$(PY) benchmarks/matrix.py

clean: ## remove build leftovers and artifacts in dist/
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## also remove .venv
	rm -rf $(VENV)
