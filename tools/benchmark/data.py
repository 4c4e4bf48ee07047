"""Seconds per image of a training pipeline with two workers, beside mmdet's and mmseg's own.

Large-scale jitter of COCO instances to 1024 x 1024, and semantic crops of 512 x 512, each by the
configuration of our row and by the peer's. What ours make is tested in
`tests/parity/test_pipelines.py`.
"""

from typing import Any

from mmengine.config import Config
from mmengine.registry import init_default_scope

from tools.benchmark.cases import IMAGES_PER_STEP, Case
from tools.benchmark.images import DATA
from tools.benchmark.measure import ROOT, Step
from tools.benchmark.models import MMSEG_R50, config_file

WORKERS, BATCH = 2, 2
ROWS = {
    ('lsj', 'ours'): 'mask2former_r50_coco-instance',
    ('lsj', 'mmdet'): 'mask2former_r50_8xb2-lsj-50e_coco',
    ('semantic', 'ours'): 'mask2former_r50_ade20k',
    ('semantic', 'mmseg'): MMSEG_R50,
}


def prepare(case: Case, implementation: str) -> Step:
    """Return the reading of images from two workers that never stop."""
    from mmengine.runner import Runner

    dataset = build(case, implementation, pipeline(case, implementation))
    loader = Runner.build_dataloader(
        {
            'dataset': dataset,
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
        for _ in range(IMAGES_PER_STEP // BATCH):
            next(batches)

    return step


def pipeline(case: Case, implementation: str) -> list[dict[str, Any]]:
    """Return the steps of the configuration, with labels that begin at 0."""
    name = ROWS[case.part, implementation]
    ours = ROOT / f'configs/{name}.py'
    path = ours if implementation == 'ours' else config_file(implementation, name)
    steps = Config.fromfile(path).train_dataloader.dataset.pipeline
    for step in steps:
        step.pop('reduce_zero_label', None)
    return steps


def build(case: Case, implementation: str, steps: list[dict[str, Any]]) -> Any:
    """Build a data set of the tiny images with these steps."""
    init_default_scope(case.implementations[-1])
    from mmengine.registry import DATASETS

    if case.part == 'semantic':
        prefix = {'img_path': 'img/train', 'seg_map_path': 'labelmap/train'}
        kind: dict[str, Any] = {'type': 'mmseg.BaseSegDataset', 'data_prefix': prefix}
    elif implementation == 'ours':
        kind = {'type': 'mmseg_m2f.InstanceDataset', 'filter_empty': True}
    else:
        kind = {'type': 'mmdet.CocoDataset', 'filter_cfg': {'filter_empty_gt': True}}
    if case.part == 'lsj':
        annotations = 'annotations/instances_train.json'
        kind.update(ann_file=annotations, data_prefix={'img': 'img/train'})
    return DATASETS.build({**kind, 'data_root': str(DATA), 'pipeline': steps})
