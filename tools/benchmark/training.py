"""A full training step: forward, losses, backward, gradients clipped to 0.01, AdamW.

All losses and the norm of the gradient are compared, on equal points; AdamW is PyTorch's fused one
for all. Our matcher draws its points once per image, the peers' for every prediction.
"""

import functools
from collections.abc import Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from tools.benchmark import models
from tools.benchmark.cases import Case
from tools.benchmark.images import Batch, batch_of, class_masks, normalized
from tools.benchmark.inference import SHARE
from tools.benchmark.measure import Agreement, Step


def prepare(case: Case, implementation: str) -> Step:
    """Build a model and return the training step of one batch."""
    model = load(case, implementation)
    return functools.partial(train_step, model, batch_of(case), optimizer_of(model))


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """Return the AdamW of all implementations."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.05, fused=True)


def load(case: Case, implementation: str) -> Any:
    """Build a model in training mode with the shared weights."""
    model = models.build_shared(case.model, implementation).train()
    if models.is_huggingface(model):
        models.freeze_batch_norms(model)
    return model


def train_step(model: Any, batch: Batch, optimizer: torch.optim.Optimizer) -> None:
    """Do one step."""
    optimizer.zero_grad()
    torch.stack(list(losses(model, batch).values())).sum().backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.01)
    optimizer.step()


def losses(model: Any, batch: Batch) -> dict[str, Tensor]:
    """Return the weighted losses of all predictions, by the names that mmseg gives them."""
    if models.is_huggingface(model):
        return _huggingface_losses(model, batch)
    found = model(**model.data_preprocessor(batch, training=True), mode='loss')
    # mmdet keeps an axis of length 1 on the mask losses.
    return {name: value.squeeze() for name, value in found.items()}


def _huggingface_losses(model: Any, batch: Batch) -> dict[str, Tensor]:
    """Note the terms, as Hugging Face returns only their sum."""
    noted: dict[str, Tensor] = {}
    original = model.get_loss_dict

    def get_loss_dict(*args: Any, **kwargs: Any) -> dict[str, Tensor]:
        noted.update(original(*args, **kwargs))
        return noted

    targets = [class_masks(sample.gt_sem_seg.data[0]) for sample in batch['data_samples']]
    labels, masks = (list(part) for part in zip(*targets, strict=True))
    with mock.patch.object(model, 'get_loss_dict', get_loss_dict):
        model(normalized(batch), mask_labels=masks, class_labels=labels)
    return {_mmseg_name(name): value for name, value in noted.items()}


def _mmseg_name(name: str) -> str:
    """Turn `loss_mask_3` into `decode.d3.loss_mask`."""
    _, term, *layer = name.replace('cross_entropy', 'cls').split('_')
    return '.'.join(['decode', *(f'd{index}' for index in layer), f'loss_{term}'])


def compare(case: Case, implementations: Sequence[str]) -> dict[str, Agreement]:
    """Draw the weights and compare losses and gradients with the baseline's.

    The difference is the median of the losses', or that of the gradient's norm where its share is
    larger; the limit is the one of `inference`.
    """
    batch = batch_of(case)
    models.share_weights(case.model, {*implementations, case.implementations[-1]}, batch)
    expected, expected_norm = losses_and_norm(case, case.implementations[-1])
    value_range = float(expected.max() - expected.min())
    found = {}
    for name in implementations:
        values, norm = losses_and_norm(case, name)
        difference = (values - expected).abs()
        of_norm = abs(norm - expected_norm) / expected_norm * value_range
        worst = torch.stack([difference.median(), torch.tensor(of_norm)]).max()
        found[name] = Agreement(float(worst), SHARE * value_range, float(difference.max()))
    return found


def losses_and_norm(case: Case, implementation: str) -> tuple[Tensor, float]:
    """Return all losses in the order of their names, and the norm of their sum's gradient."""
    model = load(case, implementation)
    with mock.patch.object(torch, 'rand', equal_points()):
        found = losses(model, batch_of(case))
    values = torch.stack([found[key] for key in sorted(found)])
    values.sum().backward()
    return values.detach(), float(nn.utils.clip_grad_norm_(model.parameters(), 1.0))


def equal_points() -> Any:
    """Return a `torch.rand` with the same points in every row: the heads draw in other orders."""
    original = torch.rand

    def rand(*shape: Any, device: Any = None, **_: Any) -> Tensor:
        size = shape[0] if isinstance(shape[0], (tuple, list)) else shape
        if len(size) < 2:
            return original(*shape, device=device)
        generator = torch.Generator().manual_seed(size[-2])
        drawn = original(1, *size[-2:], generator=generator).repeat(size[0], 1, 1)
        return drawn.to(device)

    return rand
