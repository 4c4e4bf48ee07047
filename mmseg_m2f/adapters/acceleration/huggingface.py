"""Hugging Face's ``Mask2FormerForUniversalSegmentation``, computed by our parts."""

import inspect
import logging
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from mmseg_m2f import core
from mmseg_m2f.adapters.acceleration.huggingface_parts import (
    build_parts,
    shared_weights,
    stock_parts,
)
from mmseg_m2f.adapters.acceleration.parts import kind_of
from mmseg_m2f.adapters.acceleration.swap import is_accelerated, replace_methods
from mmseg_m2f.adapters.acceleration.twin import CannotAccelerateError, Twin
from mmseg_m2f.core.criterion import count_targets, global_num_masks

MODEL = 'Mask2FormerForUniversalSegmentation'
_ARGUMENTS = (
    'pixel_values',
    'mask_labels',
    'class_labels',
    'pixel_mask',
    'output_hidden_states',
    'output_auxiliary_logits',
    'output_attentions',
    'return_dict',
)
# What the norm of our decoder's heads was given last, of each thread: theirs returns it.
_STATE: ContextVar[Tensor | None] = ContextVar('state', default=None)
_log = logging.getLogger('mmseg_m2f')


def is_huggingface(model: nn.Module) -> bool:
    """True for a model of the library transformers."""
    return any(base.__module__.startswith('transformers.') for base in type(model).__mro__)


def accelerate_huggingface(model: Any, points: str = 'shared') -> None:
    """Let ``model.forward`` compute with our parts, on the model's own parameters.

    Raises:
        CannotAccelerateError: what of the model our parts cannot do.
    """
    if kind_of(model) != f'transformers.{MODEL}':
        raise CannotAccelerateError(
            f'{kind_of(model)} is not {MODEL} itself, the only model of transformers that can be '
            'accelerated'
        )
    if is_accelerated(model):
        raise CannotAccelerateError('the model is accelerated already: nothing is left to swap')
    given = tuple(inspect.signature(type(model).forward).parameters)[1:]
    if given[: len(_ARGUMENTS)] != _ARGUMENTS:
        raise CannotAccelerateError(
            f'{MODEL}.forward of the transformers installed takes {", ".join(given)}; ours stands '
            f'in for one whose arguments begin with {", ".join(_ARGUMENTS)}'
        )
    stock = stock_parts(model)
    with torch.random.fork_rng(devices=[]):  # ours are initialised, and lose that at once
        ours = build_parts(model, stock, points)
    twin = Twin(ours, ('', model), stock, shared_weights(stock), _log.warning)
    replace_methods(model, forward=_Forward(model, twin).forward)


class _Forward:
    """Their ``forward`` around our parts."""

    def __init__(self, model: Any, twin: Twin) -> None:
        self.model, self.twin = model, twin
        self._traced_state: Tensor | None = None
        twin.ours.decoder.norm.register_forward_pre_hook(self._keep_state)

    def forward(
        self,
        pixel_values: Tensor,
        mask_labels: list[Tensor] | None = None,
        class_labels: list[Tensor] | None = None,
        pixel_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_auxiliary_logits: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As theirs, by ours where ours can."""
        config = self.model.config
        asked = {
            'output_hidden_states': output_hidden_states,
            'output_attentions': output_attentions,
            'return_dict': return_dict,
        }
        asked = {k: getattr(config, k) if v is None else v for k, v in asked.items()}
        labels = None
        if mask_labels is not None and class_labels is not None:
            labels = (mask_labels, class_labels)
        objections = [
            _objection_to_call(self.model, asked),
            _objection_to_labels(self.model, labels[0]) if labels else None,
        ]
        if not self.twin.ready(*objections):
            stock = type(self.model).forward
            given = (mask_labels, class_labels, pixel_mask)
            flags = (output_hidden_states, output_auxiliary_logits, output_attentions, return_dict)
            return stock(self.model, pixel_values, *given, *flags, **kwargs)
        if output_auxiliary_logits is None:
            output_auxiliary_logits = bool(config.output_auxiliary_logits)
        return self._output(pixel_values, labels, output_auxiliary_logits)

    def _output(
        self,
        pixel_values: Tensor,
        labels: tuple[list[Tensor], list[Tensor]] | None,
        with_auxiliary: bool,
    ) -> Any:
        from transformers.models.mask2former import modeling_mask2former as theirs

        parts = self.twin.ours
        maps = self.model.model.pixel_level_module.encoder(pixel_values).feature_maps
        features = parts.pixel_decoder(maps)
        needs_all = with_auxiliary or labels is not None
        predictions = parts.decoder(features) if needs_all else [parts.decoder.predict(features)]
        shown = predictions if with_auxiliary else predictions[-1:]
        logits = [
            {
                'masks_queries_logits': core.mask_logits(p.mask_embed, features.mask_features),
                'class_queries_logits': p.class_logits,
            }
            for p in shown
        ]
        return theirs.Mask2FormerForUniversalSegmentationOutput(
            loss=self._loss(predictions, features.mask_features, *labels) if labels else None,
            **logits[-1],
            auxiliary_logits=logits[:-1] if with_auxiliary else None,
            encoder_last_hidden_state=maps[-1],
            pixel_decoder_last_hidden_state=features.mask_features,
            transformer_decoder_last_hidden_state=self._take_state(),
        )

    def _loss(
        self,
        predictions: Sequence[core.MaskPrediction],
        mask_features: Tensor,
        mask_labels: Sequence[Tensor],
        class_labels: Sequence[Tensor],
    ) -> Tensor:
        parts = self.twin.ours
        self._take_weights()
        device = mask_features.device
        targets = [
            core.MaskTarget(labels.to(device, torch.int64), masks.to(device, torch.bool))
            for labels, masks in zip(class_labels, mask_labels, strict=True)
        ]
        matches = parts.matcher(predictions, mask_features, targets)
        terms = parts.criterion(predictions, mask_features, targets, matches)
        total_cls = torch.stack([term.cls for term in terms]).sum()
        total_masks = torch.stack([term.mask + term.dice for term in terms]).sum()
        return total_cls + total_masks * self._normaliser_ratio(targets, class_labels)

    def _take_weights(self) -> None:
        """Those of their losses and costs as they are now: users set class weights there."""
        parts, criterion = self.twin.ours, self.model.criterion
        matcher, weights = criterion.matcher, self.model.weight_dict
        costs = (matcher.cost_class, matcher.cost_mask, matcher.cost_dice)
        for cost, weight in zip(parts.costs, costs, strict=True):
            cost.weight = weight
        losses = parts.criterion
        losses.class_loss.class_weight = criterion.empty_weight
        losses.class_loss.weight = weights['loss_cross_entropy']
        losses.mask_loss.weight, losses.dice_loss.weight = (
            weights['loss_mask'],
            weights['loss_dice'],
        )

    def _normaliser_ratio(
        self, targets: Sequence[core.MaskTarget], class_labels: Sequence[Tensor]
    ) -> float | Tensor:
        """From our number of masks to theirs, which differ over several processes only."""
        if not (dist.is_available() and dist.is_initialized()):
            return 1.0
        device = targets[0].labels.device
        ours = global_num_masks(count_targets(targets, ()), device)
        return ours / self.model.criterion.get_num_masks(class_labels, device)

    def _keep_state(self, norm: nn.Module, args: tuple[Tensor]) -> None:
        # What is being traced has no context, and is read in the graph it was written in.
        if torch.compiler.is_compiling():
            self._traced_state = args[0]
        else:
            _STATE.set(args[0])

    def _take_state(self) -> Tensor | None:
        if torch.compiler.is_compiling():
            state, self._traced_state = self._traced_state, None
        else:
            state = _STATE.get()
            _STATE.set(None)
        return state


def _objection_to_call(model: Any, asked: dict[str, bool | None]) -> str | None:
    for name in ('output_hidden_states', 'output_attentions'):
        if asked[name]:
            return f'{name} asks for what our parts do not keep'
    if not asked['return_dict']:
        return 'return_dict=False'
    decoder = model.model.transformer_module.decoder
    if model.training and any(
        getattr(module, 'gradient_checkpointing', False) for module in decoder.modules()
    ):
        return 'gradient checkpointing of the decoder'
    return None


def _objection_to_labels(model: Any, mask_labels: Sequence[Tensor]) -> str | None:
    """Theirs matches on each image's own size and pads for the losses: ours has one size."""
    if kind_of(model.criterion) != 'transformers.Mask2FormerLoss':
        return f'the criterion is {kind_of(model.criterion)}'
    if kind_of(model.criterion.matcher) != 'transformers.Mask2FormerHungarianMatcher':
        return f'the matcher is {kind_of(model.criterion.matcher)}'
    if len({masks.shape[-2:] for masks in mask_labels}) > 1:
        return 'mask_labels of several sizes in one batch'
    soft = [((m != 0) & (m != 1)).any() for m in mask_labels if m.dtype != torch.bool]
    # Waits for the device: values between 0 and 1 are lost in boolean targets.
    if soft and bool(torch.stack(soft).any()):
        return 'mask_labels hold other values than 0 and 1'
    return None
