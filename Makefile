# Everything here sets itself up: `make demo`, `make test` and `make lint` make the environment and build first.
#   PYTHON   the interpreter to make the environment with (3.10 or newer)
#   TORCH    what to install as PyTorch
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv

BIN := $(VENV)/bin
SOURCES := $(shell find csrc -type f -not -name '*.md') CMakeLists.txt setup.py pyproject.toml
BUILD_REQUIRES := $(shell sed -n 's/^requires = \[\(.*\)\]/\1/p' pyproject.toml | tr -d ',')
CXX_FILES := $(shell find csrc bench tests -name '*.h' -o -name '*.c' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: demo test lint format build clean

demo: build
	$(BIN)/python -m monarch_ops demo

# what takes one thread runs side by side, everything else has all cores
test: build
	$(BIN)/python -m pytest -m "emulated or one_thread" -n logical --dist worksteal
	$(BIN)/python -m pytest -m "not (emulated or one_thread)"

lint: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py

format: build
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

build: $(VENV)/built

$(VENV)/torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/pip install --progress-bar on $(TORCH)
	touch $@

# no build isolation: the library is compiled against the torch just installed
$(VENV)/built: $(VENV)/torch $(SOURCES)
	$(BIN)/pip install --quiet $(BUILD_REQUIRES)
	$(BIN)/pip install --quiet --no-build-isolation --editable '.[dev]'
	touch $@

clean:
	rm -rf build dist *.egg-info monarch_ops/*.so
