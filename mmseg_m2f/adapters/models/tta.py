"""Test-time augmentation of semantic models, as the official code does it."""

from collections.abc import Iterable, Iterator, Sequence
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

    def test_step(self, data: dict | Sequence) -> list[BaseDataElement]:
        """Predict from the collated output of the transform ``TestTimeAug``.

        Args:
            data: for every key (or position) a list over views of lists over images.

        Returns:
            The data samples of the first view, with the mean over the views as ``seg_logits``
            (K, H, W) and the labels that follow from it as ``pred_sem_seg`` (1, H, W).

        Raises:
            ValueError: there is no view.
        """
        return self._merge(self.module.test_step(view) for view in _views(data))

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
            sample.seg_logits = PixelData(data=mean)
            sample.pred_sem_seg = PixelData(data=self._decide(mean))
        return merged

    def _decide(self, scores: Tensor) -> Tensor:
        if scores.shape[0] > 1:
            return scores.argmax(dim=0, keepdim=True)
        return (scores > self.module.decode_head.threshold).to(scores)


def _views(data: dict | Sequence) -> Iterator[Any]:
    if isinstance(data, dict):
        for view in zip(*data.values(), strict=True):
            yield dict(zip(data, view, strict=True))
    else:
        yield from zip(*data, strict=True)
