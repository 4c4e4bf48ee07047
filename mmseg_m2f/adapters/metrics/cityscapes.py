"""Instance AP as Cityscapes defines it, and its file format."""

import tempfile
from collections import ChainMap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric

from mmseg_m2f.adapters.metrics.sample_fields import Sample, instances_of, log
from mmseg_m2f.evaluation.cityscapes_ap import (
    cityscapes_scores,
    import_evaluator,
    match_image,
    truth_file,
    write_instances,
)
from mmseg_m2f.evaluation.tables import text_table
from mmseg_m2f.metadata import load_metadata
from mmseg_m2f.registry import METRICS


@METRICS.register_module()
class CityscapesInstanceMetric(BaseMetric):
    """Compute the instance ``AP`` and ``AP50`` of Cityscapes in [0, 1] with cityscapesScripts.

    It reads ``pred_instances``. A table of the classes goes to the log.

    Args:
        gt_dir: folder of the ground truth, such as ``data/cityscapes/gtFine/val``. It holds a
            folder for each city with ``*_gtFine_instanceIds.png``.
        out_dir: folder to keep the predictions in, in the format of the benchmark. Default: each
            image's files are written, read and deleted.
        settings: ``collect_device``, ``prefix`` and ``collect_dir`` of MMEngine's ``BaseMetric``.

    Raises:
        ImportError: cityscapesScripts is not installed.
    """

    default_prefix = 'cityscapes'
    # The output that test_cfg must switch on.
    needs = 'instance_on'

    def __init__(self, gt_dir: str, out_dir: str | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        # Fail now if the package is missing, not at the end of the first test.
        import_evaluator()
        self.gt_dir = gt_dir
        self.out_dir = out_dir

    def truth_files(self, record: Mapping[str, Any]) -> list[tuple[str, str]]:
        """List the files to be read for a record, each with a hint for when it is missing."""
        if not record:
            return []
        return [(str(truth_file(self.gt_dir, record['img_path'])), '')]

    def process(self, data_batch: Any, data_samples: Sequence[Sample]) -> None:
        """Match the instances of each image."""
        label_ids = cityscapes_label_ids(self.dataset_meta)
        for sample in data_samples:
            masks, labels, scores = instances_of(sample)
            img_path = sample['img_path']
            truth = truth_file(self.gt_dir, img_path)
            with tempfile.TemporaryDirectory() as folder:
                out_dir = Path(self.out_dir or folder)
                predicted = write_instances(out_dir, img_path, masks, label_ids[labels], scores)
                self.results.append(match_image(truth, predicted))

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        """Compute the AP of all images together."""
        scores = cityscapes_scores(dict(ChainMap(*results)))
        rows = [(name, 100 * ap, 100 * ap50) for name, (ap, ap50) in scores.per_class.items()]
        log(f'Cityscapes AP per class:\n{text_table(("class", "AP", "AP50"), rows)}')
        if all(np.isnan(ap) for ap, _ in scores.per_class.values()):
            log('AP is 0: the ground truth has no instance')
        return {'AP': scores.ap, 'AP50': scores.ap50}


def cityscapes_label_ids(meta: Mapping[str, Any]) -> np.ndarray:
    """Find Cityscapes' label id of each class ``(K,)``: the category ids, or else by name.

    Raises:
        ValueError: Cityscapes does not have one of the classes.
    """
    if meta.get('category_ids') is not None:
        return np.asarray(meta['category_ids'])
    known = load_metadata('cityscapes')
    by_name = dict(zip(known.classes, known.category_ids, strict=True))
    unknown = sorted(set(meta['classes']) - set(by_name))
    if unknown:
        raise ValueError(f'classes that Cityscapes does not have: {unknown[:8]}')
    return np.array([by_name[name] for name in meta['classes']])
