"""The cases of the benchmarks, as data. This file imports no torch: see `run`."""

from typing import NamedTuple


class Case(NamedTuple):
    """A thing to measure, and the implementations to measure it on.

    Attributes:
        kind: the module of this folder that builds and compares the implementations.
        title: what the tables call the case.
        implementations: names; the last is the baseline of all ratios.
        more: implementations that run only where they are named.
        model: a name in `models.SPECS`, for the kinds `inference` and `training`.
        size: height and width of the images, in pixels.
        batch: images per step.
        part: what of the kind is measured, where it has several parts.
        steps, warm_up: timed and untimed steps of a process.
        per_step: how many times a step does what its time is stated for.
    """

    kind: str
    title: str
    implementations: tuple[str, ...]
    more: tuple[str, ...] = ()
    model: str = ''
    size: tuple[int, int] = (0, 0)
    batch: int = 1
    part: str = ''
    steps: int = 1
    warm_up: int = 1
    per_step: int = 1


SEMANTIC = ('ours', 'ours-cpu', 'mmseg')
PANOPTIC = ('ours', 'ours-cpu', 'mmdet')
IMAGES_PER_STEP = 40


def _deform_attn(part: str, height: int, width: int, batch: int) -> Case:
    title = f'deformable attention, {part}, {height} x {width}, batch {batch}'
    names = ('ours', 'reference', 'mmcv')
    size = (height, width)
    return Case('deform_attn', title, names, size=size, batch=batch, part=part, steps=5)


def _memory(part: str, height: int, width: int) -> Case:
    title = f'{part}, {height} x {width}'
    return Case('memory', title, ('ours',), size=(height, width), part=part, warm_up=0)


def _data(part: str, title: str, peer: str) -> Case:
    title = f'training image, {title}, 2 workers'
    return Case('data', title, ('ours', peer), part=part, steps=2, per_step=IMAGES_PER_STEP)


CASES = {
    'inference-r50-512': Case(
        'inference',
        'image to label map, R50, 512 x 512',
        SEMANTIC,
        more=('hf',),
        model='r50',
        size=(512, 512),
        steps=3,
    ),
    'inference-panoptic-800x1333': Case(
        'inference',
        'image to panoptic segments and instances, R50, 800 x 1333',
        PANOPTIC,
        model='panoptic',
        size=(800, 1333),
    ),
    'inference-swin-l-640': Case(
        'inference',
        'image to label map, Swin-L, 640 x 640',
        SEMANTIC,
        model='swin-l',
        size=(640, 640),
    ),
    'training-r50-512': Case(
        'training',
        'training step, R50, two images of 512 x 512',
        SEMANTIC,
        more=('hf',),
        model='r50',
        size=(512, 512),
        batch=2,
    ),
    'deform-attn-forward-512': _deform_attn('forward', 512, 512, 2),
    'deform-attn-both-512': _deform_attn('both passes', 512, 512, 2),
    'deform-attn-forward-800x1344': _deform_attn('forward', 800, 1344, 1),
    'deform-attn-both-800x1344': _deform_attn('both passes', 800, 1344, 1),
    'memory-semantic': _memory('semantic', 4000, 5000),
    'memory-instance': _memory('instance', 4000, 5000),
    'memory-instance-rle': _memory('instance-rle', 4000, 5000),
    'memory-panoptic': _memory('panoptic', 4000, 5000),
    'memory-losses-0': _memory('losses of 0 targets', 1024, 1024),
    'memory-losses-300': _memory('losses of 300 targets', 1024, 1024),
    'data-lsj-1024': _data('lsj', 'large-scale jitter to 1024 x 1024', 'mmdet'),
    'data-semantic-512': _data('semantic', 'semantic crops of 512 x 512', 'mmseg'),
}
# The table of the first page.
MAIN = tuple(name for name, case in CASES.items() if 'ours-cpu' in case.implementations)
# `make bench`: a quarter of an hour.
SHORT = (
    'inference-r50-512',
    'inference-panoptic-800x1333',
    'training-r50-512',
    'deform-attn-forward-512',
    'deform-attn-both-512',
    'memory-semantic',
    'data-semantic-512',
)
