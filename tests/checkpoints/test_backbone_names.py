"""Backbones' own files, and the two orders of channels in Swin's patch merging."""

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from mmseg_m2f.checkpoints import LAYOUTS, detect_layout, to_ours, to_theirs
from tests.checkpoints.published_names import (
    Shapes,
    microsoft_swin,
    random_state,
    timm_swin,
    torchvision_r50,
)

mmseg = pytest.importorskip('mmseg')

from tests.checkpoints.our_models import build_backbone  # noqa: E402

FILES: dict[str, tuple[Callable[[], Shapes], str]] = {
    'torchvision': (torchvision_r50, 'r50'),
    'swin': (microsoft_swin, 'swin-t'),
    'timm': (timm_swin, 'swin-t'),
}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize('layout', FILES)
def test_a_file_fills_the_backbone(layout: str) -> None:
    shapes, backbone = FILES[layout]
    published = random_state(shapes())
    assert detect_layout(published) == layout
    ours = to_ours(published, layout)
    own = build_backbone(backbone).state_dict()
    # A classifier has one norm behind its last stage, a segmentor one behind each.
    expected = {f'backbone.{key}' for key in own if not re.match(r'norm\d', key)}
    assert ours.keys() == expected
    assert all(ours[key].shape == own[key.removeprefix('backbone.')].shape for key in expected)


def test_a_resnet_keeps_its_names() -> None:
    published = random_state(torchvision_r50())
    counters = {f'{key[:-11]}num_batches_tracked' for key in published if 'running_var' in key}
    published |= {key: torch.tensor(7) for key in counters}
    expected = {f'backbone.{key}': v for key, v in published.items() if not key.startswith('fc.')}
    assert_same(to_ours(published, 'torchvision'), expected)
    assert_same(to_ours(published, 'timm'), expected)


def script(package: ModuleType, name: str) -> ModuleType:
    """Load a package's own conversion of Microsoft's files, which is a script."""
    path = Path(package.__file__).parent / '.mim/tools/model_converters' / name
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize('by', ['mmseg', 'mmdet', 'mmdet on load'])
def test_microsofts_swin_as_mmseg_and_mmdet_convert_it(by: str) -> None:
    published = {
        key: value
        for key, value in random_state(microsoft_swin()).items()
        if not key.startswith(('norm.', 'head.'))
        and not key.endswith(('attn_mask', 'position_index'))
    }
    below = {f'backbone.{key}': value for key, value in published.items()}
    if by == 'mmseg':
        converted = script(mmseg, 'swin2mmseg.py').convert_swin(published)
        theirs = {f'backbone.{key}': value for key, value in converted.items()}
    elif by == 'mmdet':
        mmdet = pytest.importorskip('mmdet')
        theirs = script(mmdet, 'swinv1_to_mmdet.py').swin_converter(below)
    else:
        theirs = pytest.importorskip('mmdet.models.backbones.swin').swin_converter(published)
    ours = to_ours(published, 'swin')
    assert_same({key: ours[key] for key in ours if not key.endswith('position_index')}, theirs)


def test_timm_moved_patch_merging_to_the_next_stage() -> None:
    """Three spellings of one Swin: Microsoft's (timm's until 0.6), timm's, and its features."""
    late = random_state(timm_swin())
    early = {
        re.sub(
            r'^layers\.(\d)\.downsample', lambda hit: f'layers.{int(hit[1]) - 1}.downsample', key
        ): value
        for key, value in late.items()
    }
    flat = {key.replace('layers.', 'layers_', 1): value for key, value in late.items()}
    assert [detect_layout(state) for state in (early, late, flat)] == ['swin', 'timm', 'timm']
    expected = to_ours(early, 'swin')
    for state in (early, late, flat):
        assert_same(to_ours(state, 'timm'), expected)
    # The name of the layout is believed: the last stage of Microsoft's merges nothing.
    with pytest.raises(ValueError, match=r'layers\.3\.downsample'):
        to_ours(late, 'swin')


SIZES = {
    'resnet-18': ('r50', {'depth': 18}),
    'resnet-101': ('r50', {'depth': 101}),
    'swin-s': ('swin-t', {'depths': (2, 2, 18, 2)}),
    'swin-b': ('swin-t', {'depths': (2, 2, 18, 2), 'window_size': 12}),
}
THIN = {
    'r50': {'base_channels': 4, 'stem_channels': 4},
    'swin-t': {'embed_dims': 8, 'num_heads': (1, 1, 2, 2)},
}


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('layout', LAYOUTS)
def test_backbones_of_other_sizes(layout: str, size: str) -> None:
    """Thin ones: the names are those of the large."""
    backbone, changes = SIZES[size]
    model = build_backbone(backbone, **THIN[backbone], **changes)
    state = {f'backbone.{key}': value for key, value in model.state_dict().items()}
    state['decode_head.decoder.query_feat.weight'] = torch.zeros(1, 4)
    theirs = to_theirs(state, layout)
    assert detect_layout(theirs) == layout
    assert_same(to_ours(theirs, layout), state)


@pytest.mark.parametrize(
    ('state', 'layout', 'message'),
    [
        (
            {'backbone.layers.0.downsample.norm.weight': (6,)},
            'detectron2',
            r'downsample\.norm\.weight cannot be made from .*\(6,\)',
        ),
        (
            {'layers.0.blocks.0.attn.relative_position_bias_table': (168, 3)},
            'swin',
            r'\(2 M - 1\)\^2 rows, not 168',
        ),
        (
            {
                f'model.transformer_module.decoder.layers.0.self_attn.{part}_proj.weight': (4, n)
                for part, n in zip('qkv', (4, 4, 5), strict=True)
            },
            'hf',
            r'self_attn\.in_proj_weight cannot be made from .*v_proj\.weight \(4, 5\)',
        ),
        ({'layer1.0.conv4.weight': (1,)}, 'torchvision', r'do not belong .*layer1\.0\.conv4'),
        ({'stages.0.blocks.0.norm1.weight': (1,)}, 'swin', 'do not belong'),
    ],
)
def test_shapes_and_names_that_do_not_fit(
    state: dict[str, tuple[int, ...]], layout: str, message: str
) -> None:
    tensors = {key: torch.zeros(shape) for key, shape in state.items()}
    with pytest.raises(ValueError, match=message):
        to_ours(tensors, layout)


def test_a_projection_that_is_not_three() -> None:
    state = {'decode_head.decoder.layers.0.self_attn.in_proj_bias': torch.zeros(7)}
    with pytest.raises(ValueError, match=r'cannot be made from .*in_proj_bias \(7,\)'):
        to_theirs(state, 'hf')
