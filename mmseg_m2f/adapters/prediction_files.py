"""Semantic predictions of a test as files: label maps for programs, pictures for people."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mmcv
import numpy as np
from mmengine.fileio import get
from mmengine.hooks import Hook
from mmengine.runner import Runner
from PIL import Image, ImageDraw, ImageFont

from mmseg_m2f.registry import HOOKS

OPACITY = 0.65
# Panels are brought to a width in between, so that titles and legend can be read.
PANEL_WIDTHS = (384, 1024)
LINE_HEIGHT = 26
FONT_SIZE = 16
UNLABELED_COLOR = (0, 0, 0)


class Panel(NamedTuple):
    """One label map to show; ``label_map`` (H, W) may hold values that are no class."""

    title: str
    label_map: np.ndarray


@HOOKS.register_module()
class SaveLabelMapsHook(Hook):
    """Writes every prediction of a test as a PNG whose values are the labels of the data set.

    The file keeps the picture's name and its folder below the data set's picture folder. Where
    the data set shifts its labels (``reduce_zero_label``) they are shifted back. 16 bits are
    used beyond 256 labels.
    """

    def __init__(self, out_dir: str) -> None:
        self.out_dir = Path(out_dir)

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[Any] | None = None,
    ) -> None:
        """Saves one batch."""
        dataset = runner.test_dataloader.dataset
        for sample in outputs or ():
            label_map = _label_map(sample.pred_sem_seg)
            if sample.metainfo.get('reduce_zero_label'):
                label_map = label_map + 1
            dtype = np.uint8 if label_map.max(initial=0) < 256 else np.uint16
            path = _target_path(self.out_dir, sample.img_path, dataset)
            Image.fromarray(label_map.astype(dtype)).save(path)


@HOOKS.register_module()
class DrawPredictionsHook(Hook):
    """Writes for every picture of a test: photo, ground truth if any, prediction, legend.

    Names and colours are those of the data set; if it has none, those saved in the checkpoint.
    """

    def __init__(self, out_dir: str) -> None:
        self.out_dir = Path(out_dir)
        self._saved_meta: dict[str, Any] = {}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keeps the names and colours the model was trained with."""
        self._saved_meta = checkpoint.get('meta', {}).get('dataset_meta') or {}

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[Any] | None = None,
    ) -> None:
        """Draws one batch."""
        dataset = runner.test_dataloader.dataset
        meta = dataset.metainfo if dataset.metainfo.get('classes') else self._saved_meta
        for sample in outputs or ():
            photo = mmcv.imfrombytes(get(sample.img_path), channel_order='rgb')
            panels = [Panel('prediction', _label_map(sample.pred_sem_seg))]
            if 'gt_sem_seg' in sample:
                panels.insert(0, Panel('ground truth', _label_map(sample.gt_sem_seg)))
            picture = draw_panels(photo, panels, meta['classes'], meta['palette'])
            picture.save(_target_path(self.out_dir, sample.img_path, dataset))


def draw_panels(
    photo: np.ndarray,
    panels: Sequence[Panel],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
) -> Image.Image:
    """The photo (H, W, 3) uint8 RGB, the panels to its right, a legend of what occurs below.

    Pixels without a class (ignored ones) are darkened.
    """
    width = int(np.clip(photo.shape[1], *PANEL_WIDTHS))
    height = round(photo.shape[0] * width / photo.shape[1])
    maps = [np.asarray(_resized(panel.label_map, (width, height))) for panel in panels]
    base = Image.fromarray(photo).resize((width, height), Image.Resampling.BILINEAR)
    tiles = [base, *(_painted(base, label_map, palette) for label_map in maps)]
    used = sorted(set(np.unique(maps).tolist()) & set(range(len(classes))))
    legend = _legend([(classes[i], palette[i]) for i in used], width * len(tiles))
    canvas = Image.new('RGB', (width * len(tiles), LINE_HEIGHT + height + legend.height), 'white')
    draw = ImageDraw.Draw(canvas)
    titles = ['photo', *(panel.title for panel in panels)]
    for left, tile, title in zip(range(0, canvas.width, width), tiles, titles, strict=True):
        draw.text((left + 6, 4), title, fill='black', font=_font())
        canvas.paste(tile, (left, LINE_HEIGHT))
    canvas.paste(legend, (0, LINE_HEIGHT + height))
    return canvas


def _resized(label_map: np.ndarray, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(label_map.astype(np.int32)).resize(size, Image.Resampling.NEAREST)


def _painted(
    photo: Image.Image, label_map: np.ndarray, palette: Sequence[Sequence[int]]
) -> Image.Image:
    colors = np.array([*palette, UNLABELED_COLOR], np.uint8)
    is_class = (label_map >= 0) & (label_map < len(palette))
    paint = colors[np.where(is_class, label_map, len(palette))]
    return Image.blend(photo, Image.fromarray(paint), OPACITY)


def _legend(entries: Sequence[tuple[str, Sequence[int]]], width: int) -> Image.Image:
    """Colour fields with names, broken into as many lines as the width needs."""
    font, places = _font(), []
    left = line = 0
    for name, _ in entries:
        needed = LINE_HEIGHT + round(font.getlength(name)) + 18
        if left and left + needed > width:
            left, line = 0, line + 1
        places.append((left, line * LINE_HEIGHT))
        left += needed
    legend = Image.new('RGB', (width, (line + 1) * LINE_HEIGHT), 'white')
    draw = ImageDraw.Draw(legend)
    for (name, color), (x, y) in zip(entries, places, strict=True):
        draw.rectangle((x + 5, y + 6, x + 20, y + 21), fill=tuple(color), outline='black')
        draw.text((x + LINE_HEIGHT, y + 4), name, fill='black', font=font)
    return legend


def _font() -> Any:
    return ImageFont.load_default(FONT_SIZE)


def _label_map(pixel_data: Any) -> np.ndarray:
    return pixel_data.data.squeeze(0).cpu().numpy().astype(np.int64)


def _target_path(out_dir: Path, img_path: str, dataset: Any) -> Path:
    picture = Path(img_path)
    root = getattr(dataset, 'data_prefix', {}).get('img_path')
    inside = picture.relative_to(root) if root and picture.is_relative_to(root) else picture.name
    path = (out_dir / inside).with_suffix('.png')
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
