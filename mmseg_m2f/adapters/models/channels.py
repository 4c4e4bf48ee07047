"""Take a head's ``in_channels`` from the built backbone."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.registry import Registry
from torch import nn

from mmseg_m2f.adapters.models.config import UnknownChannelsError
from mmseg_m2f.adapters.models.head import MaskHead

# The test image has 2 x 2 pixels at stride 32: some norms refuse maps of a single pixel.
TEST_SIZE = 64


def with_in_channels(
    head: Mapping[str, Any], registry: Registry, backbone: nn.Module, neck: nn.Module | None
) -> Mapping[str, Any]:
    """Return the config ``head`` with ``in_channels`` filled in.

    A head that sets ``in_channels``, or that is no `MaskHead`, is returned as it is.

    Args:
        head: the config of a decode head or panoptic head.
        registry: builds the head.
        backbone: built; its maps reach the head, through ``neck`` if there is one.
        neck: built, or None.

    Raises:
        UnknownChannelsError: the backbone or neck fails on a test image.
    """
    if head.get('in_channels') is not None or not _is_mask_head(head, registry):
        return head
    return {**head, 'in_channels': measure_channels(backbone, neck)}


def measure_channels(backbone: nn.Module, neck: nn.Module | None = None) -> list[int]:
    """Return the number of channels of every map that reaches the head, in the backbone's order.

    The modules see one black image in evaluation mode, without gradients: parameters, buffers,
    training modes and the random generators stay as they are.

    Raises:
        UnknownChannelsError: a module fails on the image, or gives no sequence of 4-d maps.
    """
    parts = [part for part in (backbone, neck) if part is not None]
    try:
        with torch.no_grad(), _evaluation_mode(parts):
            maps: Any = _black_image(backbone)
            for part in parts:
                maps = part(maps)
        return [_num_channels(feature_map) for feature_map in maps]
    except Exception as error:
        names = ' and '.join(type(part).__name__ for part in parts)
        raise UnknownChannelsError(
            f'in_channels of the head is not set, and {names} cannot tell: a test image of '
            f'{TEST_SIZE} x {TEST_SIZE} pixels gave {type(error).__name__}: {error}. Set '
            'in_channels to the channels of the maps, stride 4 first.'
        ) from error


def _is_mask_head(head: Mapping[str, Any], registry: Registry) -> bool:
    head_class: Any = head.get('type')
    if isinstance(head_class, str):
        # The default scope decides about bare names, as it does when the head is built.
        with registry.switch_scope_and_registry(head.get('_scope_')) as scoped:
            head_class = scoped.get(head_class)
    return isinstance(head_class, type) and issubclass(head_class, MaskHead)


def _black_image(backbone: nn.Module) -> torch.Tensor:
    """Return zeros ``(1, C, 64, 64)`` with the channels that the first convolution takes."""
    convolutions = (part for part in backbone.modules() if isinstance(part, nn.Conv2d))
    channels = next((convolution.in_channels for convolution in convolutions), 3)
    parameter = next(backbone.parameters(), torch.empty(0))
    return parameter.new_zeros(1, channels, TEST_SIZE, TEST_SIZE)


def _num_channels(feature_map: Any) -> int:
    if not isinstance(feature_map, torch.Tensor) or feature_map.ndim != 4:
        raise TypeError('the output is no sequence of maps (B, C, h, w)')
    return feature_map.shape[1]


@contextmanager
def _evaluation_mode(parts: Sequence[nn.Module]) -> Iterator[None]:
    # Not by `eval()` and `train()`: backbones override them, to freeze stages for example.
    modules = [module for part in parts for module in part.modules()]
    modes = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
