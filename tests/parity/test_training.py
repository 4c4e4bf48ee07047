"""Losses, gradients and the first updates against an implementation that shares nothing with ours.

The network is Hugging Face's, made narrow; matching and losses are the plain loops of
``slow_training``; the updates are a loop in torch with parameter groups written out here. Ours
are whole models, trained as the runner trains them. All in float64, with the same points.
"""

from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmseg_m2f.checkpoints import from_huggingface
from mmseg_m2f.core import criterion

pytest.importorskip('mmseg')
pytest.importorskip('mmdet')
transformers = pytest.importorskip('transformers')

from mmdet.registry import MODELS as MMDET_MODELS  # noqa: E402
from mmdet.structures import DetDataSample  # noqa: E402
from mmdet.structures.mask import BitmapMasks  # noqa: E402
from mmengine.optim import build_optim_wrapper  # noqa: E402
from mmengine.registry import PARAM_SCHEDULERS  # noqa: E402
from mmengine.structures import InstanceData, PixelData  # noqa: E402
from mmseg.registry import MODELS as MMSEG_MODELS  # noqa: E402
from mmseg.structures import SegDataSample  # noqa: E402

from tests.configs.rows import load  # noqa: E402
from tests.parity import slow_training as slow  # noqa: E402
from tests.parity.parity_weights import redraw  # noqa: E402

NUM_CLASSES, NUM_QUERIES, NUM_LAYERS, NUM_POINTS = 12, 8, 9, 48
SIZE = (64, 96)
WIDTH = 64
STAGES = ['stage1', 'stage2', 'stage3', 'stage4']
BACKBONES = {
    'resnet': (
        lambda: transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[16, 32, 64, 128], out_features=STAGES
        ),
        {
            'type': 'ResNet',
            'depth': 50,
            'stem_channels': 8,
            'base_channels': 4,
            # Trained with fixed statistics: their scales and shifts learn, without decay.
            'norm_eval': True,
        },
        [16, 32, 64, 128],
    ),
    'swin': (
        lambda: transformers.SwinConfig(
            embed_dim=16,
            depths=[2] * 4,
            num_heads=[1, 2, 4, 8],
            window_size=7,
            drop_path_rate=0.0,
            out_features=STAGES,
            attn_implementation='sdpa',
        ),
        {
            'type': 'SwinTransformer',
            'embed_dims': 16,
            'depths': [2] * 4,
            'num_heads': [1, 2, 4, 8],
            'window_size': 7,
            'drop_path_rate': 0.0,
        },
        [16, 32, 64, 128],
    ),
}
HEAD = {
    'num_classes': NUM_CLASSES,
    'in_channels': [16, 32, 64, 128],
    'num_queries': NUM_QUERIES,
    'pixel_decoder': {'channels': WIDTH, 'ffn_dim': 48},
    'decoder': {'num_layers': NUM_LAYERS, 'ffn_dim': 48},
    'losses': {'points': {'num_points': NUM_POINTS}},
}

Samples = list[Any]


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    """Maps of a few pixels gain nothing from threads, and lose a lot on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Case(NamedTuple):
    """One batch: ``samples`` are for ours, ``targets`` for the plain loops."""

    images: Tensor
    samples: Samples
    targets: list[slow.Target]


def build_oracle(backbone: str) -> nn.Module:
    config = transformers.Mask2FormerConfig(
        backbone_config=BACKBONES[backbone][0](),
        num_labels=NUM_CLASSES,
        num_queries=NUM_QUERIES,
        # Counts the prediction on the learnt queries.
        decoder_layers=NUM_LAYERS + 1,
        feature_size=WIDTH,
        mask_feature_size=WIDTH,
        hidden_dim=WIDTH,
        encoder_feedforward_dim=48,
        dim_feedforward=48,
    )
    oracle = transformers.Mask2FormerForUniversalSegmentation(config)
    redraw(oracle)
    return oracle.double().eval()


def build_ours(kind: str, backbone: str, oracle: nn.Module, points: str) -> nn.Module:
    """A segmentor or a detector with the oracle's weights, in training mode."""
    settings = BACKBONES[backbone][1]
    head = {**HEAD, 'matcher': {'points': points}}
    if kind == 'segmentor':
        settings = {**settings, 'type': f'mmseg.{settings["type"]}'}
        head['type'] = 'mmseg_m2f.Mask2FormerHead'
        config = {'type': 'mmseg.EncoderDecoder', 'backbone': settings, 'decode_head': head}
        model = MMSEG_MODELS.build(config)
    else:
        settings = {**settings, 'type': f'mmdet.{settings["type"]}'}
        head['type'] = 'mmseg_m2f.Mask2FormerUniversalHead'
        config = {'type': 'mmseg_m2f.Mask2Former', 'backbone': settings, 'panoptic_head': head}
        model = MMDET_MODELS.build(config)
    weights = renamed(oracle.state_dict(), kind)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not missing
    # Tables of window positions, which are no weights.
    assert all(name.endswith('relative_position_index') for name in unexpected)
    return model.double().train()


def renamed(values: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """The oracle's weights or gradients by our names."""
    prefix = 'decode_head.' if kind == 'segmentor' else 'panoptic_head.'
    ours = from_huggingface(values)
    return {name.replace('decode_head.', prefix): value for name, value in ours.items()}


def label_map_case(num_labels: Sequence[int]) -> Case:
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
        sample = SegDataSample(gt_sem_seg=PixelData(data=label_map[None]))
        samples.append(sample)
        present = [label for label in range(NUM_CLASSES) if (label_map == label).any()]
        assert len(present) == number
        masks = [label_map == label for label in present]
        targets.append(target(present, masks))
    return Case(torch.randn(len(num_labels), 3, *SIZE, dtype=torch.float64), samples, targets)


def instance_case(num_instances: Sequence[int], *, num_empty: int = 0) -> Case:
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


def target(labels: list[int], masks: list[Tensor]) -> slow.Target:
    stacked = torch.stack(masks) if masks else torch.zeros(0, *SIZE)
    return slow.Target(torch.tensor(labels, dtype=torch.long), stacked.double())


CASES: dict[str, tuple[str, Callable[[], Case]]] = {
    'classes': ('segmentor', lambda: label_map_case((3, 5))),
    'an image of ignored pixels': ('segmentor', lambda: label_map_case((4, 0))),
    'ignored pixels only': ('segmentor', lambda: label_map_case((0, 0))),
    'more classes than queries': ('segmentor', lambda: label_map_case((11, 2))),
    'instances': ('detector', lambda: instance_case((3, 5))),
    'empty masks': ('detector', lambda: instance_case((3, 2), num_empty=2)),
    'an image without instances': ('detector', lambda: instance_case((0, 4))),
    'no instance': ('detector', lambda: instance_case((0, 0))),
    'more instances than queries': ('detector', lambda: instance_case((11, 12), num_empty=1)),
}


def draw(case: Case, points: str) -> list[slow.Points]:
    return [
        slow.draw_points(
            len(target.labels),
            NUM_QUERIES,
            NUM_POINTS,
            NUM_LAYERS + 1,
            shared=points == 'shared',
        )
        for target in case.targets
    ]


def in_our_order(draws: Sequence[slow.Points]) -> Iterator[Tensor]:
    """Ours draws for all predictions at once, and nothing to match where there is no target."""
    for points in draws:
        if points.candidates.shape[1]:
            yield points.match
    for points in draws:
        yield points.candidates.flatten(0, 1)
        yield points.rest.flatten(0, 1)


def our_losses(model: nn.Module, case: Case, draws: Sequence[slow.Points]) -> dict[str, Tensor]:
    queue = in_our_order(draws)

    def sample_points(rows: int, points: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        drawn = next(queue)
        assert (drawn.shape, drawn.dtype) == ((rows, points, 2), dtype)
        return drawn

    head = model.decode_head if hasattr(model, 'decode_head') else model.panoptic_head
    head.matcher.sample_points = head.criterion.points.sample_points = sample_points
    losses = model(case.images, case.samples, mode='loss')
    assert next(queue, None) is None, 'fewer draws than expected'
    return {name.removeprefix('decode.'): value for name, value in losses.items()}


def their_losses(
    oracle: nn.Module,
    case: Case,
    draws: Sequence[slow.Points],
    num_masks: float | None = None,
) -> dict[str, Tensor]:
    out = oracle(case.images, output_auxiliary_logits=True)
    predictions = [
        (one['class_queries_logits'], one['masks_queries_logits'])
        for one in (*out.auxiliary_logits, out)
    ]
    return slow.all_losses(predictions, case.targets, draws, num_masks)


def check_terms(ours: dict[str, Tensor], theirs: dict[str, Tensor], limit: float = 1e-8) -> None:
    assert len(theirs) == 30
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert abs((ours[name] - value).item()) <= limit, name


def check_gradients(model: nn.Module, oracle: nn.Module, kind: str) -> None:
    """Every number of every gradient; a parameter that nothing reaches has a gradient of 0."""
    expected = renamed({name: gradient(p) for name, p in oracle.named_parameters()}, kind)
    found = {name: gradient(p) for name, p in model.named_parameters()}
    expected = {name: grad for name, grad in expected.items() if name in found}
    assert found.keys() == expected.keys()
    global_norm = torch.stack([grad.norm() for grad in expected.values()]).norm()
    assert global_norm > 1
    for name, grad in expected.items():
        limit = 1e-4 * grad.abs().clamp(min=1e-6 * global_norm)
        assert ((found[name] - grad).abs() <= limit).all(), name


def gradient(param: Tensor) -> Tensor:
    return torch.zeros_like(param) if param.grad is None else param.grad


@pytest.mark.parametrize('points', ['shared', 'per_prediction'])
@pytest.mark.parametrize('name', CASES)
def test_every_term_and_every_gradient(name: str, points: str) -> None:
    kind, make = CASES[name]
    case = make()
    backbone = 'swin' if points == 'shared' else 'resnet'
    oracle = build_oracle(backbone)
    model = build_ours(kind, backbone, oracle, points)
    draws = draw(case, points)
    ours, theirs = our_losses(model, case, draws), their_losses(oracle, case, draws)
    check_terms(ours, theirs)
    sum(ours.values()).backward()
    sum(theirs.values()).backward()
    check_gradients(model, oracle, kind)


@pytest.mark.parametrize('others', [2, 0])
def test_the_normalizer_is_the_mean_over_processes_once_per_step(
    others: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes, of which the other has ``others`` targets: 7 / 2, and 1 / 2 raised to 1."""
    calls = []

    def all_reduce(count: Tensor) -> None:
        calls.append(count.item())
        count += others

    processes = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: True,
        all_reduce=all_reduce,
        get_world_size=lambda: 2,
    )
    monkeypatch.setattr(criterion, 'dist', processes)
    case = instance_case((2, 3), num_empty=1) if others else instance_case((1, 0))
    oracle = build_oracle('resnet')
    model = build_ours('detector', 'resnet', oracle, 'shared')
    draws = draw(case, 'shared')
    expected = 3.5 if others else 1.0
    check_terms(our_losses(model, case, draws), their_losses(oracle, case, draws, expected))
    assert calls == [5 if others else 1]


def plain_groups(oracle: nn.Module) -> list[dict[str, Any]]:
    """The recipe in the oracle's own words: its backbone is the encoder of pixels."""
    groups = []
    for path, module in oracle.named_modules():
        for name, param in module.named_parameters(recurse=False):
            is_norm = isinstance(module, nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm)
            is_table = isinstance(module, nn.Embedding) or 'relative_position_bias' in name
            groups.append(
                {
                    'params': [param],
                    'lr': 1e-5 if 'pixel_level_module.encoder' in path else 1e-4,
                    'weight_decay': 0.0 if is_norm or is_table else 0.05,
                }
            )
    return groups


NUM_STEPS, NUM_ITERATIONS = 5, 160_000


def plain_training(oracle: nn.Module, cases: Sequence[Case], draws: Sequence[Any]) -> list[float]:
    """The official loop: all that a step does, in the order in which it does it."""
    optimizer = torch.optim.AdamW(plain_groups(oracle), betas=(0.9, 0.999), eps=1e-8)
    start = [group['lr'] for group in optimizer.param_groups]
    values = []
    for step, (case, points) in enumerate(zip(cases, draws, strict=True)):
        for group, lr in zip(optimizer.param_groups, start, strict=True):
            group['lr'] = lr * (1 - step / NUM_ITERATIONS) ** 0.9
        total = sum(their_losses(oracle, case, points).values())
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(oracle.parameters(), 0.01)
        optimizer.step()
        values.append(total.item())
    return values


def our_training(model: nn.Module, cases: Sequence[Case], draws: Sequence[Any]) -> list[float]:
    """The wrapper and the schedule of a row, driven as MMEngine's loop drives them."""
    cfg = load('mask2former_r50_ade20k')
    assert cfg.train_cfg.max_iters == NUM_ITERATIONS
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper.to_dict())
    schedulers = [
        PARAM_SCHEDULERS.build(settings, default_args={'optimizer': wrapper})
        for settings in cfg.param_scheduler
    ]
    values = []
    for case, points in zip(cases, draws, strict=True):
        with wrapper.optim_context(model):
            losses = our_losses(model, case, points)
        total, _ = model.parse_losses(losses)
        wrapper.update_params(total)
        for scheduler in schedulers:
            scheduler.step()
        values.append(total.item())
    return values


@pytest.mark.parametrize(
    ('kind', 'backbone'), [('segmentor', 'swin'), ('detector', 'resnet')], ids=str
)
def test_five_steps(kind: str, backbone: str) -> None:
    make = label_map_case if kind == 'segmentor' else instance_case
    cases = [make(numbers) for numbers in ((3, 5), (2, 0), (4, 4), (1, 10), (2, 3), (3, 5))]
    # The batch after the fifth step is the first again.
    cases[-1] = cases[0]
    draws = [draw(case, 'shared') for case in cases]
    draws[-1] = draws[0]
    oracle = build_oracle(backbone)
    model = build_ours(kind, backbone, oracle, 'shared')
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    ours = our_training(model, cases[:NUM_STEPS], draws[:NUM_STEPS])
    theirs = plain_training(oracle, cases[:NUM_STEPS], draws[:NUM_STEPS])
    assert ours == pytest.approx(theirs, abs=1e-6, rel=0)
    our_last = our_losses(model, cases[-1], draws[-1])
    their_last = their_losses(oracle, cases[-1], draws[-1])
    check_terms(our_last, their_last, limit=1e-7)
    # Something was learnt meanwhile.
    assert sum(their_last.values()).item() < theirs[0] - 1e-3

    after = renamed({name: p.detach() for name, p in oracle.named_parameters()}, kind)
    for name, value in model.named_parameters():
        update = (after[name] - before[name]).norm()
        assert update > 0, name
        assert (value.detach() - after[name]).norm() <= 1e-3 * update, name
