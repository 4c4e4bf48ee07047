"""Stock Mask2Formers of mmseg and mmdet, narrow, with real images for them."""

import copy
from pathlib import Path
from typing import Any

import cv2
import torch
from mmengine import Config
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from torch import Tensor, nn

from tests.parity import dropin_models, trajectories
from tests.parity.parity_weights import redraw

FACADE = Path(__file__).parents[2] / 'data/tiny/facade'
HEADS = {'mmseg': 'decode_head', 'mmdet': 'panoptic_head'}
CONFIGS = {'mmseg': 'mask2former_r50_8xb2-160k_ade20k-512x512'}
NUM_CLASSES = trajectories.NUM_THINGS + trajectories.NUM_STUFF


def segmentor_config() -> Config:
    (path,) = (p for p in dropin_models.stock_configs('mmseg') if p.stem == CONFIGS['mmseg'])
    cfg = dropin_models.reduce(Config.fromfile(path), 'mmseg', full=False)
    head = cfg.model.decode_head
    head.num_classes = NUM_CLASSES
    head.loss_cls.class_weight = [1.0] * NUM_CLASSES + [0.1]
    return cfg


def model_config(package: str) -> Any:
    if package == 'mmseg':
        return segmentor_config().model
    model = trajectories.stock_model()
    # Low enough that random weights give some of each.
    model.test_cfg.update(instance_on=True, object_mask_thr=0.1, iou_thr=0.1, max_per_image=30)
    return model


def build(package: str, **head: Any) -> nn.Module:
    """In evaluation mode; every weight matters. ``head`` overrides settings of the head."""
    init_default_scope(package)
    model = copy.deepcopy(model_config(package))
    model[HEADS[package]].update(head)
    if package == 'mmseg':
        from mmseg.registry import MODELS
    else:
        from mmdet.registry import MODELS
    built = MODELS.build(model)
    redraw(built)
    with torch.no_grad():  # so that segments of several classes come out
        for name, value in built.named_parameters():
            if name.endswith('cls_embed.weight'):
                value.mul_(4)
    return built.eval()


def head_of(model: nn.Module) -> Any:
    return model.decode_head if hasattr(model, 'decode_head') else model.panoptic_head


def batch(package: str) -> dict[str, Any]:
    if package == 'mmdet':
        # The second batch: in the first one image is empty.
        inputs, samples = trajectories.batches(2)[1]
        return {'inputs': list(inputs), 'data_samples': [sample.clone() for sample in samples]}
    from mmseg.structures import SegDataSample

    height, width = dropin_models.SIZE
    inputs, samples = [], []
    for path in sorted((FACADE / 'labelmap/train').glob('*.png'))[:2]:
        image = cv2.imread(str(FACADE / 'img/train' / f'{path.stem}.jpg'))
        labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        labels = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)
        inputs.append(torch.from_numpy(image).permute(2, 0, 1))
        label_map = torch.from_numpy(labels)[None].long()
        meta = {'img_path': path.stem, 'img_shape': (height, width), 'ori_shape': (50, 70)}
        samples.append(SegDataSample(gt_sem_seg=PixelData(data=label_map), metainfo=meta))
    return {'inputs': inputs, 'data_samples': samples}


def prepared(model: nn.Module, data: dict[str, Any], training: bool = True) -> tuple[Tensor, list]:
    data = {key: [value.clone() for value in values] for key, values in data.items()}
    data = model.data_preprocessor(data, training=training)
    dtype = next(model.parameters()).dtype
    return data['inputs'].to(dtype), data['data_samples']


def logits(model: nn.Module, data: dict) -> tuple[list[Tensor], list[Tensor]]:
    images, samples = prepared(model, data)
    with torch.no_grad():
        return head_of(model)(model.extract_feat(images), samples)


def losses(model: nn.Module, data: dict) -> dict[str, Tensor]:
    images, samples = prepared(model, data)
    with trajectories.same_points(0, images.dtype):
        return model.loss(images, samples)


def results(model: nn.Module, data: dict, **options: Any) -> list[Any]:
    images, samples = prepared(model, data, training=False)
    with torch.no_grad():
        return model.predict(images, samples, **options)
