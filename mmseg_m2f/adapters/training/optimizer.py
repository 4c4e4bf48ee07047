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
from mmseg_m2f.adapters.training.resume import check_optimizer_state
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

    Frozen parameters are left out. A shared parameter counts once, under its first name. Each
    group has a readable ``name`` and the names of its parameters in ``param_names``.

    Args:
        optim_wrapper_cfg: the ``optim_wrapper`` of a config without ``constructor`` and
            ``paramwise_cfg``. Its ``optimizer`` must give ``lr`` and ``weight_decay``.
        paramwise_cfg: ``backbone_lr_mult`` (default 0.1), ``norm_decay_mult`` (0.0),
            ``embed_decay_mult`` (0.0, for embeddings and position tables) and ``custom_keys``. This
            maps a part of a parameter's name to ``dict(lr_mult=..., decay_mult=...)``. The longest
            matching key wins, then the alphabetically first. A factor given here *replaces* that
            of the rules above, and a factor that is not given stays. (In MMEngine's default
            constructor a match switches the other rules off.)

    Raises:
        ValueError: an unknown key, or no ``lr`` or ``weight_decay``.

    Source: Mask2Former train_net.py, ``build_optimizer``.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        self.wrapper_cfg = {'type': 'OptimWrapper', **optim_wrapper_cfg}
        self.optimizer_cfg = dict(self.wrapper_cfg.pop('optimizer', {}))
        for key in ('lr', 'weight_decay'):
            if key not in self.optimizer_cfg:
                raise ValueError(
                    f'optim_wrapper.optimizer must give {key!r}, which '
                    f'{type(self).__name__} multiplies; got {self.optimizer_cfg}'
                )
        check_keys('paramwise_cfg', paramwise_cfg or {}, DEFAULTS)
        self.settings = {**DEFAULTS, **(paramwise_cfg or {})}
        for key, mults in self.settings['custom_keys'].items():
            check_keys(f'paramwise_cfg.custom_keys[{key!r}]', mults, Rule._fields)

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
        optimizer.register_load_state_dict_pre_hook(check_optimizer_state)
        return OPTIM_WRAPPERS.build(self.wrapper_cfg, default_args={'optimizer': optimizer})

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Return the groups for a torch optimizer; ``params`` is a list of (name, tensor)."""
        network: Any = model
        while is_model_wrapper(network):
            network = network.module
        groups: dict[Rule, list[tuple[str, Tensor]]] = {}
        names: dict[Tensor, str] = {}
        for prefix, module in network.named_modules():
            for name, param in module.named_parameters(prefix, recurse=False):
                if param.requires_grad and param not in names:
                    names[param] = name
                    groups.setdefault(self._rule(name, module), []).append((name, param))
        for key in self.settings['custom_keys']:
            if not any(key in name for name in names.values()):
                text = f'paramwise_cfg.custom_keys: {key!r} matches no trainable parameter'
                print_log(text, logger='current', level=logging.WARNING)
        return [
            {
                'name': f'lr x{rule.lr_mult:g}, decay x{rule.decay_mult:g}',
                'params': params,
                'lr': self.optimizer_cfg['lr'] * rule.lr_mult,
                'weight_decay': self.optimizer_cfg['weight_decay'] * rule.decay_mult,
            }
            for rule, params in groups.items()
        ]

    def _rule(self, name: str, module: nn.Module) -> Rule:
        decay_mult = 1.0
        if isinstance(module, NORMS):
            decay_mult = self.settings['norm_decay_mult']
        elif isinstance(module, nn.Embedding) or any(table in name for table in POSITION_TABLES):
            decay_mult = self.settings['embed_decay_mult']
        rule = Rule(self.settings['backbone_lr_mult'] if 'backbone' in name else 1.0, decay_mult)
        matching = [key for key in self.settings['custom_keys'] if key in name]
        if not matching:
            return rule
        key = min(matching, key=lambda key: (-len(key), key))
        return rule._replace(**self.settings['custom_keys'][key])
