# Two commands set everything up on a fresh machine: `make compare` and `make test`.
# Both first make .venv from requirements.lock; a second call starts at once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: compare test lock clean

compare: $(VENV)/ready
	$(BIN)/tinynet compare

test: $(VENV)/ready
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

$(VENV)/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else "tinynet needs Python 3.11 to 3.13; this is %d.%d: make PYTHON=python3.12 ..." % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

# Writes the lock file anew from a clean environment with all extras of pyproject.toml.
lock:
	rm -rf .lock-venv
	$(PYTHON) -m venv .lock-venv
	.lock-venv/bin/python -m pip install --quiet torch==2.13.0
	.lock-venv/bin/python -m pip install --quiet '.[compare,test]'
	echo '# Every package of `make compare` and `make test`, pinned; written anew by `make lock`.' > requirements.lock.new
	.lock-venv/bin/python -m pip freeze --all --exclude pip --exclude tinynet-engine \
		| sed -e 's/+cpu$$//' \
		      -e 's/^tensorflow_cpu==\(.*\)/tensorflow==\1; platform_system != "Linux" or platform_machine != "x86_64"\n&; platform_system == "Linux" and platform_machine == "x86_64"/' \
		      -e 's/^\(cuda-pathfinder\|cupy-cuda12x\|nvidia-cuda-nvrtc-cu12\)==.*/&; platform_system == "Linux" and platform_machine == "x86_64"/' \
		>> requirements.lock.new
	mv requirements.lock.new requirements.lock
	rm -rf .lock-venv

clean:
	rm -rf $(VENV) out build dist *.egg-info
