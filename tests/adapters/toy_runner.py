"""A tiny network in MMEngine's runner, for tests of hooks and optimizer wrappers."""

import random
from pathlib import Path

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import Dataset

from mmseg_m2f.adapters.checkpoints.loader import install_safe_loader

install_safe_loader()


class Noise(Dataset):
    """Item ``i`` is ``i`` and a random number from every generator that a pipeline may use."""

    @property
    def metainfo(self) -> dict:
        return {'classes': ('a', 'b')}

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        augmentation = np.random.rand() + random.random() + torch.rand(()).item()
        return {'inputs': torch.tensor([index, augmentation], dtype=torch.float32)}


class Toy(BaseModel):
    """A linear layer whose loss is random, as with random points."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.config = {'num_classes': 2, 'decoder': {'num_layers': 9, 'sizes': (1, 2)}}

    def forward(self, inputs: Tensor, mode: str = 'loss') -> object:
        outputs = self.layer(torch.stack(inputs) / 16)
        if mode == 'loss':
            return {'loss': (outputs.square() * torch.rand(())).mean()}
        return [outputs]

    def resolved_config(self) -> dict:
        return self.config


class Count(BaseMetric):
    def process(self, data_batch: object, data_samples: object) -> None:
        self.results.append(1)

    def compute_metrics(self, results: list) -> dict[str, int]:
        return {'count': len(results)}


class Record(Hook):
    """Records the images and the loss of each iteration."""

    def __init__(self) -> None:
        self.images: list[list[int]] = []
        self.losses: list[float] = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.images.append([int(item[0]) for item in data_batch['inputs']])
        self.losses.append(outputs['loss'].item())


def toy_runner(work_dir: Path, name: str, record: Hook | None = None, **options: object) -> Runner:
    """Return a runner of six iterations that saves and validates after every third."""
    loader = {'batch_size': 2, 'num_workers': 0, 'dataset': Noise()}
    sampler = {'type': 'InfiniteSampler', 'shuffle': True}
    settings = {
        'model': {'type': Toy},
        'work_dir': str(work_dir),
        'experiment_name': name,
        'train_dataloader': {**loader, 'sampler': sampler},
        'val_dataloader': {**loader, 'sampler': {'type': 'DefaultSampler', 'shuffle': True}},
        'val_evaluator': {'type': Count},
        'train_cfg': {'type': 'IterBasedTrainLoop', 'max_iters': 6, 'val_interval': 3},
        'val_cfg': {},
        'optim_wrapper': {
            'type': 'mmseg_m2f.AmpOptimWrapper',
            'constructor': 'mmseg_m2f.Mask2FormerOptimWrapperConstructor',
            'optimizer': {'type': 'AdamW', 'lr': 0.1, 'weight_decay': 0.05},
        },
        'param_scheduler': {'type': 'PolyLR', 'end': 7, 'power': 0.9, 'by_epoch': False},
        'default_hooks': {
            'checkpoint': {'type': 'CheckpointHook', 'by_epoch': False, 'interval': 3},
            'logger': {'type': 'LoggerHook', 'interval': 1},
        },
        'custom_hooks': [
            *({'type': f'mmseg_m2f.{hook}'} for hook in ('RandomStateHook', 'HeadConfigHook')),
            *([record] if record else []),
        ],
        'log_level': 'WARNING',
        **options,
    }
    return Runner(**settings)
