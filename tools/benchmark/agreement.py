"""How many labels of a trained model stay the same in bfloat16, ours beside mmseg's own head.

    python -m tools.benchmark.agreement CONFIG CHECKPOINT --images data/tiny/facade/img/val \
        --labels data/tiny/facade/labelmap/val --csv agreement.csv

The finished label maps of every image: of our head in float32, prepared in bfloat16 without and
with its pixel decoder (``mixed_precision``), and of mmseg's head with the same weights in float32
and under autocast. Each is compared with float32 of the same head, mmseg's float32 with ours. The
model is a segmentor of ours; mmseg's is built for ResNets and heads of the paper's sizes.
"""

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from torch import Tensor

import mmseg_m2f
from mmseg_m2f.checkpoints import to_theirs
from mmseg_m2f.evaluation.semantic_iou import (
    NO_CLASS,
    class_areas,
    mean_of_defined,
    semantic_quality,
)
from tools.benchmark import harness, segmentors
from tools.benchmark.inference import run
from tools.benchmark.tuning import in_bfloat16

# What each is compared with.
REFERENCES = {
    'ours': 'ours',
    'ours-bf16': 'ours',
    'ours-bf16-mixed': 'ours',
    'mmseg': 'ours',
    'mmseg-bf16': 'mmseg',
}
SUFFIXES = {'.jpg', '.jpeg', '.png'}
IGNORED = 255

# From a image to its labels (H, W), at the size of the file.
Predict = Callable[[dict[str, Any]], Tensor]


class Row(NamedTuple):
    """The shares of equal labels of one implementation; ``miou`` is NaN without ground truth."""

    impl: str
    reference: str
    images: int
    size: int
    mean_agreement: float
    worst_agreement: float
    worst_image: str
    miou: float
    torch: str
    commit: str


def main(argv: Sequence[str] | None = None) -> None:
    """Compare and print; with ``--csv`` write the table.

    Raises:
        SystemExit: there are no images, or mmseg has no such model.
    """
    args = _parse(argv)
    paths = sorted(path for path in args.images.glob('*') if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise SystemExit(f'--images {args.images}: no file ends with one of {sorted(SUFFIXES)}')
    names = with_references(args.implementations)
    models = {name: build(name, args.config, args.checkpoint) for name in names}
    rows = compare(models, paths[: args.number], args.size, args.labels)
    for row in rows:
        quality = '' if math.isnan(row.miou) else f', mIoU {row.miou:.4f}'
        print(
            f'{row.impl:>16}: {row.mean_agreement:.3%} of the labels of {row.reference}, '
            f'{row.worst_agreement:.3%} at worst ({row.worst_image}){quality}'
        )
    if args.csv:
        harness.write_csv(args.csv, rows)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('config', type=Path)
    parser.add_argument('checkpoint', type=Path, help='in any layout that the model loads')
    parser.add_argument('--images', type=Path, required=True, help='a folder')
    parser.add_argument('--labels', type=Path, help='a folder of PNG label maps of the same names')
    parser.add_argument('--size', type=int, default=512, help='of the shorter side')
    parser.add_argument('--number', type=int, help='of images, the first by name; default all')
    parser.add_argument(
        '--implementations', nargs='+', choices=list(REFERENCES), default=list(REFERENCES)
    )
    parser.add_argument('--csv', type=Path)
    return parser.parse_args(argv)


def with_references(names: Sequence[str]) -> list[str]:
    """The names and what they are compared with, in the order of ``REFERENCES``."""
    wanted = {'ours', *names, *(REFERENCES[name] for name in names)}
    return [name for name in REFERENCES if name in wanted]


def build(name: str, config: Path, checkpoint: Path) -> Predict:
    """The model in test mode, as a function from a image to its labels.

    Raises:
        SystemExit: mmseg has no such model.
    """
    cfg = Config.fromfile(config)
    init_default_scope('mmseg')
    model = _ours(cfg, checkpoint, mixed_precision=name == 'ours-bf16-mixed')
    if name.startswith('mmseg'):
        predict = partial(_labels, _mmseg(cfg, model.state_dict()))
        return in_bfloat16(predict) if name == 'mmseg-bf16' else predict
    if name != 'ours':
        mmseg_m2f.prepare_inference(model, dtype='bfloat16')
    return partial(_labels, model)


def _ours(cfg: Config, checkpoint: Path, *, mixed_precision: bool) -> Any:
    from mmseg.registry import MODELS

    settings = cfg.model.decode_head.get('pixel_decoder') or {}
    cfg.model.decode_head.pixel_decoder = {**settings, 'mixed_precision': mixed_precision}
    model = MODELS.build(cfg.model)
    load_checkpoint(model, str(checkpoint), map_location='cpu', strict=True)
    return model.eval()


def _mmseg(cfg: Config, state: Mapping[str, Tensor]) -> Any:
    backbone, head = cfg.model.backbone, cfg.model.decode_head
    without = 'name --implementations without it'
    if backbone.type != 'ResNet':
        raise SystemExit(f'mmseg is built with a ResNet here, not with {backbone.type}: {without}')
    queries = head.get('num_queries', 100)
    spec = segmentors.Spec('mmseg', segmentors.MMSEG_R50, head.num_classes, backbone.depth, queries)
    model = segmentors.build(spec, 'mmseg')
    try:
        model.load_state_dict(to_theirs(state, 'mmseg'))
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise SystemExit(
            f"mmseg's head has the paper's sizes here, which the weights do not fit: {without}. "
            f'The first of what does not: {first}'
        ) from error
    return model.eval()


def _labels(model: Any, batch: dict[str, Any]) -> Tensor:
    [sample] = run(model, batch)
    return sample.pred_sem_seg.data[0]


def image_batch(path: Path, size: int) -> dict[str, Any]:
    """One image with its shorter side enlarged or reduced to ``size``."""
    from mmseg.structures import SegDataSample

    pixels = mmcv.imread(path)
    height, width = pixels.shape[:2]
    scale = size / min(height, width)
    resized = mmcv.imresize(pixels, (round(width * scale), round(height * scale)))
    meta = {'img_path': str(path), 'img_shape': resized.shape[:2], 'ori_shape': (height, width)}
    tensor = torch.from_numpy(resized).permute(2, 0, 1).contiguous()
    return {'inputs': [tensor], 'data_samples': [SegDataSample(metainfo=meta)]}


def compare(
    models: Mapping[str, Predict], paths: Sequence[Path], size: int, labels: Path | None
) -> list[Row]:
    """One row per model, whose references are among them."""
    shares: dict[str, list[float]] = {name: [] for name in models}
    areas: dict[str, list[np.ndarray]] = {name: [] for name in models}
    for path in paths:
        found = {name: predict(image_batch(path, size)) for name, predict in models.items()}
        truth = None if labels is None else _truth(labels / f'{path.stem}.png')
        for name, labelled in found.items():
            equal = labelled == found[REFERENCES[name]]
            shares[name].append(float(equal.float().mean()))
            if truth is not None:
                areas[name].append(_areas(truth, labelled))
    return [_row(name, shares[name], areas[name], paths, size) for name in models]


def _truth(path: Path) -> np.ndarray:
    if not path.is_file():
        raise SystemExit(f'--labels {path.parent}: there is no {path.name}')
    found = mmcv.imread(path, flag='unchanged').astype(np.int64)
    found[found == IGNORED] = NO_CLASS
    return found


def _areas(truth: np.ndarray, labelled: Tensor) -> np.ndarray:
    # Of as many classes as a byte can name: those that are nowhere have no IoU.
    return class_areas(truth, labelled.numpy(), IGNORED)


def _row(
    name: str,
    shares: Sequence[float],
    areas: Sequence[np.ndarray],
    paths: Sequence[Path],
    size: int,
) -> Row:
    miou = mean_of_defined(semantic_quality(np.sum(areas, axis=0)).iou) if areas else math.nan
    worst = int(np.argmin(shares))
    return Row(
        impl=name,
        reference=REFERENCES[name],
        images=len(shares),
        size=size,
        mean_agreement=float(np.mean(shares)),
        worst_agreement=shares[worst],
        worst_image=paths[worst].stem,
        miou=miou,
        torch=torch.__version__,
        commit=harness.commit(),
    )


if __name__ == '__main__':
    main()
