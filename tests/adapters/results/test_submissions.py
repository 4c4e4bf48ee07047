import contextlib
import io
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
from mmseg_m2f.evaluation.panoptic_map import Segments, read_ids, read_segments
from mmseg_m2f.evaluation.panoptic_quality import image_statistics, panoptic_quality
from mmseg_m2f.metadata import load_metadata
from tests.adapters.metrics import evaluation_scenes as scenes

CITY = 'ulm/ulm_000001_000019_leftImg8bit.png'


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def quality_of_files(out: Path, dataset) -> list[float]:
    """Compute PQ, SQ and RQ of all classes from the saved files."""
    label_of = {number: i for i, number in enumerate(dataset.metainfo['category_ids'])}
    total = np.zeros((4, len(label_of)))
    saved = json.loads((out / 'panoptic.json').read_text())['annotations']
    for record, annotation in zip(dataset, saved, strict=True):
        assert annotation['image_id'] == record['img_id']
        segments = annotation['segments_info']
        segment_map = read_ids(out / 'panoptic' / annotation['file_name'])
        # Ids are consecutive, and areas are those of the map.
        assert [segment['id'] for segment in segments] == list(range(1, len(segments) + 1))
        areas = np.bincount(segment_map.ravel())[1:].tolist()
        assert [segment['area'] for segment in segments] == areas
        labels = np.array([label_of[segment['category_id']] for segment in segments], int)
        truth = read_segments(record['seg_map_path'], record['segments_info'])
        total += image_statistics(truth, Segments(segment_map, labels), len(label_of))
    return (100 * np.nanmean(panoptic_quality(total), axis=1)).tolist()


def test_saved_segments_have_the_same_quality(tmp_path):
    dataset = scenes.panoptic_dataset()
    samples = scenes.guessed_samples(dataset)
    scenes.save(tmp_path, dataset, samples)
    metrics = scenes.evaluate('PanopticMetric', samples, dataset.metainfo)
    expected = [metrics[f'coco_panoptic/{name}'] for name in ('PQ', 'SQ', 'RQ')]
    assert quality_of_files(tmp_path, dataset) == pytest.approx(expected)
    assert expected[0] > 20


def test_saved_instances_have_the_same_ap_and_label_maps_the_classes(tmp_path):
    dataset = scenes.panoptic_dataset()
    samples = scenes.guessed_samples(dataset)
    scenes.save(tmp_path, dataset, samples)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(scenes.INSTANCES))
        evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / 'instances.json')), 'segm')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    metrics = scenes.evaluate('InstanceMetric', samples, dataset.metainfo, boundary=False)
    assert list(metrics.values()) == pytest.approx(evaluation.stats[:6].tolist(), abs=1e-9)
    assert len(list((tmp_path / 'semantic').iterdir())) == len(samples)
    for sample in samples:
        saved = pixels(tmp_path / 'semantic' / f'{Path(sample["img_path"]).stem}.png')
        assert saved.dtype == np.uint8
        np.testing.assert_array_equal(saved, sample['pred_sem_seg']['sem_seg'][0])


def test_only_what_the_model_gives_is_saved(tmp_path):
    dataset = scenes.panoptic_dataset(indices=2)
    scenes.save(tmp_path / 'empty', dataset, scenes.empty_samples(dataset))
    assert json.loads((tmp_path / 'empty/instances.json').read_text()) == []
    saved = json.loads((tmp_path / 'empty/panoptic.json').read_text())['annotations']
    assert [annotation['segments_info'] for annotation in saved] == [[], []]
    samples = scenes.guessed_samples(dataset)
    for sample in samples:
        del sample['pred_panoptic_seg'], sample['pred_sem_seg']
    scenes.save(tmp_path / 'instances', dataset, samples)
    assert [path.name for path in (tmp_path / 'instances').iterdir()] == ['instances.json']


class Cityscapes:
    """The part of a data set that the hooks use."""

    def __init__(self, folder='img', **metainfo):
        self.metainfo = {'classes': load_metadata('cityscapes').classes, **metainfo}
        self.data_prefix = {'img': folder}

    def __len__(self):
        return 1


def city_sample() -> dict:
    """Return a sample with a car (class 13) on the road (0)."""
    label_map = torch.zeros(1, 4, 6, dtype=torch.int64)
    label_map[0, 1:3, 1:3] = 13
    encoded = torch.where(label_map == 13, 1013, 0)
    instances = {'masks': label_map == 13, 'labels': torch.tensor([13]), 'scores': torch.ones(1)}
    return {
        'img_id': 'ulm_000001_000019',
        'img_path': f'img/{CITY}',
        'pred_sem_seg': {'sem_seg': label_map},
        'pred_panoptic_seg': {'sem_seg': encoded},
        'pred_instances': instances,
    }


def test_cityscapes_gets_its_label_ids_and_its_instance_format(tmp_path):
    category_ids = load_metadata('cityscapes').category_ids
    dataset = Cityscapes(metadata='cityscapes', category_ids=category_ids)
    scenes.save(tmp_path, dataset, [city_sample()])
    assert np.unique(pixels(tmp_path / 'semantic' / CITY)).tolist() == [7, 26]
    [annotation] = json.loads((tmp_path / 'panoptic.json').read_text())['annotations']
    assert annotation['file_name'] == CITY
    assert (tmp_path / 'panoptic' / CITY).is_file()
    areas = {segment['category_id']: segment['area'] for segment in annotation['segments_info']}
    assert areas == {7: 20, 26: 4}
    line = (tmp_path / 'cityscapes/ulm_000001_000019_pred.txt').read_text()
    assert line.split(' ')[1:] == ['26', '1.0\n']


def test_categories_of_mmdets_data_sets_are_known_and_others_must_be_told(tmp_path):
    dataset = Cityscapes()
    with pytest.raises(ValueError, match='category_ids in its metainfo'):
        scenes.save(tmp_path, dataset, [city_sample()])
    dataset.cat_ids = list(range(100, 119))
    scenes.save(tmp_path, dataset, [city_sample()])
    [instance] = json.loads((tmp_path / 'instances.json').read_text())
    assert instance['category_id'] == 113
    assert not (tmp_path / 'cityscapes').exists()


def test_images_of_one_name_do_not_overwrite_each_other(tmp_path):
    dataset = scenes.panoptic_dataset(indices=2)
    first, second = scenes.guessed_samples(dataset)
    for paths in (('a/x.jpg', 'b/x.jpg'), ('a/x.jpg', 'a/x.png')):
        first['img_path'], second['img_path'] = paths
        with pytest.raises(ValueError, match=f'{paths[0]} and of {paths[1]} .* named x.png'):
            scenes.save(tmp_path, dataset, [first, second])
    # With several processes, an image may come twice.
    scenes.save(tmp_path, dataset, [first, first])


@pytest.mark.parametrize(
    ('folder', 'shifted', 'largest', 'expected', 'dtype'),
    [
        ('img', False, 2, [0, 2], np.uint8),
        ('img', True, 2, [1, 3], np.uint8),
        ('elsewhere', False, 299, [0, 299], np.uint16),
    ],
)
def test_label_maps_keep_name_folder_and_labels(
    tmp_path, folder, shifted, largest, expected, dtype
):
    """An image that lies outside of the data set's folder keeps only its name."""
    label_map = torch.zeros(1, 4, 6, dtype=torch.int64)
    label_map[..., 3:] = largest
    meta = {'img_path': f'img/{CITY}', 'reduce_zero_label': shifted}
    element = BaseDataElement(metainfo=meta, pred_sem_seg=PixelData(data=label_map))
    runner = scenes.runner_of(Cityscapes(folder))
    SaveLabelMapsHook(str(tmp_path)).after_test_iter(runner, 0, outputs=[element])
    saved = pixels(tmp_path / (CITY if folder == 'img' else Path(CITY).name))
    assert saved.dtype == dtype
    np.testing.assert_array_equal(saved, np.repeat([expected], 4, 0).repeat(3, 1))


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
        metrics = json.loads((together / f'metrics_{rank}.json').read_text())
        assert metrics == pytest.approx(expected, abs=1e-9)
    for name in ('panoptic.json', 'instances.json'):
        assert json.loads((together / name).read_text()) == json.loads((alone / name).read_text())
    for folder in ('panoptic', 'semantic'):
        names = [{path.name for path in (out / folder).iterdir()} for out in (alone, together)]
        assert names[0] == names[1]
        assert len(names[0]) == 5
