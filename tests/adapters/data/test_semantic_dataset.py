"""Mapillary's 65 classes for MMSegmentation, which counts the unlabeled as one more."""

import numpy as np
import pytest
from PIL import Image

from mmseg_m2f.registry import DATASETS
from tests.adapters.data import scenes


def build(**settings):
    return DATASETS.build({'type': 'mmseg_m2f.SemanticDataset', **settings})


def test_mapillary(tmp_path):
    pytest.importorskip('mmseg')
    labels = np.array([[0, 64], [65, 13]], np.uint8)
    scenes.write_photo(tmp_path / 'training/images/a.jpg', (2, 2))
    (tmp_path / 'training/labels').mkdir()
    Image.fromarray(labels).save(tmp_path / 'training/labels/a.png')
    dataset = build(
        metadata='mapillary',
        data_root=str(tmp_path),
        data_prefix={'img_path': 'training/images', 'seg_map_path': 'training/labels'},
        pipeline=[{'type': 'LoadImageFromFile'}, {'type': 'mmseg.LoadAnnotations'}],
    )
    assert len(dataset.metainfo['classes']) == len(dataset.metainfo['palette']) == 65
    assert dataset.metainfo['classes'][64] == 'Ego Vehicle'
    assert dataset.ignore_index == 65
    (record,) = dataset
    # The ignored label stays what it is in the files: heads and metrics get ignore_index=65.
    assert (record['gt_seg_map'] == labels).all()


def test_settings_go_before_the_metadata():
    pytest.importorskip('mmseg')
    dataset = build(
        metadata='ade20k', reduce_zero_label=True, ignore_index=254, lazy_init=True, data_root='x'
    )
    assert dataset.ignore_index == 254
    assert dataset.reduce_zero_label
    assert dataset.metainfo['classes'][0] == 'wall'


def test_an_unknown_name():
    with pytest.raises(ValueError, match="metadata='vistas' is not known"):
        build(metadata='vistas')
