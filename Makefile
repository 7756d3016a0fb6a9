# `make help` lists what there is. Everything is installed in .venv, once; stamps in it say what is done.
# Variables: PYTHON=python3.12, CC= CXX= (llama.cpp's compiler), CUDA=0 or 1, ARGS="-k name" for the tests;
# those of the benchmarks are with each: PAIR, BACKEND, PROMPTS, OUT, ARGS (the program's own options).

PYTHON ?= python3
# Most tests wait for a daemon: one more at a time than there are cores.
WORKERS ?= $(shell $(PYTHON) -c "import os; print(min(4, 1 + len(os.sched_getaffinity(0))))")
CUDA ?= $(if $(shell command -v nvidia-smi),1,0)
VENV := .venv
BIN := $(VENV)/bin
INT4 := .venv-int4
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet --quiet
# What the programs of bench/ have in common; a --json in ARGS comes later, and so counts.
options = --pair $(or $(PAIR),qwen2.5-coder) --json $(VENV)/$@$(if $(PAIR),-$(PAIR))$(if $(BACKEND),-$(BACKEND)).json
backend = $(if $(BACKEND),DRAFTD_BACKEND=$(BACKEND))
beside-peers = $(options) --backend $(or $(BACKEND),transformers) --prompts $(PROMPTS) \
	--python llama_server=.venv-peers/bin/python --python openvino_genai_=.venv-peers/bin/python
PACKAGES := ipc models drafts daemon
FILES := $(sort $(wildcard $(addsuffix /*.*,$(PACKAGES) daemon/page daemon/quality systemd)))
EDITABLE := --no-build-isolation --config-settings editable_mode=strict

.PHONY: help demo screenshots recording test test-qwen test-systemd test-million lint bench peers bench-peers bench-memory \
	bench-simulated bench-simulated-apps bench-verify bench-quality bench-roofline bench-scaling bench-prefill \
	bench-hot-loop bench-suffix bench-int4 bench-report bench-check kills fuzz soak pings install clean prompts-given FORCE
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-20s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: install ## fetch a small pair (98 MB), start a daemon, ask it a question, show what drafting gained
	@$(BIN)/python -m draftd.daemon.demo

test: install ## the tests (ARGS="-k name" chooses)
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-qwen: install ## the tests that need the qwen2.5-coder pair (fetches 1.6 GB)
	@$(BIN)/draftd models pull qwen2.5-coder
	@$(BIN)/python -m pytest -m qwen --timeout 900 $(ARGS)

test-systemd: install ## the units in a real systemd of their own (needs root)
	@$(BIN)/python -m pytest -m systemd $(ARGS)

test-million: install ## a million answers of a table model in rejection mode against its law (minutes)
	@$(BIN)/python -m pytest -m million -s $(ARGS)

lint: install ## ruff and mypy
	@$(BIN)/ruff check . .ci/build-llama
	@$(BIN)/mypy $(addprefix -p draftd.,$(PACKAGES))
	@MYPYPATH=bench $(BIN)/mypy tests docs examples .ci/build-llama
	@$(BIN)/mypy bench --exclude bench/peers
	@$(BIN)/mypy $(wildcard integrations/*)

prompts-given: # before anything is installed for them
	@test -n "$(PROMPTS)" || { echo 'make $(MAKECMDGOALS): say which prompts: make $(MAKECMDGOALS) PROMPTS=prompts.jsonl'; exit 2; }

bench: prompts-given install ## PROMPTS=file.jsonl PAIR=smollm2 ARGS="--per-category 2": speed with and without drafting
	@$(backend) $(BIN)/draftd bench --pair $(or $(PAIR),smollm2) --prompts $(PROMPTS) $(ARGS)

peers: install ## the libraries that draftd is compared with, in .venv-peers and .venv
	@test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	@for package in xllamacpp openvino-genai; do \
		.venv-peers/bin/python -m pip install --quiet $$package || echo "no $$package here: its peer will be missing"; \
	done
	@$(PIP) --constraint $(VENV)/constraints.txt scikit-learn || echo "no scikit-learn here: hf generate will be missing"

bench-peers: prompts-given peers ## PROMPTS=file.jsonl BACKEND=transformers PAIR=qwen2.5-coder: draftd beside its peers
	@$(BIN)/python bench/side_by_side.py $(beside-peers) $(ARGS)

bench-memory: prompts-given peers ## PROMPTS=file.jsonl BACKEND=transformers PAIR=qwen2.5-coder: what each form takes alone
	@$(BIN)/python bench/memory.py $(beside-peers) $(ARGS)

bench-int4: install $(INT4)/made ## PAIR=qwen2.5-coder: OpenVINO's int4 models in OUT, for ARGS="--int4 OUT" of bench-peers
	@$(BIN)/python bench/int4.py --pair $(or $(PAIR),qwen2.5-coder) --optimum $(INT4)/bin/optimum-cli \
		$(or $(OUT),$(VENV)/$@-$(or $(PAIR),qwen2.5-coder))

bench-simulated: prompts-given install ## PROMPTS=file.jsonl PAIR=qwen2.5-coder: the controller in places that this machine can't be
	@$(backend) $(BIN)/python bench/simulated_gpu.py $(options) --prompts $(PROMPTS) $(ARGS)

bench-simulated-apps: prompts-given install ## PROMPTS=file.jsonl PAIR=qwen2.5-coder: the same with several apps at once
	@$(backend) $(BIN)/python bench/simulated_apps.py $(options) --prompts $(PROMPTS) $(ARGS)

bench-verify: prompts-given install ## PROMPTS=file.jsonl PAIR=qwen2.5-coder: what coupling and rejection accept
	@$(backend) $(BIN)/python bench/verify_modes.py $(PROMPTS) $(options) $(ARGS)

bench-quality: install ## PAIR=qwen2.5-coder: scores of target, quantised target and draft alone
	@$(backend) $(BIN)/draftd bench --quality $(options) $(ARGS)

bench-roofline: install ## PAIR=qwen2.5-coder BACKEND=transformers: the best that bandwidth and costs allow
	@$(BIN)/python bench/roofline.py $(options) --backend $(or $(BACKEND),transformers) $(ARGS)

bench-scaling: install ## PAIR=qwen2.5-coder BACKEND=transformers: apps, contexts, draft lengths, cores
	@$(BIN)/python bench/scaling.py $(options) --backend $(or $(BACKEND),transformers) $(ARGS)

bench-prefill: install ## PAIR=qwen2.5-coder BACKEND=transformers: the first token with and without prefill
	@$(BIN)/python bench/prefill.py $(options) --backend $(or $(BACKEND),transformers) $(ARGS)

bench-hot-loop: install ## PAIR=qwen2.5-coder: where each millisecond of a round goes
	@$(backend) $(BIN)/python bench/hot_loop.py $(options) $(ARGS)

bench-suffix: install ## the suffix draft's times and memory by tokens remembered
	@$(BIN)/python bench/suffix.py --json $(VENV)/$@.json $(ARGS)

bench-report: install ## ARGS="a.json b.json": docs/benchmarks.md's results from what the others wrote
	@test -n "$(ARGS)" || { echo 'make $@: say which files: make $@ ARGS="$(VENV)/bench-roofline.json"'; exit 2; }
	@$(BIN)/python bench/report.py $(ARGS)

bench-check: install ## ratios within one run against bench/floors.toml: fails when draftd became slower
	@$(BIN)/python bench/check.py $(ARGS)

kills: install ## COUNT=100 PAIR=smollm2: end the engine in mid-stream so often, and compare the answers
	@$(BIN)/python -m tests.reliability.kills --count $(or $(COUNT),100) $(if $(PAIR),--pair $(PAIR))

fuzz: install ## FRAMES=100000: frames that no client sends, against the real daemon
	@$(BIN)/python -m tests.reliability.fuzz --frames $(or $(FRAMES),100000)

soak: install ## FOR=900: eight clients that cancel, vanish and flood
	@$(BIN)/python -m tests.reliability.soak --seconds $(or $(FOR),900)

pings: install ## PAIR=smollm2: round trips idle and under load, and the front's memory
	@$(BIN)/python -m tests.reliability.pings --pair $(or $(PAIR),smollm2)

screenshots: install ## the pictures of the gateway's page in docs/, made anew (needs Chromium)
	@$(BIN)/python -m pytest -m screenshots tests/daemon/test_page_pictures.py

recording: install ## the README's recording of `make demo`, made anew
	@$(BIN)/python docs/record.py docs/demo.svg "make demo" $(BIN)/python -m draftd.daemon.demo

install: $(VENV)/package ## the virtual environment with everything in it

clean: ## remove .venv, .venv-peers, .venv-int4, build output; models and the compiled llama.cpp stay in the cache directory
	rm -rf $(VENV) .venv-peers $(INT4) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "draftd needs Python 3.11 or newer, and $(PYTHON) is older or missing: make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) >/dev/null \
		|| { echo "could not create $(VENV): sudo apt install python3-venv, then make again"; exit 1; }
	@$(PIP) 'setuptools>=80' && touch $@

# With a GPU torch is not held at the CPU build; the other pins hold everywhere.
$(VENV)/constraints.txt: constraints-cpu.txt $(VENV)/made
	@if [ "$(CUDA)" = 1 ]; then sed '/^torch==/d' $<; else cat $<; fi >$@

# An environment of its own: optimum-intel wants an older transformers. A torchvision of another build than
# torch's would keep that from loading, and a model of text needs none.
$(INT4)/made: | install
	@test -x $(INT4)/bin/python || $(PYTHON) -m venv $(INT4)
	@sed -n '/^torch==/p' $(VENV)/constraints.txt >$(INT4)/constraints.txt
	@$(INT4)/bin/python -m pip install --quiet --constraint $(INT4)/constraints.txt 'optimum-intel[openvino]'
	@$(INT4)/bin/python -m pip uninstall --quiet --yes torchvision
	@touch $@

# Another compiler or CPU than last time gives another key, and so another wheel.
$(VENV)/llama: $(VENV)/made FORCE
	@key=$$($(BIN)/python .ci/build-llama --key) || exit; \
		if [ "$$key" != "$$(cat $@ 2>/dev/null)" ]; then \
			wheel=$$($(BIN)/python .ci/build-llama) && $(PIP) --force-reinstall --no-deps "$$wheel" \
				&& echo "$$key" >$@; \
		fi

$(VENV)/dependencies: pyproject.toml $(VENV)/constraints.txt $(VENV)/llama
	@echo "installing Python packages (torch is the large one: a few minutes, once)"
	@$(PIP) --constraint $(VENV)/constraints.txt $(EDITABLE) --editable '.[engine,http,dev]' && touch $@

# Strict editable mode links file by file: a new or removed file needs new links, an edited one does not.
$(VENV)/package: $(VENV)/dependencies FORCE
	@echo '$(FILES)' | cmp -s - $@ || { $(PIP) --no-deps $(EDITABLE) --editable . && echo '$(FILES)' >$@; }
