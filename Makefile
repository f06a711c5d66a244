# One command does all the set-up: a virtual environment in .venv with the pinned set of requirements.lock.
# PYTHON may name any CPython from 3.10 to 3.13.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: install demo test test-slow check format lock tables clean

install: $(READY)

demo: $(READY)
	$(BIN)/ssl-ray noisy-student demo --scale local

# Three processes on two cores, a thread each: tests that wait run beside tests that compute. Those on Ray share one process.
PROCESSES ?= 3

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -m "not slow" -n $(PROCESSES) --dist loadgroup --no-loadscope-reorder

# Kills, lost nodes, autoscaling, whole jobs on Ray. MINUTES=N begins none after N minutes; which ones come first changes by day.
test-slow: $(READY)
	$(BIN)/python -m pytest tests -m slow $(if $(MINUTES),--slow-minutes $(MINUTES))

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Tables in README.md and docs/ come from benchmarks/records/*.json; none of them is typed.
tables: $(READY)
	$(BIN)/python -m benchmarks.tables

lock:
	$(BIN)/uv pip compile --quiet --universal --python-version 3.10 --all-extras --no-header --upgrade pyproject.toml -o requirements.lock

# uv, because pip takes minutes for what uv does in seconds, and because a plain `pip install torch` can pick up a local
# CPU wheel that no torchvision fits to. Bytecode, because each of Ray's workers imports torch, and compiles it for six
# seconds where Python may not write bytecode. Editable by a path (compat): with the other form, a Python that starts beside a clone
# takes the clone's folder, which has the package's name, for the package.
$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || \
	  (echo "Python 3.10 to 3.13 is needed; run make PYTHON=python3.12, for example" >&2; exit 2)
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --requirement requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --config-setting editable_mode=compat --editable .
	touch $@

clean:
	rm -rf $(VENV) runs .mypy_cache .ruff_cache
