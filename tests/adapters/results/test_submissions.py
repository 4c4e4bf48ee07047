import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement, PixelData
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmseg_m2f.adapters.results import SaveLabelMapsHook
from mmseg_m2f.evaluation import panoptic_map
from mmseg_m2f.metadata import load_metadata
from tests.adapters.metrics import evaluation_scenes as scenes

CITY = 'ulm/ulm_000001_000019_leftImg8bit.png'


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def read(path):
    return json.loads(path.read_text())


def test_saved_files_hold_the_predictions(tmp_path):
    dataset = scenes.panoptic_dataset()
    samples, meta = scenes.guessed_samples(dataset), dataset.metainfo
    scenes.save(tmp_path, dataset, samples)
    saved = read(tmp_path / 'panoptic.json')['annotations']
    for sample, annotation in zip(samples, saved, strict=True):
        assert annotation['image_id'] == sample['img_id']
        encoded = sample['pred_panoptic_seg']['sem_seg'][0].numpy()
        segment_map, labels = panoptic_map.decode_panoptic(encoded, 133)
        ids = panoptic_map.read_ids(tmp_path / 'panoptic' / annotation['file_name'])
        np.testing.assert_array_equal(ids, segment_map)
        assert annotation['segments_info'] == [
            {'id': i, 'category_id': meta['category_ids'][label], 'area': (ids == i).sum()}
            for i, label in enumerate(labels, 1)
        ]
        label_map = pixels(tmp_path / 'semantic' / f'{Path(sample["img_path"]).stem}.png')
        assert label_map.dtype == np.uint8
        np.testing.assert_array_equal(label_map, sample['pred_sem_seg']['sem_seg'][0])
    truth = COCO(str(scenes.INSTANCES))
    evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / 'instances.json')), 'segm')
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    metrics = scenes.evaluate('InstanceMetric', samples, meta, boundary=False)
    assert list(metrics.values()) == pytest.approx(evaluation.stats[:6].tolist(), abs=1e-9)


def test_only_results_of_the_model_are_saved(tmp_path):
    dataset = scenes.panoptic_dataset(indices=2)
    scenes.save(tmp_path / 'empty', dataset, scenes.empty_samples(dataset))
    assert read(tmp_path / 'empty/instances.json') == []
    saved = read(tmp_path / 'empty/panoptic.json')['annotations']
    assert [annotation['segments_info'] for annotation in saved] == [[], []]
    samples = scenes.guessed_samples(dataset)
    for sample in samples:
        del sample['pred_panoptic_seg'], sample['pred_sem_seg']
    scenes.save(tmp_path / 'instances', dataset, samples)
    assert [path.name for path in (tmp_path / 'instances').iterdir()] == ['instances.json']


def test_images_of_one_name_do_not_overwrite_each_other(tmp_path):
    dataset = scenes.panoptic_dataset(indices=2)
    first, second = scenes.guessed_samples(dataset)
    for paths in (('a/x.jpg', 'b/x.jpg'), ('a/x.jpg', 'a/x.png')):
        first['img_path'], second['img_path'] = paths
        with pytest.raises(ValueError, match=f'{paths[0]} and of {paths[1]} .* named x.png'):
            scenes.save(tmp_path, dataset, [first, second])
    # With several processes, an image may come twice.
    scenes.save(tmp_path, dataset, [first, first])


class Cityscapes(list):
    """The part of a data set of one image that the hooks use."""

    def __init__(self, folder='img', **metainfo):
        super().__init__([0])
        self.metainfo = {'classes': load_metadata('cityscapes').classes, **metainfo}
        self.data_prefix = {'img': folder}


def city_sample() -> dict:
    """Return a sample with a car (class 13) on the road (0)."""
    label_map = torch.zeros(1, 4, 6, dtype=torch.int64)
    label_map[0, 1:3, 1:3] = 13
    instances = {'masks': label_map == 13, 'labels': torch.tensor([13]), 'scores': torch.ones(1)}
    return {
        'img_id': 'ulm_000001_000019',
        'img_path': f'img/{CITY}',
        'pred_sem_seg': {'sem_seg': label_map},
        'pred_panoptic_seg': {'sem_seg': torch.where(label_map == 13, 1013, 0)},
        'pred_instances': instances,
    }


def test_cityscapes_gets_its_label_ids_and_its_instance_format(tmp_path):
    category_ids = load_metadata('cityscapes').category_ids
    dataset = Cityscapes(metadata='cityscapes', category_ids=category_ids)
    scenes.save(tmp_path, dataset, [city_sample()])
    assert np.unique(pixels(tmp_path / 'semantic' / CITY)).tolist() == [7, 26]
    [annotation] = read(tmp_path / 'panoptic.json')['annotations']
    assert annotation['file_name'] == CITY
    areas = {segment['category_id']: segment['area'] for segment in annotation['segments_info']}
    assert areas == {7: 20, 26: 4}
    line = (tmp_path / 'cityscapes/ulm_000001_000019_pred.txt').read_text()
    assert line.split(' ')[1:] == ['26', '1.0\n']


def test_categories_of_mmdets_data_sets_are_known_and_others_must_be_told(tmp_path):
    dataset = Cityscapes()
    with pytest.raises(ValueError, match='need category ids: Cityscapes has neither'):
        scenes.save(tmp_path, dataset, [city_sample()])
    dataset.cat_ids = list(range(100, 119))
    scenes.save(tmp_path, dataset, [city_sample()])
    assert [instance['category_id'] for instance in read(tmp_path / 'instances.json')] == [113]
    assert not (tmp_path / 'cityscapes').exists()


@pytest.mark.parametrize(
    ('folder', 'shifted', 'saved', 'dtype'),
    [
        ('img', False, {CITY: [0, 2]}, np.uint8),
        ('img', True, {CITY: [1, 3]}, np.uint8),
        # An image that lies outside of the data set's folder keeps only its name.
        ('elsewhere', False, {Path(CITY).name: [0, 299]}, np.uint16),
    ],
)
def test_label_maps_keep_name_folder_and_labels(tmp_path, folder, shifted, saved, dtype):
    [(name, values)] = saved.items()
    label_map = torch.tensor([values]).repeat_interleave(3).repeat(1, 4, 1)
    meta = {'img_path': f'img/{CITY}', 'reduce_zero_label': shifted}
    element = BaseDataElement(metainfo=meta, pred_sem_seg=PixelData(data=label_map - int(shifted)))
    runner = scenes.runner_of(Cityscapes(folder))
    SaveLabelMapsHook(str(tmp_path)).after_test_iter(runner, 0, outputs=[element])
    assert pixels(tmp_path / name).dtype == dtype
    np.testing.assert_array_equal(pixels(tmp_path / name), label_map[0])


@pytest.mark.long
def test_processes_share_the_work_and_agree_with_one(tmp_path):
    """Two processes share five images: one image is predicted twice, and counts once."""
    alone, together = tmp_path / 'alone', tmp_path / 'together'
    together.mkdir()
    expected = scenes.evaluate_all(alone)
    launcher = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    environment = {**os.environ, 'PYTHONPATH': str(scenes.COCO.parents[2])}
    command = [*launcher, '-m', scenes.__name__, str(together)]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    for rank in range(2):
        assert read(together / f'metrics_{rank}.json') == pytest.approx(expected, abs=1e-9)
    for name in ('panoptic.json', 'instances.json'):
        assert read(together / name) == read(alone / name)
    for folder in ('panoptic', 'semantic'):
        names = [{path.name for path in (out / folder).iterdir()} for out in (alone, together)]
        assert names[0] == names[1]
        assert len(names[0]) == 5
