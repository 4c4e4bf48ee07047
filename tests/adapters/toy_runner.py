"""A tiny network in MMEngine's runner, for tests of hooks and optimizer wrappers."""

import random

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from mmseg_m2f.adapters.checkpoints.loader import install_safe_loader

install_safe_loader()


class Noise(Dataset):
    """Item ``i`` is ``i`` and a random number from every generator that a pipeline may use."""

    def __init__(self, **metainfo):
        self.metainfo = metainfo or {'classes': ('a', 'b')}

    def __len__(self):
        return 16

    def __getitem__(self, index):
        augmentation = np.random.rand() + random.random() + torch.rand(()).item()
        return {'inputs': torch.tensor([index, augmentation], dtype=torch.float32)}


class Toy(BaseModel):
    """A linear layer whose loss is random, as with random points. ``config`` is that of a head."""

    def __init__(self, **config):
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.config = config

    def forward(self, inputs, mode='loss'):
        outputs = self.layer(torch.stack(inputs) / 16)
        if mode == 'loss':
            return {'loss': (outputs.square() * torch.rand(())).mean()}
        return [outputs]

    def resolved_config(self):
        return self.config


class Count(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.append(1)

    def compute_metrics(self, results):
        return {'count': len(results)}


def loader(dataset=None, sampler='InfiniteSampler', **options):
    data = {'batch_size': 2, 'num_workers': 0, 'dataset': dataset or Noise()}
    return {**data, 'sampler': {'type': sampler, 'shuffle': True}, **options}


def toy_runner(work_dir, name, *hooks, **options):
    """Return a runner of six iterations that saves and validates after every third.

    The lists ``said`` and ``warned`` of it hold what its logger is told.
    """
    settings = {
        'model': {'type': Toy},
        'work_dir': str(work_dir),
        'experiment_name': name,
        'train_dataloader': loader(),
        'val_dataloader': loader(sampler='DefaultSampler'),
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
        'custom_hooks': [{'type': 'mmseg_m2f.RandomStateHook'}, *hooks],
        'log_level': 'WARNING',
        **options,
    }
    runner = Runner(**settings)
    runner.said, runner.warned = [], []
    runner.logger.info, runner.logger.warning = runner.said.append, runner.warned.append
    return runner
