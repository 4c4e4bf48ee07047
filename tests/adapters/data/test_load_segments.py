"""Panoptic PNG files: ids, crowds, and what can be wrong with a file."""

import numpy as np
import pytest
from PIL import Image

from mmseg_m2f.adapters.data import LoadSegments
from tests.adapters.data import scenes


def record(tmp_path, segments, size=scenes.SIZE):
    return {
        'img': np.zeros((*size, 3), np.uint8),
        'img_path': 'a.jpg',
        'seg_map_path': str(tmp_path / 'a.png'),
        'segments_info': [
            {'id': i, 'label': label, 'is_thing': label > 0, 'is_crowd': crowd}
            for i, label, crowd in segments
        ],
    }


@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'P'])
def test_ids_of_colors(tmp_path, mode):
    # With few colors some programs save a palette, others an opaque fourth channel.
    pixels = np.array([[[1, 0, 0], [0, 1, 0], [0, 0, 1], [255, 255, 255]]], np.uint8)
    img = Image.fromarray(pixels)
    img = img.quantize(4) if mode == 'P' else img.convert(mode)
    assert img.mode == mode
    img.save(tmp_path / 'a.png')
    ids = [65536, 1, 16777215, 256]
    results = record(tmp_path, [(i, 0, False) for i in ids], (1, 4))
    segments = LoadSegments().transform(results)['gt_segments']
    assert segments.index_map().tolist() == [[1, 3, 0, 2]]


def test_crowds_and_unlisted_ids_are_no_segments(tmp_path):
    scenes.write_png(tmp_path / 'a.png', scenes.stripes([9, 300, 4, 70_000]))
    results = record(tmp_path, [(70_000, 2, False), (300, 1, True), (4, 0, False), (8, 3, False)])
    segments = LoadSegments().transform(results)['gt_segments']
    assert segments.labels.tolist() == [2, 0, 3]
    assert segments.is_thing.tolist() == [True, False, True]
    assert (segments.index_map() == scenes.stripes([-1, -1, 1, 0])).all()


def test_wrong_files_are_named(tmp_path):
    path = tmp_path / 'a.png'
    noise = np.random.default_rng(0).integers(0, 1 << 24, scenes.SIZE)
    scenes.write_png(path, noise)
    half = path.read_bytes()[: path.stat().st_size // 2]
    path.unlink()
    for content, reason in ((None, 'No such file'), (b'no image', 'cannot identify'), (half, '')):
        if content:
            path.write_bytes(content)
        with pytest.raises(OSError, match=rf'cannot read the panoptic PNG .*a\.png: .*{reason}'):
            LoadSegments().transform(record(tmp_path, [(1, 0, False)]))
    Image.fromarray(np.ones(scenes.SIZE, np.uint8)).save(path)
    with pytest.raises(ValueError, match=r'a\.png: a panoptic PNG must be an RGB'):
        LoadSegments().transform(record(tmp_path, [(1, 0, False)]))


def test_an_image_of_another_size_is_named(tmp_path):
    scenes.write_png(tmp_path / 'a.png', scenes.stripes([1]))
    # Swapped sides are typical of photos with a rotation in their EXIF data.
    swapped = r'a\.png is of size \(12, 16\) .* a\.jpg of \(16, 12\).*color_ignore_orientation'
    for size, message in (((16, 12), swapped), ((16, 13), r'of \(16, 13\)$')):
        with pytest.raises(ValueError, match=message):
            LoadSegments().transform(record(tmp_path, [(1, 0, False)], size))


@pytest.mark.parametrize('keys', [{}, {'instances': [{'bbox_label': 0, 'mask': []}]}])
def test_records_of_other_data_sets(keys):
    record = {'img': np.zeros((2, 2, 3), np.uint8), 'img_path': 'a.jpg', 'height': 2, 'width': 2}
    with pytest.raises(ValueError, match=r'a\.jpg: LoadSegments reads records of mmseg_m2f\.Panop'):
        LoadSegments().transform({**record, **keys})
