"""Continue a stopped run exactly: the same images, the same random numbers."""

import random
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice, repeat
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
from mmseg_m2f.adapters.checkpoints.errors import CheckpointError
from mmseg_m2f.registry import HOOKS

State = dict[str, Any]


@HOOKS.register_module()
class RandomStateHook(Hook):
    """Let a resumed run continue the stopped one with the same images and random numbers.

    MMEngine restores weights, optimizer, schedule and iteration, but not the random generators,
    and its sampler shuffles anew if the config has no seed. With this hook every checkpoint holds
    both (``random_state``). A resumed iteration-based run with an ``InfiniteSampler`` continues
    with the next image at once, and validation does not change the random numbers of the training.
    A file that was not saved by a run of such a model is refused.

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
        seed = getattr(_sampler(runner.train_dataloader), 'seed', None)
        state = self._before_val or random_state()
        checkpoint['random_state'] = {**state, 'sampler_seed': seed}

    def after_load_checkpoint(self, runner: Runner, checkpoint: State) -> None:
        """Keep the state for `before_train`.

        Raises:
            CheckpointError: the run shall resume from a file that no run of such a model saved.
        """
        if runner._resume:
            file = runner._load_from or 'the checkpoint'
            model = runner.model.module if is_model_wrapper(runner.model) else runner.model
            check_resumable(model, checkpoint, file)
            optimizer = getattr(runner.optim_wrapper, 'optimizer', None)
            if optimizer is not None and 'optimizer' in checkpoint:
                check_optimizer_state(optimizer, checkpoint['optimizer'], file)
        self._saved = checkpoint.get('random_state')

    def before_train(self, runner: Runner) -> None:
        """Continue where the checkpoint was saved, if the run is resumed."""
        loop, saved = runner.train_loop, self._saved
        if saved is None or loop.iter == 0:
            return
        if not hasattr(loop, 'dataloader_iterator'):
            # Checkpoints end an epoch, and the sampler shuffles by the number of the epoch.
            _restore(saved, loop.iter)
            return
        sampler, batches = _sampler(loop.dataloader), loop.dataloader.batch_sampler
        # Other batch samplers may take more indices from the sampler than they hand out.
        if type(batches) is BatchSampler and isinstance(sampler, InfiniteSampler):
            seen = loop.iter * batches.batch_size
            sampler.seed = saved['sampler_seed']
            sampler.indices = islice(sampler._indices_of_rank(), seen, None)
            start = loop.dataloader.worker_init_fn
            if isinstance(start, partial) and 'seed' in start.keywords:
                # Else the workers would draw the augmentations of the first iterations again.
                seed = start.keywords['seed'] + loop.iter
                loop.dataloader.worker_init_fn = partial(start, seed=seed)
            # MMEngine 0.10.7 has started them already, and persistent workers would be reused.
            loop.dataloader._iterator = None
            loop.dataloader_iterator = _ResumedIterator(loop, partial(_restore, saved, loop.iter))
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


def check_optimizer_state(
    optimizer: torch.optim.Optimizer, saved: State, file: str = 'the checkpoint'
) -> None:
    """Compare a saved state with every parameter of an optimizer: fused kernels do not check it.

    Raises:
        CheckpointError: the number of parameters or a shape differs.
    """
    if difference := _first_difference(optimizer, saved):
        raise CheckpointError(
            f'{file} cannot be resumed: its optimizer state belongs to another model: '
            f'{difference}. To start a training from its weights, give it as load_from, without '
            'resume'
        )


def _first_difference(optimizer: torch.optim.Optimizer, saved: State) -> str:
    parameters = [p for group in optimizer.param_groups for p in group['params']]
    indices = [index for group in saved['param_groups'] for index in group['params']]
    if len(indices) != len(parameters):
        return f'{len(indices)} parameters are saved, the model has {len(parameters)}'
    for parameter, index in zip(parameters, indices, strict=True):
        for name, value in saved['state'].get(index, {}).items():
            # Some optimizers keep smaller tensors for rows and columns, and a number of steps.
            is_whole = isinstance(value, torch.Tensor) and value.dim() == parameter.dim()
            if is_whole and value.shape != parameter.shape:
                return f'{name} is {tuple(value.shape)} for a parameter of {tuple(parameter.shape)}'
    return ''


class _ResumedIterator:
    """Continue with the next image. The sampler has skipped the others, so this need not load them.

    MMEngine 0.10.12 skips by ``skip_iter``, 0.10.7 by one call of ``next`` per iteration.
    """

    def __init__(self, loop: Any, restore: Callable[[], None]) -> None:
        num_skipped = 0 if hasattr(loop.dataloader_iterator, 'skip_iter') else loop.iter

        def generate() -> Iterator[Any]:
            yield from repeat(None, num_skipped)
            batches = iter(loop.dataloader)
            restore()  # only now: `iter` itself draws a random number
            yield from batches

        self._batches = generate()

    def skip_iter(self, num_iters: int) -> None:
        """Do nothing."""

    def __next__(self) -> Any:
        return next(self._batches)


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


def _restore(saved: State, iteration: int) -> None:
    rank, world_size = get_dist_info()
    if world_size == 1:
        set_random_state(saved)
    else:
        seed = (saved['sampler_seed'] or 0) + iteration * world_size + rank
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)


def _sampler(dataloader: DataLoader) -> Any:
    # A DataLoader with a batch sampler of the user keeps an unused default in `sampler`.
    return getattr(dataloader.batch_sampler, 'sampler', dataloader.sampler)
