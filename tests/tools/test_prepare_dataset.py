"""tools/prepare_dataset.py on raw layouts of three images, with numbers worked out by hand."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from tests.tools.conftest import ROOT, TOOLS, run, run_tool

HEIGHT, WIDTH = 6, 8


@pytest.fixture
def prepare(monkeypatch):
    """The tool's ``main``; gives the exit status."""
    monkeypatch.syspath_prepend(str(TOOLS))
    import prepare_dataset

    # It takes SIGTERM for itself, which it may in a process of its own.
    monkeypatch.setattr(prepare_dataset.signal, 'signal', lambda *_: None)

    def call(*arguments):
        return prepare_dataset.main([*map(str, arguments), '--workers', '1'])

    return call


def save(path: Path, values, dtype=np.uint8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, dtype)).save(path)


def photo(path: Path) -> None:
    save(path, np.full((HEIGHT, WIDTH, 3), 90))


def canvas(*boxes) -> np.ndarray:
    """``(value, x, y, width, height)`` painted one over the other on zeros."""
    values = np.zeros((HEIGHT, WIDTH), np.int32)
    for value, x, y, width, height in boxes:
        values[y : y + height, x : x + width] = value
    return values


def read_ids(path: Path) -> np.ndarray:
    pixels = np.asarray(Image.open(path)).astype(int)
    return pixels[..., 0] + 256 * pixels[..., 1] + 65536 * pixels[..., 2]


def read(path: Path):
    return json.loads(path.read_text())


def extents(segments) -> list[tuple]:
    return [(s['id'], s['category_id'], s['area'], s['bbox'], s['iscrowd']) for s in segments]


def files_of(folder: Path) -> dict[str, bytes]:
    paths = [path for path in sorted(folder.rglob('*')) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def times_of(folder: Path) -> dict[str, int]:
    paths = [path for path in folder.rglob('*') if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in paths}


# ADE20K: a bed that lies over wall and floor a column beside its place in the semantic map; an
# unlabelled image; a person and a car on the sky.
ADE_STEMS = {
    'training': ('ADE_train_00000001', 'ADE_train_00000002'),
    'validation': ('ADE_val_00000001',),
}


def ade20k(root: Path) -> Path:
    semantic = {
        'ADE_train_00000001': canvas((1, 0, 0, 8, 3), (4, 0, 3, 8, 3), (8, 0, 2, 3, 3)),
        'ADE_train_00000002': canvas(),
        'ADE_val_00000001': canvas((3, 0, 0, 8, 6)),
    }
    # Category in red, number of the instance in green.
    instance = {
        'ADE_train_00000001': (canvas((1, 1, 2, 3, 3)), canvas((1, 1, 2, 3, 3))),
        'ADE_train_00000002': (canvas(), canvas()),
        'ADE_val_00000001': (
            canvas((4, 7, 5, 1, 1), (100, 0, 0, 2, 4)),
            canvas((2, 7, 5, 1, 1), (1, 0, 0, 2, 4)),
        ),
    }
    for folder, stems in ADE_STEMS.items():
        for stem in stems:
            photo(root / f'images/{folder}/{stem}.jpg')
            save(root / f'annotations/{folder}/{stem}.png', semantic[stem])
            category, number = instance[stem]
            pixels = np.stack([category, number, canvas()], -1)
            save(root / f'annotations_instance/{folder}/{stem}.png', pixels)
    return root


# Cityscapes: stuff, two instances and a group; a caravan and the ego vehicle; a crowd of riders.
def cityscapes(root: Path) -> Path:
    ids = {
        'train/aachen/aachen_000000_000019': canvas(
            (7, 0, 3, 8, 3), (26001, 1, 1, 3, 2), (24, 6, 2, 2, 3), (24000, 4, 0, 1, 4)
        ),
        'train/bochum/bochum_000000_000313': canvas(
            (23, 0, 0, 8, 2), (29000, 2, 2, 2, 2), (1, 0, 5, 8, 1)
        ),
        'val/lindau/lindau_000000_000019': canvas((25, 0, 0, 2, 2), (33002, 3, 3, 5, 1)),
    }
    for name, values in ids.items():
        save(root / f'gtFine/{name}_gtFine_instanceIds.png', values, np.uint16)
        save(root / f'gtFine/{name}_gtFine_labelTrainIds.png', canvas())
        photo(root / f'leftImg8bit/{name}_leftImg8bit.png')
    return root


# COCO: two things and a stuff class, with ids beyond 16 bits, and pixels of no listed segment.
COCO_MAPS = {
    'train': {
        '000000000009': (
            canvas((70000, 0, 0, 4, 6), (300, 4, 0, 2, 6), (5, 6, 0, 1, 6)),
            [(70000, 1), (300, 90)],
        ),
        '000000000025': (canvas((12, 0, 0, 8, 6)), [(12, 200)]),
    },
    'val': {'000000000139': (canvas((1, 0, 0, 8, 3)), [(1, 92)])},
}


def coco(root: Path) -> Path:
    for split, maps in COCO_MAPS.items():
        annotations = []
        for stem, (ids, segments) in maps.items():
            name = f'{stem}.png'
            pixels = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1)
            save(root / f'annotations/panoptic_{split}2017/{name}', pixels)
            info = [
                {'id': number, 'category_id': category, 'area': 1, 'bbox': [0, 0, 1, 1]}
                for number, category in segments
            ]
            annotations.append({'image_id': int(stem), 'file_name': name, 'segments_info': info})
            photo(root / f'{split}2017/{stem}.jpg')
        content = {'annotations': annotations, 'images': [], 'categories': []}
        (root / f'annotations/panoptic_{split}2017.json').write_text(json.dumps(content))
    return root


def complete_coco(root: Path) -> None:
    """The images and categories that the preparation does not read."""
    from mmseg_m2f.metadata import load_metadata

    metadata = load_metadata('coco_panoptic')
    categories = [
        {'id': number, 'name': name, 'isthing': int(index in metadata.thing_ids)}
        for index, (number, name) in enumerate(
            zip(metadata.category_ids, metadata.classes, strict=True)
        )
    ]
    for split, maps in COCO_MAPS.items():
        path = root / f'annotations/panoptic_{split}2017.json'
        images = [
            {'id': int(stem), 'file_name': f'{stem}.jpg', 'height': HEIGHT, 'width': WIDTH}
            for stem in maps
        ]
        content = {**read(path), 'images': images, 'categories': categories}
        path.write_text(json.dumps(content))


# Mapillary: the last category, the first, and one that is not evaluated.
def mapillary(root: Path) -> Path:
    maps = {
        'training': {'b_x': [(3, 65, 8), (9, 66, 16)], 'a_y': [(7, 1, 48)]},
        'validation': {'c_z': [(2, 44, 4)]},
    }
    for folder, segments_of in maps.items():
        annotations, images = [], []
        for stem, segments in segments_of.items():
            photo(root / f'{folder}/images/{stem}.jpg')
            save(root / f'{folder}/labels/{stem}.png', canvas())
            save(root / f'{folder}/panoptic/{stem}.png', np.stack([canvas()] * 3, -1))
            info = [
                {'id': i, 'category_id': c, 'area': a, 'bbox': [0, 0, 1, 1], 'iscrowd': 0}
                for i, c, a in segments
            ]
            annotations.append(
                {'image_id': stem, 'file_name': f'{stem}.png', 'segments_info': info}
            )
            images.append(
                {'id': stem, 'file_name': f'{stem}.jpg', 'height': HEIGHT, 'width': WIDTH}
            )
        content = {'annotations': annotations, 'images': images, 'categories': []}
        path = root / f'{folder}/panoptic/panoptic_2018.json'
        path.write_text(json.dumps(content))
    return root


RAW = {
    'ade20k-panoptic': ade20k,
    'ade20k-instance': ade20k,
    'cityscapes-panoptic': cityscapes,
    'cityscapes-instance': cityscapes,
    'coco-panoptic-semantic': coco,
    'mapillary': mapillary,
}
# A row that reads the result, and the label maps and segments that it finds, without crowds; the
# label maps are read in the test set alone.
ROWS = {
    'ade20k-panoptic': ('r50_ade20k-panoptic', 1, 6),
    'ade20k-instance': ('r50_ade20k-instance', 0, 3),
    'cityscapes-panoptic': ('r50_cityscapes-panoptic', 1, 5),
    'cityscapes-instance': ('r50_cityscapes-instance', 0, 3),
    'coco-panoptic-semantic': ('r50_coco-panoptic', 1, 4),
    'mapillary': ('r50_mapillary-panoptic', 1, 3),
}


def test_ade20k_panoptic_by_hand(prepare, tmp_path):
    assert prepare('ade20k-panoptic', ade20k(tmp_path)) == 0
    train, val = (read(tmp_path / f'ade20k_panoptic_{split}.json') for split in ('train', 'val'))
    categories = train['categories']
    assert [category['id'] for category in categories] == list(range(150))
    assert [category['name'] for category in categories[:4]] == ['wall', 'building', 'sky', 'floor']
    assert categories[1]['color'] == [180, 120, 120]
    things = [category['id'] for category in categories if category['isthing']]
    assert (len(things), things[:6], things[-3:]) == (100, [7, 8, 10, 12, 14, 15], [147, 148, 149])
    first, second = train['annotations']
    assert (first['image_id'], first['file_name']) == (
        'ADE_train_00000001',
        'ADE_train_00000001.png',
    )
    # Wall: 24 pixels less 3 of the bed's in the semantic map; floor: 24 less 6.
    assert extents(first['segments_info']) == [
        (1, 0, 21, [0, 0, 8, 3], 0),
        (2, 3, 18, [0, 3, 8, 3], 0),
        (3, 7, 9, [1, 2, 3, 3], 0),
    ]
    assert second['segments_info'] == []
    assert train['images'][1] == {
        'file_name': 'ADE_train_00000002.jpg',
        'height': 6,
        'id': 'ADE_train_00000002',
        'width': 8,
    }
    ids = read_ids(tmp_path / 'ade20k_panoptic_train/ADE_train_00000001.png')
    painted = canvas((1, 0, 0, 8, 3), (2, 0, 3, 8, 3), (0, 0, 2, 3, 3), (3, 1, 2, 3, 3))
    assert np.array_equal(ids, painted)
    # Category 4 of the instances is a person (12), 100 a flag (149).
    (last,) = val['annotations']
    assert extents(last['segments_info']) == [
        (1, 2, 48, [0, 0, 8, 6], 0),
        (2, 149, 8, [0, 0, 2, 4], 0),
        (3, 12, 1, [7, 5, 1, 1], 0),
    ]


def test_ade20k_instance_by_hand(prepare, tmp_path):
    assert prepare('ade20k-instance', ade20k(tmp_path)) == 0
    train, val = (read(tmp_path / f'ade20k_instance_{split}.json') for split in ('train', 'val'))
    ids = [category['id'] for category in train['categories']]
    assert (len(ids), ids[:6], ids[-3:]) == (100, [7, 8, 10, 12, 14, 15], [147, 148, 149])
    assert [image['id'] for image in train['images']] == [1, 2]
    (bed,) = train['annotations']
    assert (bed['id'], bed['image_id'], bed['category_id'], bed['area']) == (1, 1, 7, 9)
    assert (bed['bbox'], bed['iscrowd']) == ([1, 2, 3, 3], 0)
    assert np.array_equal(coco_mask.decode(bed['segmentation']), canvas((1, 1, 2, 3, 3)))
    assert [(a['id'], a['category_id'], a['area']) for a in val['annotations']] == [
        (1, 149, 8),
        (2, 12, 1),
    ]


def test_cityscapes_panoptic_by_hand(prepare, tmp_path):
    assert prepare('cityscapes-panoptic', cityscapes(tmp_path)) == 0
    content = read(tmp_path / 'gtFine/cityscapes_panoptic_train.json')
    assert [category['id'] for category in content['categories'] if category['isthing']] == [
        *(24, 25, 26, 27, 28, 31, 32, 33)
    ]
    assert [image['file_name'] for image in content['images']] == [
        'aachen/aachen_000000_000019_leftImg8bit.png',
        'bochum/bochum_000000_000313_leftImg8bit.png',
    ]
    first, second = content['annotations']
    # Road: 24 pixels less 4 of the group's and 1 of the person's.
    assert extents(first['segments_info']) == [
        (7, 7, 19, [0, 3, 8, 3], 0),
        (24, 24, 6, [6, 2, 2, 3], 1),
        (24000, 24, 4, [4, 0, 1, 4], 0),
        (26001, 26, 6, [1, 1, 3, 2], 0),
    ]
    assert extents(second['segments_info']) == [(23, 23, 16, [0, 0, 8, 2], 0)]
    folder = tmp_path / 'gtFine/cityscapes_panoptic_train'
    ids = read_ids(folder / 'bochum_000000_000313_gtFine_panoptic.png')
    assert np.array_equal(ids, canvas((23, 0, 0, 8, 2)))


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_cityscapes_panoptic_equals_cityscapesscripts(prepare, tmp_path, capsys):
    scripts = pytest.importorskip('cityscapesscripts.preparation.createPanopticImgs')
    root = cityscapes(tmp_path / 'cityscapes')
    assert prepare('cityscapes-panoptic', root) == 0
    scripts.convert2panoptic(str(root / 'gtFine'), str(tmp_path), False, ['train', 'val'])
    for split in ('train', 'val'):
        name = f'cityscapes_panoptic_{split}'
        ours, theirs = read(root / f'gtFine/{name}.json'), read(tmp_path / f'{name}.json')
        assert ours['annotations'] == theirs['annotations']
        for category in theirs['categories']:
            del category['supercategory']
        assert ours['categories'] == theirs['categories']
        for image in (*ours['images'], *theirs['images']):
            del image['file_name']
        assert ours['images'] == theirs['images']
        for path in (tmp_path / name).iterdir():
            assert np.array_equal(read_ids(path), read_ids(root / 'gtFine' / name / path.name))


def test_cityscapes_instance_by_hand(prepare, tmp_path):
    assert prepare('cityscapes-instance', cityscapes(tmp_path)) == 0
    train = read(tmp_path / 'gtFine/cityscapes_instance_train.json')
    assert [category['id'] for category in train['categories']] == [24, 25, 26, 27, 28, 31, 32, 33]
    assert [
        (a['id'], a['image_id'], a['category_id'], a['area'], a['bbox'], a['iscrowd'])
        for a in train['annotations']
    ] == [
        (1, 1, 24, 6, [6, 2, 2, 3], 1),
        (2, 1, 24, 4, [4, 0, 1, 4], 0),
        (3, 1, 26, 6, [1, 1, 3, 2], 0),
    ]
    mask = coco_mask.decode(train['annotations'][2]['segmentation'])
    assert np.array_equal(mask, canvas((1, 1, 1, 3, 2)))
    assert len(train['images']) == 2
    val = read(tmp_path / 'gtFine/cityscapes_instance_val.json')
    assert [(a['category_id'], a['iscrowd']) for a in val['annotations']] == [(25, 1), (33, 0)]


def test_coco_label_maps_by_hand(prepare, tmp_path):
    assert prepare('coco-panoptic-semantic', coco(tmp_path)) == 0
    labels = np.asarray(Image.open(tmp_path / 'panoptic_semseg_train2017/000000000009.png'))
    # Category 1 is class 0, 90 is 79; segment 5 is not listed.
    expected = canvas((255, 0, 0, 8, 6), (0, 0, 0, 4, 6), (79, 4, 0, 2, 6))
    assert labels.dtype == np.uint8
    assert np.array_equal(labels, expected)
    rug = np.asarray(Image.open(tmp_path / 'panoptic_semseg_train2017/000000000025.png'))
    assert (rug == 132).all()
    banner = np.asarray(Image.open(tmp_path / 'panoptic_semseg_val2017/000000000139.png'))
    assert np.array_equal(banner, canvas((255, 0, 0, 8, 6), (80, 0, 0, 8, 3)))


def test_mapillary_by_hand(prepare, tmp_path, capsys):
    assert prepare('mapillary', mapillary(tmp_path)) == 0
    content = read(tmp_path / 'annotations/panoptic_training.json')
    categories = content['categories']
    assert [category['id'] for category in categories] == list(range(1, 66))
    assert [categories[i]['name'] for i in (0, 13, 64)] == ['Bird', 'Road', 'Ego Vehicle']
    assert sum(category['isthing'] for category in categories) == 37
    first, second = content['annotations']
    assert (first['file_name'], extents(first['segments_info'])) == (
        'a_y.png',
        [(7, 1, 48, [0, 0, 1, 1], 0)],
    )
    assert extents(second['segments_info']) == [(3, 65, 8, [0, 0, 1, 1], 0)]
    assert [image['file_name'] for image in content['images']] == ['a_y.jpg', 'b_x.jpg']
    output = capsys.readouterr().out
    assert 'train: 1 segments of no evaluated class are void' in output
    assert 'mapillary done: 3 images, 3 segments' in output


@pytest.mark.parametrize('command', RAW)
def test_a_second_run_makes_only_what_is_missing(prepare, tmp_path, command, capsys):
    root = RAW[command](tmp_path)
    raw = set(files_of(root))
    assert prepare(command, root) == 0
    whole, times = files_of(root), times_of(root)
    made = sorted(set(whole) - raw)
    assert made
    assert not [name for name in made if name.endswith(('.tmp', '.part', '.new'))]
    capsys.readouterr()
    assert prepare(command, root) == 0
    assert times_of(root) == times
    output = capsys.readouterr().out
    assert '2 images were done before' in output
    assert '3 images, ' in output.splitlines()[-1]
    for name in made:
        (root / name).unlink()
        assert prepare(command, root) == 0
        assert files_of(root) == whole
        again = times_of(root)
        assert [other for other in times if again[other] != times[other]] == [name]
        times = again


@pytest.mark.parametrize('command', RAW)
def test_the_result_does_not_depend_on_place_time_or_processes(prepare, tmp_path, command):
    root = RAW[command](tmp_path / 'raw')
    raw = files_of(root)
    assert prepare(command, root) == 0
    made = {name: content for name, content in files_of(root).items() if name not in raw}
    other = RAW[command](tmp_path / 'other')
    run_tool(
        *('prepare_dataset.py', command, other, '--out', tmp_path / 'out', '--workers', '2'),
        cwd=tmp_path,
    )
    assert files_of(tmp_path / 'out') == made
    assert files_of(other) == raw


@pytest.mark.parametrize('command', ['ade20k-panoptic', 'ade20k-instance', 'cityscapes-instance'])
def test_an_interrupted_run_goes_on(prepare, tmp_path, command, monkeypatch, capsys):
    root = RAW[command](tmp_path / 'whole')
    assert prepare(command, root) == 0
    whole = files_of(root)
    root = RAW[command](tmp_path / 'stopped')

    from prepare import ade20k, cityscapes

    dataset, task = command.split('-')
    module = {'ade20k': ade20k, 'cityscapes': cityscapes}[dataset]
    convert = getattr(module, f'{task}_record')
    seen = []

    def stop_at_the_second(*arguments):
        seen.append(arguments[-1].name)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return convert(*arguments)

    monkeypatch.setattr(module, f'{task}_record', stop_at_the_second)
    assert prepare(command, root) == 130
    assert 'the same command goes on' in capsys.readouterr().err
    before = times_of(root)
    assert not [name for name in before if name.endswith(('_train.json', '.tmp'))]
    (journal,) = root.rglob('*.part')
    with journal.open('ab') as file:
        file.write(b'half a li')
    assert prepare(command, root) == 0
    assert seen == [seen[0], seen[1], seen[1], seen[3]]
    assert len(set(seen)) == 3
    assert '1 of 2 images are done already' in capsys.readouterr().out
    assert files_of(root) == whole
    after = times_of(root)
    assert all(after[name] == before[name] for name in before if not name.endswith('.part'))


def cut_a_png(root: Path) -> None:
    path = root / 'ade20k_panoptic_train/ADE_train_00000002.png'
    path.write_bytes(path.read_bytes()[:-20])


def name_another_image(root: Path) -> None:
    path = root / 'ade20k_panoptic_train.json'
    path.write_text(path.read_text().replace('ADE_train_00000002', 'ADE_train_00000003'))


def paint_another_png(root: Path) -> None:
    save(root / 'ade20k_panoptic_train/ADE_train_00000001.png', np.full((6, 8, 3), 7))
    (root / 'ade20k_panoptic_train.json').unlink()


@pytest.mark.parametrize('spoil', [cut_a_png, name_another_image, paint_another_png])
def test_what_was_spoiled_is_made_again(prepare, tmp_path, spoil, capsys):
    root = ade20k(tmp_path)
    assert prepare('ade20k-panoptic', root) == 0
    whole = files_of(root)
    spoil(root)
    assert prepare('ade20k-panoptic', root) == 0
    assert files_of(root) == whole
    replaced = 'train.json is not what the configs read: made anew' in capsys.readouterr().out
    assert replaced == (spoil is name_another_image)


def test_records_of_another_folder_do_not_count(prepare, tmp_path):
    root = ade20k(tmp_path / 'raw')
    assert prepare('ade20k-instance', root, '--splits', 'train') == 0
    result = root / 'ade20k_instance_train.json'
    whole = result.read_bytes()
    result.unlink()
    part = root / 'ade20k_instance_train.json.part'
    part.write_bytes(b'{"root": "elsewhere"}\nADE_train_00000001\t[{}, []]\n')
    assert prepare('ade20k-instance', root, '--splits', 'train') == 0
    assert result.read_bytes() == whole
    assert not part.exists()
    assert not (root / 'ade20k_instance_val.json').exists()


def test_the_files_of_cityscapesscripts_are_kept_or_completed(prepare, tmp_path, capsys):
    scripts = pytest.importorskip('cityscapesscripts.preparation.createPanopticImgs')
    root = cityscapes(tmp_path)
    scripts.convert2panoptic(str(root / 'gtFine'), str(root / 'gtFine'), False, ['train', 'val'])
    theirs = times_of(root)
    assert prepare('cityscapes-panoptic', root) == 0
    assert times_of(root) == theirs
    folder = root / 'gtFine/cityscapes_panoptic_train'
    (folder / 'bochum_000000_000313_gtFine_panoptic.png').unlink()
    assert prepare('cityscapes-panoptic', root) == 0
    assert 'made by another tool and lacks PNG files' in capsys.readouterr().out
    ours = times_of(root)
    assert sorted(name for name in theirs if ours[name] != theirs[name]) == [
        'gtFine/cityscapes_panoptic_train.json',
        'gtFine/cityscapes_panoptic_train/bochum_000000_000313_gtFine_panoptic.png',
    ]


MISSING = {
    'ade20k-panoptic': [
        'images',
        'images/validation',
        'annotations/training/ADE_train_00000002.png',
        'annotations_instance',
    ],
    'ade20k-instance': ['annotations_instance/validation/ADE_val_00000001.png'],
    'cityscapes-panoptic': [
        'gtFine/val',
        'leftImg8bit',
        'leftImg8bit/train/bochum/bochum_000000_000313_leftImg8bit.png',
    ],
    'cityscapes-instance': ['gtFine', 'gtFine/train/aachen/*_gtFine_instanceIds.png'],
    'coco-panoptic-semantic': [
        'annotations/panoptic_val2017.json',
        'annotations/panoptic_train2017',
        'annotations/panoptic_train2017/000000000025.png',
    ],
    'mapillary': [
        'training/panoptic/panoptic_2018.json',
        'validation/labels',
        'validation/images/c_z.jpg',
        'training/panoptic/b_x.png',
    ],
}


@pytest.mark.parametrize(
    ('command', 'name'), [(command, name) for command in MISSING for name in MISSING[command]]
)
def test_a_missing_path_is_named_and_nothing_is_written(prepare, tmp_path, command, name, capsys):
    root = RAW[command](tmp_path)
    for path in list(root.glob(name)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = times_of(root)
    assert prepare(command, root) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert str(root / name) in error
    assert f'expected in {root} are ' in error
    assert times_of(root) == before


def pack_val(root: Path) -> None:
    shutil.rmtree(root / 'annotations/panoptic_val2017')
    (root / 'annotations/panoptic_val2017.zip').touch()


def cut_a_label_map(root: Path) -> None:
    path = root / 'annotations/training/ADE_train_00000002.png'
    path.write_bytes(path.read_bytes()[:40])


def shrink_a_label_map(root: Path) -> None:
    save(root / 'annotations/validation/ADE_val_00000001.png', np.zeros((3, 4)))


def spoil_an_instance(*red: tuple[int, ...]):
    def spoil(root: Path) -> None:
        pixels = np.stack([canvas(*red), canvas((1, 0, 0, 2, 2)), canvas()], -1)
        save(root / 'annotations_instance/training/ADE_train_00000001.png', pixels)

    return spoil


def spoil_a_category(root: Path) -> None:
    path = root / 'annotations/panoptic_val2017.json'
    path.write_text(path.read_text().replace('"category_id": 92', '"category_id": 91'))


REFUSED = [
    ('coco-panoptic-semantic', pack_val, 'panoptic_val2017.zip is there: unpack it'),
    ('coco-panoptic-semantic', spoil_a_category, '0139.png has a segment of category 91'),
    ('ade20k-panoptic', cut_a_label_map, 'training/ADE_train_00000002.png cannot be read'),
    ('ade20k-panoptic', shrink_a_label_map, 'is of size (3, 4), its photo of (6, 8)'),
    (
        'ade20k-instance',
        spoil_an_instance((101, 0, 0, 2, 2)),
        'instance 1 has category 101; it should have one of 1 to 100',
    ),
    (
        'ade20k-instance',
        spoil_an_instance((5, 0, 0, 2, 2), (6, 0, 0, 1, 1)),
        'instance 1 has category 6 and 5',
    ),
]


@pytest.mark.parametrize(('command', 'spoil', 'message'), REFUSED)
def test_impossible_files_are_refused(prepare, tmp_path, capsys, command, spoil, message):
    root = RAW[command](tmp_path)
    spoil(root)
    assert prepare(command, root) == 2
    assert message in capsys.readouterr().err
    assert not list(root.glob('panoptic_semseg_*'))


def test_progress_tells_rate_and_time_left(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(TOOLS))
    from prepare import progress

    times = iter([0.0, 2.0, 8.0, 12.0])
    monkeypatch.setattr(progress.time, 'monotonic', lambda: next(times))
    assert list(progress.show_progress('train', iter('abc'), 3)) == ['a', 'b', 'c']
    line = 'train: 2 of 3 images, 0.2 images/s, 0:00:04 left'
    assert capsys.readouterr().out.splitlines() == [line]


@pytest.mark.parametrize(
    ('arguments', 'status', 'message'),
    [
        (['-h'], 0, 'cityscapes-panoptic'),
        (['ade20k-panoptic', '--workers', '0'], 2, '--workers must be at least 1, got 0'),
        (['mapillary'], 2, 'prepare_dataset: data/mapillary/training/images is missing'),
    ],
)
def test_usage(tmp_path, arguments, status, message):
    done = run('python', TOOLS / 'prepare_dataset.py', *arguments, cwd=tmp_path)
    assert done.returncode == status
    assert message in done.stdout


@pytest.mark.parametrize('command', ROWS)
def test_the_rows_find_every_file(prepare, tmp_path, command):
    """Their own data set settings, except for the folder, load what was prepared."""
    pytest.importorskip('mmdet')
    from mmengine import Config

    from mmseg_m2f.adapters.data import LoadSegments
    from mmseg_m2f.registry import DATASETS

    root = RAW[command](tmp_path)
    if command.startswith('coco'):
        complete_coco(root)
    assert prepare(command, root) == 0
    row, *expected = ROWS[command]
    cfg = Config.fromfile(ROOT / f'configs/mask2former_{row}.py')
    label_maps = segments = 0
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        settings = {**loader.dataset, 'data_root': str(root), 'pipeline': []}
        dataset = DATASETS.build(settings)
        for record in map(dataset.get_data_info, range(len(dataset))):
            photo = np.asarray(Image.open(record['img_path']))
            assert photo.shape[:2] == (record['height'], record['width'])
            label_maps += Path(record.get('label_map_path', '')).is_file()
            segments += len(LoadSegments()({**record, 'img': photo})['gt_segments'].labels)
    assert [label_maps, segments] == expected
