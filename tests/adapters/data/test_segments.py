"""Loading, and moves: maps against Pillow on a PNG's colors, polygons against pycocotools."""

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from mmseg_m2f.adapters.data import LoadAnnotationsIfAny, LoadSegments
from mmseg_m2f.adapters.data.segments import SegmentMap
from tests.adapters.data import scenes
from tests.adapters.data.scenes import segment_map

NEAREST = Image.Resampling.NEAREST


@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'P'])
def test_ids_of_colors(tmp_path, mode):
    # With few colors some programs save a palette, others an opaque fourth channel.
    img = Image.fromarray(np.array([[[1, 0, 0], [0, 1, 0], [0, 0, 1], [255, 255, 255]]], np.uint8))
    img = img.quantize(4) if mode == 'P' else img.convert(mode)
    img.save(tmp_path / 'a.png')
    ids = [65536, 1, 16777215, 256]
    results = scenes.panoptic_record(tmp_path, [(i, 0, False) for i in ids], (1, 4))
    segments = LoadSegments().transform(results)['gt_segments']
    assert segments.index_map().tolist() == [[1, 3, 0, 2]]


def test_crowds_and_unlisted_ids_are_no_segments(tmp_path):
    scenes.write_png(tmp_path / 'a.png', scenes.stripes([9, 300, 4, 70_000]))
    given = [(70_000, 2, True), (300, 1, True, True), (4, 0, False), (8, 3, True)]
    segments = LoadSegments().transform(scenes.panoptic_record(tmp_path, given))['gt_segments']
    assert segments.labels.tolist() == [2, 0, 3]
    assert segments.is_thing.tolist() == [True, False, True]
    assert (segments.index_map() == scenes.stripes([-1, -1, 1, 0])).all()


def test_wrong_files_are_named(tmp_path):
    path, results = tmp_path / 'a.png', scenes.panoptic_record(tmp_path, [(1, 0, False)])
    scenes.write_png(path, np.random.default_rng(0).integers(0, 1 << 24, scenes.SIZE))
    half = path.read_bytes()[: path.stat().st_size // 2]
    path.unlink()
    for content, reason in ((None, 'No such file'), (b'no image', 'cannot identify'), (half, '')):
        if content:
            path.write_bytes(content)
        with pytest.raises(OSError, match=rf'cannot read the panoptic PNG .*a\.png: .*{reason}'):
            LoadSegments().transform(results)
    Image.fromarray(np.ones(scenes.SIZE, np.uint8)).save(path)
    with pytest.raises(ValueError, match=r'a\.png: a panoptic PNG must be an RGB'):
        LoadSegments().transform(results)


def test_an_image_of_another_size_is_named(tmp_path):
    scenes.write_png(tmp_path / 'a.png', scenes.stripes([1]))
    # Swapped sides are typical of photos with a rotation in their EXIF data.
    swapped = r'a\.jpg is of size \(16, 12\) .* PNG .*a\.png of \(12, 16\).*color_ignore_orient'
    for size, message in (((16, 12), swapped), ((24, 8), r'of \(12, 16\)$')):
        with pytest.raises(ValueError, match=message):
            LoadSegments().transform(scenes.panoptic_record(tmp_path, [(1, 0, False)], size))
    record = scenes.instance_record([(1, 1, 3, 3)])
    with pytest.raises(ValueError, match=r'a\.jpg .* its annotation of \(8, 6\).*color_ignore_or'):
        LoadSegments().transform({**record, 'height': 8, 'width': 6})
    with pytest.raises(ValueError, match=r'a\.jpg .* a mask of its annotation of \(3, 4\)$'):
        scenes.instance_record([{'size': [3, 4], 'counts': [12]}])


@pytest.mark.parametrize('keys', [{}, {'instances': [{'bbox_label': 0, 'mask': []}]}])
def test_records_of_other_data_sets(keys):
    record = {'img': np.zeros((2, 2, 3), np.uint8), 'img_path': 'a.jpg', 'height': 2, 'width': 2}
    with pytest.raises(ValueError, match=r'a\.jpg: LoadSegments reads records of mmseg_m2f\.Panop'):
        LoadSegments().transform({**record, **keys})


def test_label_maps_are_loaded_only_where_there_are_some(tmp_path):
    pytest.importorskip('mmseg')
    load = LoadAnnotationsIfAny()
    for record in ({'img_path': 'a.jpg'}, {'img_path': 'a.jpg', 'seg_map_path': None}):
        assert load(dict(record)) == record
    path = tmp_path / 'a.png'
    Image.fromarray(np.array([[0, 7], [7, 255]], np.uint8)).save(path)
    results = load({'seg_map_path': str(path), 'reduce_zero_label': False, 'seg_fields': []})
    assert results['gt_seg_map'].tolist() == [[0, 7], [7, 255]]


def random_colors(height, width):
    """Make the pixels of a PNG, in blocks like segments."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (-(-height // 3), -(-width // 3), 3), np.uint8)
    return blocks.repeat(3, 0).repeat(3, 1)[:height, :width]


def ids_of(colors):
    return colors.astype(np.int32) @ np.array([1, 256, 65536], np.int32)


def shown_ids(segments):
    """Return the id of each pixel, -1 where there is no segment."""
    return np.append(segments.segment_ids, -1)[segments.index_map()]


@pytest.mark.parametrize(
    ('old', 'new'),
    [
        ((9, 7), (9, 7)),
        ((9, 7), (18, 21)),
        ((9, 7), (4, 3)),
        ((60, 80), (45, 61)),
        ((48, 64), (103, 102)),
        ((3, 4), (1, 1)),
        ((1, 1), (5, 6)),
        # 3 -> 4 and 6 -> 8 and 2 -> 1 meet borders between pixels exactly.
        ((120, 90), (160, 120)),
        ((120, 90), (60, 45)),
    ],
)
def test_a_map_is_resized_as_pil_resizes_the_png(old, new):
    colors = random_colors(*old)
    expected = ids_of(np.asarray(Image.fromarray(colors).resize(new[::-1], NEAREST)))
    assert (shown_ids(segment_map(ids_of(colors)).resize(new)) == expected).all()


def test_indices_are_positions_in_the_list_of_segments():
    ids = np.array([[0, 7, 7, 16_000_000], [3, 3, 0, 99]], np.int32)
    index_map = segment_map(ids, [7, 0, 16_000_000, 5]).pad((3, 5)).index_map()
    # Padding is no segment, though 0 is one.
    assert index_map.tolist() == [[1, 0, 0, 2, -1], [-1, -1, 1, -1, -1], [-1] * 5]
    assert index_map.dtype == np.int32


def shapes(*given, size):
    return scenes.instance_record(given, np.zeros((*size, 3), np.uint8))['gt_segments']


def filled(size, x1, y1, x2, y2):
    mask = np.zeros(size, bool)
    mask[y1:y2, x1:x2] = True
    return mask


def test_a_square_enlarged_and_mirrored():
    segments = shapes((2, 3, 5, 7), size=(10, 12))
    assert (segments.masks() == filled((10, 12), 2, 3, 5, 7)).all()
    # x from 2..5 to 4..10, in an image of width 24 to 14..20.
    moved = segments.resize((20, 24)).flip()
    assert (moved.masks() == filled((20, 24), 14, 6, 20, 14)).all()
    # From (10, 8) on, 7 wide and 9 high: 4..7 and 0..6, the rest is cut off.
    moved = moved.crop(10, 8, 7, 9)
    assert (moved.masks() == filled((9, 7), 4, 0, 7, 6)).all()
    moved = moved.pad((11, 8)).flip()
    assert not moved.is_flipped
    assert (moved.masks() == filled((11, 8), 1, 0, 4, 6)).all()


def test_polygons_and_bitmaps_in_one_image_are_cropped_and_moved():
    bitmap = coco_mask.encode(np.asfortranarray(filled((10, 10), 7, 7, 9, 9), np.uint8))
    segments = shapes((1, 1, 3, 3), (7, 7, 9, 9), bitmap, size=(10, 10))
    for crop, areas in (
        ((4, 4, 6, 6), [0, 4, 4]),
        ((0, 0, 5, 5), [4, 0, 0]),
        ((8, 8, 2, 2), [0, 1, 1]),
        # Beside them in one direction only.
        ((0, 5, 10, 2), [0, 0, 0]),
        ((4, 0, 2, 10), [0, 0, 0]),
    ):
        assert segments.crop(*crop).pad((12, 12)).masks().sum(axis=(1, 2)).tolist() == areas


def test_polygons_are_drawn_as_pycocotools_draws_them():
    rng = np.random.default_rng(2)
    for _ in range(300):
        height, width = rng.integers(5, 40, 2)
        low, high = (0, 1) if rng.random() < 0.5 else (-0.7, 1.7)
        flat = []
        for _ in range(rng.integers(1, 4)):
            polygon = rng.uniform(low, high, (rng.integers(3, 9), 2)) * (width, height)
            flat.append(polygon.round([0, 1, 9][rng.integers(3)]).ravel().tolist())
        whole = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(flat, height, width)))
        assert (shapes(flat, size=(height, width)).masks()[0] == whole).all()


def runs(mask):
    """Encode a mask without compression: runs down the columns, zeros first."""
    pixels = mask.T.ravel()
    borders = np.flatnonzero(np.diff(pixels)) + 1
    counts = np.diff([0, *borders, pixels.size]).tolist()
    return {'size': list(mask.shape), 'counts': [0] * bool(pixels[0]) + counts}


@pytest.mark.parametrize(
    'encode', [runs, lambda mask: coco_mask.encode(np.asfortranarray(mask, np.uint8))]
)
def test_bitmaps_follow_the_nearest_pixel(encode):
    masks = np.random.default_rng(3).random((2, 14, 20)) < 0.5
    segments = shapes(*map(encode, masks), size=(14, 20))
    assert (segments.masks() == masks).all()
    moved = segments.resize((33, 17)).flip().crop(2, 5, 12, 20).pad((25, 25)).masks()
    for mask, ours in zip(masks, moved, strict=True):
        resized = np.asarray(Image.fromarray(mask.astype(np.uint8)).resize((17, 33), NEAREST))
        expected = np.zeros((25, 25), bool)
        expected[:20, :12] = resized[:, ::-1][5:25, 2:14]
        assert (ours == expected).all()


def test_no_segments():
    for segments in (segment_map(ids_of(random_colors(6, 8)), []), shapes(size=(6, 8))):
        moved = segments.flip().resize((9, 9)).crop(0, 0, 5, 4).pad((7, 7))
        if isinstance(segments, SegmentMap):
            assert moved.index_map().tolist() == [[-1] * 7] * 7
        else:
            assert moved.masks().shape == (0, 7, 7)
