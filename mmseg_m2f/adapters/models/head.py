"""The base class of both heads: the parts, the names of the losses, errors that name the image."""

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.logging import MessageHub, print_log
from mmengine.model import BaseModule
from torch import Tensor

from mmseg_m2f import core
from mmseg_m2f.adapters.models.config import assemble, head_config


class MaskHead(BaseModule):
    """Pixel decoder, decoder, matcher and losses. Subclasses read targets and give results.

    Args:
        own: the keys that only the subclass has, with their values, for the record.
        settings: keys of `config.HeadConfig`: ``num_queries``, the parts, ``losses``,
            ``class_weight``, ``no_object_weight`` and ``compat``.
        init_cfg: MMEngine's; the parts initialize themselves as the official code does.

    Raises:
        ValueError: a key that no part knows, or sizes that do not fit together.
        UnknownChannelsError: ``in_channels`` is not set.
    """

    def __init__(
        self, own: Mapping[str, Any], settings: Mapping[str, Any], init_cfg: dict | None = None
    ) -> None:
        super().__init__(init_cfg)
        config = head_config(type(self), own, settings)
        self.num_classes, self.num_queries = config.num_classes, config.num_queries
        self.compat = config.compat
        self.pixel_decoder, self.decoder, self.matcher, self.criterion, resolved = assemble(config)
        self._config = {**resolved, **own}
        self._warned_of_too_few_queries = False

    def resolved_config(self) -> dict[str, Any]:
        """Return the head's config with every default filled in, as plain Python values."""
        return copy.deepcopy(self._config)

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

        Raises:
            NonFinitePredictionError: a prediction holds NaN or infinity; names the image and the
                learning rate.
        """
        if not self.compat.keep_empty_gt:
            targets = [core.without_empty(target) for target in targets]
        self._warn_of_too_few_queries(targets, data_samples)
        features = self.pixel_decoder(inputs)
        predictions = self.decoder(features)
        try:
            matches = self.matcher(predictions, features.mask_features, targets)
        except core.NonFinitePredictionError as error:
            hint = _hint(data_samples[error.image])
            raise core.NonFinitePredictionError(error.prediction, error.image, hint) from None
        return _name_losses(self.criterion(predictions, features.mask_features, targets, matches))

    def _warn_of_too_few_queries(
        self, targets: Sequence[core.MaskTarget], data_samples: Sequence[Any]
    ) -> None:
        for target, sample in zip(targets, data_samples, strict=True):
            num_targets = len(target.labels)
            if num_targets <= self.num_queries or self._warned_of_too_few_queries:
                continue
            self._warned_of_too_few_queries = True
            print_log(
                f'{_image(sample)} has {num_targets} targets, but the head has only '
                f'{self.num_queries} queries. Targets without a query are learned as background: '
                'raise num_queries if many images are like this. This warning is not repeated.',
                logger='current',
                level=logging.WARNING,
            )


def _name_losses(terms: Sequence[core.LossTerms]) -> dict[str, Tensor]:
    """Name the losses as MMDetection does, so that users' logs and scripts stay valid."""
    prefixes = [f'd{i}.' for i in range(len(terms) - 1)] + ['']
    return {
        f'{prefix}loss_{name}': value
        for prefix, term in zip(prefixes, terms, strict=True)
        for name, value in term._asdict().items()
    }


def _hint(sample: Any) -> str:
    """Tell where to look for the cause of a NaN."""
    hint = f' Image: {_image(sample)}.'
    scalars = MessageHub.get_current_instance().log_scalars
    if 'train/lr' in scalars:
        hint += f' Learning rate: {scalars["train/lr"].current():.3g}.'
    return hint


def _image(sample: Any) -> str:
    return sample.metainfo.get('img_path', 'an image without img_path')
