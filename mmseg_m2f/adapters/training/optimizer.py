"""Set learning rate and weight decay by the kind of a parameter, as the official code does."""

import logging
from typing import Any, NamedTuple

from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS, OPTIMIZERS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from mmseg_m2f.adapters.keys import check_keys
from mmseg_m2f.registry import OPTIM_WRAPPER_CONSTRUCTORS

# `_NormBase` covers every batch and instance norm, also synchronized ones.
NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm)

# Swin's tables are plain parameters: only their names tell them from weights.
POSITION_TABLES = ('relative_position_bias_table', 'absolute_pos_embed')

DEFAULTS: dict[str, Any] = {
    'backbone_lr_mult': 0.1,
    'norm_decay_mult': 0.0,
    'embed_decay_mult': 0.0,
    'custom_keys': {},
}


class Rule(NamedTuple):
    """The factors of one parameter for the optimizer's ``lr`` and ``weight_decay``."""

    lr_mult: float
    decay_mult: float


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class Mask2FormerOptimWrapperConstructor:
    """Build an optimizer wrapper with the parameter groups of the official recipe.

    Parameters of the backbone (``backbone`` in their name) learn at ``backbone_lr_mult`` times
    ``lr``. Weight decay is off for norms (weight and bias), for ``nn.Embedding`` tables (the
    queries and the decoder's level embedding) and for Swin's position tables. It is on for
    everything else, *including* the biases of linear, convolution and attention layers and the
    level embedding of the pixel decoder.

    Frozen parameters are left out. A shared parameter counts once, under its first name.
    Parameters with equal settings form one group, in the order of first appearance. A group has
    a readable ``name`` and the names of its parameters in ``param_names``.

    Args:
        optim_wrapper_cfg: the ``optim_wrapper`` of a config without ``constructor`` and
            ``paramwise_cfg``. Its ``optimizer`` must give ``lr`` and ``weight_decay``.
        paramwise_cfg: may hold

            * ``backbone_lr_mult`` (default 0.1), ``norm_decay_mult`` (0.0) and
              ``embed_decay_mult`` (0.0, for embeddings and position tables);
            * ``custom_keys``: maps a part of a parameter's name to ``dict(lr_mult=...,
              decay_mult=...)``, for example ``{'backbone.stem': dict(lr_mult=0.0)}``. The
              longest matching key wins, then the alphabetically first. A factor given here
              *replaces* that of the rules above; a factor that is not given stays. (In
              MMEngine's default constructor a match switches the other rules off, so that
              ``lr_mult`` alone silently turns weight decay on again.)

    Raises:
        ValueError: an unknown key, or no ``lr`` or ``weight_decay``.

    Source: Mask2Former train_net.py, ``build_optimizer``.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        self.wrapper_cfg = {'type': 'OptimWrapper', **optim_wrapper_cfg}
        self.optimizer_cfg = dict(self.wrapper_cfg.pop('optimizer', {}))
        for key in ('type', 'lr', 'weight_decay'):
            if key not in self.optimizer_cfg:
                raise ValueError(
                    f'optim_wrapper.optimizer must give {key!r}, which '
                    f'{type(self).__name__} multiplies; got {self.optimizer_cfg}'
                )
        self.settings = _checked_settings(paramwise_cfg or {})

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Group the parameters of ``model`` and build the optimizer and its wrapper."""
        groups = self.param_groups(model)
        if not groups:
            raise ValueError('the model has no parameter that requires a gradient')
        for group in groups:
            print_log(
                f'parameter group {group["name"]!r}: {len(group["params"])} parameters, '
                f'lr {group["lr"]:g}, weight decay {group["weight_decay"]:g}',
                logger='current',
            )
        optimizer = OPTIMIZERS.build({**self.optimizer_cfg, 'params': groups})
        return OPTIM_WRAPPERS.build(self.wrapper_cfg, default_args={'optimizer': optimizer})

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Return the groups for a torch optimizer; ``params`` is a list of (name, tensor)."""
        network: Any = model
        while is_model_wrapper(network):
            network = network.module
        groups: dict[Rule, list[tuple[str, Tensor]]] = {}
        unused = set(self.settings['custom_keys'])
        for name, param, module in _trainable_parameters(network):
            rule = self._rule(name, module)
            groups.setdefault(rule, []).append((name, param))
            unused -= {key for key in unused if key in name}
        if unused:
            print_log(
                f'paramwise_cfg.custom_keys: {sorted(unused)} match no trainable parameter',
                logger='current',
                level=logging.WARNING,
            )
        return [self._group(rule, params) for rule, params in groups.items()]

    def _group(self, rule: Rule, params: list[tuple[str, Tensor]]) -> dict[str, Any]:
        return {
            'name': f'lr x{rule.lr_mult:g}, decay x{rule.decay_mult:g}',
            'params': params,
            'lr': self.optimizer_cfg['lr'] * rule.lr_mult,
            'weight_decay': self.optimizer_cfg['weight_decay'] * rule.decay_mult,
        }

    def _rule(self, name: str, module: nn.Module) -> Rule:
        rule = Rule(
            lr_mult=self.settings['backbone_lr_mult'] if 'backbone' in name else 1.0,
            decay_mult=self._decay_mult(name, module),
        )
        custom = self.settings['custom_keys']
        for key in sorted(custom, key=lambda key: (-len(key), key)):
            if key in name:
                return rule._replace(**{k: float(v) for k, v in custom[key].items()})
        return rule

    def _decay_mult(self, name: str, module: nn.Module) -> float:
        if isinstance(module, NORMS):
            return self.settings['norm_decay_mult']
        if isinstance(module, nn.Embedding) or any(table in name for table in POSITION_TABLES):
            return self.settings['embed_decay_mult']
        return 1.0


def _trainable_parameters(model: nn.Module) -> list[tuple[str, Tensor, nn.Module]]:
    """Return (full name, parameter, its module) of each trainable parameter, once."""
    seen: set[int] = set()
    found = []
    for prefix, module in model.named_modules():
        for name, param in module.named_parameters(prefix, recurse=False):
            if param.requires_grad and id(param) not in seen:
                seen.add(id(param))
                found.append((name, param, module))
    return found


def _checked_settings(given: dict) -> dict[str, Any]:
    check_keys('paramwise_cfg', given, DEFAULTS)
    settings = {**DEFAULTS, **given}
    for pattern, mults in settings['custom_keys'].items():
        check_keys(f'paramwise_cfg.custom_keys[{pattern!r}]', mults, Rule._fields)
    return settings
