# Each target installs what it needs: a fresh machine needs Python 3.11 or newer, and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
DEVELOPMENT := $(VENV)/installed-dev
ARGS ?=

# The tests start a hundred programs: without compiled files each of them would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test stress attack soak chaos fuzz bench pictures lint format clean

run: $(INSTALLED)  ## Start the server: make run ARGS="--port 9000"
	@$(BIN)/ws-chat serve $(ARGS)

test: $(DEVELOPMENT)  ## Run the tests: make test ARGS="-k cancel"
	@.ci/tools
	PATH="$(CURDIR)/$(BIN):$(CURDIR)/$(VENV)/node/node_modules/.bin:$$PATH" $(BIN)/python -m pytest -n 4 --dist loadfile $(ARGS)

stress: $(DEVELOPMENT)  ## Load a server with ten thousand sockets and more: make stress ARGS="--seed 1"
	PYTHONPATH=tests $(BIN)/python -m load.stress $(ARGS)

chaos: $(DEVELOPMENT)  ## Break replicas and their Redis in every way: make chaos ARGS="--seed 1 --nemesis kill,promote"
	PYTHONPATH=tests $(BIN)/python -m load.chaos $(ARGS)

soak: $(DEVELOPMENT)  ## Break ten thousand connections and check that nothing is lost: make soak ARGS="--seed 1"
	PYTHONPATH=tests $(BIN)/python -m load.soak $(ARGS)

fuzz: $(DEVELOPMENT)  ## Try a hundred thousand hostile frames: make fuzz ARGS="--seconds 60 --seed 1"
	PYTHONPATH=tests $(BIN)/python -m load.fuzz $(ARGS)

attack: $(DEVELOPMENT)  ## Attack a server, and measure what it costs others: make attack ARGS="--only upstream --server ../other"
	PYTHONPATH=tests $(BIN)/python -m load.attack $(ARGS)

bench: $(DEVELOPMENT)  ## Measure against others, in under 10 minutes: make bench ARGS="--runs 5 --sides ours-ws,vllm-router"
	$(BIN)/python benchmarks/run.py --seconds 3 --write docs/performance.md $(ARGS)

pictures: $(DEVELOPMENT)  ## Redraw the pictures of the page and the terminal
	PYTHONPATH=tests $(BIN)/python docs/picture.py
	PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONPATH=tests $(BIN)/python docs/picture_terminal.py

lint: $(DEVELOPMENT)  ## Check format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(DEVELOPMENT)  ## Fix format and style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .hypothesis

$(INSTALLED): pyproject.toml .ci/constraints.txt .ci/setup
	@.ci/setup $(PYTHON)
	@touch $@

$(DEVELOPMENT): pyproject.toml .ci/constraints.txt .ci/setup
	@.ci/setup $(PYTHON) dev
	@touch $(INSTALLED) $@
