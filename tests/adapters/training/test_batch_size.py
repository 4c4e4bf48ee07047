"""A run logs how many images an update sees, and warns if the learning rate does not fit."""

from pathlib import Path

import pytest
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmseg_m2f.adapters.training.batch_size import BatchSizeHook
from tests.adapters.toy_runner import toy_runner


@pytest.mark.parametrize(
    ('auto_scale_lr', 'steps', 'warning'),
    [
        (None, 4, None),
        ({'base_batch_size': 8}, 4, None),
        ({'base_batch_size': 16}, 4, 'made for 16 images per update, but an update sees 8'),
        # MMEngine has scaled the rate to 2 images: accumulated steps do not count for it.
        ({'base_batch_size': 16, 'enable': True}, 1, None),
        (
            {'base_batch_size': 16, 'enable': True},
            4,
            'made for 2 images per update, but an update sees 8: consider 4 times the learning '
            'rate and 0.25 times the iterations',
        ),
    ],
)
def test_batch_of_an_update(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    auto_scale_lr: dict | None,
    steps: int,
    warning: str | None,
) -> None:
    class Stop(Hook):
        priority = 'VERY_LOW'

        def before_train(self, runner: Runner) -> None:
            raise KeyboardInterrupt

    runner = toy_runner(tmp_path, f'batch-{auto_scale_lr}-{steps}', auto_scale_lr=auto_scale_lr)
    runner.cfg.optim_wrapper = None
    runner.optim_wrapper['accumulative_counts'] = steps
    runner.register_hook(BatchSizeHook())
    runner.register_hook(Stop())
    info: list[str] = []
    warnings: list[str] = []
    monkeypatch.setattr(runner.logger, 'info', info.append)
    monkeypatch.setattr(runner.logger, 'warning', warnings.append)
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    assert f'one update sees {2 * steps} images: 1 process(es) x 2 x {steps}' in ' '.join(info)
    assert [warning in line for line in warnings] == ([True] if warning else [])
