"""Backbones' own files, and the two orders of channels in Swin's patch merging."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.nn import functional as F

from mmseg_m2f.checkpoints import LAYOUTS, detect_layout, to_ours, to_theirs
from mmseg_m2f.checkpoints.swin import from_unfold_order, to_unfold_order
from tests.checkpoints import published_names as published
from tests.checkpoints.published_names import assert_same, random_state

mmseg = pytest.importorskip('mmseg')

from tests.checkpoints.our_models import build_backbone  # noqa: E402

FILES = {
    'torchvision': (published.torchvision_r50, 'r50'),
    'swin': (published.microsoft_swin, 'swin-t'),
    'timm': (published.timm_swin, 'swin-t'),
}


@pytest.mark.parametrize('layout', FILES)
def test_a_file_fills_the_backbone(layout: str) -> None:
    shapes, backbone = FILES[layout]
    file = random_state(shapes())
    assert detect_layout(file) == layout
    ours = to_ours(file, layout)
    own = build_backbone(backbone).state_dict()
    # A classifier has one norm behind its last stage, a segmentor one behind each.
    expected = {f'backbone.{key}' for key in own if not re.match(r'norm\d', key)}
    assert ours.keys() == expected
    assert all(ours[key].shape == own[key.removeprefix('backbone.')].shape for key in expected)


def test_a_resnet_keeps_its_names() -> None:
    file = random_state(published.torchvision_r50())
    counters = {f'{key[:-11]}num_batches_tracked' for key in file if 'running_var' in key}
    file |= {key: torch.tensor(7) for key in counters}
    expected = {f'backbone.{key}': v for key, v in file.items() if not key.startswith('fc.')}
    assert_same(to_ours(file, 'torchvision'), expected)
    assert_same(to_ours(file, 'timm'), expected)


def script(package: ModuleType, name: str) -> ModuleType:
    """Load a package's own conversion of Microsoft's files, which is a script."""
    path = Path(package.__file__).parent / '.mim/tools/model_converters' / name
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize('by', ['mmseg', 'mmdet', 'mmdet on load'])
def test_microsofts_swin_as_mmseg_and_mmdet_convert_it(by: str) -> None:
    file = {
        key: value
        for key, value in random_state(published.microsoft_swin()).items()
        if not key.startswith(('norm.', 'head.'))
        and not key.endswith(('attn_mask', 'position_index'))
    }
    if by == 'mmseg':
        converted = script(mmseg, 'swin2mmseg.py').convert_swin(file)
        theirs = {f'backbone.{key}': value for key, value in converted.items()}
    elif by == 'mmdet':
        below = {f'backbone.{key}': value for key, value in file.items()}
        theirs = script(pytest.importorskip('mmdet'), 'swinv1_to_mmdet.py').swin_converter(below)
    else:
        theirs = pytest.importorskip('mmdet.models.backbones.swin').swin_converter(file)
    ours = to_ours(file, 'swin')
    assert_same({key: ours[key] for key in ours if not key.endswith('position_index')}, theirs)


def test_patch_merging_order() -> None:
    """Both layouts of one merging layer give the same result on the same image."""
    channels = 3
    image, weight = torch.randn(1, channels, 4, 6), torch.randn(5, 4 * channels)
    blocks = torch.cat(
        [image[..., row::2, col::2] for row, col in ((0, 0), (1, 0), (0, 1), (1, 1))], dim=1
    )
    unfolded = to_unfold_order(weight) @ F.unfold(image, 2, stride=2)
    torch.testing.assert_close(unfolded, weight @ blocks.flatten(2))
    assert torch.equal(from_unfold_order(to_unfold_order(weight)), weight)
    # Converting twice is a silent error, never a no-op.
    assert not torch.equal(to_unfold_order(to_unfold_order(weight)), weight)


def test_timm_moved_patch_merging_to_the_next_stage() -> None:
    """Three spellings of one Swin: Microsoft's (timm's until 0.6), timm's, and its features."""
    late = random_state(published.timm_swin())
    early = {
        re.sub(
            r'^layers\.(\d)\.downsample', lambda hit: f'layers.{int(hit[1]) - 1}.downsample', key
        ): value
        for key, value in late.items()
    }
    flat = {key.replace('layers.', 'layers_', 1): value for key, value in late.items()}
    assert [detect_layout(state) for state in (early, late, flat)] == ['swin', 'timm', 'timm']
    for state in (early, late, flat):
        assert_same(to_ours(state, 'timm'), to_ours(early, 'swin'))
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


ATTENTION = 'decoder.layers.0.self_attn'
HF_ATTENTION = f'model.transformer_module.{ATTENTION}'


@pytest.mark.parametrize(
    ('convert', 'shapes', 'layout', 'message'),
    [
        (
            to_ours,
            {'backbone.layers.0.downsample.norm.weight': (6,)},
            'detectron2',
            r'downsample\.norm\.weight cannot be made from .*\(6,\)',
        ),
        (
            to_ours,
            {'layers.0.blocks.0.attn.relative_position_bias_table': (168, 3)},
            'swin',
            r'\(2 M - 1\)\^2 rows, not 168',
        ),
        (
            to_ours,
            {f'{HF_ATTENTION}.{p}_proj.weight': (4, n) for p, n in (('q', 4), ('k', 4), ('v', 5))},
            'hf',
            r'self_attn\.in_proj_weight cannot be made from .*v_proj\.weight \(4, 5\)',
        ),
        (
            to_theirs,
            {f'decode_head.{ATTENTION}.in_proj_bias': (7,)},
            'hf',
            r'cannot be made from .*in_proj_bias \(7,\)',
        ),
        (to_ours, {'layer1.0.conv4.weight': (1,)}, 'torchvision', r'do not belong .*1\.0\.conv4'),
        (to_ours, {'stages.0.blocks.0.norm1.weight': (1,)}, 'swin', 'do not belong'),
    ],
)
def test_shapes_and_names_that_do_not_fit(convert, shapes: dict, layout: str, message: str) -> None:
    tensors = {key: torch.zeros(shape) for key, shape in shapes.items()}
    with pytest.raises(ValueError, match=message):
        convert(tensors, layout)
