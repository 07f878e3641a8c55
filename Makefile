# Two commands on a fresh machine: `make demo` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
PYTHON ?= python3
export PYTHON

VENV := .venv/.installed
WORKSPACE := install/.built_on_wheels
IN_WORKSPACE := . ./env.sh &&

# What colcon reads. Every other file is linked into install/, not copied: edited it counts at once, a new one needs a build.
BUILT_FROM := $(shell find src launch training -name package.xml -o -name CMakeLists.txt -o -name setup.py -o -name setup.cfg \
                -o -name '*.msg' -o -name '*.srv' -o -name '*.action')
LIST_OF_LINKED := install/.linked

# Scenes that nothing shipped was trained on; each task in turn.
DECODE_EPISODES := data/decode_episodes
DECODE_TASKS := pick:red:blue place:green:red push:red:left pick:green:yellow place:blue:green push:yellow:right

.PHONY: help setup build demo record test bench-decode nano lint format clean FORCE

help:
	@echo 'make setup    virtual environment, pinned wheels, built workspace; then ". ./env.sh"'
	@echo 'make demo     simulated episodes through the whole ROS graph, results in runs/'
	@echo '              EPISODES=10  SEED=first seed  TASK=pick|place|push'
	@echo 'make record   demonstrations of the scripted operator, through teleoperation and recorder'
	@echo '              EPISODES=20  SEED=first seed  TASK=pick|place|push  OUT=directory'
	@echo 'make test     lint, types and every test'
	@echo 'make bench-decode  how soon a reply is there, into benchmarks/results/decode.json and .svg (half an hour)'
	@echo '              CHECKPOINT=nano  DTYPE=auto|float32|bfloat16  LOOKS=at most so many at an episode'
	@echo 'make nano     train a checkpoint like the embedded one, for all three tasks, into data/nano (some hours on two cores)'
	@echo 'make build    build the workspace again'
	@echo 'make lint     check style and types;  make format  correct the style'
	@echo 'make clean    remove the build, keep the virtual environment'

setup: $(WORKSPACE)
	@:

$(VENV): requirements.txt requirements-dev.txt requirements-assets.txt scripts/create_venv.sh scripts/prepare_ros_wheels.py
	@scripts/create_venv.sh

$(LIST_OF_LINKED): FORCE
	@mkdir -p install
	@find src launch training config -type f -not -path '*/.*' -not -path '*/test/*' -not -name '*.py[co]' | sort >$@.new
	@cmp -s $@.new $@ || cp $@.new $@

$(WORKSPACE): $(VENV) scripts/build_workspace.sh colcon.meta $(BUILT_FROM) $(LIST_OF_LINKED)
	@scripts/build_workspace.sh

build: $(VENV)
	@scripts/build_workspace.sh

demo: setup
	@$(IN_WORKSPACE) exec python -m molmoact_bringup.demo \
	    $(if $(EPISODES),--episodes '$(EPISODES)') $(if $(SEED),--seed '$(SEED)') $(if $(TASK),--task '$(TASK)')

record: setup
	@$(IN_WORKSPACE) exec python -m molmoact_bringup.record \
	    $(if $(EPISODES),--episodes '$(EPISODES)') $(if $(SEED),--seed '$(SEED)') $(if $(TASK),--task '$(TASK)') \
	    $(if $(OUT),--out '$(OUT)')

test: setup lint
	@$(IN_WORKSPACE) exec pytest

bench-decode: setup
	@[ -d $(DECODE_EPISODES) ] || { rm -rf $(DECODE_EPISODES).new; $(IN_WORKSPACE) molmoact record --episodes 24 --seed 4000 \
	    --wander none --task $(DECODE_TASKS) --out $(DECODE_EPISODES).new && mv $(DECODE_EPISODES).new $(DECODE_EPISODES); }
	@$(IN_WORKSPACE) exec python benchmarks/decode.py $(DECODE_EPISODES) --checkpoint '$(or $(CHECKPOINT),nano)' \
	    --dtype '$(or $(DTYPE),auto)' $(if $(LOOKS),--looks '$(LOOKS)') --json benchmarks/results/decode.json --plot benchmarks/results/decode.svg

nano: setup
	@$(IN_WORKSPACE) exec scripts/train_nano.sh

lint: $(VENV)
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/mypy

format: $(VENV)
	@.venv/bin/ruff check --fix
	@.venv/bin/ruff format

clean:
	rm -rf build install log
