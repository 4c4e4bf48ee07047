"""Semantic predictions as PNG files of labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.hooks import Hook
from mmengine.runner import Runner
from PIL import Image

from mmseg_m2f.registry import HOOKS


@HOOKS.register_module()
class SaveLabelMapsHook(Hook):
    """Write each prediction of a test as a PNG whose pixel values are the labels of the data set.

    The file keeps the image's name, and its folder below the data set's image folder. If the data
    set shifts its labels (``reduce_zero_label``), the hook shifts them back. A file has 16 bits per
    pixel if a label exceeds 255.

    Args:
        out_dir: folder to write into.
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
        """Save one batch."""
        dataset = runner.test_dataloader.dataset
        for sample in outputs or ():
            label_map = label_map_from(sample.pred_sem_seg)
            if sample.metainfo.get('reduce_zero_label'):
                label_map = label_map + 1
            dtype = np.uint8 if label_map.max(initial=0) < 256 else np.uint16
            path = with_folder(self.out_dir / png_name(sample.img_path, dataset))
            Image.fromarray(label_map.astype(dtype)).save(path)


def label_map_from(pixel_data: Any) -> np.ndarray:
    """Return the label map ``(H, W)`` int64 of mmseg's ``PixelData`` or of mmdet's.

    mmseg calls the field ``data``, mmdet calls it ``sem_seg``.
    """
    values = pixel_data.sem_seg if 'sem_seg' in pixel_data else pixel_data.data
    return values.squeeze(0).cpu().numpy().astype(np.int64)


def with_folder(path: Path) -> Path:
    """Create the folder that the file will lie in; return the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def png_name(img_path: str, dataset: Any) -> Path:
    """Return the path of an image below the data set's image folder, ending in ``.png``.

    An image that lies elsewhere keeps only its name.
    """
    image, prefix = Path(img_path), getattr(dataset, 'data_prefix', {})
    root = prefix.get('img_path') or prefix.get('img')
    inside = image.relative_to(root) if root and image.is_relative_to(root) else Path(image.name)
    return inside.with_suffix('.png')
