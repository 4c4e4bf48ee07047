"""Predictions of a test as files: label maps for programs, images for people."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from mmengine.fileio import get
from mmengine.hooks import Hook
from mmengine.runner import Runner
from PIL import Image

from mmseg_m2f.adapters.metrics.sample_fields import instances_of
from mmseg_m2f.adapters.results.drawing import Panel, draw_panels, panel_of_masks, spread_colors
from mmseg_m2f.evaluation.panoptic_map import decode_panoptic
from mmseg_m2f.registry import HOOKS


@HOOKS.register_module()
class SaveLabelMapsHook(Hook):
    """Writes every prediction of a test as a PNG whose values are the labels of the data set.

    The file keeps the image's name and its folder below the data set's image folder. Where
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
    """Writes for every image of a test: photo, ground truth if any, predictions, legend.

    Of semantic, instance and panoptic predictions it draws those that are there; of the instances
    those with a score of at least ``score_thr``, the best on top. Names and colors are those of
    the data set; if it has none, those saved in the checkpoint.
    """

    def __init__(self, out_dir: str, score_thr: float = 0.3) -> None:
        self.out_dir = Path(out_dir)
        self.score_thr = score_thr
        self._saved_meta: dict[str, Any] = {}
        self._index_by_id: dict[Any, int] | None = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keeps the names and colors the model was trained with."""
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
        classes = meta['classes']
        for sample in outputs or ():
            photo = mmcv.imfrombytes(get(sample.img_path), channel_order='rgb')
            truth = self._truth(sample, dataset, photo)
            predictions = [*predicted_panels(sample, len(classes), self.score_thr)]
            if len(predictions) == 1:
                predictions = [predictions[0]._replace(title='prediction')]
            panels = predictions if truth is None else [truth, *predictions]
            image = draw_panels(photo, panels, classes, palette_of(meta))
            image.save(_target_path(self.out_dir, sample.img_path, dataset))

    def _truth(self, sample: Any, dataset: Any, photo: np.ndarray) -> Panel | None:
        """What mmseg's samples hold, or our data sets know."""
        if 'gt_sem_seg' in sample:
            return Panel('ground truth', _label_map(sample.gt_sem_seg))
        record = sample.metainfo
        if not record.get('segments_info'):
            record = self._record(sample, dataset)
        if not (record.get('segments_info') or record.get('instances')):
            return None
        return _panel_of_record(record, photo)

    def _record(self, sample: Any, dataset: Any) -> Mapping[str, Any]:
        """The data set's own of the image: instances stand in no sample of a test."""
        # pycocotools, which it needs, comes with mmdet: semantic models do without.
        from mmseg_m2f.adapters.data.instance import InstanceDataset

        if not isinstance(dataset, InstanceDataset):
            return {}
        if self._index_by_id is None:
            ids = (dataset.get_data_info(i)['img_id'] for i in range(len(dataset)))
            self._index_by_id = {img_id: index for index, img_id in enumerate(ids)}
        return dataset.get_data_info(self._index_by_id[sample.img_id])


def predicted_panels(sample: Any, num_classes: int, score_thr: float) -> Iterator[Panel]:
    """A panel for each kind of prediction the sample holds."""
    if 'pred_sem_seg' in sample:
        yield Panel('semantic', _label_map(sample.pred_sem_seg))
    if 'pred_instances' in sample and 'masks' in sample.pred_instances:
        kept = sample.pred_instances[sample.pred_instances.scores >= score_thr]
        kept = kept[kept.scores.argsort(descending=True)]
        size = sample.metainfo.get('ori_shape')
        masks, labels, _ = instances_of({'pred_instances': kept, 'ori_shape': size})
        yield panel_of_masks(f'instances, score >= {score_thr:g}', masks, labels)
    if 'pred_panoptic_seg' in sample:
        encoded = _label_map(sample.pred_panoptic_seg)
        segment_map, labels = decode_panoptic(encoded, num_classes)
        label_map = np.concatenate([[-1], labels]).astype(np.int64)[segment_map]
        yield Panel('panoptic', label_map, segment_map)


def palette_of(meta: Mapping[str, Any]) -> Sequence[Sequence[int]]:
    """The colors of the classes; made up where the data set has none or too few."""
    palette, num_classes = meta.get('palette'), len(meta['classes'])
    # mmdet's data sets may also name a rule, such as 'random'.
    if palette is None or isinstance(palette, str) or len(palette) < num_classes:
        return spread_colors(num_classes)
    return palette


def _panel_of_record(record: Mapping[str, Any], photo: np.ndarray) -> Panel:
    # They need pycocotools, which semantic models do without.
    from mmseg_m2f.adapters.data.loading import LoadSegments
    from mmseg_m2f.adapters.data.segments import SegmentMap

    segments = LoadSegments().transform({**record, 'img': photo})['gt_segments']
    if isinstance(segments, SegmentMap):
        segment_map = segments.index_map()
        return Panel('ground truth', np.append(segments.labels, -1)[segment_map], segment_map)
    masks = segments.masks()
    smallest_first = masks.sum((1, 2)).argsort(kind='stable')
    labels = segments.labels[smallest_first]
    return panel_of_masks('ground truth', masks[smallest_first], labels)


def _label_map(pixel_data: Any) -> np.ndarray:
    """Of mmseg's results, whose field is ``data``, or mmdet's, where it is ``sem_seg``."""
    values = pixel_data.sem_seg if 'sem_seg' in pixel_data else pixel_data.data
    return values.squeeze(0).cpu().numpy().astype(np.int64)


def _target_path(out_dir: Path, img_path: str, dataset: Any) -> Path:
    image, prefix = Path(img_path), getattr(dataset, 'data_prefix', {})
    root = prefix.get('img_path') or prefix.get('img')
    inside = image.relative_to(root) if root and image.is_relative_to(root) else image.name
    path = (out_dir / inside).with_suffix('.png')
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
