"""Predictions drawn over the images."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mmcv
import numpy as np
from mmengine.fileio import get
from mmengine.hooks import Hook
from mmengine.runner import Runner
from PIL import Image, ImageDraw, ImageFont

from mmseg_m2f.adapters.data import InstanceDataset, LoadSegments, SegmentMap
from mmseg_m2f.adapters.metrics import sample_fields as fields
from mmseg_m2f.adapters.results.submissions import png_name, with_folder
from mmseg_m2f.metadata.colors import spread_colors
from mmseg_m2f.registry import HOOKS

OPACITY = 0.65
# Panels are resized to a width between these two, in pixels, so that titles and legend can be read.
PANEL_WIDTHS = (384, 1024)
LINE_HEIGHT = 26
FONT_SIZE = 16
UNLABELED_COLOR = (0, 0, 0)
BORDER_COLOR = (255, 255, 255)
# How far a segment's color moves to white (positive) or black (negative). The segments of one class
# take turns, and the first one has the color of the class.
SHADES = (0.0, 0.45, -0.4, 0.25, -0.2, 0.6)

# A color per class, RGB from 0 to 255.
Palette = Sequence[Sequence[int]]


class Panel(NamedTuple):
    """One prediction, or the ground truth, to draw.

    ``label_map (H, W)`` are class indices; other values mean no class. ``segment_map (H, W)`` are
    the ids of segments, if there are any: they get borders, and those of one class several shades.
    """

    title: str
    label_map: np.ndarray
    segment_map: np.ndarray | None = None


@HOOKS.register_module()
class DrawPredictionsHook(Hook):
    """Write one PNG per image of a test: image, ground truth if there is any, predictions, legend.

    Each kind of prediction the model gives (semantic, instance, panoptic) gets a panel. Class names
    and colors are those of the data set; if it has none, those saved in the checkpoint.

    Args:
        out_dir: folder to write into.
        score_thr: instances with a lower score are not drawn. The best one lies on top.
    """

    def __init__(self, out_dir: str, score_thr: float = 0.3) -> None:
        self.out_dir = Path(out_dir)
        self.score_thr = score_thr
        self._saved_meta: dict[str, Any] = {}
        self._index_by_id: dict[Any, int] = {}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self._saved_meta = checkpoint.get('meta', {}).get('dataset_meta') or {}

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        dataset = runner.test_dataloader.dataset
        meta = dataset.metainfo if dataset.metainfo.get('classes') else self._saved_meta
        classes = meta['classes']
        for output in outputs:
            sample = output.to_dict()
            image = mmcv.imfrombytes(get(sample['img_path']), channel_order='rgb')
            truth = self._truth(sample, dataset, image)
            panels = [*truth, *predicted_panels(sample, len(classes), self.score_thr)]
            drawn = draw_panels(image, panels, classes, palette_of(meta))
            drawn.save(with_folder(self.out_dir / png_name(sample['img_path'], dataset)))

    def _truth(self, sample: fields.Sample, dataset: Any, image: np.ndarray) -> list[Panel]:
        """Return the ground truth that the sample or one of our data sets knows, if any."""
        if 'gt_sem_seg' in sample:
            return [Panel('ground truth', fields.label_map_of(sample, 'gt_sem_seg'))]
        record = sample
        if isinstance(dataset, InstanceDataset):  # test samples do not carry the true instances
            if not self._index_by_id:
                infos = map(dataset.get_data_info, range(len(dataset)))
                self._index_by_id = {info['img_id']: index for index, info in enumerate(infos)}
            record = dataset.get_data_info(self._index_by_id[sample['img_id']])
        if not (record.get('segments_info') or record.get('instances')):
            return []
        segments = LoadSegments().transform({**record, 'img': image})['gt_segments']
        if isinstance(segments, SegmentMap):
            segment_map = segments.index_map()
            return [Panel('ground truth', np.append(segments.labels, -1)[segment_map], segment_map)]
        masks = segments.masks()
        smallest_first = masks.sum((1, 2)).argsort(kind='stable')
        labels = segments.labels[smallest_first]
        return [panel_of_masks('ground truth', masks[smallest_first], labels)]


def predicted_panels(sample: fields.Sample, num_classes: int, score_thr: float) -> Iterator[Panel]:
    """Yield a panel for each kind of prediction in the sample."""
    if 'pred_sem_seg' in sample:
        yield Panel('semantic', fields.label_map_of(sample))
    if 'masks' in sample.get('pred_instances', ()):
        masks, labels, scores = fields.instances_of(sample)
        best_first = np.argsort(-scores, kind='stable')
        shown = best_first[scores[best_first] >= score_thr]
        yield panel_of_masks(f'instances, score >= {score_thr:g}', masks[shown], labels[shown])
    if 'pred_panoptic_seg' in sample:
        segment_map, labels = fields.panoptic_of(sample, num_classes)
        yield Panel('panoptic', np.append(-1, labels)[segment_map], segment_map)


def panel_of_masks(title: str, masks: np.ndarray, labels: np.ndarray) -> Panel:
    """Lay masks (N, H, W) over each other, the first on top; the rest stays unlabeled."""
    segment_map = np.full(masks.shape[1:], -1, np.int64)
    for index in range(len(masks) - 1, -1, -1):
        segment_map[masks[index]] = index
    # Index -1 takes the last value: pixels without a segment are unlabeled.
    return Panel(title, np.append(labels, -1)[segment_map], segment_map)


def palette_of(meta: Mapping[str, Any]) -> Palette:
    """Return the colors of a data set, or made-up ones if it has none or too few."""
    palette, num_classes = meta.get('palette'), len(meta['classes'])
    # The palette of an mmdet data set may also be the name of a rule, such as 'random'.
    if palette is None or isinstance(palette, str) or len(palette) < num_classes:
        return spread_colors(num_classes)
    return palette


def draw_panels(
    image: np.ndarray, panels: Sequence[Panel], classes: Sequence[str], palette: Palette
) -> Image.Image:
    """Draw the panels over copies of ``image (H, W, 3)`` uint8, RGB, and to its right.

    Pixels without a class get dark. Below them is a legend of the classes that occur.
    """
    width = int(np.clip(image.shape[1], *PANEL_WIDTHS))
    height = round(image.shape[0] * width / image.shape[1])
    base = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    tiles = [base, *(_painted(base, panel, palette) for panel in panels)]
    occurring = set().union(*(np.unique(panel.label_map).tolist() for panel in panels))
    used = sorted(occurring & set(range(len(classes))))
    legend = _legend([(classes[i], palette[i]) for i in used], width * len(tiles))
    canvas = Image.new('RGB', (width * len(tiles), LINE_HEIGHT + height + legend.height), 'white')
    draw = ImageDraw.Draw(canvas)
    titles = ['image', *(panel.title for panel in panels)]
    for left, tile, title in zip(range(0, canvas.width, width), tiles, titles, strict=True):
        draw.text((left + 6, 4), title, fill='black', font_size=FONT_SIZE)
        canvas.paste(tile, (left, LINE_HEIGHT))
    canvas.paste(legend, (0, LINE_HEIGHT + height))
    return canvas


def _painted(base: Image.Image, panel: Panel, palette: Palette) -> Image.Image:
    """Lay the colors of a panel, resized, over the image."""
    has_segments = panel.segment_map is not None
    label_map = _resized(panel.label_map, base.size)
    segment_map = _resized(panel.segment_map, base.size) if has_segments else label_map
    paint = Image.fromarray(shaded_colors(segment_map, label_map, palette))
    image = np.array(Image.blend(base, paint, OPACITY))
    if has_segments:
        image[borders(segment_map)] = BORDER_COLOR
    return Image.fromarray(image)


def _resized(values: Any, size: tuple[int, int]) -> np.ndarray:
    image = Image.fromarray(values.astype(np.int32))
    return np.asarray(image.resize(size, Image.Resampling.NEAREST))


def shaded_colors(segment_map: np.ndarray, label_map: np.ndarray, palette: Palette) -> np.ndarray:
    """Give each segment a shade of the color of its class; return ``(H, W, 3)`` uint8."""
    ids, first, inverse = np.unique(segment_map, return_index=True, return_inverse=True)
    colors = np.full((len(ids), 3), UNLABELED_COLOR, np.uint8)
    seen: Counter[int] = Counter()
    for index, label in enumerate(label_map.reshape(-1)[first].tolist()):
        if 0 <= label < len(palette):
            shade = SHADES[seen[label] % len(SHADES)]
            own, goal = np.asarray(palette[label]), 255 if shade > 0 else 0
            colors[index] = np.rint(own + abs(shade) * (goal - own))
            seen[label] += 1
    # The inverse has the shape of the input in NumPy 2.0, and is flat in other versions.
    return colors[inverse.reshape(segment_map.shape)]


def borders(segment_map: np.ndarray) -> np.ndarray:
    """Find the pixels ``(H, W)`` whose right or lower neighbor belongs to another segment."""
    right = np.diff(segment_map, axis=1, append=segment_map[:, -1:])
    below = np.diff(segment_map, axis=0, append=segment_map[-1:])
    return (right != 0) | (below != 0)


def _legend(entries: Sequence[tuple[str, Sequence[int]]], width: int) -> Image.Image:
    """Draw color fields with names, as many in a line as the width allows."""
    font = ImageFont.load_default(FONT_SIZE)
    column = LINE_HEIGHT + 18 + max((round(font.getlength(name)) for name, _ in entries), default=0)
    per_line = max(1, width // column)
    legend = Image.new('RGB', (width, LINE_HEIGHT * math.ceil(len(entries) / per_line)), 'white')
    draw = ImageDraw.Draw(legend)
    for index, (name, color) in enumerate(entries):
        x, y = index % per_line * column, index // per_line * LINE_HEIGHT
        draw.rectangle((x + 5, y + 6, x + 20, y + 21), fill=tuple(color), outline='black')
        draw.text((x + LINE_HEIGHT, y + 4), name, fill='black', font=font)
    return legend
