# make demo | test | test-long | check | setup, for the stack and the torch named here:
#   STACK   onedl (in .venv) or openmmlab (upstream, in .venv-openmmlab)
#   TORCH   what pip installs as torch, e.g. TORCH='torch torchvision' on a GPU machine;
#           left out: as last time, at first the CPU-tested torch==2.13.0
#   PYTHON  the interpreter that creates the environment, 3.10 to 3.13
# and make demo for the
#   TASK    panoptic (one model for all three questions), instance or semantic
STACK ?= onedl
TORCH ?=
PYTHON ?= python3
TASK ?= panoptic
PYTEST_ARGS ?=

VENV := $(if $(filter onedl,$(STACK)),.venv,.venv-$(STACK))
RUN := $(VENV)/bin/python

export TASK
.PHONY: setup check-task demo test test-long check lock

setup:
	@command -v $(PYTHON) >/dev/null || \
	  { echo "set-up stopped: no '$(PYTHON)' here: install Python 3.10 to 3.13, or set PYTHON" >&2; exit 1; }
	@$(PYTHON) scripts/setup_env.py --stack '$(STACK)' --venv '$(VENV)' --torch '$(TORCH)' </dev/null

# Before the set-up, which takes minutes.
check-task:
	@case "$$TASK" in panoptic|instance|semantic) ;; *) \
	  echo "demo stopped: no task '$$TASK': TASK must be panoptic, instance or semantic" >&2; exit 1 ;; esac

demo: check-task setup
	@$(RUN) tools/demo.py --task '$(TASK)'

test: setup
	@$(RUN) -m pytest $(PYTEST_ARGS)

test-long: setup
	@$(RUN) -m pytest -m long $(PYTEST_ARGS)

check: setup
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy

lock: setup
	@$(RUN) scripts/lock.py > requirements/constraints-$(STACK).txt
