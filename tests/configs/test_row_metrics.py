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
ROWS = [row for row in DETECTOR_ROWS if '_r50_' in row]
FULL = {
    **dict.fromkeys(('coco_panoptic/PQ', 'coco_panoptic/PQ_th', 'coco_panoptic/PQ_st'), 100),
    **dict.fromkeys(('mIoU', 'aAcc'), 100),
    **dict.fromkeys(('coco/segm_mAP', 'cityscapes/AP', 'cityscapes/AP50'), 1),
}


def read(path):
    """The annotations of a JSON file by image."""
    content = json.loads(path.read_text())
    annotations = {image['id']: [] for image in content['images']}
    for annotation in content['annotations']:
        annotations[annotation['image_id']].append(annotation)
    return {image['file_name']: annotations[image['id']] for image in content['images']}


def true_instances(annotations, category_ids):
    masks = []
    for segmentation in (annotation['segmentation'] for annotation in annotations):
        if isinstance(segmentation, list):  # polygons
            segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, 72, 96))
        masks.append(coco_mask.decode(segmentation).astype(bool))
    labels = [category_ids.index(annotation['category_id']) for annotation in annotations]
    return {
        'masks': torch.from_numpy(np.stack(masks)),
        'labels': torch.tensor(labels),
        'scores': torch.linspace(1, 0.5, len(labels)),
    }


def true_panoptic(path, segments, metadata):
    """Segments in mmdet's encoding, and the label map."""
    ids = np.array(Image.open(path)) @ np.array([1, 256, 256**2])
    encoded = np.full(ids.shape, len(metadata.classes))
    label_map = np.zeros(ids.shape, int)
    for number, segment in enumerate(segments, 1):
        label = metadata.category_ids.index(segment['category_id'])
        label_map[ids == segment['id']] = label
        encoded[ids == segment['id']] = label + 1000 * number * (label in metadata.thing_ids)
    return {
        'pred_panoptic_seg': {'sem_seg': torch.tensor(encoded[None])},
        'pred_sem_seg': {'sem_seg': torch.tensor(label_map[None])},
    }


@pytest.mark.parametrize('row', ROWS)
def test_the_truth_scores_100(row, tmp_path):
    init_default_scope('mmdet')
    cfg = reduce_config(load(row), tmp_path)
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    evaluators = cfg.test_evaluator
    evaluator = Evaluator(evaluators if isinstance(evaluators, list) else [evaluators])
    evaluator.dataset_meta = dataset.metainfo
    layout, metadata = LAYOUTS[parse(row).dataset], load_metadata(dataset.metainfo['metadata'])

    def place(pattern):
        return tmp_path / pattern.format(s='val', l='validation', n='name')

    panoptic = read(place(layout.panoptic))
    instances = layout.instances and read(place(layout.instances))
    for index in range(len(dataset)):
        sample = dataset[index]['data_samples']
        name = str(Path(sample.img_path).relative_to(place(layout.folder)))
        prediction = sample.to_dict()
        if instances:
            prediction['pred_instances'] = true_instances(instances[name], metadata.category_ids)
        if parse(row).task == 'panoptic':
            (annotation,) = panoptic[name]
            path = place(layout.segment_map).with_name(annotation['file_name'])
            prediction |= true_panoptic(path, annotation['segments_info'], metadata)
        evaluator.process([prediction])
    metrics = evaluator.evaluate(len(dataset))
    assert cfg.default_hooks.checkpoint.save_best in metrics
    seen = {name: value for name, value in metrics.items() if name in FULL}
    assert seen == pytest.approx({name: FULL[name] for name in seen}, abs=1e-6)
