"""Seconds per image of the training pipelines with 2 workers, beside mmdet's and mmseg's own.

    python -m tools.benchmark.data --csv docs/benchmarks/data_cpu.csv

The real images of ``data/tiny/coco``: large-scale jitter of COCO instances to 1024 x 1024, and
semantic crops of 512 x 512, each by our row's configuration and by the peer's. Before any timing
the steps without a draw are compared on a few images: the largest difference of a pixel in grey
levels, and the share of pixels with equal annotation.
"""

import copy
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor

from tools.benchmark import harness, segmentors
from tools.benchmark.images import DATA

WORKERS, BATCH, IMAGES = 2, 2, 40
SCOPES = {'lsj': 'mmdet', 'semantic': 'mmseg'}
CONFIGS = {
    ('lsj', 'ours'): 'mask2former_r50_coco-instance',
    ('lsj', 'mmdet'): 'mask2former_r50_8xb2-lsj-50e_coco',
    ('semantic', 'ours'): 'mask2former_r50_ade20k',
    ('semantic', 'mmseg'): segmentors.MMSEG_R50,
}
# By which Pillow and OpenCV may round a pixel apart.
LEVELS = 2


def main() -> None:
    """See ``harness.main``."""
    harness.main(
        harness.Benchmark(
            'tools.benchmark.data',
            list(SCOPES),
            {case: implementations(case) for case in SCOPES},
            prepare,
            disagreement,
            per_step=IMAGES,
        )
    )


def implementations(case: str) -> list[str]:
    """Ours first, the peer last."""
    return ['ours', SCOPES[case]]


def prepare(case: str, implementation: str) -> harness.Step:
    """Twenty batches out of two workers that never stop."""
    from mmengine.runner import Runner

    loader = Runner.build_dataloader(
        {
            'dataset': dataset(case, implementation),
            'batch_size': BATCH,
            'num_workers': WORKERS,
            'persistent_workers': True,
            'sampler': {'type': 'InfiniteSampler', 'shuffle': True},
            'collate_fn': {'type': 'pseudo_collate'},
        },
        seed=0,
    )
    batches = iter(loader)

    def step() -> None:
        for _ in range(IMAGES // BATCH):
            next(batches)

    return step


def dataset(case: str, implementation: str) -> Any:
    """The images through one implementation's training pipeline."""
    return build(case, implementation, pipeline(case, implementation))


def pipeline(case: str, implementation: str) -> list[dict[str, Any]]:
    """As the configuration has it, with labels that begin at 0."""
    name = f'{CONFIGS[case, implementation]}.py'
    if implementation == 'ours':
        path = harness.ROOT / 'configs' / name
    else:
        package = importlib.import_module(implementation)
        path = Path(str(package.__file__)).parent / segmentors.MMSEG_FOLDER / name
    steps = copy.deepcopy(Config.fromfile(path).train_dataloader.dataset.pipeline)
    for step in steps:
        step.pop('reduce_zero_label', None)
    return steps


def build(case: str, implementation: str, steps: list[dict[str, Any]]) -> Any:
    """A data set of the tiny images with these steps."""
    init_default_scope(SCOPES[case])
    from mmengine.registry import DATASETS

    common = {'data_root': str(DATA), 'pipeline': steps}
    if case == 'semantic':
        prefix = {'img_path': 'img/train', 'seg_map_path': 'labelmap/train'}
        kind: dict[str, Any] = {'type': 'mmseg.BaseSegDataset', 'data_prefix': prefix}
    else:
        own = implementation == 'ours'
        kind = {
            'type': 'mmseg_m2f.InstanceDataset' if own else 'mmdet.CocoDataset',
            'ann_file': 'annotations/instances_train.json',
            'data_prefix': {'img': 'img/train'},
            'filter_empty' if own else 'filter_cfg': True if own else {'filter_empty_gt': True},
        }
    return DATASETS.build({**kind, **common})


def disagreement(case: str, names: Sequence[str]) -> harness.Agreement:
    """Of the images and annotations before any draw."""
    ours, theirs = (
        build(case, name, without_draws(pipeline(case, name))) for name in implementations(case)
    )
    found = {name_of(ours[index]): ours[index] for index in range(len(ours))}
    difference, equal = 0.0, []
    for index in range(4):
        expected = theirs[index]
        sample = found[name_of(expected)]
        pixels = (sample['inputs'].float() - expected['inputs'].float()).abs()
        difference = max(difference, float(pixels.max()))
        equal.append(np.mean((foreground(sample) == foreground(expected)).numpy()))
    return harness.Agreement(difference, LEVELS, float(np.mean(equal)))


def name_of(sample: dict[str, Any]) -> str:
    """Of the image."""
    return Path(sample['data_samples'].img_path).stem


def without_draws(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Loading, one fixed size, packing."""
    kept = []
    for step in steps:
        if step['type'] == 'mmseg_m2f.ResizeAndCrop':
            step = dict(step['resize'])
            if 'scale' in step:
                step['scale'] = 512
        if any(word in step['type'] for word in ('Flip', 'Crop', 'Photo', 'Filter')):
            continue
        if step['type'] in ('Pad', 'mmseg_m2f.PadToSize'):
            continue
        fixed = {'ratio_range': (1, 1), 'min_scale': 1, 'max_scale': 1, 'scales': [512]}
        kept.append({**step, **{key: value for key, value in fixed.items() if key in step}})
    return kept


def foreground(sample: dict[str, Any]) -> Tensor:
    """The label map, or which pixels belong to an instance."""
    data = sample['data_samples']
    if 'gt_sem_seg' in data:
        return data.gt_sem_seg.data
    if 'gt_panoptic_seg' in data:
        return data.gt_panoptic_seg.segment_idx[0] >= 0
    return torch.from_numpy(data.gt_instances.masks.masks).any(0)


if __name__ == '__main__':
    main()
