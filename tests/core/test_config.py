import dataclasses

import pytest

from mmseg_m2f.core.config import (
    CompatConfig,
    DecoderConfig,
    PixelDecoderConfig,
    PointConfig,
    PostprocessConfig,
)


def test_defaults_are_the_papers():
    assert dataclasses.asdict(PixelDecoderConfig()) == {
        'channels': 256,
        'num_layers': 6,
        'num_heads': 8,
        'num_points': 4,
        'num_levels': 3,
        'ffn_dim': 1024,
        'norm_groups': 32,
        'checkpointing': False,
        'mixed_precision': False,
    }
    assert dataclasses.asdict(DecoderConfig(num_classes=150)) == {
        'num_classes': 150,
        'channels': 256,
        'num_queries': 100,
        'num_layers': 9,
        'num_heads': 8,
        'num_levels': 3,
        'ffn_dim': 2048,
        'checkpointing': False,
    }
    assert dataclasses.asdict(PointConfig()) == {
        'num_points': 12544,
        'oversample_ratio': 3.0,
        'importance_ratio': 0.75,
    }
    assert dataclasses.asdict(PostprocessConfig()) == {
        'semantic_on': True,
        'instance_on': True,
        'panoptic_on': True,
        'object_mask_thr': 0.8,
        'overlap_thr': 0.8,
        'score_thr': 0.0,
        'max_per_image': 100,
        'non_overlap': False,
        'mask_format': 'bitmap',
    }
    assert dataclasses.asdict(CompatConfig()) == {
        'init': 'official',
        'num_masks_mode': 'official',
        'keep_empty_gt': True,
        'panoptic_mask_intersection': True,
    }


def test_thresholds_may_lie_at_either_end():
    for value in (0, 1, 0.0, 1.0):
        config = PostprocessConfig(object_mask_thr=value, overlap_thr=value, score_thr=value)
        assert config.score_thr == value


PIXEL_DECODER_SIZES = (
    'channels',
    'num_heads',
    'num_points',
    'num_levels',
    'ffn_dim',
    'norm_groups',
)
DECODER_SIZES = ('num_classes', 'channels', 'num_queries', 'num_heads', 'num_levels', 'ffn_dim')


@pytest.mark.parametrize('value', [0, -1])
def test_sizes_must_be_positive(value):
    for name in PIXEL_DECODER_SIZES:
        with pytest.raises(ValueError, match=f'pixel_decoder.{name} must be positive, got {value}'):
            PixelDecoderConfig(**{name: value})
    for name in DECODER_SIZES:
        with pytest.raises(ValueError, match=f'{name} must be positive, got {value}'):
            DecoderConfig(**{'num_classes': 2, name: value})
    with pytest.raises(ValueError, match=f'num_points must be positive, got {value}'):
        PointConfig(num_points=value)


@pytest.mark.parametrize(
    ('make', 'settings', 'message'),
    [
        (PixelDecoderConfig, {'num_layers': -1}, 'num_layers must not be negative, got -1'),
        (PixelDecoderConfig, {'channels': 100}, r'of 2\*num_heads \(16\) and of norm_groups'),
        (PixelDecoderConfig, {'channels': 48}, r'and of norm_groups \(32\), got 48'),
        (
            PixelDecoderConfig,
            {'channels': 6, 'num_heads': 3, 'norm_groups': 3},
            'channels must be a multiple of 4, got 6',
        ),
        (
            DecoderConfig,
            {'num_classes': 2, 'num_layers': -1},
            'decoder.num_layers must not be negative, got -1',
        ),
        (
            DecoderConfig,
            {'num_classes': 2, 'channels': 100},
            r'decoder.channels must be even and a multiple of num_heads \(8\), got 100',
        ),
        (PointConfig, {'oversample_ratio': 0.5}, 'oversample_ratio must be at least 1, got 0.5'),
        (PointConfig, {'importance_ratio': 1.5}, r'importance_ratio must lie in \[0, 1\], got 1.5'),
        (PointConfig, {'importance_ratio': -0.1}, r'importance_ratio must lie in \[0, 1\]'),
        (PostprocessConfig, {'object_mask_thr': 1.1}, r'object_mask_thr must lie in \[0, 1\]'),
        (PostprocessConfig, {'overlap_thr': -0.1}, r'test_cfg.overlap_thr must lie in \[0, 1\]'),
        (PostprocessConfig, {'score_thr': 2}, r'test_cfg.score_thr must lie in \[0, 1\], got 2'),
        (PostprocessConfig, {'max_per_image': 0}, 'max_per_image must be a positive integer, got'),
        (PostprocessConfig, {'mask_format': 'polygon'}, r"mask_format must be one of .* 'polygon'"),
        (
            PostprocessConfig,
            {'mask_format': 'rle', 'non_overlap': True},
            r"non_overlap needs all masks at once: set mask_format='bitmap'",
        ),
        (
            CompatConfig,
            {'init': 'normal'},
            r"compat.init must be one of \('official', 'mmdet'\), got 'normal'",
        ),
        (CompatConfig, {'num_masks_mode': ''}, 'compat.num_masks_mode must be one of'),
    ],
)
def test_wrong_setting_says_what_is_allowed_and_what_was_given(make, settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


@pytest.mark.parametrize(
    ('config', 'name', 'value', 'message'),
    [
        (PostprocessConfig(), 'score_thr', '0.3', r"test_cfg.score_thr .* \[0, 1\], got '0.3'"),
        (PostprocessConfig(), 'overlap_thr', None, r'test_cfg.overlap_thr .* \[0, 1\], got None'),
        (PostprocessConfig(), 'max_per_image', 10.0, 'must be a positive integer, got 10.0'),
        (PostprocessConfig(), 'max_per_image', True, 'must be a positive integer, got True'),
        (PostprocessConfig(), 'panoptic_on', 1, 'panoptic_on must be True or False, got 1'),
        (PostprocessConfig(), 'non_overlap', 'yes', "non_overlap must be True or False, got 'yes'"),
        (CompatConfig(), 'keep_empty_gt', 0, 'compat.keep_empty_gt must be True or False, got 0'),
        (CompatConfig(), 'panoptic_mask_intersection', 0, 'must be True or False, got 0'),
    ],
)
def test_a_value_of_the_wrong_kind_is_named(config, name, value, message):
    # Past the constructor, whose types are checked in tests only.
    object.__setattr__(config, name, value)
    with pytest.raises(ValueError, match=message):
        config.__post_init__()


def test_unknown_and_positional_settings_are_refused():
    with pytest.raises(TypeError):
        PixelDecoderConfig(dropout=0.1)
    with pytest.raises(TypeError):
        PointConfig(12544)


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PointConfig().num_points = 1
