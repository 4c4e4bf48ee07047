"""Take a head's ``in_channels`` from the built backbone."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mmseg_m2f.adapters.models.config import UnknownChannelsError

# The test image has 2 x 2 pixels at stride 32: some norms refuse maps of a single pixel.
TEST_SIZE = 64


def with_in_channels(
    head: Mapping[str, Any], backbone: nn.Module, neck: nn.Module | None
) -> Mapping[str, Any]:
    """Return the config ``head`` with ``in_channels`` filled in, unless it sets them.

    The built backbone (and neck) see one black image in evaluation mode, without gradients:
    parameters, buffers, training modes and the random generators stay as they are.
    """
    if head.get('in_channels') is not None:
        return head
    parts = [part for part in (backbone, neck) if part is not None]
    # Not by `eval()` and `train()`: backbones override them, to freeze stages for example.
    modules = [module for part in parts for module in part.modules() if module.training]
    for module in modules:
        module.training = False
    try:
        with torch.no_grad():
            maps: Any = _black_image(backbone)
            for part in parts:
                maps = part(maps)
        return {**head, 'in_channels': [_num_channels(feature_map) for feature_map in maps]}
    except Exception as error:
        names = ' and '.join(type(part).__name__ for part in parts)
        raise UnknownChannelsError(
            f'in_channels of the head is not set, and {names} cannot tell: a test image of '
            f'{TEST_SIZE} x {TEST_SIZE} pixels gave {type(error).__name__}: {error}. Set '
            'in_channels to the channels of the maps, stride 4 first.'
        ) from error
    finally:
        for module in modules:
            module.training = True


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
