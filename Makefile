# Everything runs in an environment of the project's own, made on first use from the lock.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint coverage check chaos chaos-quick bench bench-quick check-host check-image lock clean

$(VENV)/.ready: requirements/dev.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is %s: name one with make PYTHON=..." % sys.version.split()[0])'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

demo: $(VENV)/.ready
	$(BIN)/python -m demo

test: $(VENV)/.ready
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage combine --quiet

# What it tries, and what its table says: docs/reliability.md. The long form takes its time.
chaos: $(VENV)/.ready
	$(BIN)/python -m chaos $(if $(SEED),--seed $(SEED))

chaos-quick: $(VENV)/.ready
	$(BIN)/python -m chaos --quick $(if $(SEED),--seed $(SEED))

# In an environment of its own: what a host installs, and what it is measured beside. Other
# programs come by apt, where root; those that are not to be had are reported as missing.
$(VENV)-bench/.ready: requirements/bench.txt pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)-bench
	$(VENV)-bench/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bench.txt
	-test "$$(id -u)" != 0 || { apt-get update -qq && for package in gcc libc6-dev curl \
	    fswatch incron inotify-tools nodejs npm syslog-ng-core syslog-ng-mod-http; do \
	    apt-get install -y -qq --no-install-recommends $$package >/dev/null; done; }
	-npm install --silent --no-audit --no-fund --prefix bench/built chokidar@5
	touch $@

bench: $(VENV)-bench/.ready
	$(VENV)-bench/bin/pip install --quiet --disable-pip-version-check --no-deps --force-reinstall .
	$(VENV)-bench/bin/python -m bench $(if $(DISK),--dir $(DISK))

bench-quick: $(VENV)/.ready
	$(BIN)/python -m bench --quick

lint: $(VENV)/.ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile
	$(BIN)/shellcheck .ci/run bench/candidates/*.sh

# Of the last `make test`.
coverage: $(VENV)/.ready
	$(BIN)/coverage report

check: lint test coverage

# As root; where something is missing, apt installs it.
check-host: $(VENV)/.ready
	$(BIN)/python -m pytest -n 0 -x --durations=0 -m host tests/systemd

# The same.
check-image: $(VENV)/.ready
	$(BIN)/python -m pytest -n 0 -x --durations=0 -m image tests/image

# Needs uv; the hashes cover every platform and Python >= 3.11.
LOCK := uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes \
    --no-header --no-annotate
lock:
	$(LOCK) --extra sidecar --extra inotify -o requirements/sidecar.txt
	$(LOCK) --extra client -o requirements/client.txt
	$(LOCK) --extra dev -o requirements/dev.txt
	$(LOCK) --extra bench -o requirements/bench.txt

clean:
	rm -rf $(VENV) $(VENV)-bench bench/built .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis
