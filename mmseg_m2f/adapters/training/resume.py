"""Continue a stopped run exactly: the same images, the same random numbers."""

import random
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_dist_info
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch.utils.data import BatchSampler, DataLoader

from mmseg_m2f.adapters.checkpoints.convert_on_load import check_resumable
from mmseg_m2f.registry import HOOKS

State = dict[str, Any]


@HOOKS.register_module()
class RandomStateHook(Hook):
    """Let a resumed run continue the stopped one with the same images and random numbers.

    MMEngine restores weights, optimizer, schedule and iteration, and skips the images that were
    seen. It does not restore the random generators. Its sampler shuffles anew if the config has
    no seed, and MMEngine 0.10.7 loads every image that it skips. With this hook

    * every checkpoint holds the states of the generators and the sampler's seed
      (``random_state``);
    * a resumed iteration-based run with an ``InfiniteSampler`` continues at once with the next
      image, in the same order and with the same random numbers;
    * validation does not change the random numbers of the training;
    * a file that was not saved by a run of such a model is refused: nothing can be resumed from
      it.

    A run of one process that loads its own data (``num_workers=0``) is repeated exactly. Data
    loading workers draw their augmentations with a new seed, made of the run's seed and the
    iteration. So do the processes of a distributed run, because only the first one saves its state.
    """

    def __init__(self) -> None:
        self._saved: State | None = None
        self._before_val: State | None = None

    def before_save_checkpoint(self, runner: Runner, checkpoint: State) -> None:
        """Add the states of the generators and the sampler's seed."""
        # A best checkpoint is saved during validation, when the training's state is set aside.
        state = dict(self._before_val or random_state())
        sampler = _sampler(runner.train_dataloader)
        state['sampler_seed'] = getattr(sampler, 'seed', None)
        checkpoint['random_state'] = state

    def after_load_checkpoint(self, runner: Runner, checkpoint: State) -> None:
        """Keep the state for `before_train`.

        Raises:
            CheckpointError: the run shall resume from a file that no run of such a model saved.
        """
        if runner._resume:
            model = runner.model.module if is_model_wrapper(runner.model) else runner.model
            check_resumable(model, checkpoint, runner._load_from or 'the checkpoint')
        self._saved = checkpoint.get('random_state')

    def before_train(self, runner: Runner) -> None:
        """Continue where the checkpoint was saved, if the run is resumed."""
        loop = runner.train_loop
        if self._saved is None or loop.iter == 0:
            return
        if not hasattr(loop, 'dataloader_iterator'):
            # Checkpoints end an epoch, and the sampler shuffles by the number of the epoch.
            self._restore(loop.iter)
        elif _can_be_placed(loop.dataloader):
            self._place_sampler(loop)
        else:
            runner.logger.warning(
                'RandomStateHook cannot set the position of this sampler: MMEngine skips the '
                'images that were seen, and the random numbers differ from an uninterrupted run'
            )

    def before_val(self, runner: Runner) -> None:
        """Set the random state of the training aside."""
        self._before_val = random_state()

    def after_val(self, runner: Runner) -> None:
        """Restore the random state of the training."""
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
    """Continue with the image after the last one seen, without loading those before.

    The sampler is at its position already, so this iterator absorbs the skipping of the loop:
    MMEngine 0.10.12 calls ``skip_iter``, 0.10.7 calls ``next`` once per past iteration.
    """

    def __init__(self, loop: Any, restore: Callable[[int], None]) -> None:
        self._restore = partial(restore, loop.iter)
        self._to_skip = 0 if hasattr(loop.dataloader_iterator, 'skip_iter') else loop.iter
        self._dataloader = loop.dataloader
        self._iterator: Iterator | None = None

    def __iter__(self) -> '_ResumedIterator':
        return self

    def skip_iter(self, num_iters: int) -> None:
        """Do nothing: the sampler has skipped them."""

    def __next__(self) -> Any:
        if self._to_skip > 0:
            self._to_skip -= 1
            return None
        if self._iterator is None:
            self._iterator = iter(self._dataloader)
            # After `iter`, which itself draws a random number.
            self._restore()
        return next(self._iterator)


def random_state() -> State:
    """Return the states of all random generators, as tensors and plain values."""
    _, numpy_words, *numpy_rest = np.random.get_state()
    version, python_words, gauss = random.getstate()
    return {
        'torch': torch.get_rng_state(),
        'cuda': torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        'numpy': (torch.from_numpy(np.asarray(numpy_words, np.int64)), *numpy_rest),
        'python': (version, torch.tensor(python_words), gauss),
    }


def set_random_state(state: State) -> None:
    """Set the random generators to the states that `random_state` returned."""
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
    # Workers start with the run's seed: a resumed run would draw the augmentations of the first
    # iterations again.
    start = dataloader.worker_init_fn
    if isinstance(start, partial) and 'seed' in start.keywords:
        seed = start.keywords['seed'] + iteration
        dataloader.worker_init_fn = partial(start.func, **{**start.keywords, 'seed': seed})
    # MMEngine 0.10.7 has started them already, and persistent workers would be reused.
    dataloader._iterator = None


def _can_be_placed(dataloader: DataLoader) -> bool:
    # Other batch samplers may take more indices from the sampler than they hand out.
    plain = type(dataloader.batch_sampler) is BatchSampler
    return plain and isinstance(_sampler(dataloader), InfiniteSampler)


def _sampler(dataloader: DataLoader) -> Any:
    # A DataLoader with a batch sampler of the user keeps an unused default in `sampler`.
    return getattr(dataloader.batch_sampler, 'sampler', dataloader.sampler)
