# make demo | test | test-long | check | bench | setup, for the stack and the torch named here:
#   STACK   onedl (in .venv) or openmmlab (upstream, in .venv-openmmlab)
#   TORCH   what pip installs as torch, e.g. TORCH='torch torchvision' on a GPU machine;
#           left out: as last time, at first the CPU-tested torch==2.13.0
#   PYTHON  the interpreter that creates the environment, 3.10 to 3.13
# and make demo for the
#   TASK    panoptic (one model for all three questions), instance or semantic
#   SEEDS   all of it once for each, then mean and deviation, e.g. SEEDS='0 1 2'; left out: once
# and make test for
#   JOBS    processes side by side, 2 unless given; 0: in this one
# and make bench, a short form of the benchmarks on the CPU, for
#   BENCH_THREADS  threads of each process, all cores unless given
#   BENCH_OUT      the folder of the CSV files
STACK ?= onedl
TORCH ?=
PYTHON ?= python3
TASK ?= panoptic
SEEDS ?=
PYTEST_ARGS ?=
JOBS ?= 2
BENCH_THREADS ?=
BENCH_OUT ?= work_dirs/benchmarks

VENV := $(if $(filter onedl,$(STACK)),.venv,.venv-$(STACK))
RUN := $(VENV)/bin/python

export TASK
.PHONY: setup check-task demo test test-long check bench lock

setup:
	@command -v $(PYTHON) >/dev/null || \
	  { echo "set-up stopped: no '$(PYTHON)' here: install Python 3.10 to 3.13, or set PYTHON" >&2; exit 1; }
	@$(PYTHON) scripts/setup_env.py --stack '$(STACK)' --venv '$(VENV)' --torch '$(TORCH)' </dev/null

# Before the set-up, which takes minutes.
check-task:
	@case "$$TASK" in panoptic|instance|semantic) ;; *) \
	  echo "demo stopped: no task '$$TASK': TASK must be panoptic, instance or semantic" >&2; exit 1 ;; esac

demo: check-task setup
	@$(RUN) tools/demo.py --task '$(TASK)' $(if $(SEEDS),--seeds $(SEEDS))

# A process for each core, and each with one thread: small tensors gain nothing from more.
test: setup
	@OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

test-long: setup
	@$(RUN) -m pytest -m long $(PYTEST_ARGS)

check: setup
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy

# A quarter of an hour; docs/benchmarks/README.md has the full form.
bench: setup
	@$(RUN) -m tools.benchmark.run --short --processes 2 --out $(BENCH_OUT) \
	  $(if $(BENCH_THREADS),--threads $(BENCH_THREADS))

lock: setup
	@$(RUN) scripts/lock.py > requirements/constraints-$(STACK).txt
