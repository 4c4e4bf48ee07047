"""Losses, gradients and the first updates against an implementation that shares nothing with ours.

The network is Hugging Face's, made narrow; matching and losses are the plain loops of
``slow_training``; the updates are a loop in torch with parameter groups written out here. Ours
are whole models, trained as the runner trains them. All in float64, with the same points.
"""

from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip('mmseg')
pytest.importorskip('mmdet')
pytest.importorskip('transformers')

import transformers
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample

from mmseg_m2f.checkpoints import from_huggingface
from mmseg_m2f.core import criterion
from tests.configs.rows import load
from tests.parity import slow_training as slow
from tests.parity.parity_weights import redraw

NUM_CLASSES, NUM_QUERIES, NUM_LAYERS, NUM_POINTS = 12, 8, 9, 48
SIZE = (64, 96)
WIDTH, FFN_DIM = 64, 48
CHANNELS = [16, 32, 64, 128]
SWIN = {'depths': [2] * 4, 'num_heads': [1, 2, 4, 8], 'window_size': 7, 'drop_path_rate': 0.0}
BACKBONES = {
    # Trained with fixed statistics: their scales and shifts learn, without decay.
    'resnet': {
        'type': 'ResNet',
        'depth': 50,
        'stem_channels': 8,
        'base_channels': 4,
        'norm_eval': True,
    },
    'swin': {'type': 'SwinTransformer', 'embed_dims': 16, **SWIN},
}
# Scope, model, name and type of the head.
KINDS = {
    'segmentor': ('mmseg', 'mmseg.EncoderDecoder', 'decode_head', 'Mask2FormerHead'),
    'detector': ('mmdet', 'mmseg_m2f.Mask2Former', 'panoptic_head', 'Mask2FormerUniversalHead'),
}


class Case(NamedTuple):
    """One batch: ``samples`` are for ours, ``targets`` for the plain loops."""

    images: Tensor
    samples: list[Any]
    targets: list[slow.Target]


def build_oracle(backbone):
    stages = {'out_features': ['stage1', 'stage2', 'stage3', 'stage4']}
    if backbone == 'resnet':
        settings = transformers.ResNetConfig(embedding_size=8, hidden_sizes=CHANNELS, **stages)
    else:
        settings = transformers.SwinConfig(
            embed_dim=16, attn_implementation='sdpa', **stages, **SWIN
        )
    config = transformers.Mask2FormerConfig(
        backbone_config=settings,
        num_labels=NUM_CLASSES,
        num_queries=NUM_QUERIES,
        decoder_layers=NUM_LAYERS + 1,  # counts the prediction on the learnt queries
        **dict.fromkeys(('feature_size', 'mask_feature_size', 'hidden_dim'), WIDTH),
        **dict.fromkeys(('encoder_feedforward_dim', 'dim_feedforward'), FFN_DIM),
    )
    oracle = transformers.Mask2FormerForUniversalSegmentation(config)
    redraw(oracle)
    return oracle.double().eval()


def build_ours(kind, backbone, oracle, points):
    """A segmentor or a detector with the oracle's weights, in training mode."""
    scope, model_type, head_name, head_type = KINDS[kind]
    backbone = dict(BACKBONES[backbone])
    backbone['type'] = f'{scope}.{backbone["type"]}'
    head = {
        'type': f'mmseg_m2f.{head_type}',
        'num_classes': NUM_CLASSES,
        'in_channels': CHANNELS,
        'num_queries': NUM_QUERIES,
        'pixel_decoder': {'channels': WIDTH, 'ffn_dim': FFN_DIM},
        'decoder': {'num_layers': NUM_LAYERS, 'ffn_dim': FFN_DIM},
        'matcher': {'points': points},
        'losses': {'points': {'num_points': NUM_POINTS}},
    }
    model = MODELS.build({'type': model_type, 'backbone': backbone, head_name: head})
    missing, unexpected = model.load_state_dict(renamed(oracle.state_dict(), kind), strict=False)
    assert not missing
    # Tables of window positions, which are no weights.
    assert all(name.endswith('relative_position_index') for name in unexpected)
    return model.double().train()


def renamed(values, kind):
    """The oracle's weights or gradients by our names."""
    _, _, head, _ = KINDS[kind]
    ours = from_huggingface(values)
    return {name.replace('decode_head.', f'{head}.'): value for name, value in ours.items()}


def label_map_case(*num_labels):
    """Per image patches of that many labels, with some that are ignored; 0: all are ignored."""
    samples, targets = [], []
    for number in num_labels:
        patches = torch.full((SIZE[0] // 8, SIZE[1] // 8), 255)
        if number:
            labels = torch.randperm(NUM_CLASSES)[:number]
            patches = labels[torch.randint(number, patches.shape)]
            patches.view(-1)[:number] = labels
            patches[-1, -3:] = 255
        label_map = patches.repeat_interleave(8, 0).repeat_interleave(8, 1)
        samples.append(SegDataSample(gt_sem_seg=PixelData(data=label_map[None])))
        present = [label for label in range(NUM_CLASSES) if (label_map == label).any()]
        assert len(present) == number
        targets.append(target(present, [label_map == label for label in present]))
    return Case(torch.randn(len(num_labels), 3, *SIZE, dtype=torch.float64), samples, targets)


def instance_case(*num_instances, num_empty=0):
    """Per image that many rectangles that may overlap, the first of them empty.

    The first image is smaller than the network's input: the padding belongs to no mask.
    """
    samples, targets = [], []
    for i, number in enumerate(num_instances):
        size = (50, 90) if i == 0 else SIZE
        # Of a class each: two of one class that no point falls into could be swapped at no cost.
        labels, masks = torch.randperm(NUM_CLASSES)[:number], np.zeros((number, *size), np.uint8)
        for mask in masks[num_empty:]:
            top, left = (int(torch.randint(length - 20, ())) for length in size)
            mask[top : top + 20, left : left + 15] = 1
        sample = DetDataSample(metainfo={'img_path': 'a.jpg', 'img_shape': size})
        sample.gt_instances = InstanceData(labels=labels, masks=BitmapMasks(masks, *size))
        samples.append(sample)
        padded = torch.zeros(number, *SIZE)
        padded[:, : size[0], : size[1]] = torch.from_numpy(masks)
        targets.append(target(labels.tolist(), list(padded)))
    return Case(torch.randn(len(num_instances), 3, *SIZE, dtype=torch.float64), samples, targets)


def target(labels, masks):
    stacked = torch.stack(masks) if masks else torch.zeros(0, *SIZE)
    return slow.Target(torch.tensor(labels, dtype=torch.long), stacked.double())


CASES = {
    'classes': ('segmentor', lambda: label_map_case(3, 5)),
    'an image of ignored pixels': ('segmentor', lambda: label_map_case(4, 0)),
    'ignored pixels only': ('segmentor', lambda: label_map_case(0, 0)),
    'more classes than queries': ('segmentor', lambda: label_map_case(11, 2)),
    'instances': ('detector', lambda: instance_case(3, 5)),
    'empty masks': ('detector', lambda: instance_case(3, 2, num_empty=2)),
    'an image without instances': ('detector', lambda: instance_case(0, 4)),
    'no instance': ('detector', lambda: instance_case(0, 0)),
    'more instances than queries': ('detector', lambda: instance_case(11, 12, num_empty=1)),
}


def draw(case, points):
    sizes, shared = (NUM_QUERIES, NUM_POINTS, NUM_LAYERS + 1), points == 'shared'
    return [slow.draw_points(len(target.labels), *sizes, shared=shared) for target in case.targets]


def our_losses(model, case, draws):
    # Ours draws for all predictions at once, and nothing to match where there is no target.
    queue = [points.match for points in draws if points.candidates.shape[1]]
    for points in draws:
        queue += [points.candidates.flatten(0, 1), points.rest.flatten(0, 1)]

    def sample_points(rows, points, device, dtype):
        drawn = queue.pop(0)
        assert (drawn.shape, drawn.dtype) == ((rows, points, 2), dtype)
        return drawn

    head = model.decode_head if hasattr(model, 'decode_head') else model.panoptic_head
    head.matcher.sample_points = head.criterion.points.sample_points = sample_points
    losses = model(case.images, case.samples, mode='loss')
    assert not queue, 'fewer draws than expected'
    return {name.removeprefix('decode.'): value for name, value in losses.items()}


def their_losses(oracle, case, draws, num_masks=None):
    out = oracle(case.images, output_auxiliary_logits=True)
    predictions = [
        (one['class_queries_logits'], one['masks_queries_logits'])
        for one in (*out.auxiliary_logits, out)
    ]
    return slow.all_losses(predictions, case.targets, draws, num_masks)


def check_terms(ours, theirs, limit=1e-8):
    assert len(theirs) == 30
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert abs((ours[name] - value).item()) <= limit, name


def check_gradients(model, oracle, kind):
    """Every number of every gradient; a parameter that nothing reaches has a gradient of 0."""
    found, expected = (
        {
            name: torch.zeros_like(param) if param.grad is None else param.grad
            for name, param in one.named_parameters()
        }
        for one in (model, oracle)
    )
    expected = {name: grad for name, grad in renamed(expected, kind).items() if name in found}
    assert found.keys() == expected.keys()
    global_norm = torch.stack([grad.norm() for grad in expected.values()]).norm()
    assert global_norm > 1
    for name, grad in expected.items():
        limit = 1e-4 * grad.abs().clamp(min=1e-6 * global_norm)
        assert ((found[name] - grad).abs() <= limit).all(), name


@pytest.mark.parametrize('points', ['shared', 'per_prediction'])
@pytest.mark.parametrize('name', CASES)
def test_every_term_and_every_gradient(name, points):
    kind, make = CASES[name]
    case, backbone = make(), 'swin' if points == 'shared' else 'resnet'
    oracle = build_oracle(backbone)
    model = build_ours(kind, backbone, oracle, points)
    draws = draw(case, points)
    ours, theirs = our_losses(model, case, draws), their_losses(oracle, case, draws)
    check_terms(ours, theirs)
    sum(ours.values()).backward()
    sum(theirs.values()).backward()
    check_gradients(model, oracle, kind)


@pytest.mark.parametrize('others', [2, 0])
def test_the_normalizer_is_the_mean_over_processes_once_per_step(others, monkeypatch):
    """Two processes, of which the other has ``others`` targets: 7 / 2, and 1 / 2 raised to 1."""
    calls = []

    def all_reduce(count):
        calls.append(count.item())
        count += others

    processes = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: True,
        all_reduce=all_reduce,
        get_world_size=lambda: 2,
    )
    monkeypatch.setattr(criterion, 'dist', processes)
    case = instance_case(2, 3, num_empty=1) if others else instance_case(1, 0)
    oracle = build_oracle('resnet')
    model = build_ours('detector', 'resnet', oracle, 'shared')
    draws = draw(case, 'shared')
    expected = 3.5 if others else 1.0
    check_terms(our_losses(model, case, draws), their_losses(oracle, case, draws, expected))
    assert calls == [5 if others else 1]


NUM_ITERATIONS = 160_000


def plain_training(oracle, steps):
    """The official loop: all that a step does, in the order in which it does it.

    The recipe is in the oracle's own words: its backbone is the encoder of pixels.
    """
    groups = []
    for path, module in oracle.named_modules():
        for name, param in module.named_parameters(recurse=False):
            is_norm = isinstance(module, nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm)
            is_table = isinstance(module, nn.Embedding) or 'relative_position_bias' in name
            lr = 1e-5 if 'pixel_level_module.encoder' in path else 1e-4
            decay = 0.0 if is_norm or is_table else 0.05
            groups.append({'params': [param], 'start': lr, 'lr': lr, 'weight_decay': decay})
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8)
    values = []
    for step, (case, points) in enumerate(steps):
        for group in optimizer.param_groups:
            group['lr'] = group['start'] * (1 - step / NUM_ITERATIONS) ** 0.9
        total = sum(their_losses(oracle, case, points).values())
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(oracle.parameters(), 0.01)
        optimizer.step()
        values.append(total.item())
    return values


def our_training(model, steps):
    """The wrapper and the schedule of a row, driven as MMEngine's loop drives them."""
    cfg = load('mask2former_r50_ade20k')
    assert cfg.train_cfg.max_iters == NUM_ITERATIONS
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper.to_dict())
    schedulers = [
        PARAM_SCHEDULERS.build(settings, default_args={'optimizer': wrapper})
        for settings in cfg.param_scheduler
    ]
    values = []
    for case, points in steps:
        with wrapper.optim_context(model):
            losses = our_losses(model, case, points)
        total, _ = model.parse_losses(losses)
        wrapper.update_params(total)
        for scheduler in schedulers:
            scheduler.step()
        values.append(total.item())
    return values


@pytest.mark.parametrize(('kind', 'backbone'), [('segmentor', 'swin'), ('detector', 'resnet')])
def test_five_steps(kind, backbone):
    make = label_map_case if kind == 'segmentor' else instance_case
    cases = [make(*numbers) for numbers in ((3, 5), (2, 0), (4, 4), (1, 10), (2, 3))]
    steps = [(case, draw(case, 'shared')) for case in cases]
    oracle = build_oracle(backbone)
    model = build_ours(kind, backbone, oracle, 'shared')
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    ours, theirs = our_training(model, steps), plain_training(oracle, steps)
    assert ours == pytest.approx(theirs, abs=1e-6, rel=0)
    # Then the first batch again: something was learnt meanwhile.
    our_last, their_last = our_losses(model, *steps[0]), their_losses(oracle, *steps[0])
    check_terms(our_last, their_last, limit=1e-7)
    assert sum(their_last.values()).item() < theirs[0] - 1e-3

    after = renamed({name: p.detach() for name, p in oracle.named_parameters()}, kind)
    for name, value in model.named_parameters():
        update = (after[name] - before[name]).norm()
        assert update > 0, name
        assert (value.detach() - after[name]).norm() <= 1e-3 * update, name
