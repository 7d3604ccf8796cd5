# Every target works from a fresh clone: it makes .venv with the versions in constraints.txt, then does its job.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
SCALE ?= quick
JOBS ?= 1

unexport PYTHONDONTWRITEBYTECODE  # every notebook and many a test starts a Python, which would compile all it imports

BIN := .venv/bin
READY := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help figures test test-browser lab app bench check format clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z.-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

figures: $(READY)  ## run every notebook and write figures/ (SCALE=quick|laptop|paper, JOBS=n)
	$(BIN)/wsnotebook figures --scale $(SCALE) --jobs $(JOBS)

# two processes of one thread each; a file stays in one (tests/conftest.py), and the notebooks come first
test: $(READY)  ## unit tests, notebook lint, notebooks executed; no browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not browser" -n 2 --dist loadscope --no-loadscope-reorder

test-browser: $(READY)  ## a notebook driven in JupyterLab and Chromium
	$(BIN)/python -m pytest -m browser -rs tests/browser

lab: $(READY)  ## open notebook 00 in JupyterLab on 127.0.0.1, in a clean workspace
	cd notebooks && JUPYTERLAB_WORKSPACES_DIR=$$(mktemp -d) ../$(BIN)/jupyter lab --ip=127.0.0.1 \
		--LabApp.default_url=/lab/tree/00_start_here.ipynb $(if $(filter 0,$(shell id -u)),--allow-root)

app: $(READY)  ## serve notebook 00 and every explorer as pages without code, on 127.0.0.1
	$(BIN)/wsnotebook app

bench: $(READY)  ## time and memory of every hot path beside its straightforward formulation, into figures/benchmarks/
	$(BIN)/python tests/benchmarks

check: $(READY)  ## formatting and lint, notebooks included
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: $(READY)  ## put the formatting right, and the lint that can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

environment.yml: pyproject.toml constraints.txt tools/environment.py | $(READY)  ## generate it from the requirements and pins
	$(BIN)/python tools/environment.py > $@.tmp && mv $@.tmp $@

clean:  ## remove what make made: .venv, runs, caches
	rm -rf .venv runs build *.egg-info .pytest_cache .ruff_cache

# torch comes first and alone, from PyTorch's CPU index: a plain resolve on Linux would bring gigabytes of CUDA.
# Without that index (offline mirrors) pip goes on with the configured ones. Debian's python3 may lack ensurepip,
# hence the second way to make the environment.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv \
		|| { $(PYTHON) -m venv --clear --without-pip .venv && $(PYTHON) -m pip --python $(BIN)/python install pip; }
	$(BIN)/python -m pip install -q --no-compile --no-deps --retries 1 --timeout 15 \
		--extra-index-url https://download.pytorch.org/whl/cpu -c constraints.txt torch
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e ".[lab,test,fast,tune,flow,cluster]"
	touch $@
