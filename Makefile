# Everything runs in an environment of the project's own, made on first use from the lock.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo demo-many test test-all lint coverage check chaos chaos-quick soak bench bench-quick bench-scale pictures check-host check-image check-newcomer lock clean

# Every release is locked and comes as a wheel, so that pip runs nothing that has no hash.
INSTALL := -m pip install --quiet --disable-pip-version-check --only-binary :all: --require-hashes -r
INSTALL_THIS := -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation

$(VENV)/.ready: requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is %s: name one with make PYTHON=..." % sys.version.split()[0])'
	@echo 'Making $(VENV), once: pip installs what requirements/dev.txt names, 110 MB, in half a minute or more.'
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python $(INSTALL) requirements/dev.txt
	@$(BIN)/python $(INSTALL_THIS) -e .
	@touch $@

demo: $(VENV)/.ready
	$(BIN)/python -m demo

demo-many: $(VENV)/.ready
	$(BIN)/python -m demo.many

# What pytest makes of a test's assertions is kept, whatever the shell says of bytecode: to make it
# anew costs each of its processes as much as a tenth of the tests.
unexport PYTHONDONTWRITEBYTECODE

# What takes long is left out, and of a property fewer examples are tried: `make test-all` has all.
test: $(VENV)/.ready
	@$(BIN)/python -m pytest

ALL := -m 'not host and not image' --hypothesis-profile thorough
test-all: $(VENV)/.ready
	@$(BIN)/python -m pytest $(ALL)

# What it tries, and what its table says: docs/reliability.md. The long form takes its time.
chaos: $(VENV)/.ready
	$(BIN)/python -m chaos $(if $(SEED),--seed $(SEED))

chaos-quick: $(VENV)/.ready
	$(BIN)/python -m chaos --quick $(if $(SEED),--seed $(SEED))

# For as long as it is to last: make soak SECONDS=86400
soak: $(VENV)/.ready
	$(BIN)/python -m chaos.soak --seconds $(or $(SECONDS),3600) $(if $(SEED),--seed $(SEED))

# In an environment of its own: what a host installs, and what it is measured beside. Other
# programs come by apt, where root; those that are not to be had are reported as missing.
$(VENV)-bench/.ready: requirements/bench.txt pyproject.toml
	@echo 'Making $(VENV)-bench, once: pip installs what requirements/bench.txt names, apt and npm the rest.'
	@$(PYTHON) -m venv --clear $(VENV)-bench
	@$(VENV)-bench/bin/python $(INSTALL) requirements/bench.txt
	-test "$$(id -u)" != 0 || { apt-get update -qq && for package in gcc libc6-dev curl \
	    fswatch incron inotify-tools nodejs npm syslog-ng-core syslog-ng-mod-http; do \
	    apt-get install -y -qq --no-install-recommends $$package >/dev/null; done; }
	-npm install --silent --no-audit --no-fund --prefix bench/built chokidar@5
	@touch $@

bench: $(VENV)-bench/.ready
	@$(VENV)-bench/bin/python $(INSTALL_THIS) --force-reinstall .
	$(VENV)-bench/bin/python -m bench $(if $(DISK),--dir $(DISK))

bench-quick: $(VENV)/.ready
	$(BIN)/python -m bench --quick

# Several processes with one PostgreSQL: docs/scale.md, which has its tables by this.
bench-scale: $(VENV)/.ready
	$(BIN)/python -m bench.scale

# The pictures of the README and of docs/, from demo data, in a browser that apt installs where root.
pictures: $(VENV)/.ready
	@command -v chromium >/dev/null || test "$$(id -u)" != 0 || { apt-get update -qq && \
	    apt-get install -y -qq --no-install-recommends chromium >/dev/null; }
	$(BIN)/python -m demo.pictures

lint: $(VENV)/.ready
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile
	$(BIN)/shellcheck .ci/run bench/candidates/*.sh

# All tests, watched: twice as slow, since each process that they start is watched too. Each
# writes a file of its own; none is left behind, also where a test fails or it is interrupted.
coverage: $(VENV)/.ready
	@$(BIN)/python -m coverage erase
	@trap 'rm -f .coverage.*' EXIT; trap 'exit 1' HUP INT TERM; \
	    $(BIN)/python -m coverage run -m pytest $(ALL) && $(BIN)/python -m coverage combine --quiet
	@$(BIN)/python -m coverage report

check: lint coverage

# As root; where something is missing, apt installs it.
check-host: $(VENV)/.ready
	$(BIN)/python -m pytest -n 0 -x --durations=0 -m host tests/systemd

# The same. A clone of the last commit on a bare Debian, as an ordinary user: tests/newcomer/run.py.
check-newcomer: $(VENV)/.ready
	@$(BIN)/python tests/newcomer/run.py

# The same.
check-image: $(VENV)/.ready
	$(BIN)/python -m pytest -n 0 -x --durations=0 -m image tests/image

# In an environment of its own. The hashes cover every platform and Python >= 3.11. A release that
# is locked stays; delete a file to have newer ones. All have a package in the same release, and so
# have all Pythons: what is tested with one is what another runs.
$(VENV)-lock/.ready: requirements/lock.txt
	@echo 'Making $(VENV)-lock: pip installs what requirements/lock.txt names.'
	@$(PYTHON) -m venv --clear $(VENV)-lock
	@$(VENV)-lock/bin/python $(INSTALL) requirements/lock.txt
	@touch $@

LOCK := $(VENV)-lock/bin/uv pip compile --quiet --universal --python-version 3.11 \
    --fork-strategy fewest --only-binary :all: --generate-hashes --no-header --no-annotate
LIKE_DEV := $(LOCK) --constraint requirements/dev.txt
lock: $(VENV)-lock/.ready
	$(LOCK) pyproject.toml --extra dev --group build -o requirements/dev.txt
	$(LIKE_DEV) --group build -o requirements/build.txt
	$(LIKE_DEV) pyproject.toml --extra sidecar --extra inotify --extra top -o requirements/sidecar.txt
	$(LIKE_DEV) pyproject.toml --extra report -o requirements/report.txt
	$(LIKE_DEV) pyproject.toml --extra client -o requirements/client.txt
	$(LIKE_DEV) pyproject.toml --extra cli -o requirements/cli.txt
	$(LIKE_DEV) pyproject.toml --extra postgresql -o requirements/postgresql.txt
	$(LIKE_DEV) pyproject.toml --extra bench --group build -o requirements/bench.txt
	$(LOCK) --group lock -o requirements/lock.txt

clean:
	rm -rf $(VENV) $(VENV)-bench $(VENV)-lock bench/built .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis
