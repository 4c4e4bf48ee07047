"""Instance AP as Cityscapes defines it, and its file format."""

import tempfile
from collections import ChainMap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric

from mmseg_m2f.adapters.metrics import sample_fields as fields
from mmseg_m2f.evaluation import cityscapes_ap
from mmseg_m2f.evaluation.summary import text_table
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
    """

    default_prefix = 'cityscapes'
    needs = 'instance_on'  # in test_cfg

    def __init__(self, gt_dir: str, out_dir: str | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        # Fail now if the package is missing, not at the end of the first test.
        cityscapes_ap.import_evaluator()
        self.gt_dir = gt_dir
        self.out_dir = out_dir

    def truth_files(self, record: Mapping[str, Any]) -> list[tuple[str, str]]:
        """List the files to be read for a record, each with a hint for when it is missing."""
        if not record:
            return []
        return [(str(cityscapes_ap.truth_file(self.gt_dir, record['img_path'])), '')]

    def process(self, data_batch: Any, data_samples: Sequence[fields.Sample]) -> None:
        """Match the instances of each image."""
        label_ids = cityscapes_label_ids(self.dataset_meta)
        for sample in data_samples:
            masks, labels, scores = fields.instances_of(sample)
            img_path = sample['img_path']
            truth = cityscapes_ap.truth_file(self.gt_dir, img_path)
            with tempfile.TemporaryDirectory() as folder:
                predicted = cityscapes_ap.write_instances(
                    Path(self.out_dir or folder), img_path, masks, label_ids[labels], scores
                )
                self.results.append(cityscapes_ap.match_image(truth, predicted))

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        """Compute the AP of all images together."""
        (ap, ap50), per_class = cityscapes_ap.cityscapes_scores(dict(ChainMap(*results)))
        rows = [(name, *(100 * np.array(scores))) for name, scores in per_class.items()]
        fields.log(f'Cityscapes AP per class:\n{text_table(("class", "AP", "AP50"), rows)}')
        if np.isnan(list(per_class.values())).all():
            fields.log('AP is 0: the ground truth has no instance')
        return {'AP': ap, 'AP50': ap50}


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
