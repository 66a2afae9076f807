# `make search` runs the main job on data that needs no download; `make test` passes the tests.
# Either sets up .venv first, from the exact versions in requirements.txt.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: search export apq test lint setup devices images ray wheel clean

search: $(READY)
	$(BIN)/python -m launch.fliqs --config=configs/fliqs_digits.py --workdir=runs/digits

# Files that ONNX Runtime, OpenVINO and XLA execute, each checked: see docs/export.md.
export: devices search
	$(BIN)/python -m launch.export runs/digits --out=runs/digits/export

apq: $(READY)
	$(BIN)/python -m launch.apq all --config=configs/apq_digits.py --workdir=runs/apq

test: $(READY)
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check

setup: $(READY)

# What exporting to ONNX, and measuring a device with ONNX Runtime or OpenVINO, need beside.
devices: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements-devices.txt

# What `--config.data.decoder=simplejpeg` needs beside.
images: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements-images.txt

# What `python -m launch.apq records --workers=ray` needs beside.
ray: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements-ray.txt

# dist/*.whl, which pip installs anywhere; tests/test_wheel.py tries one out.
wheel: $(READY)
	rm -rf build dist
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .

$(READY): requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; found " + sys.version)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

clean:
	rm -rf .venv .cache build dist *.egg-info
