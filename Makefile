# Self-documenting: `make help` lists every target with the text after its `##`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help install test quick lint format types layers schema docs docs-serve wheel oldest ci readme-figures report-sample \
	report-vendor

help: ## show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-16s %s\n", $$1, $$2}'

install: ## create $(VENV) with the tested versions, the project (editable) and all developer tools
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -c constraints.txt -e '.[dev]'

test: ## run the whole test suite
	$(BIN)/python -m pytest -n auto --dist loadscope

quick: ## run the tests that take less than 5 s each
	$(BIN)/python -m pytest -m 'not slow'

lint: ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: ## rewrite the code in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: ## check types (mypy strict)
	$(BIN)/mypy

layers: ## check the import directions
	$(BIN)/lint-imports

schema: ## regenerate the schedule format's JSON schema
	$(BIN)/python -m schedsearch.schedule._schema

docs: ## build the documentation site into site/, links and anchors checked
	$(BIN)/pip install -q -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: docs ## show the site on http://127.0.0.1:8000 and follow changes
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

wheel: ## build the wheel and check what is in it
	rm -rf dist
	$(BIN)/pip wheel -q --no-deps --wheel-dir dist .
	$(BIN)/python .ci/check_wheel.py dist

oldest: ## run the runtime and command line tests on the oldest supported diffusers
	PYTHON=$(BIN)/python bash .ci/oldest-diffusers

ci: ## everything CI does, in a fresh copy and a fresh environment
	bash .ci/run

readme-figures: ## search flux-mini at 4x, draw the README's pictures and rewrite its table and that of metrics
	$(BIN)/schedsearch optimize --model flux-mini --budget 4x --out runs/flux-mini-4x --resume
	rm -rf runs/pictures
	$(BIN)/schedsearch generate --model flux-mini --out runs/pictures/full $(PROMPTS)
	$(BIN)/schedsearch generate --model flux-mini --out runs/pictures/4x $(PROMPTS) \
		--schedule runs/flux-mini-4x/flux-mini-4x.json
	$(BIN)/schedsearch generate --model flux-mini --out runs/pictures/steps $(PROMPTS) --steps 6
	$(BIN)/python -m schedsearch_reports.figures runs/flux-mini-4x --out docs/images --readme README.md --metrics docs/metrics.md \
		--pictures "full=runs/pictures/full" "4x=runs/pictures/4x" "6 steps=runs/pictures/steps"

report-sample: ## make the committed sample report again after a change of the page; RUN=folder takes its data from a run
	$(BIN)/python -m schedsearch_reports.sample reports/sample/report.html $(if $(RUN),--run $(RUN))

report-vendor: ## bundle the plotting library that the report's page carries (needs npm)
	cd reports/vendor && npm ci && npm run build

# Held-out prompts, so that no search has seen them.
PROMPTS := "red heart, yellow background" "doughnut, white background" "cat face, blue background" \
	"smirking face, purple background" "tomato, white background" "star, purple background" \
	"flushed face, red background" "green circle, orange background"
