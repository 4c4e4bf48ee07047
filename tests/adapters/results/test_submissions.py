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
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmseg_m2f.evaluation.panoptic_map import Segments, read_ids, read_segments
from mmseg_m2f.evaluation.panoptic_quality import averages, image_statistics, panoptic_quality
from mmseg_m2f.metadata import load_metadata
from tests.adapters.metrics.evaluation_scenes import (
    INSTANCES,
    empty_samples,
    evaluate,
    evaluate_all,
    guessed_samples,
    panoptic_dataset,
    save,
    with_other_ids,
)


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
    return [100 * x for x in averages(panoptic_quality(total), np.ones(len(label_of), bool))]


@pytest.mark.parametrize('other_ids', [False, True])
def test_saved_segments_have_the_same_quality(tmp_path, other_ids):
    dataset = panoptic_dataset(
        with_other_ids(tmp_path) if other_ids else INSTANCES.parent / 'panoptic_val.json'
    )
    samples = guessed_samples(dataset)
    save(tmp_path / 'out', dataset, samples)
    metrics = evaluate('PanopticMetric', samples, dataset.metainfo)
    expected = [metrics[f'coco_panoptic/{name}'] for name in ('PQ', 'SQ', 'RQ')]
    assert quality_of_files(tmp_path / 'out', dataset) == expected
    assert expected[0] > 20


def test_saved_instances_have_the_same_ap(tmp_path):
    dataset = panoptic_dataset()
    samples = guessed_samples(dataset)
    save(tmp_path, dataset, samples)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(INSTANCES))
        results = truth.loadRes(str(tmp_path / 'instances.json'))
        evaluation = COCOeval(truth, results, 'segm')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    metrics = evaluate('InstanceMetric', samples, dataset.metainfo, boundary=False)
    assert list(metrics.values()) == pytest.approx(evaluation.stats[:6].tolist(), abs=1e-9)


def test_semantic_maps_hold_the_class_index(tmp_path):
    dataset = panoptic_dataset(indices=3)
    samples = guessed_samples(dataset)
    save(tmp_path, dataset, samples)
    assert len(list((tmp_path / 'semantic').iterdir())) == 3
    for sample in samples:
        with Image.open(tmp_path / 'semantic' / f'{Path(sample["img_path"]).stem}.png') as image:
            assert image.mode == 'L'
            np.testing.assert_array_equal(image, sample['pred_sem_seg']['sem_seg'][0])


def test_only_what_the_model_gives_is_saved(tmp_path):
    dataset = panoptic_dataset(indices=2)
    save(tmp_path / 'empty', dataset, empty_samples(dataset))
    assert json.loads((tmp_path / 'empty/instances.json').read_text()) == []
    saved = json.loads((tmp_path / 'empty/panoptic.json').read_text())['annotations']
    assert [annotation['segments_info'] for annotation in saved] == [[], []]
    samples = guessed_samples(dataset)
    for sample in samples:
        del sample['pred_panoptic_seg'], sample['pred_sem_seg']
    save(tmp_path / 'instances', dataset, samples)
    assert [path.name for path in (tmp_path / 'instances').iterdir()] == ['instances.json']


class Cityscapes:
    """The part of a data set that the hook uses."""

    def __init__(self, **metainfo):
        self.metainfo = {'classes': load_metadata('cityscapes').classes, **metainfo}
        self.data_prefix = {'img': 'leftImg8bit/val'}

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
        'img_path': 'leftImg8bit/val/ulm/ulm_000001_000019_leftImg8bit.png',
        'pred_sem_seg': {'sem_seg': label_map},
        'pred_panoptic_seg': {'sem_seg': encoded},
        'pred_instances': instances,
    }


def test_cityscapes_gets_its_label_ids_and_its_instance_format(tmp_path):
    category_ids = load_metadata('cityscapes').category_ids
    dataset = Cityscapes(metadata='cityscapes', category_ids=category_ids)
    save(tmp_path, dataset, [city_sample()])
    name = 'ulm_000001_000019_leftImg8bit.png'
    with Image.open(tmp_path / 'semantic/ulm' / name) as image:
        assert np.unique(image).tolist() == [7, 26]
    [annotation] = json.loads((tmp_path / 'panoptic.json').read_text())['annotations']
    assert annotation['file_name'] == f'ulm/{name}'
    assert (tmp_path / 'panoptic/ulm' / name).is_file()
    areas = {segment['category_id']: segment['area'] for segment in annotation['segments_info']}
    assert areas == {7: 20, 26: 4}
    line = (tmp_path / 'cityscapes/ulm_000001_000019_pred.txt').read_text()
    assert line.split(' ')[1:] == ['26', '1.0\n']


def test_categories_of_mmdets_data_sets_are_known_and_others_must_be_told(tmp_path):
    dataset = Cityscapes()
    with pytest.raises(ValueError, match='give the data set category_ids in its metainfo'):
        save(tmp_path, dataset, [city_sample()])
    dataset.cat_ids = list(range(100, 119))
    save(tmp_path, dataset, [city_sample()])
    [instance] = json.loads((tmp_path / 'instances.json').read_text())
    assert instance['category_id'] == 113
    assert not (tmp_path / 'cityscapes').exists()


@pytest.mark.long
def test_processes_share_the_work_and_agree_with_one(tmp_path):
    """Two processes share five images: one image is predicted twice, and counts once."""
    alone, together = tmp_path / 'alone', tmp_path / 'together'
    together.mkdir()
    expected = evaluate_all(alone)
    script = Path(__file__).parents[1] / 'metrics/evaluate_in_processes.py'
    launcher = [sys.executable, '-m', 'torch.distributed.run', '--standalone']
    command = [*launcher, '--nproc_per_node=2', str(script), str(together)]
    environment = {**os.environ, 'PYTHONPATH': str(script.parents[3])}
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


def test_images_of_one_name_do_not_overwrite_each_other(tmp_path):
    dataset = panoptic_dataset(indices=2)
    first, second = guessed_samples(dataset)
    for paths in (('a/x.jpg', 'b/x.jpg'), ('a/x.jpg', 'a/x.png')):
        for sample, path in zip((first, second), paths, strict=True):
            sample['img_path'] = path
        with pytest.raises(ValueError, match=f'{paths[0]} and of {paths[1]} .* named x.png'):
            save(tmp_path, dataset, [first, second])
    # With several processes, an image may come twice.
    save(tmp_path, dataset, [first, first])
