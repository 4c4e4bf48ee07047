"""Our heads on the parameters of stock heads, with the methods that take the place of theirs.

Each method returns what the stock method of its name returns, and calls that where our parts may
not compute.
"""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmseg_m2f import core
from mmseg_m2f.adapters.migrate.stock_head import network_modules, pair_parameters, read_results
from mmseg_m2f.adapters.models.config import build_postprocess_config

_HOOKS = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')


class Twin:
    """Our head, which computes with the parameters of a stock head; its own are dropped.

    Raises:
        ValueError: the parameters are not one to one, or `objection`.
    """

    def __init__(self, ours: nn.Module, head: nn.Module) -> None:
        self.ours: Any = ours
        self.head: Any = head
        self._network = network_modules(head)
        self._pairs = [
            (*_owner(ours, name), *_owner(head, path), path)
            for name, path in pair_parameters(ours, head).items()
        ]
        self._said: set[str] = set()
        if reason := self.objection():
            raise ValueError(reason)

    def forward(
        self, x: Sequence[Tensor], batch_data_samples: Sequence[Any] = ()
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the class logits and the mask logits of all predictions."""
        # Hooks of the head itself are called around this method.
        if not self._may(self.objection()):
            return self.stock('forward', x, batch_data_samples)
        features = self.ours.pixel_decoder(x)
        predictions = self.ours.decoder(features)
        masks = [
            core.mask_logits(core.upcast_half(p.mask_embed), features.mask_features)
            for p in predictions
        ]
        return [p.class_logits for p in predictions], masks

    def ready(self, objection: str = '') -> bool:
        """Return True if ours may compute without a call of the head itself.

        If not, because of the caller's ``objection`` or another one, the reason is logged once.
        """
        if self.head._forward_hooks or self.head._forward_pre_hooks:
            objection = objection or 'the head has hooks, which ours would pass by'
        return self._may(objection or self.objection())

    def stock(self, name: str, *args: Any) -> Any:
        """Call the stock method ``name``."""
        return getattr(type(self.head), name)(self.head, *args)

    def objection(self) -> str:
        """Return what was done to the stock head that ``ours`` cannot follow, or ''."""
        # The guards of a compiled graph watch the modules that it was traced from.
        return '' if torch.compiler.is_compiling() else self._changed_modules() or self._follow()

    def _may(self, objection: str) -> bool:
        if objection and objection not in self._said:
            self._said.add(objection)
            warn(f'not accelerated, the stock path computes: {objection}. This is said once.')
        return not objection

    def _changed_modules(self) -> str:
        found = network_modules(self.head)
        for path, module in self._network.items():
            if found.get(path) is not module:
                return f'{path} of the head has been replaced'
            own = vars(module)
            if 'forward' in own or any(own.get(kind) for kind in _HOOKS):
                return f'{path} of the head has hooks or a forward that ours would pass by'
        return ''

    def _follow(self) -> str:
        """Take the present parameters and their device; return why that is impossible, or ''."""
        device = None
        for mine, my_name, theirs, their_name, path in self._pairs:
            value = theirs._parameters.get(their_name)
            if value is None:
                return f'{path} of the head is no parameter any more'
            if value.dtype not in (torch.float32, torch.float64):
                return (
                    f'{path} of the head is {value.dtype}, our parts compute with weights of '
                    'float32 or float64 only (autocast works)'
                )
            mine._parameters[my_name] = value
            device = value.device
        for module in self.ours.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None and buffer.device != device:
                    module._buffers[name] = buffer.to(device)
        return ''


class SemanticTwin(Twin):
    """Methods of mmseg's decode head."""

    def loss(
        self, x: Sequence[Tensor], batch_data_samples: Sequence[Any], train_cfg: Any = None
    ) -> dict[str, Tensor]:
        if not self.ready():
            return self.stock('loss', x, batch_data_samples, train_cfg)
        return _last_first(self.ours.loss(x, batch_data_samples))

    def predict(
        self, x: Sequence[Tensor], batch_img_metas: Sequence[dict], test_cfg: Any = None
    ) -> Tensor:
        if not self.ready():
            return self.stock('predict', x, batch_img_metas, test_cfg)
        return self.ours.predict(x, batch_img_metas, test_cfg)


class UniversalTwin(Twin):
    """Methods of mmdet's head."""

    def loss(self, x: Sequence[Tensor], batch_data_samples: Sequence[Any]) -> dict[str, Tensor]:
        all_masks = [sample.gt_instances.masks for sample in batch_data_samples]
        sizes = {(masks.height, masks.width) for masks in all_masks}
        several = 'the masks of a batch have several sizes' if len(sizes) > 1 else ''
        if not self.ready(several):
            return self.stock('loss', x, batch_data_samples)
        return _last_first(self.ours.loss(x, batch_data_samples, sizes.pop()))

    def predict(
        self, x: Sequence[Tensor], batch_data_samples: Sequence[Any]
    ) -> tuple[Tensor, Tensor]:
        if not self.ready():
            return self.stock('predict', x, batch_data_samples)
        class_logits, mask_logits = self.ours(x)
        height, width = batch_data_samples[0].metainfo['batch_input_shape'][:2]
        resized = [core.resize_masks(masks, (height, width)) for masks in mask_logits]
        return class_logits, torch.stack(resized)


class Detector:
    """``predict`` of mmdet's detector, which then needs no stack of full-size masks."""

    def __init__(self, detector: Any, head: UniversalTwin) -> None:
        self.detector, self.head = detector, head

    def predict(
        self, batch_inputs: Tensor, batch_data_samples: Sequence[Any], rescale: bool = True
    ) -> Sequence[Any]:
        detector, ours = self.detector, self.head.ours
        if not rescale or not self.head.ready():
            return type(detector).predict(detector, batch_inputs, batch_data_samples, rescale)
        test_cfg = detector.panoptic_fusion_head.test_cfg or {}
        within = bool(test_cfg.get('filter_low_score', False))
        ours.compat = dataclasses.replace(ours.compat, panoptic_mask_intersection=within)
        maps, size = detector.extract_feat(batch_inputs), tuple(batch_inputs.shape[-2:])
        config = build_postprocess_config(read_results(test_cfg))
        results = ours.predict(maps, batch_data_samples, size, config)
        for sample, fields in zip(batch_data_samples, results, strict=True):
            for name, value in fields.items():
                setattr(sample, name, value)
        return batch_data_samples


def warn(line: str) -> None:
    """Log a warning."""
    print_log(line, logger='current', level=logging.WARNING)


def _owner(root: nn.Module, path: str) -> tuple[nn.Module, str]:
    """Return the module that holds a parameter, and its name there."""
    parent, _, name = path.rpartition('.')
    return root.get_submodule(parent), name


def _last_first(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put the last prediction's losses first, as the stock heads and so their logs have them."""
    return dict(sorted(losses.items(), key=lambda item: item[0].startswith('d')))
