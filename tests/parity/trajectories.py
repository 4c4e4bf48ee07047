"""Twenty training steps of MMDetection's detector and of ours on the same photos and points.

In float64, so that rounding does not decide a match: what differs is what is computed. ``python -m
tests.parity.trajectories`` prints the effect of each switch, flipped alone.
"""

from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import mmdet
import numpy as np
import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from torch import Tensor, nn

from tests.parity.stock_heads import float64_positions

REPOSITORY = Path(__file__).parents[2]
CONFIG = '.mim/configs/mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py'
NUM_THINGS, NUM_STUFF = 5, 6
CHANNELS = [16, 32, 64, 128]
NUM_STEPS, BATCH_SIZE, SIZE = 20, 2, (96, 96)
# A photo has some 40 segments, so that at times the queries do not suffice.
NUM_QUERIES, NUM_POINTS, NUM_LAYERS = 12, 1024, 3
# Every step of these has an image without anything.
EMPTY_EVERY = 4
MMDET = {
    'init': 'mmdet',
    'num_masks_mode': 'mmdet',
    'keep_empty_gt': False,
    'panoptic_mask_intersection': False,
}
# BGR, as images are loaded. Padding after the normalization, with 0, is padding with this.
MEAN_COLOR = (104, 116, 124)


def build(model, seed=0):
    """Initialized as the runner does, in float64.

    But for the deformable attention: it starts from whole pixels, where bilinear values have a kink
    and rounding decides the gradient.
    """
    init_default_scope('mmdet')
    torch.manual_seed(seed)
    detector = MODELS.build(model)
    detector.init_weights()
    for name, value in detector.named_parameters():
        if name.endswith('sampling_offsets.bias'):
            value.data += 0.2 * torch.rand(value.shape) + 0.1
    return detector.double().train()


def stock_model():
    """MMDetection's configuration with small widths."""
    model = Config.fromfile(Path(mmdet.__file__).parent / CONFIG).model
    model.data_preprocessor.batch_augments = None
    model.backbone.update(depth=18, base_channels=16, init_cfg=None)
    numbers = {'num_things_classes': NUM_THINGS, 'num_stuff_classes': NUM_STUFF}
    head = model.panoptic_head
    head.update(in_channels=CHANNELS, feat_channels=64, out_channels=64, **numbers)
    head.update(num_queries=NUM_QUERIES, positional_encoding={'num_feats': 32, 'normalize': True})
    head.pixel_decoder.positional_encoding.num_feats = 32
    head.pixel_decoder.norm_cfg.num_groups = 8
    for transformer in (head.pixel_decoder.encoder, head.transformer_decoder):
        transformer.num_layers = NUM_LAYERS
        for part in transformer.layer_cfg.values():
            part.embed_dims = 64
        transformer.layer_cfg.ffn_cfg.feedforward_channels = 128
    head.loss_cls.class_weight = [1.0] * (NUM_THINGS + NUM_STUFF) + [0.1]
    model.panoptic_fusion_head.update(numbers)
    model.train_cfg.num_points = NUM_POINTS
    return model


def our_model(**compat):
    stock, sizes = stock_model(), {'num_layers': NUM_LAYERS, 'ffn_dim': 128}
    return {
        'type': 'mmseg_m2f.Mask2Former',
        'data_preprocessor': stock.data_preprocessor,
        'backbone': stock.backbone,
        'panoptic_head': {
            'type': 'mmseg_m2f.Mask2FormerUniversalHead',
            'num_classes': NUM_THINGS + NUM_STUFF,
            'thing_ids': list(range(NUM_THINGS)),
            'in_channels': CHANNELS,
            'num_queries': NUM_QUERIES,
            'pixel_decoder': {'channels': 64, 'norm_groups': 8, **sizes},
            'decoder': sizes,
            'losses': {'points': {'num_points': NUM_POINTS}},
            'compat': {**MMDET, **compat},
        },
    }


def pipeline(
    offsets='independent', pad_value=MEAN_COLOR, backend='cv2', keep_empty=False, min_area=64
):
    """Large-scale jitter as MMDetection has it, by our transforms.

    Two segments of a class that no point hits cost the same, and rounding would decide a match:
    they need an area of at least ``min_area``.
    """
    resize = {'min_scale': 0.1, 'max_scale': 2.0, 'target_size': SIZE, 'backend': backend}
    crop = {'crop_size': SIZE, 'pad_value': pad_value, 'offsets': offsets}
    pack = {'layout': 'mmdet', 'keep_empty': keep_empty, 'min_area': min_area}
    return [
        {'type': 'LoadImageFromFile'},
        {'type': 'mmseg_m2f.LoadSegments'},
        {'type': 'mmseg_m2f.RandomFlip', 'prob': 0.5},
        {'type': 'mmseg_m2f.ResizeScale', **resize},
        {'type': 'mmseg_m2f.FixedSizeCrop', **crop},
        {'type': 'mmseg_m2f.PackSegments', **pack},
    ]


def batches(num_steps=NUM_STEPS, **changes):
    """The photos of all steps; the same draws whatever the changes of the pipeline."""
    init_default_scope('mmdet')
    data = DATASETS.build(
        {
            'type': 'mmseg_m2f.PanopticDataset',
            'data_root': str(REPOSITORY / 'data/tiny/facade'),
            'ann_file': 'annotations/panoptic_train.json',
            'data_prefix': {'img': 'img/train', 'seg': 'panoptic/train'},
            'pipeline': pipeline(**changes),
        }
    )
    found = []
    for step in range(num_steps):
        inputs, samples = [], []
        for index in range(step * BATCH_SIZE, (step + 1) * BATCH_SIZE):
            np.random.seed(index)
            item = data[index % len(data)]
            inputs.append(item['inputs'])
            samples.append(item['data_samples'])
        if step % EMPTY_EVERY == 0:
            empty = samples[-1]
            empty.gt_instances = empty.gt_instances[:0]
            ignored = torch.full_like(empty.gt_sem_seg.sem_seg, 255)
            empty.gt_sem_seg = PixelData(sem_seg=ignored)
        found.append((inputs, samples))
    return found


@contextmanager
def same_points(step, dtype):
    """Both sides draw the step's own points, one set for each number of them."""

    def rand(*shape, **_):
        rows, number, _ = shape[0] if len(shape) == 1 else shape
        generator = torch.Generator().manual_seed(1000 * step + number)
        points = torch.empty(1, number, 2, dtype=torch.float64).uniform_(generator=generator)
        return points.to(dtype).repeat(rows, 1, 1)

    with (
        mock.patch.object(torch, 'rand', rand),
        # Theirs makes ground truth float32, which does not go with predictions in float64.
        mock.patch.object(Tensor, 'float', lambda value: value.to(dtype)),
    ):
        yield


def trajectory(model, data, *, mixed=False):
    """The losses of each step, before its update; ``mixed`` with float32 and bfloat16."""
    dtype = next(model.parameters()).dtype
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.05)
    found = []
    for step, (inputs, samples) in enumerate(data):
        batch = {'inputs': list(inputs), 'data_samples': [sample.clone() for sample in samples]}
        batch = model.data_preprocessor(batch, training=True)
        with same_points(step, dtype), torch.autocast('cpu', torch.bfloat16, enabled=mixed):
            losses = model.loss(batch['inputs'].to(dtype), batch['data_samples'])
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        optimizer.step()
        found.append({'loss': total.item(), **{k: v.item() for k, v in losses.items()}})
    return found


def both(num_steps=NUM_STEPS):
    """Ours with all switches as MMDetection has it, and theirs, from the same weights."""
    theirs, ours, data = build(stock_model()), build(our_model()), batches(num_steps)
    ours.load_state_dict(theirs.state_dict())
    with float64_positions():
        return trajectory(ours, data), trajectory(theirs, data)


def switched(num_steps=NUM_STEPS, seed=0, **compat):
    """Ours with one switch turned to the official side.

    Segments that a crop has emptied are in the batches if they are to be found.
    """
    changes = {'keep_empty': True, 'min_area': 1} if 'keep_empty_gt' in compat else {}
    return trajectory(build(our_model(**compat), seed), batches(num_steps, **changes))


def change(one, other):
    """The relative change of the loss in each step."""
    return [a['loss'] / b['loss'] - 1 for a, b in zip(one, other, strict=True)]


def main():
    """Write the change of the loss in the first, the last and the worst step, in per cent."""
    torch.set_num_threads(1)
    base = switched()
    pairs = {
        'none: ours, theirs': both(),
        'num_masks_mode': (switched(num_masks_mode='official'), base),
        'keep_empty_gt': (switched(keep_empty_gt=True), switched(keep_empty_gt=False)),
        'panoptic_mask_i...': (switched(panoptic_mask_intersection=True), base),
    }
    for seed in range(3):
        pairs[f'init, seed {seed}'] = switched(init='official', seed=seed), switched(seed=seed)
    for seed in range(1, 3):
        pairs[f'seed {seed} for 0'] = switched(seed=seed), base
    for name, value in (('offsets', 'shared'), ('backend', 'pillow'), ('pad_value', 128)):
        pairs[name] = trajectory(build(our_model()), batches(**{name: value})), base
    single = trajectory(build(our_model()).float(), batches())
    mixed = trajectory(build(our_model()).float(), batches(), mixed=True)
    pairs |= {'float32': (single, base), 'mixed precision': (mixed, single)}
    for name, (one, other) in pairs.items():
        by_step = [100 * value for value in change(one, other)]
        numbers = (by_step[0], by_step[-1], max(by_step, key=abs))
        print(f'{name:24}' + ''.join(f'{value:+12.6f}' for value in numbers))  # noqa: T201


if __name__ == '__main__':
    main()
