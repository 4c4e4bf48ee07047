"""Models with our head and with those of the peers, of equal structure and with equal weights.

`build(spec, implementation)` returns the same network as `ours`, `mmseg` or `mmdet`, each with its
own code after the backbone; `ours-cpu` is ours after `mmseg_m2f.cpu.speed_up`. Hugging Face's `hf`
has its own backbone, too, and is built from shared weights only.
"""

import importlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from mmseg_m2f.checkpoints import huggingface_config, to_theirs
from tools.benchmark.measure import shared_folder

MMSEG_R50 = 'mask2former_r50_8xb2-160k_ade20k-512x512'
MMSEG_SWIN_L = 'mask2former_swin-l-in22k-384x384-pre_8xb2-160k_ade20k-640x640'
MMDET_R50 = 'mask2former_r50_8xb2-lsj-50e_coco-panoptic'
# Random masks overlap: with the usual 0.8 no panoptic segment would be left.
OVERLAP_THR = 0.05
# Factors of the random weights: those that write into the queries of the decoder, the spread of the
# class logits over the queries, and the mask logits.
BRANCH, SPREAD, SHARPNESS = 0.25, 6.0, 4.0


class Spec(NamedTuple):
    """A network: the package and the name of the peer's config, and what differs from that."""

    package: str
    config: str
    num_classes: int
    depth: int = 50  # of a ResNet


SPECS = {
    'r50': Spec('mmseg', MMSEG_R50, 150),
    'r18': Spec('mmseg', MMSEG_R50, 150, depth=18),
    'swin-l': Spec('mmseg', MMSEG_SWIN_L, 150),
    'panoptic': Spec('mmdet', MMDET_R50, 133),
}


def build(spec: Spec, implementation: str, **pixel_decoder: Any) -> Any:
    """Build a network with fresh weights; `pixel_decoder` are settings of ours."""
    config = _mmdet_config(spec) if spec.package == 'mmdet' else _mmseg_config(spec)
    if implementation in ('ours', 'ours-cpu'):
        _use_our_head(config, spec, pixel_decoder)
    elif implementation != spec.package:
        raise ValueError(f'{implementation} has no model of {spec}')
    # Each package has its parts in a registry of its own.
    if spec.package == 'mmdet':
        from mmdet.registry import MODELS
    else:
        from mmseg.registry import MODELS
    model = MODELS.build(config)
    if implementation == 'ours-cpu':
        from mmseg_m2f import cpu  # type: ignore[attr-defined,unused-ignore]  # may be deleted

        cpu.speed_up(model)
    return model


def share_weights(name: str, implementations: Iterable[str], batch: dict[str, Any]) -> None:
    """Draw the weights of `SPECS[name]` and write them, in each layout, into the shared folder.

    The network finds several classes in the images of `batch`.
    """
    torch.manual_seed(0)
    ours = build(SPECS[name], 'ours')
    redraw(head_of(ours))
    tell_queries_apart(ours, batch)
    state = ours.state_dict()
    _save(_file(name, 'ours'), state)
    for peer in implementations:
        if peer.startswith('ours'):
            continue
        theirs = to_theirs(state, peer)
        _save(_file(name, peer), theirs)
        if peer == 'hf':
            settings = json.dumps(huggingface_config(theirs))
            _file(name, peer).with_suffix('.settings').write_text(settings)


def build_shared(name: str, implementation: str, **pixel_decoder: Any) -> Any:
    """Build a network with the weights that `share_weights` wrote."""
    if implementation == 'hf':
        model = _build_huggingface(_file(name, 'hf').with_suffix('.settings'))
    else:
        model = build(SPECS[name], implementation, **pixel_decoder)
    _load(_file(name, implementation.removesuffix('-cpu')), model)
    return model


def head_of(model: Any) -> Any:
    """Return the head of a segmentor or detector."""
    return model.decode_head if hasattr(model, 'decode_head') else model.panoptic_head


def is_huggingface(model: Any) -> bool:
    """Tell by the name of the class, since importing the module is slow for all others."""
    return type(model).__name__ == 'Mask2FormerForUniversalSegmentation'


def freeze_batch_norms(model: nn.Module) -> None:
    """Neither train batch norms nor their statistics, as the other implementations have it."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
            module.eval()


@torch.no_grad()
def redraw(head: nn.Module) -> None:
    """Draw the weights of one of our heads so that every layer matters.

    The initial ones are a poor test: all offsets of the deformable attention are alike, and mask
    logits lie near 0, where a rounding error changes an attention mask.
    """
    generator = torch.Generator().manual_seed(0)
    for name, value in head.named_parameters():
        if 'sampling_offsets' in name and name.endswith('weight'):
            std = 0.5 * value.shape[1] ** -0.5
        elif 'query' in name or 'level_embed' in name:
            std = 1.0
        elif value.dim() > 1:
            # What all queries gather from the image must not drown what tells them apart.
            is_branch = 'decoder.layers' in name and ('out_proj' in name or 'linear2' in name)
            std = (BRANCH if is_branch else 1.0) * value[0].numel() ** -0.5
        else:
            continue
        value.copy_(std * torch.randn(value.shape, generator=generator))


@torch.no_grad()
def tell_queries_apart(model: Any, batch: dict[str, Any]) -> None:
    """Let segments of several classes survive in an image, as a trained model would.

    What the mask embeddings of all queries have in common is subtracted, then what their class
    logits have in common; these are scaled until the best class is sure.
    """
    data = model.eval().data_preprocessor(batch, training=False)
    head = head_of(model)
    features = head.pixel_decoder(model.extract_feat(data['inputs']))
    decoder = head.decoder
    embed = decoder.predict(features).mask_embed
    decoder.mask_embed[-1].bias.sub_(embed.mean((0, 1)))
    logits = decoder.predict(features).class_logits
    factor = SPREAD / (logits - logits.mean((0, 1))).std()
    decoder.class_embed.bias.sub_(logits.mean((0, 1)))
    for parameter in decoder.class_embed.parameters():
        parameter.mul_(factor)
    for parameter in decoder.mask_embed[-1].parameters():
        parameter.mul_(SHARPNESS)


def _file(name: str, layout: str) -> Path:
    return shared_folder() / f'{name}-{layout}.weights'


def _save(path: Path, state: dict[str, Tensor]) -> None:
    """Write one array after the other, so that reading needs no second copy of the model."""
    path.with_suffix('.names').write_text(json.dumps(list(state)))
    with path.open('wb') as file:
        for value in state.values():
            np.save(file, value.detach().numpy())


@torch.no_grad()
def _load(path: Path, model: nn.Module) -> None:
    state = model.state_dict()
    with path.open('rb') as file:
        for name in json.loads(path.with_suffix('.names').read_text()):
            state[name].copy_(torch.from_numpy(np.load(file)))


def _build_huggingface(settings: Path) -> Any:
    import transformers

    config = transformers.Mask2FormerConfig(**json.loads(settings.read_text()))
    model = transformers.Mask2FormerForUniversalSegmentation(config)
    freeze_batch_norms(model)
    return model


def _use_our_head(config: ConfigDict, spec: Spec, pixel_decoder: dict[str, Any]) -> None:
    semantic = spec.package == 'mmseg'
    theirs = config.decode_head if semantic else config.panoptic_head
    settings = {'num_classes': spec.num_classes, 'in_channels': theirs.in_channels}
    if pixel_decoder:
        settings['pixel_decoder'] = pixel_decoder
    if semantic:
        config.type = 'mmseg_m2f.SemanticSegmentor'
        config.decode_head = {'type': 'mmseg_m2f.Mask2FormerHead', **settings}
        return
    kept = {key: config[key] for key in ('data_preprocessor', 'backbone')}
    things = list(range(theirs.num_things_classes))
    config.clear()
    config.update(
        type='mmseg_m2f.Mask2Former',
        panoptic_head={
            'type': 'mmseg_m2f.Mask2FormerUniversalHead',
            'thing_ids': things,
            **settings,
        },
        test_cfg={'semantic_on': False, 'object_mask_thr': 0.8, 'overlap_thr': OVERLAP_THR},
        **kept,
    )


def _mmseg_config(spec: Spec) -> ConfigDict:
    model = _peer_config(spec)
    head = model.decode_head
    if model.backbone.type == 'ResNet':
        # Frozen statistics for all: every implementation gets the same backbone.
        norm = {'type': 'BN', 'requires_grad': False}
        model.backbone.update(depth=spec.depth, norm_cfg=norm, norm_eval=True)
        if spec.depth < 50:
            head.in_channels = [channels // 4 for channels in head.in_channels]
    head.num_classes = spec.num_classes
    head.loss_cls.class_weight = [1.0] * spec.num_classes + [0.1]
    model.data_preprocessor.update(size=None, size_divisor=32)
    return model


def _mmdet_config(spec: Spec) -> ConfigDict:
    model = _peer_config(spec)
    model.backbone.depth = spec.depth
    model.data_preprocessor.batch_augments = None
    model.test_cfg.iou_thr = OVERLAP_THR
    return model


def _peer_config(spec: Spec) -> ConfigDict:
    init_default_scope(spec.package)
    model = Config.fromfile(config_file(spec.package, spec.config)).model
    model.backbone.init_cfg = None
    return model


def config_file(package: str, name: str) -> Path:
    """Return a Mask2Former config that a peer's package ships."""
    module = importlib.import_module(package)
    return Path(str(module.__file__)).parent / '.mim/configs/mask2former' / f'{name}.py'
