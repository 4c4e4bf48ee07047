"""The true instances of one image in the format of Cityscapes: two cars and a person."""

from pathlib import Path

import numpy as np
from PIL import Image

NAME = 'ulm_000001_000019'
ROAD, CAR, PERSON, BICYCLE = 7, 26, 24, 33
SIZE = (40, 80)


def box(left: int, width: int) -> np.ndarray:
    """Make a mask of 20 rows: true instances below 100 pixels would not count."""
    mask = np.zeros(SIZE, bool)
    mask[10:30, left : left + width] = True
    return mask


CARS = [box(0, 10), box(20, 20)]
PERSONS = [box(60, 10)]


def write_truth(folder: Path, name: str = NAME) -> Path:
    """Write the file of an image below `folder`; return what the metric calls gt_dir."""
    instance_ids = np.full(SIZE, ROAD, np.uint16)
    for mask, instance_id in zip(CARS + PERSONS, (26000, 26001, 24000), strict=True):
        instance_ids[mask] = instance_id
    gt_dir = folder / 'gtFine/val'
    (gt_dir / 'ulm').mkdir(parents=True, exist_ok=True)
    Image.fromarray(instance_ids).save(gt_dir / f'ulm/{name}_gtFine_instanceIds.png')
    return gt_dir
