"""Predictions drawn over the images."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from mmengine.fileio import get
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmseg_m2f.adapters.data import InstanceDataset, LoadSegments, SegmentMap
from mmseg_m2f.adapters.metrics.sample_fields import instances_of
from mmseg_m2f.adapters.results.drawing import Panel, draw_panels, panel_of_masks
from mmseg_m2f.adapters.results.label_maps import label_map_from, png_name, with_folder
from mmseg_m2f.evaluation.panoptic_map import decode_panoptic
from mmseg_m2f.metadata.colors import spread_colors
from mmseg_m2f.registry import HOOKS


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
        self._index_by_id: dict[Any, int] | None = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Remember the class names and colors the model was trained with."""
        self._saved_meta = checkpoint.get('meta', {}).get('dataset_meta') or {}

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[Any] | None = None,
    ) -> None:
        """Draw one batch."""
        dataset = runner.test_dataloader.dataset
        meta = dataset.metainfo if dataset.metainfo.get('classes') else self._saved_meta
        classes = meta['classes']
        for sample in outputs or ():
            image = mmcv.imfrombytes(get(sample.img_path), channel_order='rgb')
            truth = self._truth(sample, dataset, image)
            predictions = [*predicted_panels(sample, len(classes), self.score_thr)]
            if len(predictions) == 1:
                predictions = [predictions[0]._replace(title='prediction')]
            panels = predictions if truth is None else [truth, *predictions]
            drawn = draw_panels(image, panels, classes, palette_of(meta))
            drawn.save(with_folder(self.out_dir / png_name(sample.img_path, dataset)))

    def _truth(self, sample: Any, dataset: Any, image: np.ndarray) -> Panel | None:
        """Return the ground truth that the sample or one of our data sets knows, if any."""
        if 'gt_sem_seg' in sample:
            return Panel('ground truth', label_map_from(sample.gt_sem_seg))
        record = sample.metainfo
        if not record.get('segments_info'):
            record = self._record(sample, dataset)
        if not (record.get('segments_info') or record.get('instances')):
            return None
        return _panel_of_record(record, image)

    def _record(self, sample: Any, dataset: Any) -> Mapping[str, Any]:
        """Return the data set's record: test samples do not carry the true instances."""
        if not isinstance(dataset, InstanceDataset):
            return {}
        if self._index_by_id is None:
            ids = (dataset.get_data_info(i)['img_id'] for i in range(len(dataset)))
            self._index_by_id = {img_id: index for index, img_id in enumerate(ids)}
        return dataset.get_data_info(self._index_by_id[sample.img_id])


def predicted_panels(sample: Any, num_classes: int, score_thr: float) -> Iterator[Panel]:
    """Yield a panel for each kind of prediction in the sample."""
    if 'pred_sem_seg' in sample:
        yield Panel('semantic', label_map_from(sample.pred_sem_seg))
    if 'pred_instances' in sample and 'masks' in sample.pred_instances:
        kept = sample.pred_instances[sample.pred_instances.scores >= score_thr]
        kept = kept[kept.scores.argsort(descending=True)]
        size = sample.metainfo.get('ori_shape')
        masks, labels, _ = instances_of({'pred_instances': kept, 'ori_shape': size})
        yield panel_of_masks(f'instances, score >= {score_thr:g}', masks, labels)
    if 'pred_panoptic_seg' in sample:
        encoded = label_map_from(sample.pred_panoptic_seg)
        segment_map, labels = decode_panoptic(encoded, num_classes)
        label_map = np.concatenate([[-1], labels]).astype(np.int64)[segment_map]
        yield Panel('panoptic', label_map, segment_map)


def palette_of(meta: Mapping[str, Any]) -> Sequence[Sequence[int]]:
    """Return a color per class: the data set's, or made-up ones if it has none or too few."""
    palette, num_classes = meta.get('palette'), len(meta['classes'])
    # The palette of an mmdet data set may also be the name of a rule, such as 'random'.
    if palette is None or isinstance(palette, str) or len(palette) < num_classes:
        return spread_colors(num_classes)
    return palette


def _panel_of_record(record: Mapping[str, Any], image: np.ndarray) -> Panel:
    segments = LoadSegments().transform({**record, 'img': image})['gt_segments']
    if isinstance(segments, SegmentMap):
        segment_map = segments.index_map()
        return Panel('ground truth', np.append(segments.labels, -1)[segment_map], segment_map)
    masks = segments.masks()
    smallest_first = masks.sum((1, 2)).argsort(kind='stable')
    labels = segments.labels[smallest_first]
    return panel_of_masks('ground truth', masks[smallest_first], labels)
