"""tools/prepare_dataset.py on raw layouts of three images, with numbers worked out by hand."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from tests.tools.conftest import ROOT, TOOLS, run, run_tool

HEIGHT, WIDTH = 6, 8
SIZE = {'height': HEIGHT, 'width': WIDTH}


@pytest.fixture
def prepare(monkeypatch):
    """The tool's ``main``; gives the exit status."""
    monkeypatch.syspath_prepend(str(TOOLS))
    import prepare_dataset

    # It takes SIGTERM for itself, which it may in a process of its own.
    monkeypatch.setattr(prepare_dataset.signal, 'signal', lambda *_: None)
    return lambda *arguments: prepare_dataset.main([*map(str, arguments), '--workers', '1'])


def save(path: Path, values=((90,) * WIDTH,) * HEIGHT, dtype=np.uint8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, dtype)).save(path)


def canvas(*boxes) -> np.ndarray:
    """``(value, x, y, width, height)`` painted one over the other on zeros."""
    values = np.zeros((HEIGHT, WIDTH), np.int32)
    for value, x, y, width, height in boxes:
        values[y : y + height, x : x + width] = value
    return values


def read_ids(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int) @ [1, 256, 65536]


def read(path: Path):
    return json.loads(path.read_text())


def extents(segments, *keys) -> list[tuple]:
    keys = keys or ('id', 'category_id', 'area', 'bbox', 'iscrowd')
    return [tuple(segment[key] for key in keys) for segment in segments]


def files_of(folder: Path) -> dict[str, bytes]:
    paths = [path for path in sorted(folder.rglob('*')) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def times_of(folder: Path) -> dict[str, int]:
    return {name: (folder / name).stat().st_mtime_ns for name in files_of(folder)}


# ADE20K: a bed that lies over wall and floor a column beside its place in the semantic map; an
# unlabeled image; a person and a flag on the sky. Instances: category in red, number in green.
ADE20K = {
    'training/ADE_train_00000001': (
        canvas((1, 0, 0, 8, 3), (4, 0, 3, 8, 3), (8, 0, 2, 3, 3)),
        canvas((1, 1, 2, 3, 3)),
        canvas((1, 1, 2, 3, 3)),
    ),
    'training/ADE_train_00000002': (canvas(), canvas(), canvas()),
    'validation/ADE_val_00000001': (
        canvas((3, 0, 0, 8, 6)),
        canvas((4, 7, 5, 1, 1), (100, 0, 0, 2, 4)),
        canvas((2, 7, 5, 1, 1), (1, 0, 0, 2, 4)),
    ),
}


def ade20k(root: Path) -> Path:
    for name, (semantic, category, number) in ADE20K.items():
        save(root / f'images/{name}.jpg')
        save(root / f'annotations/{name}.png', semantic)
        pixels = np.stack([category, number, canvas()], -1)
        save(root / f'annotations_instance/{name}.png', pixels)
    return root


# Cityscapes: stuff, two instances and a group; a caravan and the ego vehicle; a crowd of riders.
CITYSCAPES = {
    'train/aachen/aachen_000000_000019': canvas(
        (7, 0, 3, 8, 3), (26001, 1, 1, 3, 2), (24, 6, 2, 2, 3), (24000, 4, 0, 1, 4)
    ),
    'train/bochum/bochum_000000_000313': canvas(
        (23, 0, 0, 8, 2), (29000, 2, 2, 2, 2), (1, 0, 5, 8, 1)
    ),
    'val/lindau/lindau_000000_000019': canvas((25, 0, 0, 2, 2), (33002, 3, 3, 5, 1)),
}


def cityscapes(root: Path) -> Path:
    for name, values in CITYSCAPES.items():
        save(root / f'gtFine/{name}_gtFine_instanceIds.png', values, np.uint16)
        save(root / f'gtFine/{name}_gtFine_labelTrainIds.png')
        save(root / f'leftImg8bit/{name}_leftImg8bit.png')
    return root


# COCO: two things and a stuff class, with ids beyond 16 bits, and pixels of no listed segment.
COCO = {
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
    from mmseg_m2f.metadata import load_metadata

    metadata = load_metadata('coco_panoptic')
    columns = enumerate(zip(metadata.category_ids, metadata.classes, strict=True))
    categories = [
        {'id': number, 'name': name, 'isthing': int(index in metadata.thing_ids)}
        for index, (number, name) in columns
    ]
    for split, maps in COCO.items():
        annotations, images = [], []
        for stem, (ids, segments) in maps.items():
            pixels = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1)
            save(root / f'annotations/panoptic_{split}2017/{stem}.png', pixels)
            save(root / f'{split}2017/{stem}.jpg')
            info = [
                {'id': i, 'category_id': c, 'area': 1, 'bbox': [0, 0, 1, 1]} for i, c in segments
            ]
            named = {'image_id': int(stem), 'file_name': f'{stem}.png'}
            annotations.append({**named, 'segments_info': info})
            images.append({'id': int(stem), 'file_name': f'{stem}.jpg', **SIZE})
        content = {'annotations': annotations, 'images': images, 'categories': categories}
        (root / f'annotations/panoptic_{split}2017.json').write_text(json.dumps(content))
    return root


# Mapillary: the last category, the first, and one that is not evaluated.
MAPILLARY = {
    'training': {'b_x': [(3, 65, 8), (9, 66, 16)], 'a_y': [(7, 1, 48)]},
    'validation': {'c_z': [(2, 44, 4)]},
}


def mapillary(root: Path) -> Path:
    for folder, segments_of in MAPILLARY.items():
        annotations, images = [], []
        for stem, segments in segments_of.items():
            save(root / f'{folder}/images/{stem}.jpg')
            save(root / f'{folder}/labels/{stem}.png', canvas())
            save(root / f'{folder}/panoptic/{stem}.png', np.stack([canvas()] * 3, -1))
            box = {'bbox': [0, 0, 1, 1], 'iscrowd': 0}
            info = [{'id': i, 'category_id': c, 'area': a, **box} for i, c, a in segments]
            named = {'image_id': stem, 'file_name': f'{stem}.png'}
            annotations.append({**named, 'segments_info': info})
            images.append({'id': stem, 'file_name': f'{stem}.jpg', **SIZE})
        content = {'annotations': annotations, 'images': images, 'categories': []}
        (root / f'{folder}/panoptic/panoptic_2018.json').write_text(json.dumps(content))
    return root


RAW = {
    'ade20k-panoptic': ade20k,
    'ade20k-instance': ade20k,
    'cityscapes-panoptic': cityscapes,
    'cityscapes-instance': cityscapes,
    'coco-panoptic-semantic': coco,
    'mapillary': mapillary,
}


def test_ade20k_by_hand(prepare, tmp_path):
    ade20k(tmp_path)
    assert prepare('ade20k-panoptic', tmp_path) == prepare('ade20k-instance', tmp_path) == 0
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
    name = 'ADE_train_00000002'
    assert train['images'][1] == {'file_name': f'{name}.jpg', 'id': name, **SIZE}
    ids = read_ids(tmp_path / 'ade20k_panoptic_train/ADE_train_00000001.png')
    painted = canvas((1, 0, 0, 8, 3), (2, 0, 3, 8, 3), (0, 0, 2, 3, 3), (3, 1, 2, 3, 3))
    assert np.array_equal(ids, painted)
    # Category 4 of the instances is a person (12), 100 a flag (149).
    assert extents(val['annotations'][0]['segments_info']) == [
        (1, 2, 48, [0, 0, 8, 6], 0),
        (2, 149, 8, [0, 0, 2, 4], 0),
        (3, 12, 1, [7, 5, 1, 1], 0),
    ]
    train, val = (read(tmp_path / f'ade20k_instance_{split}.json') for split in ('train', 'val'))
    assert [category['id'] for category in train['categories']] == things
    assert [image['id'] for image in train['images']] == [1, 2]
    (bed,) = train['annotations']
    assert extents([bed]) == [(1, 7, 9, [1, 2, 3, 3], 0)]
    assert bed['image_id'] == 1
    assert np.array_equal(coco_mask.decode(bed['segmentation']), canvas((1, 1, 2, 3, 3)))
    assert extents(val['annotations'], 'id', 'category_id', 'area') == [(1, 149, 8), (2, 12, 1)]


def test_cityscapes_instances_by_hand(prepare, tmp_path):
    """The panoptic form is compared with cityscapesScripts."""
    assert prepare('cityscapes-instance', cityscapes(tmp_path)) == 0
    names = [tmp_path / f'gtFine/cityscapes_instance_{split}.json' for split in ('train', 'val')]
    train, val = map(read, names)
    assert [entry['id'] for entry in train['categories']] == [24, 25, 26, 27, 28, 31, 32, 33]
    assert extents(train['annotations']) == [
        (1, 24, 6, [6, 2, 2, 3], 1),
        (2, 24, 4, [4, 0, 1, 4], 0),
        (3, 26, 6, [1, 1, 3, 2], 0),
    ]
    assert [annotation['image_id'] for annotation in train['annotations']] == [1, 1, 1]
    mask = coco_mask.decode(train['annotations'][2]['segmentation'])
    assert np.array_equal(mask, canvas((1, 1, 1, 3, 2)))
    assert [image['file_name'] for image in train['images']] == [
        'aachen/aachen_000000_000019_leftImg8bit.png',
        'bochum/bochum_000000_000313_leftImg8bit.png',
    ]
    assert extents(val['annotations'], 'category_id', 'iscrowd') == [(25, 1), (33, 0)]


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_ours_equals_cityscapesscripts_and_completes_it(prepare, tmp_path, capsys):
    scripts = pytest.importorskip('cityscapesscripts.preparation.createPanopticImgs')
    ours, theirs = (cityscapes(tmp_path / name) / 'gtFine' for name in ('ours', 'theirs'))
    assert prepare('cityscapes-panoptic', ours.parent) == 0
    scripts.convert2panoptic(str(theirs), str(theirs), False, ['train', 'val'])
    for split in ('train', 'val'):
        name = f'cityscapes_panoptic_{split}'
        contents = [read(folder / f'{name}.json') for folder in (ours, theirs)]
        for content in contents:
            for category in content['categories']:
                category.pop('supercategory', None)
            for image in content['images']:
                del image['file_name']
        for key in ('annotations', 'categories', 'images'):
            assert contents[0][key] == contents[1][key], key
        for path in (theirs / name).iterdir():
            assert np.array_equal(read_ids(path), read_ids(ours / name / path.name))
    # Their files are kept, and made anew where a PNG is missing.
    times = times_of(theirs)
    assert prepare('cityscapes-panoptic', theirs.parent) == 0
    assert times_of(theirs) == times
    name = 'cityscapes_panoptic_train/bochum_000000_000313_gtFine_panoptic.png'
    (theirs / name).unlink()
    assert prepare('cityscapes-panoptic', theirs.parent) == 0
    assert 'made by another tool and lacks PNG files' in capsys.readouterr().out
    again = times_of(theirs)
    changed = sorted(other for other in times if again[other] != times[other])
    assert changed == ['cityscapes_panoptic_train.json', name]


def test_coco_label_maps_by_hand(prepare, tmp_path):
    assert prepare('coco-panoptic-semantic', coco(tmp_path)) == 0
    made = ('train2017/000000000009', 'train2017/000000000025', 'val2017/000000000139')
    found = [np.asarray(Image.open(tmp_path / f'panoptic_semseg_{name}.png')) for name in made]
    # Category 1 is class 0, 90 is 79; segment 5 is not listed.
    assert found[0].dtype == np.uint8
    assert np.array_equal(found[0], canvas((255, 0, 0, 8, 6), (0, 0, 0, 4, 6), (79, 4, 0, 2, 6)))
    assert (found[1] == 132).all()
    assert np.array_equal(found[2], canvas((255, 0, 0, 8, 6), (80, 0, 0, 8, 3)))


def test_mapillary_by_hand(prepare, tmp_path, capsys):
    assert prepare('mapillary', mapillary(tmp_path)) == 0
    content = read(tmp_path / 'annotations/panoptic_training.json')
    categories = content['categories']
    assert [category['id'] for category in categories] == list(range(1, 66))
    assert [categories[i]['name'] for i in (0, 13, 64)] == ['Bird', 'Road', 'Ego Vehicle']
    assert sum(category['isthing'] for category in categories) == 37
    first, second = content['annotations']
    assert first['file_name'] == 'a_y.png'
    assert extents(first['segments_info']) == [(7, 1, 48, [0, 0, 1, 1], 0)]
    assert extents(second['segments_info']) == [(3, 65, 8, [0, 0, 1, 1], 0)]
    assert [image['file_name'] for image in content['images']] == ['a_y.jpg', 'b_x.jpg']
    output = capsys.readouterr().out
    assert 'train: 1 segments of no evaluated class are void' in output
    assert 'mapillary done: 3 images, 3 segments' in output


@pytest.mark.parametrize('command', RAW)
def test_runs_make_only_what_is_missing_wherever_they_write(prepare, tmp_path, command, capsys):
    root = RAW[command](tmp_path / 'raw')
    raw = files_of(root)
    assert prepare(command, root) == 0
    whole, times = files_of(root), times_of(root)
    made = {name: content for name, content in whole.items() if name not in raw}
    assert made
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
    other = RAW[command](tmp_path / 'other')
    options = ('--out', tmp_path / 'out', '--workers', '2')
    run_tool('prepare_dataset.py', command, other, *options, cwd=tmp_path)
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


def cut(name: str, length: int, root: Path) -> None:
    (root / name).write_bytes((root / name).read_bytes()[:length])


def replace(name: str, old: str, new: str, root: Path) -> None:
    (root / name).write_text((root / name).read_text().replace(old, new))


def paint_another_png(root: Path) -> None:
    save(root / 'ade20k_panoptic_train/ADE_train_00000001.png', np.full((6, 8, 3), 7))
    (root / 'ade20k_panoptic_train.json').unlink()


def leave_records_of_another_folder(root: Path) -> None:
    (root / 'ade20k_panoptic_train.json').unlink()
    part = root / 'ade20k_panoptic_train.json.part'
    part.write_bytes(b'{"root": "elsewhere"}\n["ADE_train_00000001", {}, []]\n')


name_another_image = partial(
    replace, 'ade20k_panoptic_train.json', 'ADE_train_00000002', 'ADE_train_00000003'
)


@pytest.mark.parametrize(
    'spoil',
    [
        partial(cut, 'ade20k_panoptic_train/ADE_train_00000002.png', -20),
        name_another_image,
        paint_another_png,
        leave_records_of_another_folder,
    ],
)
def test_what_was_spoiled_is_made_again(prepare, tmp_path, spoil, capsys):
    root = ade20k(tmp_path)
    only = ('ade20k-panoptic', root, '--splits', 'train')
    assert prepare(*only) == 0
    whole = files_of(root)
    assert 'ade20k_panoptic_val.json' not in whole
    spoil(root)
    assert prepare(*only) == 0
    assert files_of(root) == whole
    replaced = 'train.json is not what the configs read: made anew' in capsys.readouterr().out
    assert replaced == (spoil is name_another_image)


def remove(name: str, root: Path) -> None:
    for path in list(root.glob(name)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def pack_val(root: Path) -> None:
    remove('annotations/panoptic_val2017', root)
    (root / 'annotations/panoptic_val2017.zip').touch()


def spoil_an_instance(red: tuple[tuple[int, ...], ...], root: Path) -> None:
    pixels = np.stack([canvas(*red), canvas((1, 0, 0, 2, 2)), canvas()], -1)
    save(root / 'annotations_instance/training/ADE_train_00000001.png', pixels)


def shrink_a_label_map(root: Path) -> None:
    save(root / 'annotations/validation/ADE_val_00000001.png', np.zeros((3, 4)))


MISSING = """
ade20k-panoptic images
ade20k-panoptic images/validation
ade20k-panoptic annotations/training/ADE_train_00000002.png
ade20k-instance annotations_instance/validation/ADE_val_00000001.png
cityscapes-panoptic gtFine/val
cityscapes-panoptic leftImg8bit/train/bochum/bochum_000000_000313_leftImg8bit.png
cityscapes-instance gtFine/train/aachen/*_gtFine_instanceIds.png
coco-panoptic-semantic annotations/panoptic_val2017.json
coco-panoptic-semantic annotations/panoptic_train2017
coco-panoptic-semantic annotations/panoptic_train2017/000000000025.png
mapillary training/panoptic/panoptic_2018.json
mapillary validation/labels
mapillary validation/images/c_z.jpg
mapillary training/panoptic/b_x.png
"""
COCO_VAL, LABEL_MAP = 'annotations/panoptic_val2017.json', 'training/ADE_train_00000002.png'
swap_a_category = partial(replace, COCO_VAL, '"category_id": 92', '"category_id": 91')
unknown_category = partial(spoil_an_instance, ((101, 0, 0, 2, 2),))
two_categories = partial(spoil_an_instance, ((5, 0, 0, 2, 2), (6, 0, 0, 1, 1)))
cut_a_label_map = partial(cut, f'annotations/{LABEL_MAP}', 40)


@pytest.mark.parametrize(
    ('command', 'spoil', 'message'),
    [
        *(
            (command, partial(remove, name), f'/{name}')
            for command, name in map(str.split, MISSING.strip().splitlines())
        ),
        ('coco-panoptic-semantic', pack_val, 'panoptic_val2017.zip is there: unpack it'),
        ('coco-panoptic-semantic', swap_a_category, '0139.png has a segment of category 91'),
        ('ade20k-panoptic', cut_a_label_map, f'{LABEL_MAP} cannot be read'),
        ('ade20k-panoptic', shrink_a_label_map, 'is of size (3, 4), its photo of (6, 8)'),
        ('ade20k-instance', unknown_category, 'instance 1 has category 101; it should have one of'),
        ('ade20k-instance', two_categories, 'instance 1 has category 6 and 5'),
    ],
)
def test_missing_and_impossible_files_are_named(prepare, tmp_path, capsys, command, spoil, message):
    root = RAW[command](tmp_path)
    spoil(root)
    before = times_of(root)
    assert prepare(command, root) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert f'{root}/' in error
    assert message in error
    # Nothing is written before everything was looked up.
    if 'is missing' in error:
        assert f'expected in {root} are ' in error
        assert times_of(root) == before


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


# How many label maps (read in the test set alone) and segments without crowds a row finds.
@pytest.mark.parametrize(
    ('command', 'row', 'expected'),
    [
        ('ade20k-panoptic', 'r50_ade20k-panoptic', (1, 6)),
        ('ade20k-instance', 'r50_ade20k-instance', (0, 3)),
        ('cityscapes-panoptic', 'r50_cityscapes-panoptic', (1, 5)),
        ('cityscapes-instance', 'r50_cityscapes-instance', (0, 3)),
        ('coco-panoptic-semantic', 'r50_coco-panoptic', (1, 4)),
        ('mapillary', 'r50_mapillary-panoptic', (1, 3)),
    ],
)
def test_the_rows_find_every_file(prepare, tmp_path, command, row, expected):
    """Their own data set settings, except for the folder, load what was prepared."""
    pytest.importorskip('mmdet')
    from mmengine import Config

    from mmseg_m2f.adapters.data import LoadSegments
    from mmseg_m2f.registry import DATASETS

    root = RAW[command](tmp_path)
    assert prepare(command, root) == 0
    cfg = Config.fromfile(ROOT / f'configs/mask2former_{row}.py')
    label_maps = segments = 0
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        dataset = DATASETS.build({**loader.dataset, 'data_root': str(root), 'pipeline': []})
        for record in map(dataset.get_data_info, range(len(dataset))):
            photo = np.asarray(Image.open(record['img_path']))
            assert photo.shape[:2] == (record['height'], record['width'])
            label_maps += Path(record.get('label_map_path', '')).is_file()
            segments += len(LoadSegments()({**record, 'img': photo})['gt_segments'].labels)
    assert (label_maps, segments) == expected
