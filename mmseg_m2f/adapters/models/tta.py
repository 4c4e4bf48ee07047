"""Test-time augmentation of semantic models, as the official code does it."""

from collections.abc import Iterable, Sequence
from typing import Any

from mmengine.model import BaseTTAModel
from mmengine.structures import BaseDataElement, PixelData
from torch import Tensor

from mmseg_m2f.registry import MODELS


@MODELS.register_module()
class SemanticTTAModel(BaseTTAModel):
    """Average the score maps of all views at the original size, then take the best class.

    mmseg's ``SegTTAModel`` takes a softmax of every view first. The scores of our head are sums of
    probabilities already: a softmax would flatten them and change the result.

    The views are merged one by one, so that two score maps are in memory, however many views there
    are. Ground truth is kept if the pipeline loads it, but it is not needed. With a single class
    the segmentor returns ``sigmoid(score)``: these are averaged and compared with the head's
    ``threshold``, as for one view.

    Args:
        module: the segmentor, built or as a config; it must return ``seg_logits``.
        options: of MMEngine's ``BaseTTAModel``; ``data_preprocessor`` replaces the segmentor's.

    Source: official ``mask2former/test_time_augmentation.py``.
    """

    def __init__(self, module: Any, **options: Any) -> None:
        super().__init__(module, **options)
        if hasattr(self.module, 'keep_score_maps'):
            self.module.keep_score_maps()

    def test_step(self, data: dict[str, Sequence]) -> list[BaseDataElement]:
        """Predict from the collated output of the transform ``TestTimeAug``.

        ``data`` holds for every key a list over views of lists over images. The samples of the
        first view are returned, with the mean over the views as ``seg_logits`` (K, H, W) and the
        labels that follow from it as ``pred_sem_seg`` (1, H, W).
        """
        views = zip(*data.values(), strict=True)
        return self._merge(
            self.module.test_step(dict(zip(data, view, strict=True))) for view in views
        )

    def merge_preds(
        self, data_samples_list: Sequence[Sequence[BaseDataElement]]
    ) -> list[BaseDataElement]:
        """Merge the samples of all views, which ``data_samples_list`` holds for each image."""
        return self._merge(zip(*data_samples_list, strict=True))

    def _merge(self, views: Iterable[Sequence[BaseDataElement]]) -> list[BaseDataElement]:
        merged: list[BaseDataElement] = []
        means: list[Tensor] = []
        for count, samples in enumerate(views, start=1):
            if count == 1:
                merged = list(samples)
                means = [sample.seg_logits.data.detach().clone() for sample in samples]
                continue
            for mean, sample in zip(means, samples, strict=True):
                # A running mean keeps k equal views as they are to the bit; a sum would not.
                mean.lerp_(sample.seg_logits.data.detach(), 1 / count)
        if not merged:
            raise ValueError('test-time augmentation has no view: add transforms to tta_pipeline')
        for sample, mean in zip(merged, means, strict=True):
            if len(mean) > 1:
                labels = mean.argmax(dim=0, keepdim=True)
            else:
                labels = (mean > self.module.decode_head.threshold).to(mean)
            sample.seg_logits, sample.pred_sem_seg = PixelData(data=mean), PixelData(data=labels)
        return merged
