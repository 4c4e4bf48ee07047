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


@HOOKS.register_module()
class HeadConfigHook(Hook):
    """Write the head's config, with all defaults, beside its weights.

    The config goes into ``<work_dir>/head_config.json`` and into the meta of every checkpoint
    (``head_config``). Loading a checkpoint warns once for every key that differs.
    """

    def before_run(self, runner: Runner) -> None:
        """Write the file. Training, validation and testing all start here."""
        config = resolved_head_config(runner.model)
        if config is not None and is_main_process():
            path = Path(runner.work_dir, 'head_config.json')
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(config, indent=2) + '\n')

    def before_save_checkpoint(self, runner: Runner, checkpoint: Config) -> None:
        """Add the config to the checkpoint's meta."""
        config = resolved_head_config(runner.model)
        if config is not None:
            checkpoint.setdefault('meta', {})['head_config'] = config

    def after_load_checkpoint(self, runner: Runner, checkpoint: Config) -> None:
        """Warn if the checkpoint's config is not the model's."""
        saved = checkpoint.get('meta', {}).get('head_config')
        config = resolved_head_config(runner.model)
        if saved is None or config is None:
            return
        there, here = dict(_leaves(saved)), dict(_leaves(config))
        for key in {**here, **there}:
            before, now = there.get(key, '(not set)'), here.get(key, '(not set)')
            if before != now:
                runner.logger.warning(
                    f'the checkpoint was made with {key} = {before} in the config of the head, '
                    f'this model has {now}'
                )


def resolved_head_config(model: nn.Module) -> Config | None:
    """Return the config of the first submodule that has ``resolved_config``, as JSON values."""
    for module in model.modules():
        if callable(resolve := getattr(module, 'resolved_config', None)):
            return json.loads(json.dumps(resolve()))
    return None


def _leaves(config: Config, prefix: str = '') -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f'{prefix}{key}.')
        else:
            yield f'{prefix}{key}', value
