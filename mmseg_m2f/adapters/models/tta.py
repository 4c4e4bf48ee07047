"""Test-time augmentation of semantic models by the official protocol."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from mmengine.model import BaseTTAModel
from mmengine.structures import BaseDataElement, PixelData
from torch import Tensor

from mmseg_m2f.registry import MODELS


@MODELS.register_module()
class SemanticTTAModel(BaseTTAModel):
    """Plain mean of the views' score maps at the original size, then the best class.

    mmseg's ``SegTTAModel`` takes a softmax of every view first. The scores of this head are sums
    of probabilities already, so that softmax flattens them and changes the result.

    The views are merged one by one: besides the model's own memory this needs two score maps,
    however many views there are. Ground truth is passed on where the pipeline loads it and is
    never needed. With a single class the segmentor returns ``sigmoid(score)``; these are averaged
    and compared with the head's ``threshold``, as for one view.

    Args (of MMEngine's ``BaseTTAModel``):
        module: the segmentor, built or as a config; it must return ``seg_logits``.
        data_preprocessor: replaces the segmentor's own.

    Source: official ``mask2former/test_time_augmentation.py``.
    """

    def __init__(self, module: Any, **options: Any) -> None:
        super().__init__(module, **options)
        if hasattr(self.module, 'keep_score_maps'):
            self.module.keep_score_maps()

    def test_step(self, data: dict | Sequence) -> list[BaseDataElement]:
        """Predict from the collated output of ``TestTimeAug``.

        Args:
            data: for every key (or position) a list over views of lists over images.

        Returns:
            The first view's data samples, with ``seg_logits`` (K, H, W) replaced by the mean
            over the views and ``pred_sem_seg`` (1, H, W) by the decision made from it.

        Raises:
            ValueError: without a view.
        """
        return self._merge(self.module.test_step(view) for view in _views(data))

    def merge_preds(
        self, data_samples_list: Sequence[Sequence[BaseDataElement]]
    ) -> list[BaseDataElement]:
        """Merge predictions at hand: for every image the data samples of its views."""
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
                # A running mean, unlike a sum, returns k equal views unchanged to the bit.
                mean.lerp_(sample.seg_logits.data.detach(), 1 / count)
        if not merged:
            raise ValueError('test-time augmentation got no view: is tta_pipeline empty?')
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
