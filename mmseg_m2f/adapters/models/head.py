"""What the heads of all tasks share: the parts, the losses by name, errors that say where."""

import copy
import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.logging import MessageHub, print_log
from mmengine.model import BaseModule
from torch import Tensor

from mmseg_m2f import core
from mmseg_m2f.adapters.models.config import HeadConfig, assemble


class MaskHead(BaseModule):
    """Pixel decoder, decoder, matcher and losses; what the targets are is the subclass's affair.

    Args:
        config: the keys every head has.
        own: the keys of this head alone, for the record of what was built.
        init_cfg: MMEngine's; the parts initialise themselves as the official code does.
    """

    def __init__(
        self, config: HeadConfig, own: Mapping[str, Any], init_cfg: dict | None = None
    ) -> None:
        super().__init__(init_cfg)
        self.num_classes, self.num_queries = config.num_classes, config.num_queries
        self.compat = config.compat
        self.pixel_decoder, self.decoder, self.matcher, self.criterion, resolved = assemble(config)
        self._config = {**resolved, **own}
        self._said_too_few_queries = False

    def resolved_config(self) -> dict[str, Any]:
        """The head's configuration with every default filled in, as plain Python values."""
        return copy.deepcopy(self._config)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Class logits ``(B, Q, K+1)`` and mask logits ``(B, Q, h, w)`` of the last prediction."""
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
        """Losses of all predictions: ``loss_cls`` ... of the last, ``d{i}.loss_cls`` ... before.

        Raises:
            NonFinitePredictionError: NaN in a prediction, with the image and the learning rate.
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
            if num_targets <= self.num_queries or self._said_too_few_queries:
                continue
            self._said_too_few_queries = True
            print_log(
                f'{_image(sample)} has {num_targets} targets, the head {self.num_queries} '
                'queries: those left without a query are learnt as background. If there are many '
                'such images, raise num_queries. This is said once.',
                logger='current',
                level=logging.WARNING,
            )


def reject_unknown(owner: type, unknown: Mapping[str, Any]) -> None:
    """Unknown keys, against the constructor's own signature, so that the list cannot go stale.

    Raises:
        ValueError: ``unknown``, what the constructor's ``**unknown`` collected, is not empty.
    """
    if unknown:
        known = sorted(set(inspect.signature(owner).parameters) - {'unknown'})
        raise ValueError(f'{owner.__name__} does not know {sorted(unknown)}; known keys: {known}')


def _name_losses(terms: Sequence[core.LossTerms]) -> dict[str, Tensor]:
    """MMDetection's names, which users' logs and scripts know."""
    prefixes = [f'd{i}.' for i in range(len(terms) - 1)] + ['']
    return {
        f'{prefix}loss_{name}': value
        for prefix, term in zip(prefixes, terms, strict=True)
        for name, value in term._asdict().items()
    }


def _hint(sample: Any) -> str:
    """Where to look for the cause of a NaN."""
    hint = f' Image: {_image(sample)}.'
    scalars = MessageHub.get_current_instance().log_scalars
    if 'train/lr' in scalars:
        hint += f' Learning rate: {scalars["train/lr"].current():.3g}.'
    return hint


def _image(sample: Any) -> str:
    return sample.metainfo.get('img_path', 'unknown')
