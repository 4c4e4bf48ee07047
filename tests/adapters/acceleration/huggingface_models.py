"""A narrow model of Hugging Face, with real images for it."""

from pathlib import Path
from typing import Any

import cv2
import torch
import transformers
from torch import nn

from tests.parity.parity_weights import redraw

FACADE = Path(__file__).parents[3] / 'data/tiny/facade'
STAGES = ['stage1', 'stage2', 'stage3', 'stage4']
NUM_CLASSES, NUM_QUERIES, NUM_LAYERS, NUM_POINTS = 11, 12, 4, 256
SIZE = (64, 96)


def build(**settings: Any) -> nn.Module:
    """A narrow R50 that sees queries and classes apart, in evaluation mode."""
    config = transformers.Mask2FormerConfig(
        backbone_config=transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[32, 64, 128, 256], out_features=STAGES
        ),
        **{
            'feature_size': 64,
            'mask_feature_size': 64,
            'hidden_dim': 64,
            'encoder_feedforward_dim': 96,
            'dim_feedforward': 128,
            'encoder_layers': 2,
            'decoder_layers': NUM_LAYERS + 1,
            'num_queries': NUM_QUERIES,
            'num_labels': NUM_CLASSES,
            'train_num_points': NUM_POINTS,
            **settings,
        },
    )
    model = transformers.Mask2FormerForUniversalSegmentation(config).eval()
    redraw(model)
    with torch.no_grad():
        model.class_predictor.weight.mul_(4)
    return model


def batch() -> dict[str, Any]:
    """Two real images and their classes."""
    images, masks, labels = [], [], []
    height, width = SIZE
    for path in sorted((FACADE / 'labelmap/train').glob('*.png'))[:2]:
        image = cv2.imread(str(FACADE / 'img/train' / f'{path.stem}.jpg'))
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        label_map = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        label_map = cv2.resize(label_map, (width, height), interpolation=cv2.INTER_NEAREST)
        found = torch.from_numpy(label_map).long().unique()
        found = found[found < NUM_CLASSES]
        images.append(torch.from_numpy(image).permute(2, 0, 1) / 64 - 2)
        masks.append((torch.from_numpy(label_map) == found[:, None, None]).float())
        labels.append(found)
    return {'pixel_values': torch.stack(images), 'mask_labels': masks, 'class_labels': labels}
