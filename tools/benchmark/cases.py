"""The models, peers and images of the benchmarks of whole steps, by name."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from tools.benchmark import segmentors
from tools.benchmark.gpu_images import panoptic_training_batch
from tools.benchmark.images import panoptic_batch, semantic_batch

Batch = dict[str, Any]


class Case(NamedTuple):
    """``model`` is a name in ``segmentors.SPECS``; the last of ``peers`` is the baseline.

    ``test`` reads one image, ``train`` two with their annotation.
    """

    model: str
    peers: tuple[str, ...]
    test: Callable[[], Batch]
    train: Callable[[], Batch]

    @property
    def is_panoptic(self) -> bool:
        """And not semantic."""
        return self.model == 'panoptic'

    def share_weights(self, batch: Batch) -> None:
        """Draw weights for all layouts, with which several classes are found in ``batch``."""
        spec = segmentors.SPECS[self.model]
        segmentors.share_weights(spec, self.model, self.peers, batch)

    def build(self, implementation: str, **switches: bool) -> Any:
        """A model with these weights; the switches are those of ``segmentors.build``."""
        spec = segmentors.SPECS[self.model]
        return segmentors.build_shared(spec, self.model, implementation, **switches)


def _semantic(model: str, side: int, peers: tuple[str, ...] = ('hf', 'mmseg')) -> Case:
    test, train = (functools.partial(semantic_batch, side, number) for number in (1, 2))
    return Case(model, peers, test, train)


def _panoptic(scale: float, side: int) -> Case:
    """``scale`` of 800 x 1333 to test, squares of ``side`` to train."""
    train = functools.partial(panoptic_training_batch, side, 2)
    return Case('panoptic', ('mmdet',), functools.partial(panoptic_batch, scale), train)


_PANOPTIC, _SMALL_PANOPTIC = _panoptic(1.0, 512), _panoptic(0.25, 64)
CASES = {
    'r50_512': _semantic('r50', 512),
    'panoptic_800x1333': _PANOPTIC,
    'panoptic_512': _PANOPTIC,
    'panoptic': _PANOPTIC,
    'swin-l_640': _semantic('swin-l', 640, ('mmseg',)),
    'r50_256': _semantic('r50', 256),
    'r18_128': _semantic('r18', 128),
    'r18_64': _semantic('r18', 64),
    'panoptic_200x333': _SMALL_PANOPTIC,
    'panoptic_128': _panoptic(0.25, 128),
    'panoptic_64': _SMALL_PANOPTIC,
}
