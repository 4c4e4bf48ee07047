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
# and make bench, the benchmarks on the CPU in less than half an hour, for
#   BENCH_THREADS  of each process
#   BENCH_OUT      the folder of the tables
STACK ?= onedl
TORCH ?=
PYTHON ?= python3
TASK ?= panoptic
SEEDS ?=
PYTEST_ARGS ?=
JOBS ?= 2
BENCH_THREADS ?= 2
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

# A short form of the tables in docs/benchmarks, whose README has the commands in full. bfloat16 only
# where the processor multiplies it: elsewhere it takes longer than float32.
BENCH = $(RUN) -W ignore -m tools.benchmark.$(1) --csv $(BENCH_OUT)/$(1).csv
BENCH_ONCE = --threads $(BENCH_THREADS) --pairs 1 --steps 1
BENCH_TWICE = --threads $(BENCH_THREADS) --pairs 2 --steps 1
HAS_BF16 = $(RUN) -W ignore -c 'from mmseg_m2f.adapters.dtypes import has_bfloat16; print(has_bfloat16())'
BENCH_BF16 = $(if $(filter True,$(shell $(HAS_BF16))),ours-bf16)

bench: setup
	@$(call BENCH,counters) --cases r50_512
	@$(call BENCH,ops) $(BENCH_ONCE) --cases 512x512b2_forward 512x512b2_both
	@$(call BENCH,inference) $(BENCH_TWICE) --cases r50_512 panoptic_800x1333 \
	  --implementations ours $(BENCH_BF16) hf mmdet mmseg
	@$(call BENCH,train_step) $(BENCH_TWICE) --cases r50_512 \
	  --implementations ours ours-checkpointed hf mmseg
	@$(call BENCH,postprocess) $(BENCH_ONCE) --implementations ours ours-rle \
	  --cases instance_4000x5000 panoptic_4000x5000 loss_300x1024
	@$(call BENCH,data) --pairs 1
	@$(call BENCH,scaling) $(BENCH_ONCE) --implementations ours \
	  --cases targets_1 targets_300 side_256 side_1024

lock: setup
	@$(RUN) scripts/lock.py > requirements/constraints-$(STACK).txt
