"""The share of equal labels, on images and random weights of a small model."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip('mmseg')
pytest.importorskip('mmdet')

from mmengine.config import Config
from mmengine.registry import DefaultScope

from tests.tools.conftest import ROOT
from tools.benchmark import agreement, weights

pytestmark = [
    pytest.mark.filterwarnings('ignore:torch.meshgrid'),
    pytest.mark.filterwarnings('ignore:The arguments `dropout` in MultiheadAttention'),
]

DATA = ROOT / 'data/tiny/facade'
NUM_IMAGES, SIZE = 2, 64


@pytest.fixture(scope='module')
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two photos, and beside them a file that is none."""
    folder = tmp_path_factory.mktemp('photos')
    chosen = sorted((DATA / 'img/val').glob('*.jpg'))[:NUM_IMAGES]
    (folder / 'notes.txt').write_text('no image')
    return [Path(shutil.copy(path, folder)) for path in chosen]


@pytest.fixture(scope='module')
def model(tmp_path_factory: pytest.TempPathFactory, photos: list[Path]) -> tuple[str, str]:
    """Config and checkpoint of R18, a few queries and a head otherwise of the paper's sizes."""
    from mmseg.registry import MODELS

    cfg = Config.fromfile(ROOT / 'configs/demo/mask2former_r18_facade.py')
    head = cfg.model.decode_head
    head.num_queries, head.pixel_decoder, head.decoder = 8, {}, {}
    path = tmp_path_factory.mktemp('model') / 'model.py'
    cfg.dump(path)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmseg'):
        built = MODELS.build(cfg.model)
    weights.redraw(built.decode_head)
    batch = agreement.image_batch(photos[0], SIZE)
    weights.tell_queries_apart(built, built.decode_head, batch)
    torch.save({'state_dict': built.state_dict(), 'meta': {}}, path.with_suffix('.pth'))
    return str(path), str(path.with_suffix('.pth'))


def table(path: Path) -> dict[str, dict[str, str]]:
    with path.open() as file:
        return {row['impl']: row for row in csv.DictReader(file)}


def test_of_all_implementations(
    model: tuple[str, str], photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / 'table.csv'
    options = ['--images', str(photos[0].parent), '--labels', str(DATA / 'labelmap/val')]
    agreement.main([*model, *options, '--size', str(SIZE), '--csv', str(path)])
    rows = table(path)
    assert list(rows) == list(agreement.REFERENCES)
    for name, row in rows.items():
        assert row['reference'] == agreement.REFERENCES[name]
        assert (row['images'], row['size']) == (str(NUM_IMAGES), str(SIZE))
        assert row['worst_image'] in {photo.stem for photo in photos}
        assert 0.3 < float(row['worst_agreement']) <= float(row['mean_agreement']) <= 1
        assert 0 < float(row['miou']) < 1
    assert float(rows['ours']['mean_agreement']) == 1
    assert float(rows['mmseg']['worst_agreement']) > 0.99
    assert rows['mmseg']['miou'][:4] == rows['ours']['miou'][:4]
    # Random weights show that it is another type.
    for name in ('ours-bf16', 'ours-bf16-mixed', 'mmseg-bf16'):
        assert float(rows[name]['worst_agreement']) < 1, name
    assert '100.000% of the labels of ours' in capsys.readouterr().out


def test_without_ground_truth_and_with_one_image(
    model: tuple[str, str], photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / 'table.csv'
    options = ['--images', str(photos[0].parent), '--number', '1', '--csv', str(path)]
    options += ['--implementations', 'ours-bf16']
    agreement.main([*model, *options, '--size', str(SIZE)])
    rows = table(path)
    assert list(rows) == ['ours', 'ours-bf16']
    assert {(row['images'], row['worst_image'], row['miou']) for row in rows.values()} == {
        ('1', photos[0].stem, '')
    }
    assert 'mIoU' not in capsys.readouterr().out


def test_shares_and_miou_by_hand(tmp_path: Path) -> None:
    """Two images of four pixels: one label of the second moves, and one pixel is ignored."""
    truth = np.array([[0, 0], [1, 255]], dtype=np.uint8)
    paths = [tmp_path / 'a.png', tmp_path / 'b.png']
    for path in paths:
        Image.fromarray(truth).save(path)
    exact = torch.tensor([[0, 0], [1, 3]])
    half = [exact, torch.tensor([[0, 1], [1, 3]])]
    models = {'ours': lambda _: exact, 'ours-bf16': lambda _: half.pop(0)}
    ours, moved = agreement.compare(models, paths, 2, tmp_path)
    assert (ours.mean_agreement, ours.worst_agreement, ours.miou) == (1, 1, 1)
    assert (moved.mean_agreement, moved.worst_agreement, moved.worst_image) == (0.875, 0.75, 'b')
    # Class 0: 3 of 4 pixels; class 1: 2 of 3 in the union.
    assert moved.miou == pytest.approx((3 / 4 + 2 / 3) / 2)


@pytest.mark.parametrize('size', [96, 384])
def test_the_labels_are_of_the_size_of_the_file(photos: list[Path], size: int) -> None:
    batch = agreement.image_batch(photos[0], size)
    [sample] = batch['data_samples']
    assert min(batch['inputs'][0].shape[1:]) == size
    with Image.open(photos[0]) as photo:
        assert sample.ori_shape == photo.size[::-1]


def test_what_is_not_there_is_named(model: tuple[str, str], photos: list[Path]) -> None:
    images = ['--images', str(photos[0].parent)]
    with pytest.raises(SystemExit, match=r'no file ends with one of'):
        agreement.main([*model, '--images', str(photos[0].parent.parent / 'nowhere')])
    options = ['--labels', str(photos[0].parent), '--size', '64', '--implementations', 'ours']
    with pytest.raises(SystemExit, match=f'there is no {photos[0].stem}.png'):
        agreement.main([*model, *images, *options])


def test_mmseg_has_no_such_model(model: tuple[str, str], photos: list[Path]) -> None:
    cfg = Config.fromfile(model[0])
    state = torch.load(model[1])['state_dict']
    cfg.model.backbone.depth = 34
    with pytest.raises(SystemExit, match="paper's sizes here, which the weights do not fit"):
        agreement._mmseg(cfg, state)
    cfg.model.backbone.type = 'SwinTransformer'
    with pytest.raises(SystemExit, match='with a ResNet here, not with SwinTransformer'):
        agreement._mmseg(cfg, state)
