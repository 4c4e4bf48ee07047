"""Keep the complete config of the head beside its weights."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from mmseg_m2f.registry import HOOKS

Config = dict[str, Any]
_MISSING = '(not set)'


@HOOKS.register_module()
class HeadConfigHook(Hook):
    """Write the head's config, with all defaults, beside its weights.

    The config goes into ``<work_dir>/head_config.json`` and into the meta of every checkpoint
    (``head_config``). Loading a checkpoint that was made with another config warns once for every
    key that differs, with both values. The head is the first submodule that has a method
    ``resolved_config``.
    """

    def before_run(self, runner: Runner) -> None:
        """Write the file. Training, validation and testing all start here."""
        config = resolved_head_config(runner.model)
        if config is not None and is_main_process():
            path = Path(runner.work_dir, 'head_config.json')
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(config, indent=2) + '\n')

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Add the config to the checkpoint's meta."""
        config = resolved_head_config(runner.model)
        if config is not None:
            checkpoint.setdefault('meta', {})['head_config'] = config

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Warn if the checkpoint's config is not the model's."""
        saved = checkpoint.get('meta', {}).get('head_config')
        config = resolved_head_config(runner.model)
        if saved is None or config is None:
            return
        for key, there, here in head_config_differences(saved, config):
            runner.logger.warning(
                f'the checkpoint was made with {key} = {there} in the config of the head, this '
                f'model has {here}'
            )


def resolved_head_config(model: nn.Module) -> Config | None:
    """Return the config of the first submodule that has ``resolved_config``, as JSON values."""
    for module in model.modules():
        resolve = getattr(module, 'resolved_config', None)
        if callable(resolve):
            return json.loads(json.dumps(resolve()))
    return None


def head_config_differences(saved: Config, config: Config) -> list[tuple[str, Any, Any]]:
    """Return (dotted key, value in ``saved``, value in ``config``) for every key that differs."""
    there, here = dict(_leaves(saved)), dict(_leaves(config))
    keys = [*here, *(key for key in there if key not in here)]
    pairs = [(key, there.get(key, _MISSING), here.get(key, _MISSING)) for key in keys]
    return [pair for pair in pairs if pair[1] != pair[2]]


def _leaves(config: Config, prefix: str = '') -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f'{prefix}{key}.')
        else:
            # JSON turns tuples into lists, so that the two compare equal.
            yield f'{prefix}{key}', json.loads(json.dumps(value))
