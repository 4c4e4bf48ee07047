"""Script for torchrun: the processes share the images as MMEngine's sampler does, and evaluate."""

import json
import sys
from pathlib import Path

from torch import distributed

import mmseg_m2f.adapters  # noqa: F401
from tests.adapters.metrics.evaluation_scenes import evaluate_all


def main() -> None:
    distributed.init_process_group('gloo')
    rank = distributed.get_rank()
    metrics = evaluate_all(Path(sys.argv[1]), rank, distributed.get_world_size())
    Path(sys.argv[1], f'metrics_{rank}.json').write_text(json.dumps(metrics))
    distributed.destroy_process_group()


if __name__ == '__main__':
    main()
