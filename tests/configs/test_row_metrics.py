"""The data set and the metrics of each detector row fit together: the truth scores 100."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.registry import init_default_scope
from PIL import Image
from pycocotools import mask as coco_mask

pytest.importorskip('mmdet')
pytest.importorskip('cityscapesscripts')
from mmdet.registry import DATASETS

from mmseg_m2f.metadata import load_metadata
from tests.configs.rows import DETECTOR_ROWS, load, parse
from tests.layouts import LAYOUTS
from tests.reduced import reduce_config

# Recipes differ by data set and task only.
ROWS = [row for row in DETECTOR_ROWS if parse(row).backbone == 'r50']
FULL = {
    'coco_panoptic/PQ': 100,
    'coco_panoptic/PQ_th': 100,
    'coco_panoptic/PQ_st': 100,
    'coco/segm_mAP': 1,
    'cityscapes/AP': 1,
    'cityscapes/AP50': 1,
    'mIoU': 100,
    'aAcc': 100,
}


def read(root: Path, pattern: str) -> dict[str, list]:
    """The annotations of the validation set by image."""
    content = json.loads((root / pattern.format(s='val', l='validation')).read_text())
    names = {image['id']: image['file_name'] for image in content['images']}
    annotations = {name: [] for name in names.values()}
    for annotation in content['annotations']:
        annotations[names[annotation['image_id']]].append(annotation)
    return annotations


def decode(segmentation) -> np.ndarray:
    if isinstance(segmentation, dict):
        return coco_mask.decode(segmentation).astype(bool)
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(segmentation, 72, 96))) > 0


def true_instances(annotations: list[dict], category_ids: tuple[int, ...]) -> dict:
    masks = np.stack([decode(annotation['segmentation']) for annotation in annotations])
    labels = [category_ids.index(annotation['category_id']) for annotation in annotations]
    return {
        'masks': torch.from_numpy(masks),
        'labels': torch.tensor(labels),
        'scores': torch.linspace(1, 0.5, len(labels)),
    }


def true_panoptic(path: Path, segments: list[dict], metadata) -> tuple[dict, dict]:
    """Segments in mmdet's encoding, and the label map."""
    ids = np.array(Image.open(path)) @ np.array([1, 256, 256**2])
    encoded = np.full(ids.shape, len(metadata.classes))
    label_map = np.zeros(ids.shape, int)
    for number, segment in enumerate(segments, 1):
        label = metadata.category_ids.index(segment['category_id'])
        label_map[ids == segment['id']] = label
        encoded[ids == segment['id']] = label + 1000 * number * (label in metadata.thing_ids)
    return {'sem_seg': torch.tensor(encoded[None])}, {'sem_seg': torch.tensor(label_map[None])}


@pytest.mark.parametrize('row', ROWS)
def test_the_truth_scores_100(row, tmp_path):
    init_default_scope('mmdet')
    cfg = reduce_config(load(row), tmp_path)
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    evaluators = cfg.test_evaluator
    evaluator = Evaluator(evaluators if isinstance(evaluators, list) else [evaluators])
    evaluator.dataset_meta = dataset.metainfo
    layout, metadata = LAYOUTS[parse(row).dataset], load_metadata(dataset.metainfo['metadata'])
    panoptic = read(tmp_path, layout.panoptic)
    segment_maps = (tmp_path / layout.segment_map.format(s='val', l='validation', n='x')).parent
    instances = read(tmp_path, layout.instances) if layout.instances else None
    for index in range(len(dataset)):
        sample = dataset[index]['data_samples']
        folder = tmp_path / layout.folder.format(s='val', l='validation')
        name = str(Path(sample.img_path).relative_to(folder))
        prediction = sample.to_dict()
        if instances:
            prediction['pred_instances'] = true_instances(instances[name], metadata.category_ids)
        if parse(row).task == 'panoptic':
            (annotation,) = panoptic[name]
            path, segments = segment_maps / annotation['file_name'], annotation['segments_info']
            segments, label_map = true_panoptic(path, segments, metadata)
            prediction |= {'pred_panoptic_seg': segments, 'pred_sem_seg': label_map}
        evaluator.process([prediction])
    metrics = evaluator.evaluate(len(dataset))
    assert cfg.default_hooks.checkpoint.save_best in metrics
    seen = {name: value for name, value in metrics.items() if name in FULL}
    assert seen == pytest.approx({name: FULL[name] for name in seen}, abs=1e-6)
