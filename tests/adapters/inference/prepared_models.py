"""Small segmentors and detectors, and what they find in a real image."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from mmengine import ConfigDict
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from tests.adapters import small_models
from tests.parity.parity_weights import redraw, tell_queries_apart

IMAGE = Path(__file__).parents[3] / 'data/tiny/coco/img/train/000000000436.jpg'
SIZE = (128, 160)


def batch(kind: str) -> dict[str, Any]:
    """A real image, as small as it may be."""
    if kind == 'detector':
        from mmdet.structures import DetDataSample as Sample
    else:
        from mmseg.structures import SegDataSample as Sample
    pixels = cv2.resize(cv2.imread(str(IMAGE)), SIZE[::-1], interpolation=cv2.INTER_AREA)
    sample = Sample(metainfo={'img_shape': SIZE, 'ori_shape': SIZE})
    return {'inputs': [torch.from_numpy(pixels).permute(2, 0, 1)], 'data_samples': [sample]}


def build(kind: str) -> nn.Module:
    """Build a model in evaluation mode, with weights and statistics that matter."""
    if kind == 'stock':
        pytest.importorskip('mmdet')
        from tests.adapters import stock_models

        return stock_models.build('mmseg')
    if kind == 'detector':
        pytest.importorskip('mmdet')
        init_default_scope('mmdet')
        model = MODELS.build(small_models.detector())
    else:
        init_default_scope('mmseg')
        config = small_models.segmentor()
        if kind == 'fcn':
            channels = small_models.CHANNELS[-1]
            config['decode_head'] = {'type': 'FCNHead', 'in_channels': channels, 'channels': 8}
            config['decode_head'].update(num_classes=3, norm_cfg={'type': 'BN'})
        model = MODELS.build(ConfigDict(config))
    if kind == 'fcn':
        redraw(model)
    else:
        tell_queries_apart(model, batch(kind))
    return model.eval()


def outputs(model: Any, kind: str) -> tuple[Tensor, Tensor]:
    """Return the scores (of pixels, or of a detector's instances) and the labels of the pixels."""
    inner = getattr(model, 'module', model)
    data = inner.data_preprocessor(batch(kind), training=False)
    data['inputs'] = data['inputs'].to(next(model.parameters()).dtype)
    with torch.no_grad():
        [sample] = model(**data, mode='predict')
    if kind == 'detector':
        return sample.pred_instances.scores, sample.pred_sem_seg.sem_seg
    return sample.seg_logits.data, sample.pred_sem_seg.data


def assert_near(found: Tensor, expected: Tensor, share: float) -> None:
    extent = float(expected.max() - expected.min())
    assert extent > 0
    assert float((found - expected).abs().max()) <= share * extent


def assert_same_labels(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Compare but for a pixel where two classes are equally likely."""
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert float((one == other).float().mean()) >= 0.999
