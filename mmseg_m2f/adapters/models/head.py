"""The base class of both heads: the parts, the names of the losses, errors that name the image."""

import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.logging import MessageHub, print_log
from mmengine.model import BaseModule
from torch import Tensor

from mmseg_m2f import core
from mmseg_m2f.adapters.keys import check_keys
from mmseg_m2f.adapters.models import config, parts
from mmseg_m2f.registry import MODELS, TASK_UTILS

_COUNTS = {'official': core.count_targets, 'mmdet': core.count_matched}


class MaskHead(BaseModule):
    """Pixel decoder, decoder, matcher and losses. Subclasses read targets and give results.

    Args:
        own: the keys that only the subclass has, with their values, for the record.
        num_classes: K, without no-object.
        in_channels: channels of the maps that the head gets, stride 4 first. `SemanticSegmentor`
            and `Mask2Former` take them from their built backbone and neck if this is None.
        num_queries: Q.
        pixel_decoder, decoder, matcher: settings of the parts; ``type`` replaces a part.
        losses: ``cls``, ``mask``, ``dice`` and ``points``, each the settings of a part. The
            matcher uses the same weights and number of points unless it is given others.
        class_weight: K numbers, or K + 1 with no-object last; None: all 1.
        no_object_weight: weight of no-object in the class loss.
        compat: choices in which MMDetection differs from the official code: the fields of
            `core.CompatConfig`.
        init_cfg: MMEngine's; the parts initialize themselves as the official code does.
    """

    def __init__(  # noqa: PLR0913 - the keys of a config
        self,
        own: Mapping[str, Any],
        num_classes: int,
        in_channels: Sequence[int] | None = None,
        num_queries: int = 100,
        pixel_decoder: parts.PartConfig | None = None,
        decoder: parts.PartConfig | None = None,
        matcher: parts.PartConfig | None = None,
        losses: Mapping[str, parts.PartConfig] | None = None,
        class_weight: Sequence[float] | None = None,
        no_object_weight: float = 0.1,
        compat: Mapping[str, Any] | None = None,
        init_cfg: dict | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__(init_cfg)
        known = [*list(inspect.signature(MaskHead).parameters)[1:-1], *own]
        check_keys(type(self).__name__, unknown, known)
        self.num_classes, self.num_queries = num_classes, num_queries
        self.compat = config.build_compat(compat)
        self._warned_of_too_few_queries = False

        pixel_decoder_cfg = config.resolve_pixel_decoder(pixel_decoder, in_channels)
        self.pixel_decoder = parts.build(MODELS, pixel_decoder_cfg)
        decoder_cfg = config.resolve_decoder(decoder, self.pixel_decoder, num_classes, num_queries)
        self.decoder = parts.build(MODELS, decoder_cfg)
        if self.compat.init == 'mmdet':
            core.init_xavier_normal(self.pixel_decoder)
            core.init_xavier_normal(self.decoder)
        losses_cfg = config.resolve_losses(losses)
        matcher_cfg = config.resolve_matcher(matcher, losses_cfg)
        self.matcher = parts.build(TASK_UTILS, matcher_cfg)
        self.criterion = core.MaskClassificationLoss(
            parts.build_class_loss(losses_cfg['cls'], num_classes, class_weight, no_object_weight),
            parts.build_mask_loss(losses_cfg['mask']),
            parts.build_mask_loss(losses_cfg['dice']),
            parts.build(TASK_UTILS, losses_cfg['points']),
            _COUNTS[self.compat.num_masks_mode],
        )
        self._config = _plain(
            {
                'num_classes': num_classes,
                'in_channels': in_channels,
                'num_queries': num_queries,
                'pixel_decoder': pixel_decoder_cfg,
                'decoder': decoder_cfg,
                'matcher': matcher_cfg,
                'losses': losses_cfg,
                'class_weight': class_weight,
                'no_object_weight': no_object_weight,
                'compat': vars(self.compat),
                **own,
            }
        )

    def resolved_config(self) -> dict[str, Any]:
        """Return the head's config with every default filled in, as plain Python values."""
        return _plain(self._config)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return class logits ``(B, Q, K+1)`` and mask logits ``(B, Q, h, w)``.

        They are the last prediction's. ``inputs`` are the backbone's maps, stride 4 first.
        """
        features = self.pixel_decoder(inputs)
        last = self.decoder.predict(features)
        embed = core.upcast_half(last.mask_embed)
        return last.class_logits, core.mask_logits(embed, features.mask_features)

    def _losses(
        self,
        inputs: Sequence[Tensor],
        targets: Sequence[core.MaskTarget],
        data_samples: Sequence[Any],
    ) -> dict[str, Tensor]:
        """Return the losses of all predictions by MMDetection's names.

        ``loss_cls``, ``loss_mask`` and ``loss_dice`` belong to the last prediction,
        ``d0.loss_cls`` and so on to those before.
        """
        if not self.compat.keep_empty_gt:
            targets = [core.without_empty(target) for target in targets]
        self._warn_of_too_few_queries(targets, data_samples)
        features = self.pixel_decoder(inputs)
        predictions = self.decoder(features)
        try:
            matches = self.matcher(predictions, features.mask_features, targets)
        except core.NonFinitePredictionError as error:
            hint = f' Image: {_image(data_samples[error.image])}.'
            scalars = MessageHub.get_current_instance().log_scalars
            if 'train/lr' in scalars:
                hint += f' Learning rate: {scalars["train/lr"].current():.3g}.'
            raise core.NonFinitePredictionError(error.prediction, error.image, hint) from None
        terms = self.criterion(predictions, features.mask_features, targets, matches)
        prefixes = [f'd{i}.' for i in range(len(terms) - 1)] + ['']
        return {
            f'{prefix}loss_{name}': value
            for prefix, term in zip(prefixes, terms, strict=True)
            for name, value in term._asdict().items()
        }

    def _warn_of_too_few_queries(
        self, targets: Sequence[core.MaskTarget], data_samples: Sequence[Any]
    ) -> None:
        for target, sample in zip(targets, data_samples, strict=True):
            if len(target.labels) > self.num_queries and not self._warned_of_too_few_queries:
                self._warned_of_too_few_queries = True
                print_log(
                    f'{_image(sample)} has {len(target.labels)} targets, but the head has only '
                    f'{self.num_queries} queries, so that some are learned as background. Raise '
                    'num_queries if many images are like this. This warning is not repeated.',
                    logger='current',
                    level=logging.WARNING,
                )


def _image(sample: Any) -> str:
    return sample.metainfo.get('img_path', 'an image without img_path')


def _plain(value: Any) -> Any:
    """Return nested plain Python values; anything else by its name or ``repr``."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, type):
        return f'{value.__module__}.{value.__qualname__}'
    return value if isinstance(value, (str, int, float, bool, type(None))) else repr(value)
