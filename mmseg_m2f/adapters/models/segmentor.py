"""Our segmentor for MMSegmentation. Importing this module imports mmseg; `lazy` does not."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import ConfigDict
from mmengine.structures import PixelData
from mmseg.models import EncoderDecoder
from torch import Tensor

from mmseg_m2f import core
from mmseg_m2f.adapters.models.channels import with_in_channels
from mmseg_m2f.adapters.models.decode_head import Mask2FormerHead


class SemanticSegmentor(EncoderDecoder):
    """mmseg's ``EncoderDecoder`` that predicts labels without score maps (K floats per pixel).

    It takes the same keys and trains in the same way. The decode head takes ``in_channels`` from
    the backbone and neck if they are not set. When a whole image is predicted at once, the labels
    are formed a few rows at a time. ``test_cfg.score_maps=True`` adds ``seg_logits``, which
    test-time augmentation needs. Score maps are formed as in ``EncoderDecoder`` for sliding
    windows, another head, a single class, ``align_corners`` and flipped images.
    """

    test_cfg: Any  # mmseg leaves it without a type

    def predict(self, inputs: Tensor, data_samples: Sequence[Any] | None = None) -> Sequence[Any]:
        """Return the samples with ``pred_sem_seg`` (1, H, W) int64 at the original size.

        ``inputs (B, 3, Hp, Wp)`` are normalized and padded. ``data_samples`` hold the sizes of the
        images; None for images without padding.
        """
        size = (inputs.shape[-2], inputs.shape[-1])
        geometries = [_geometry(sample.metainfo, size) for sample in data_samples or ()]
        if data_samples is None or None in geometries or self._needs_score_maps():
            return super().predict(inputs, data_samples)
        class_logits, mask_logits = self.decode_head(self.extract_feat(inputs))
        for sample, *image in zip(data_samples, class_logits, mask_logits, geometries, strict=True):
            labels = core.semantic_only_labels(*image)
            sample.set_data({'pred_sem_seg': PixelData(data=labels[None])})
        return data_samples

    def _needs_score_maps(self) -> bool:
        head, test_cfg = self.decode_head, self.test_cfg or {}
        return (
            test_cfg.get('mode', 'whole') != 'whole'
            or test_cfg.get('score_maps', False)
            or not isinstance(head, Mask2FormerHead)
            or head.num_classes == 1
            or head.align_corners
        )

    def keep_score_maps(self) -> None:
        """Predict ``seg_logits``, too, from now on."""
        self.test_cfg = ConfigDict({**(self.test_cfg or {}), 'score_maps': True})

    def slide_inference(self, inputs: Tensor, batch_img_metas: Sequence[dict]) -> Tensor:
        """Return the mean scores ``(B, K, Hp, Wp)`` of overlapping windows.

        Bit-identical to mmseg's; windows are accumulated in place, not padded to the whole image.
        """
        (height, width), (down, right) = self.test_cfg.crop_size, self.test_cfg.stride
        scores = inputs.new_zeros(inputs.shape[0], self.out_channels, *inputs.shape[-2:])
        count = inputs.new_zeros(1, 1, *inputs.shape[-2:])
        for top in _starts(inputs.shape[-2], height, down):
            for left in _starts(inputs.shape[-1], width, right):
                window = (..., slice(top, top + height), slice(left, left + width))
                # The head reads the size of the window here.
                batch_img_metas[0]['img_shape'] = inputs[window].shape[-2:]
                scores[window] += self.encode_decode(inputs[window], batch_img_metas)
                count[window] += 1
        return scores.div_(count)

    def _init_decode_head(self, decode_head: Mapping[str, Any]) -> None:
        neck = self.neck if self.with_neck else None
        super()._init_decode_head(with_in_channels(decode_head, self.backbone, neck))


def _starts(length: int, window: int, stride: int) -> list[int]:
    """Return where the windows begin; the last one ends with the image."""
    number = max(length - window + stride - 1, 0) // stride + 1
    return [max(min(index * stride, length - window), 0) for index in range(number)]


def _geometry(meta: Mapping[str, Any], padded: tuple[int, int]) -> core.ImageGeometry | None:
    """Return None for an image that is flipped or padded at the top or left."""
    left, right, top, bottom = meta.get('img_padding_size', meta.get('padding_size', [0] * 4))
    if left or top or meta.get('flip'):
        return None
    height, width = map(int, meta['ori_shape'][:2])
    resized = (int(padded[0] - bottom), int(padded[1] - right))
    return core.ImageGeometry(padded, resized, (height, width))
