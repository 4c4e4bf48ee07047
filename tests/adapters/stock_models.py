"""Stock Mask2Formers of mmseg and mmdet, narrow, with real images for them."""

import importlib
from pathlib import Path
from typing import Any

import cv2
import torch
from mmengine import Config
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from torch import Tensor, nn

from tests.layouts import FACADE
from tests.parity import trajectories
from tests.parity.parity_weights import redraw

HEADS = {'mmseg': 'decode_head', 'mmdet': 'panoptic_head'}
SEGMENTOR = 'mask2former_r50_8xb2-160k_ade20k-512x512'
SIZES = {'mmseg': (64, 96), 'mmdet': trajectories.SIZE}
NUM_CLASSES = trajectories.NUM_THINGS + trajectories.NUM_STUFF
# Every width of the stock heads to a small one.
SMALLER = {
    'embed_dims': {256: 64},
    'feat_channels': {256: 64},
    'out_channels': {256: 64},
    'num_feats': {128: 32},
    'feedforward_channels': {1024: 96, 2048: 128},
    'num_groups': {32: 8},
    'num_layers': {6: 2, 9: 4},
    'num_queries': {100: 12, 200: 14},
    'num_points': {12544: 64},
}


def stock_configs(package: str) -> dict[str, Path]:
    (root,) = importlib.util.find_spec(package).submodule_search_locations
    folder = Path(root, '.mim/configs/mask2former')
    return {path.stem: path for path in sorted(folder.glob('*.py'))}


def reduce(cfg: Config, package: str, full: bool = False) -> Config:
    """Let a stock config take small images; its model gets small widths unless it stays full."""
    model = cfg.model
    backbone, head, preprocessor = model.backbone, model[HEADS[package]], model.data_preprocessor
    backbone.init_cfg = None
    sized = preprocessor if package == 'mmseg' else preprocessor.batch_augments[0]
    sized.size = SIZES[package]
    if full:
        return cfg
    if backbone.type == 'ResNet':
        backbone.update(stem_channels=8, base_channels=8)
        head.in_channels = [32, 64, 128, 256]
    else:
        backbone.update(embed_dims=4 * backbone.num_heads[0], depths=[2, 2, 2, 2])
        head.in_channels = [backbone.embed_dims * 2**level for level in range(4)]
    make_smaller(head)
    make_smaller(model.get('train_cfg') or {})
    return cfg


def make_smaller(section: dict[str, Any]) -> None:
    for key, value in section.items():
        if isinstance(value, dict):
            make_smaller(value)
        elif key in SMALLER:
            section[key] = SMALLER[key].get(value, value)


def segmentor_config(num_classes: int = NUM_CLASSES) -> Config:
    cfg = reduce(Config.fromfile(stock_configs('mmseg')[SEGMENTOR]), 'mmseg')
    cfg.model.decode_head.num_classes = num_classes
    cfg.model.decode_head.loss_cls.class_weight = [1.0] * num_classes + [0.1]
    return cfg


def build_model(package: str, config: Any) -> Any:
    init_default_scope(package)
    return importlib.import_module(f'{package}.registry').MODELS.build(config)


def build(package: str, **head: Any) -> nn.Module:
    """In evaluation mode; every weight matters. ``head`` overrides settings of the head."""
    if package == 'mmseg':
        config = segmentor_config().model
    else:
        config = trajectories.stock_model()
        # Low enough that random weights give some of each.
        thresholds = {'object_mask_thr': 0.1, 'iou_thr': 0.1, 'max_per_image': 30}
        config.test_cfg.update(instance_on=True, **thresholds)
    config[HEADS[package]].update(head)
    built = build_model(package, config)
    redraw(built)
    with torch.no_grad():  # so that segments of several classes come out
        head_of(built).cls_embed.weight.mul_(4)
    return built.eval()


def head_of(model: nn.Module) -> Any:
    return model.decode_head if hasattr(model, 'decode_head') else model.panoptic_head


def batch(package: str) -> dict[str, Any]:
    """Return two photos with their annotations, in the layout of the pipelines."""
    if package == 'mmdet':
        # The second batch: in the first one image is empty.
        inputs, samples = trajectories.batches(2)[1]
        return {'inputs': list(inputs), 'data_samples': [sample.clone() for sample in samples]}
    from mmseg.structures import SegDataSample

    height, width = SIZES['mmseg']
    inputs, samples = [], []
    for path in sorted((FACADE / 'labelmap/train').glob('*.png'))[:2]:
        image = cv2.imread(str(FACADE / 'img/train' / f'{path.stem}.jpg'))
        labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        labels = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)
        inputs.append(torch.from_numpy(image).permute(2, 0, 1))
        label_map = PixelData(data=torch.from_numpy(labels)[None].long())
        meta = {'img_path': path.stem, 'img_shape': (height, width), 'ori_shape': (50, 70)}
        samples.append(SegDataSample(gt_sem_seg=label_map, metainfo=meta))
    return {'inputs': inputs, 'data_samples': samples}


def prepared(model: nn.Module, data: dict[str, Any], training: bool = True) -> tuple[Tensor, list]:
    data = {key: [value.clone() for value in values] for key, values in data.items()}
    data = model.data_preprocessor(data, training=training)
    dtype = next(model.parameters()).dtype
    return data['inputs'].to(dtype), data['data_samples']


@torch.no_grad()
def logits(model: nn.Module, data: dict) -> tuple[list[Tensor], list[Tensor]]:
    images, samples = prepared(model, data)
    return head_of(model)(model.extract_feat(images), samples)


def losses(model: nn.Module, data: dict) -> dict[str, Tensor]:
    images, samples = prepared(model, data)
    with trajectories.same_points(0, images.dtype):
        return model.loss(images, samples)


@torch.no_grad()
def results(model: nn.Module, data: dict, **options: Any) -> list[Any]:
    return model.predict(*prepared(model, data, training=False), **options)
