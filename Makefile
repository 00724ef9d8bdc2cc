# Every command of the project is spelled here and nowhere else; `make help` lists them.

PYTHON ?= $(firstword $(foreach p,python3.13 python3.12 python3.11 python3 python,$(if $(shell $(p) -c 'import sys; print(sys.version_info >= (3, 11) or "")' 2>/dev/null),$(p))))
BIN := .venv/bin
LOCK := pip-compile --quiet --generate-hashes --strip-extras --allow-unsafe --no-header \
	--no-emit-index-url --no-emit-trusted-host --no-emit-find-links

.DEFAULT_GOAL := help
.PHONY: help demo test check unit flow faults fuzz mutants bench integration docs format chaos chaos-table \
	kafka kafka-stop lock dist clean

help: ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: .venv/.ready ## real Kafka + sample upstream + connector on this machine; DEMO_SECONDS=40 ends it by itself
	@$(BIN)/connector demo $(if $(DEMO_SECONDS),--seconds $(DEMO_SECONDS))

test: check faults integration chaos ## everything CI runs

check: .venv/.ready ## formatting, lint, types, layers, unit and flow tests; under two minutes
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/pytest -q -n auto tests/unit tests/flow

unit: .venv/.ready ## unit tests alone
	$(BIN)/pytest -q tests/unit

flow: .venv/.ready ## flow tests alone, in virtual time
	$(BIN)/pytest -q tests/flow

faults: .venv/.ready ## the reader against servers that stall, lie and break off, the writer against every error of Kafka
	$(BIN)/pytest -q tests/faults

fuzz: .venv/.ready ## five million hostile inputs for each parser of the stream; FUZZ_INPUTS=n for another number
	$(BIN)/python tests/fuzz/fuzz.py --inputs $(or $(FUZZ_INPUTS),5000000)

mutants: .venv/.ready ## deliberate bugs, one at a time: the tests named for each must go red; ONLY=name,name JOBS=n
	@test -n "$$CONNECTOR_TEST_BOOTSTRAP" || $(BIN)/python deploy/local/kafka.py fetch
	$(BIN)/python tests/mutants/mutants.py $(if $(ONLY),--only $(ONLY)) --jobs $(or $(JOBS),2)

integration: .venv/.ready ## against a real Kafka, started here or named by CONNECTOR_TEST_BOOTSTRAP
	@test -n "$$CONNECTOR_TEST_BOOTSTRAP" || $(BIN)/python deploy/local/kafka.py fetch
	$(BIN)/pytest -q -n $(or $(WORKERS),3) --dist worksteal tests/integration

chaos: .venv/.ready ## replicas, network, Kafka and upstreams under faults; SEED=n, DURATION_S=n, RESULTS=file
	@$(BIN)/python deploy/local/kafka.py fetch
	@PYTHONPATH=tests:examples:deploy/local $(BIN)/python -m chaos --seed $(or $(SEED),10) \
		--duration-s $(or $(DURATION_S),60) $(if $(REPLICAS),--replicas $(REPLICAS)) \
		$(if $(STREAMS),--streams $(STREAMS)) $(if $(RESULTS),--results $(RESULTS))

chaos-table: .venv/.ready ## the table of docs/chaos.md, from the figures in RESULTS=file
	@PYTHONPATH=tests:examples:deploy/local $(BIN)/python -m chaos.table $(RESULTS)

bench: .venv/.ready ## speed, memory and latency beside a bare loop; SECONDS=, ROUNDS=, MEMORY_SECONDS=600, ONLY=, QUICK=1
	@$(BIN)/python deploy/local/kafka.py fetch
	$(BIN)/python tests/bench/bench.py $(if $(QUICK),--seconds 2 --rounds 1 --memory-seconds 10) \
		$(if $(SECONDS),--seconds $(SECONDS)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(ONLY),--only $(ONLY)) \
		$(if $(MEMORY_SECONDS),--memory-seconds $(MEMORY_SECONDS)) $(if $(DOCUMENT),--document)

docs: .venv/.ready ## write the generated parts of the documentation anew
	$(BIN)/python docs/generate.py

format: .venv/.ready ## format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

kafka: .venv/.ready ## leave a broker running on 127.0.0.1:9092 for hand work
	@$(BIN)/python deploy/local/kafka.py start

kafka-stop: ## stop that broker
	@$(BIN)/python deploy/local/kafka.py stop

lock: .venv/.ready ## write requirements/*.txt anew from pyproject.toml
	$(BIN)/$(LOCK) --upgrade -o requirements/run.txt pyproject.toml
	$(BIN)/$(LOCK) --extra dev -c requirements/run.txt -o requirements/dev.txt pyproject.toml

dist: .venv/.ready ## build the wheel
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation -w dist .

clean: ## forget the virtual environment, the fetched Kafka and all caches
	rm -rf .venv .kafka dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

.venv/.ready: requirements/dev.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer found: install one, or say PYTHON=/path/to/python3." >&2; exit 1; }
	@echo "Setting up .venv with $(PYTHON) ..."
	@rm -rf .venv
	@$(PYTHON) -m venv .venv 2>/dev/null || { \
		test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
		apt-get update -qq && apt-get install -y -qq python3-venv && rm -rf .venv && $(PYTHON) -m venv .venv; \
	} || { echo "Python has no venv module: install python3-venv." >&2; exit 1; }
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@
