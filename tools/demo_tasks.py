"""The tasks of the demo: configs, measures, and the head of OpenMMLab to compare with."""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, NamedTuple


class Measure(NamedTuple):
    """A metric: its ``key`` in the log of tools/test.py and its highest value there, ``full``."""

    key: str
    full: float


class Task(NamedTuple):
    """A task of the demo.

    Attributes:
        library: the framework that the task runs in; it has the other head.
        peer_needs: the library that the other head imports besides.
        results: the folder of the predictions.
        label_maps: the folder of the predicted label maps.
    """

    config: str
    peer_config: str
    library: str
    peer_needs: str
    measures: Mapping[str, Measure]
    results: str
    label_maps: str | None

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
        peer_needs='mmdet',
        measures=MIOU,
        results='label_maps',
        label_maps='label_maps',
    ),
    'instance': Task(
        config='configs/demo/mask2former_r18_facade-instance.py',
        peer_config='configs/demo/mmdet_r18_facade-instance.py',
        library='mmdet',
        peer_needs='mmdet',
        measures=AP,
        results='results',
        label_maps=None,
    ),
    'panoptic': Task(
        config='configs/demo/mask2former_r18_facade-panoptic.py',
        peer_config='configs/demo/mmdet_r18_facade-panoptic.py',
        library='mmdet',
        peer_needs='mmdet',
        measures={**MIOU, **PQ, **AP},
        results='results',
        label_maps='results/semantic',
    ),
}
DEFAULT = 'panoptic'
DISTRIBUTIONS = {
    'mmseg': 'onedl-mmsegmentation (upstream: mmsegmentation)',
    'mmdet': 'onedl-mmdetection (upstream: mmdet)',
}


def rows(
    task: Task,
    names: Mapping[str, str],
    results: Mapping[str, Any],
    shown: Callable[[Any], str],
    spent: Callable[[Any], str],
    width: int,
) -> list[str]:
    """Return a line for each model in ``names``; ``shown`` and ``spent`` format its numbers."""
    lines = [f'  {"":28}' + ''.join(f'{name:>{width}}' for name in task.headline)]
    for key, name in names.items():
        result = results[key]
        if 'left_out' in result:
            lines.append(f'  {name:28}left out: {result["left_out"]}')
            continue
        numbers = [result[measure] for measure in task.headline]
        texts = ['cannot' if number is None else shown(number) for number in numbers]
        columns = ''.join(f'{text:>{width}}' for text in texts)
        lines.append(f'  {name:28}{columns}   {spent(result)}')
    return lines


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
    task = TASKS[name]
    if find_spec(task.peer_needs) is None:
        return f"{task.peer_needs} is not installed, and {task.library}'s own head needs it"
    return None
