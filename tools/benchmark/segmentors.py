"""Models with our head and those of the peers, of equal structure and weights.

``build(spec, implementation)`` gives the same network as ``ours``, ``mmseg``, ``mmdet`` or ``hf``
(Hugging Face), each with its own code from the backbone's maps on; Hugging Face's with its own
backbone, too.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mmseg
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from torch import nn

from mmseg_m2f.checkpoints import huggingface_config, to_theirs
from tools.benchmark import harness
from tools.benchmark.weights import load_weights, redraw, save_weights, tell_queries_apart

MMSEG_FOLDER = '.mim/configs/mask2former'
MMSEG_R50 = 'mask2former_r50_8xb2-160k_ade20k-512x512'
MMSEG_SWIN_L = 'mask2former_swin-l-in22k-384x384-pre_8xb2-160k_ade20k-640x640'
MMDET_R50 = 'mask2former_r50_8xb2-lsj-50e_coco-panoptic'
# Random masks overlap: with the usual 0.8 no panoptic segment would be left to form.
OVERLAP_THR = 0.05


class Spec(NamedTuple):
    """A model. ``config`` is the peer's own, ``depth`` that of a ResNet."""

    package: str
    config: str
    num_classes: int
    depth: int = 50
    num_queries: int = 100


SPECS = {
    'r50': Spec('mmseg', MMSEG_R50, 150),
    'r18': Spec('mmseg', MMSEG_R50, 150, 18),
    'swin-l': Spec('mmseg', MMSEG_SWIN_L, 150),
    'panoptic': Spec('mmdet', MMDET_R50, 133),
}


def build_ours(depth: int, num_classes: int, num_queries: int = 100) -> nn.Module:
    """Our head on a ResNet, everything else as the paper has it."""
    return build(Spec('mmseg', MMSEG_R50, num_classes, depth, num_queries), 'ours')


def build_mmseg(depth: int, num_classes: int, num_queries: int = 100) -> nn.Module:
    """The head that mmseg itself has, by its own configuration; it needs mmdet."""
    return build(Spec('mmseg', MMSEG_R50, num_classes, depth, num_queries), 'mmseg')


def build(
    spec: Spec, implementation: str, *, checkpointing: bool = False, mixed_precision: bool = False
) -> Any:
    """A model with the weights it is born with.

    With ``checkpointing`` its backbone and, of ours, its decoders keep fewer activations;
    ``mixed_precision`` is that of our pixel decoder.
    """
    model = _mmdet_model(spec) if spec.package == 'mmdet' else _mmseg_model(spec)
    model.backbone.with_cp = checkpointing
    if implementation == 'ours':
        switch = {'checkpointing': checkpointing}
        pixel_decoder = {**switch, 'mixed_precision': mixed_precision}
        _put_ours(model, spec, {'pixel_decoder': pixel_decoder, 'decoder': switch})
    elif implementation != spec.package:
        raise ValueError(f'{implementation} has no model of {spec}')
    # The peers' parts are registered in each package's own registry.
    if spec.package == 'mmdet':
        from mmdet.registry import MODELS
    else:
        from mmseg.registry import MODELS
    return MODELS.build(model)


def share_weights(spec: Spec, name: str, peers: Sequence[str], batch: dict[str, Any]) -> None:
    """Draw the weights of a model and leave them, in each layout, to the run's processes.

    Several classes are found in ``batch``.
    """
    torch.manual_seed(0)
    ours = build(spec, 'ours')
    head = ours.panoptic_head if spec.package == 'mmdet' else ours.decode_head
    redraw(head)
    tell_queries_apart(ours, head, batch)
    state = ours.state_dict()
    save_weights(_file(name, 'ours'), state)
    for peer in peers:
        theirs = to_theirs(state, peer)
        save_weights(_file(name, peer), theirs)
        if peer == 'hf':
            settings = json.dumps(huggingface_config(theirs))
            _file(name, peer).with_suffix('.settings').write_text(settings)


def build_shared(spec: Spec, name: str, implementation: str, **switches: bool) -> Any:
    """A model with the weights that ``share_weights`` left; the switches are those of ``build``."""
    if implementation == 'hf':
        model = _build_hf(_file(name, 'hf').with_suffix('.settings'))
    else:
        model = build(spec, implementation, **switches)
    load_weights(_file(name, implementation), model)
    return model


def _file(name: str, layout: str) -> Path:
    return harness.folder() / f'{name}-{layout}.weights'


def _build_hf(settings: Path) -> Any:
    import transformers

    config = transformers.Mask2FormerConfig(**json.loads(settings.read_text()))
    model = transformers.Mask2FormerForUniversalSegmentation(config)
    freeze_batch_norms(model)
    return model


def freeze_batch_norms(model: nn.Module) -> None:
    """As the other implementations' backbones have them: not trained, statistics kept."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
            module.eval()


def _put_ours(model: ConfigDict, spec: Spec, settings: Mapping[str, Any]) -> None:
    common = {'num_classes': spec.num_classes, 'num_queries': spec.num_queries, **settings}
    if spec.package == 'mmseg':
        model.type = 'mmseg_m2f.SemanticSegmentor'
        in_channels = model.decode_head.in_channels
        model.decode_head = {
            'type': 'mmseg_m2f.Mask2FormerHead',
            'in_channels': in_channels,
            **common,
        }
        return
    head = model.panoptic_head
    own = {
        'type': 'mmseg_m2f.Mask2FormerUniversalHead',
        'in_channels': head.in_channels,
        'thing_ids': list(range(head.num_things_classes)),
        **common,
    }
    test_cfg = {'semantic_on': False, 'object_mask_thr': 0.8, 'overlap_thr': OVERLAP_THR}
    kept = {key: model[key] for key in ('data_preprocessor', 'backbone')}
    model.clear()
    model.update(type='mmseg_m2f.Mask2Former', panoptic_head=own, test_cfg=test_cfg, **kept)


def _mmseg_model(spec: Spec) -> ConfigDict:
    init_default_scope('mmseg')
    folder = Path(mmseg.__file__).parent / MMSEG_FOLDER
    model = Config.fromfile(folder / f'{spec.config}.py').model
    model.backbone.init_cfg = None
    head = model.decode_head
    if model.backbone.type == 'ResNet':
        # Frozen statistics: both models get the same backbone anyway.
        norm = {'type': 'BN', 'requires_grad': False}
        model.backbone.update(depth=spec.depth, norm_cfg=norm, norm_eval=True)
        if spec.depth < 50:
            head.in_channels = [channels // 4 for channels in head.in_channels]
    head.update(num_classes=spec.num_classes, num_queries=spec.num_queries)
    head.loss_cls.class_weight = [1.0] * spec.num_classes + [0.1]
    model.data_preprocessor.update(size=None, size_divisor=32)
    return model


def _mmdet_model(spec: Spec) -> ConfigDict:
    import mmdet

    init_default_scope('mmdet')
    folder = Path(mmdet.__file__).parent / MMSEG_FOLDER
    model = Config.fromfile(folder / f'{spec.config}.py').model
    model.backbone.update(depth=spec.depth, init_cfg=None)
    model.panoptic_head.num_queries = spec.num_queries
    model.data_preprocessor.batch_augments = None
    model.test_cfg.iou_thr = OVERLAP_THR
    return model
