# Everything a person needs: make demo, make test, make check.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
# Container images set it. Every process would compile all that it imports, and a test run starts thousands.
unexport PYTHONDONTWRITEBYTECODE

# Reading all files to run a few of them takes a quarter of a minute.
ENGINE_TESTS = $$(grep -rlE 'mark\.(engine|ray|kubernetes)' tests --include='test_*.py' | sort)

.PHONY: demo test test-units test-engines test-fast test-browser soak check format docs clean

demo: $(VENV)/.ready  ## evaluate SmolLM2 on three tasks with a real vLLM
	$(BIN)/enginehouse eval --config examples/demo.yaml

test: test-units test-engines  ## every test but the long ones of soak, the real engines included

# They wait for most of their time, so three workers are not too many for two cores. A worker that hangs
# where the limit of a test cannot end it says where, and is replaced.
test-units: $(VENV)/.ready-dev  ## the tests without what takes minutes to prepare
	$(BIN)/python -m pytest -n 3 --dist worksteal -o faulthandler_timeout=1000 -o faulthandler_exit_on_timeout=true -m "not engine and not ray and not kubernetes and not gpu and not soak and not browser"

# PREPARING may be a file that is locked as long as something prepares what these tests need.
test-engines: $(VENV)/.ready-dev  ## the real engines, Ray and Kubernetes
	$(if $(PREPARING),flock $(PREPARING) true)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "(engine or ray or kubernetes) and not gpu and not soak" --durations=25 $(ENGINE_TESTS)

test-fast: $(VENV)/.ready-dev  ## without real engines, other programs and the slow tests, about a minute
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not (slow or engine or gpu or slurm or docker or ray or kubernetes or browser or soak)"

test-browser: $(VENV)/.ready-dev  ## the HTML pages in Chromium, which must be installed
	$(BIN)/python -m pytest -q -m browser tests/report

soak: $(VENV)/.ready-dev  ## many kills and many adapters; by hand before a release, see docs/testing.md
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "soak and not engine and not gpu"
	$(BIN)/python -m pytest -m "soak and engine and not gpu" $(ENGINE_TESTS)

check: $(VENV)/.ready-dev  ## style, types, import layers, generated docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/write_reference.py --check

format: $(VENV)/.ready-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.ready-dev  ## regenerate docs/reference.md from the code
	$(BIN)/python tools/write_reference.py

clean:
	rm -rf $(VENV)

$(BIN)/uv: requirements/base.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^uv==' requirements/base.txt)"
	touch $@

$(VENV)/.ready: $(BIN)/uv requirements/base.txt pyproject.toml
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements/base.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

$(VENV)/.ready-dev: $(VENV)/.ready requirements/dev.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements/dev.txt
	touch $@
