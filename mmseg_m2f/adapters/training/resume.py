"""Runner hooks: what was trained, with which batch, and where the random numbers were."""

import json
import random
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_dist_info, is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import BatchSampler, DataLoader

from mmseg_m2f.adapters.checkpoints.convert_on_load import check_resumable
from mmseg_m2f.registry import HOOKS

State = dict[str, Any]
_MISSING = '(not set)'


@HOOKS.register_module()
class HeadConfigHook(Hook):
    """Keeps the head's complete configuration, defaults included, beside its weights.

    The configuration goes into ``<work_dir>/head_config.json`` and into the meta of every
    checkpoint (``head_config``). Loading a checkpoint made under another one warns, once for
    each differing key, with both values. The head is the first submodule that has a method
    ``resolved_config``.
    """

    def before_run(self, runner: Runner) -> None:
        """Writes the file; training, validation and testing all start here."""
        config = resolved_head_config(runner.model)
        if config is not None and is_main_process():
            path = Path(runner.work_dir, 'head_config.json')
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(config, indent=2) + '\n')

    def before_save_checkpoint(self, runner: Runner, checkpoint: State) -> None:
        """Adds the configuration to the checkpoint's meta."""
        config = resolved_head_config(runner.model)
        if config is not None:
            checkpoint.setdefault('meta', {})['head_config'] = config

    def after_load_checkpoint(self, runner: Runner, checkpoint: State) -> None:
        """Warns where the checkpoint's configuration is not the model's."""
        saved = checkpoint.get('meta', {}).get('head_config')
        config = resolved_head_config(runner.model)
        if saved is None or config is None:
            return
        for key, there, here in head_config_differences(saved, config):
            runner.logger.warning(
                f'the checkpoint was made with head {key} = {there}, this model has {here}'
            )


def resolved_head_config(model: nn.Module) -> State | None:
    """The configuration of the first submodule that can tell it, as plain JSON values."""
    for module in model.modules():
        resolve = getattr(module, 'resolved_config', None)
        if callable(resolve):
            return json.loads(json.dumps(resolve()))
    return None


def head_config_differences(saved: State, config: State) -> list[tuple[str, Any, Any]]:
    """(dotted key, value in ``saved``, value in ``config``) wherever the two differ."""
    there, here = dict(_leaves(saved)), dict(_leaves(config))
    keys = [*here, *(key for key in there if key not in here)]
    pairs = [(key, there.get(key, _MISSING), here.get(key, _MISSING)) for key in keys]
    return [pair for pair in pairs if pair[1] != pair[2]]


def _leaves(config: State, prefix: str = '') -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f'{prefix}{key}.')
        else:
            # Lists and tuples are one thing after a trip through JSON.
            yield f'{prefix}{key}', json.loads(json.dumps(value))


@HOOKS.register_module()
class BatchSizeHook(Hook):
    """States the batch an update sees, and warns where the learning rate is made for another.

    The batch of one update is processes x images x accumulated steps. The learning rate of a
    config is made for ``auto_scale_lr.base_batch_size``.
    """

    def before_train(self, runner: Runner) -> None:
        """Logs the batch size of this run."""
        _, world_size = get_dist_info()
        batch_size = _batch_size(runner.train_dataloader)
        steps = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        if batch_size is None:
            return
        total = world_size * batch_size * steps
        runner.logger.info(
            f'one update sees {total} images: {world_size} process(es) x {batch_size} x '
            f'{steps} accumulated step(s)'
        )
        scale = runner.auto_scale_lr or {}
        base = scale.get('base_batch_size')
        # MMEngine scales by processes x images and leaves the accumulated steps out.
        scaled_for = world_size * batch_size if scale.get('enable') else base
        if base and total != scaled_for:
            runner.logger.warning(
                f'the learning rate is set for {scaled_for} images an update, here they are '
                f'{total}: consider {total / scaled_for:g} times the learning rate, and '
                f'{scaled_for / total:g} times the iterations'
            )


@HOOKS.register_module()
class RandomStateHook(Hook):
    """Makes a resumed run the continuation of the stopped one.

    MMEngine restores weights, optimiser, schedule and iteration, and skips the images seen.
    It does not restore the generators of random numbers; without a configured seed its sampler
    shuffles anew; and MMEngine 0.10.7 loads every skipped image. With this hook

    * every checkpoint holds the generators' states and the sampler's seed (``random_state``);
    * a resumed iteration-based run with an ``InfiniteSampler`` goes on at the next image at
      once, in the same order, with the same random numbers;
    * validation leaves the generators of the training untouched;
    * a file that no run of such a model left is refused: it has no state to go on from.

    One process that loads its own data (``num_workers=0``) repeats a straight run exactly.
    Loader processes draw their augmentations from a new seed, made of the run's seed and the
    iteration, and so do the processes of a distributed run, of which only the first saves.
    """

    def __init__(self) -> None:
        self._saved: State | None = None
        self._before_val: State | None = None

    def before_save_checkpoint(self, runner: Runner, checkpoint: State) -> None:
        """Adds the generators' states and the sampler's seed."""
        # A best checkpoint is saved during validation: the training's numbers wait outside.
        state = dict(self._before_val or random_state())
        sampler = _sampler(runner.train_dataloader)
        state['sampler_seed'] = getattr(sampler, 'seed', None)
        checkpoint['random_state'] = state

    def after_load_checkpoint(self, runner: Runner, checkpoint: State) -> None:
        """Keeps the state for `before_train`, which knows whether the run was under way.

        Raises:
            CheckpointError: the run is to resume what no run of such a model left.
        """
        if runner._resume:
            model = runner.model.module if is_model_wrapper(runner.model) else runner.model
            check_resumable(model, checkpoint, runner._load_from or 'the checkpoint')
        self._saved = checkpoint.get('random_state')

    def before_train(self, runner: Runner) -> None:
        """Continues where the checkpoint was saved, if the run is resumed."""
        loop = runner.train_loop
        if self._saved is None or loop.iter == 0:
            return
        if not hasattr(loop, 'dataloader_iterator'):
            # Epochs are whole: the sampler shuffles by their number.
            self._restore(loop.iter)
        elif _can_be_placed(loop.dataloader):
            self._place_sampler(loop)
        else:
            runner.logger.warning(
                'RandomStateHook knows no way to put this sampler at its place: MMEngine skips '
                'the images seen, and the random numbers are other than in a straight run'
            )

    def before_val(self, runner: Runner) -> None:
        """Sets the training's random numbers aside."""
        self._before_val = random_state()

    def after_val(self, runner: Runner) -> None:
        """Goes on with the training's random numbers."""
        if self._before_val is not None:
            set_random_state(self._before_val)
        self._before_val = None

    def _place_sampler(self, loop: Any) -> None:
        assert self._saved is not None
        _continue_loader_seeds(loop.dataloader, loop.iter)
        sampler = _sampler(loop.dataloader)
        sampler.seed = self._saved['sampler_seed']
        seen = loop.iter * loop.dataloader.batch_sampler.batch_size
        sampler.indices = islice(sampler._indices_of_rank(), seen, None)
        loop.dataloader_iterator = _ResumedIterator(loop, self._restore)

    def _restore(self, iteration: int) -> None:
        rank, world_size = get_dist_info()
        assert self._saved is not None
        if world_size == 1:
            set_random_state(self._saved)
        else:
            _seed_all((self._saved['sampler_seed'] or 0) + iteration * world_size + rank)
        self._saved = None


class _ResumedIterator:
    """Goes on with the image after the last one seen, without loading those before.

    The sampler is put at its place, so the skipping that the loop is about to do is answered
    here: MMEngine 0.10.12 calls ``skip_iter``, 0.10.7 calls ``next`` once per past iteration.
    """

    def __init__(self, loop: Any, restore: Callable[[int], None]) -> None:
        self._restore = partial(restore, loop.iter)
        self._to_skip = 0 if hasattr(loop.dataloader_iterator, 'skip_iter') else loop.iter
        self._dataloader = loop.dataloader
        self._iterator: Iterator | None = None

    def __iter__(self) -> '_ResumedIterator':
        return self

    def skip_iter(self, num_iters: int) -> None:
        """The sampler has skipped them."""

    def __next__(self) -> Any:
        if self._to_skip > 0:
            self._to_skip -= 1
            return None
        if self._iterator is None:
            self._iterator = iter(self._dataloader)
            # After the line above, which draws a random number of its own.
            self._restore()
        return next(self._iterator)


def random_state() -> State:
    """The states of all generators, as tensors and plain values."""
    _, numpy_words, *numpy_rest = np.random.get_state()
    version, python_words, gauss = random.getstate()
    return {
        'torch': torch.get_rng_state(),
        'cuda': torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        'numpy': (torch.from_numpy(np.asarray(numpy_words, np.int64)), *numpy_rest),
        'python': (version, torch.tensor(python_words), gauss),
    }


def set_random_state(state: State) -> None:
    """Puts the generators into the states of `random_state`."""
    torch.set_rng_state(state['torch'].cpu())
    if state['cuda'] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'].cpu())
    words, *rest = state['numpy']
    np.random.set_state(('MT19937', words.cpu().numpy().astype(np.uint32), *rest))
    version, words, gauss = state['python']
    random.setstate((version, tuple(words.tolist()), gauss))


def _seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _continue_loader_seeds(dataloader: DataLoader, iteration: int) -> None:
    # Loader processes start with the run's seed, so without this a resumed run would draw the
    # augmentations of its first iterations again.
    start = dataloader.worker_init_fn
    if isinstance(start, partial) and 'seed' in start.keywords:
        seed = start.keywords['seed'] + iteration
        dataloader.worker_init_fn = partial(start.func, **{**start.keywords, 'seed': seed})
    # MMEngine 0.10.7 has started them already, and persistent ones would be taken over.
    dataloader._iterator = None


def _can_be_placed(dataloader: DataLoader) -> bool:
    # Other batch samplers may take more indices from the sampler than they hand out.
    plain = type(dataloader.batch_sampler) is BatchSampler
    return plain and isinstance(_sampler(dataloader), InfiniteSampler)


def _sampler(dataloader: DataLoader) -> Any:
    # With a batch sampler of its own a DataLoader keeps an unused default in `sampler`.
    return getattr(dataloader.batch_sampler, 'sampler', dataloader.sampler)


def _batch_size(dataloader: DataLoader) -> int | None:
    return getattr(dataloader.batch_sampler, 'batch_size', dataloader.batch_size)
