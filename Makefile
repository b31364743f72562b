# make demo   the main job: Dyck, from nothing to a report
# make test   format, lint, types, tests
# make bench  speed, against the stated baselines
# make test-browser   the report in Debian's chromium, or CHROMIUM=/path/to/it
# make docs   the documentation as a site, in site/: open site/index.html
# make docs-serve   the same at http://localhost:8000 while you write, its notebooks not run
# make test-docs   the site: links, anchors, search, notebooks
# make test-network   what needs the network, and npm and apt beside pip: packages of about 85 MB
# make release-check   wheel and sdist, and the wheel at work in every Python here; gigabytes a Python
# make sweep  every class of transformers, compared with itself: docs/transformers.md

PYTHON ?= python3
BIN := .venv/bin
RUN ?= runs/demo

.DEFAULT_GOAL := help
.PHONY: help demo test test-browser test-docs docs docs-serve test-network sweep bench release-check format clean

help:
	@sed -n 's/^# //p' Makefile

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "anamorph needs Python 3.11 or newer; try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,hf,code,docs,ray,s3]'
	@touch $@

demo: .venv/installed
	$(BIN)/anamorph run dyck --preset demo --out $(RUN)

test: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q -n 2 -m 'not browser and not docs and not network and not sweep'

test-browser: .venv/installed
	$(BIN)/pytest -q -n 2 --dist loadfile -m browser tests/report

test-docs: .venv/installed
	$(BIN)/pytest -q -n 0 -m docs tests/docs

docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 OMP_NUM_THREADS=1 $(BIN)/mkdocs build --strict

docs-serve: .venv/installed
	NO_MKDOCS_2_WARNING=1 ANAMORPH_NOTEBOOKS=false $(BIN)/mkdocs serve

test-network: .venv/installed
	$(BIN)/pytest -q -m network tests/corpora

sweep: .venv/installed
	$(BIN)/python tests/helpers/transformers_classes.py --jobs 2

bench: .venv/installed
	$(BIN)/python benchmarks/sampler.py
	$(BIN)/python benchmarks/fit.py
	$(BIN)/python benchmarks/audit_dyck.py

release-check: .venv/installed
	$(BIN)/python .ci/release.py versions
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python .ci/release.py files dist
	$(BIN)/python .ci/release.py smoke dist

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv build dist site
