"""The tasks of the demo: configs, measures, and the head of OpenMMLab to compare with."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import NamedTuple


class Measure(NamedTuple):
    """A metric: its ``key`` in the log of tools/test.py and its highest value there, ``full``."""

    key: str
    full: float


class Task(NamedTuple):
    """A task of the demo.

    Attributes:
        library: the framework that the task runs in; it has the other head.
        results: the folder of the predictions.
        label_maps: the folder of the predicted label maps.
    """

    config: str
    peer_config: str
    library: str
    measures: Mapping[str, Measure]
    results: str = 'results'
    label_maps: str | None = None

    @property
    def headline(self) -> list[str]:
        """Return the measures that the summary shows."""
        return [name for name in ('mIoU', 'PQ', 'AP') if name in self.measures]


MIOU = {'mIoU': Measure('mIoU', 100), 'aAcc': Measure('aAcc', 100)}
AP = {
    'AP': Measure('coco/segm_mAP', 1),
    'AP50': Measure('coco/segm_mAP_50', 1),
    'AP75': Measure('coco/segm_mAP_75', 1),
}
PQ = {name: Measure(f'coco_panoptic/{name}', 100) for name in ('PQ', 'SQ', 'RQ', 'PQ_th', 'PQ_st')}
TASKS = {
    'semantic': Task(
        config='configs/demo/mask2former_r18_facade.py',
        peer_config='configs/demo/mmseg_r18_facade.py',
        library='mmseg',
        measures=MIOU,
        results='label_maps',
        label_maps='label_maps',
    ),
    'instance': Task(
        config='configs/demo/mask2former_r18_facade-instance.py',
        peer_config='configs/demo/mmdet_r18_facade-instance.py',
        library='mmdet',
        measures=AP,
    ),
    'panoptic': Task(
        config='configs/demo/mask2former_r18_facade-panoptic.py',
        peer_config='configs/demo/mmdet_r18_facade-panoptic.py',
        library='mmdet',
        measures={**MIOU, **PQ, **AP},
        label_maps='results/semantic',
    ),
}
DEFAULT = 'panoptic'
DISTRIBUTIONS = {
    'mmseg': 'onedl-mmsegmentation (upstream: mmsegmentation)',
    'mmdet': 'onedl-mmdetection (upstream: mmdet)',
}


def why_not(name: str) -> str | None:
    """Return a sentence about the library that the task lacks here, None if it lacks none."""
    library = TASKS[name].library
    if find_spec(library) is not None:
        return None
    others = [other for other, task in TASKS.items() if task.library != library]
    return (
        f'TASK={name} needs {library}, which is not installed: install {DISTRIBUTIONS[library]}, '
        f'or choose TASK={" or ".join(others)}'
    )


def why_no_peer(name: str, skip: bool) -> str | None:
    """Return why the other head is left out, None if it is not."""
    if skip:
        return '--skip-peer was given'
    if find_spec('mmdet') is None:
        return f"mmdet is not installed, and {TASKS[name].library}'s own head needs it"
    return None
