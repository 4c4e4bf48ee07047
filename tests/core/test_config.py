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


@pytest.mark.parametrize(
    ('make', 'settings', 'message'),
    [
        (PixelDecoderConfig, {'channels': 0}, 'pixel_decoder.channels must be positive, got 0'),
        (PixelDecoderConfig, {'num_heads': -1}, 'pixel_decoder.num_heads must be positive, got -1'),
        (PixelDecoderConfig, {'num_points': 0}, 'pixel_decoder.num_points must be positive, got 0'),
        (PixelDecoderConfig, {'num_levels': 0}, 'pixel_decoder.num_levels must be positive, got 0'),
        (PixelDecoderConfig, {'ffn_dim': 0}, 'pixel_decoder.ffn_dim must be positive, got 0'),
        (PixelDecoderConfig, {'norm_groups': 0}, 'pixel_decoder.norm_groups must be positive'),
        (
            PixelDecoderConfig,
            {'num_layers': -1},
            'pixel_decoder.num_layers must not be negative, got -1',
        ),
        (
            PixelDecoderConfig,
            {'channels': 100},
            r'multiple of 2\*num_heads \(16\) and of norm_groups \(32\), got 100',
        ),
        (
            PixelDecoderConfig,
            {'channels': 48},
            r'multiple of 2\*num_heads \(16\) and of norm_groups \(32\), got 48',
        ),
        (
            PixelDecoderConfig,
            {'channels': 6, 'num_heads': 3, 'norm_groups': 3},
            'channels must be a multiple of 4, got 6',
        ),
        (DecoderConfig, {'num_classes': 0}, 'num_classes must be positive, got 0'),
        (DecoderConfig, {'num_classes': 2, 'channels': 0}, 'channels must be positive, got 0'),
        (DecoderConfig, {'num_classes': 2, 'num_queries': 0}, 'num_queries must be positive'),
        (DecoderConfig, {'num_classes': 2, 'num_heads': 0}, 'num_heads must be positive, got 0'),
        (DecoderConfig, {'num_classes': 2, 'num_levels': 0}, 'num_levels must be positive, got 0'),
        (DecoderConfig, {'num_classes': 2, 'ffn_dim': 0}, 'ffn_dim must be positive, got 0'),
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
        (PostprocessConfig, {'mask_format': 'polygon'}, r"mask_format must be one of .* 'polygon'"),
        (
            PostprocessConfig,
            {'mask_format': 'rle', 'non_overlap': True},
            r"non_overlap needs all masks at once: set mask_format='bitmap'",
        ),
        (PointConfig, {'num_points': 0}, 'num_points must be positive, got 0'),
        (PointConfig, {'oversample_ratio': 0.5}, 'oversample_ratio must be at least 1, got 0.5'),
        (PointConfig, {'importance_ratio': 1.5}, r'importance_ratio must lie in \[0, 1\], got 1.5'),
        (PointConfig, {'importance_ratio': -0.1}, r'importance_ratio must lie in \[0, 1\]'),
        (
            PostprocessConfig,
            {'object_mask_thr': 1.1},
            r'test_cfg.object_mask_thr must lie in \[0, 1\], got 1.1',
        ),
        (PostprocessConfig, {'overlap_thr': -0.1}, r'test_cfg.overlap_thr must lie in \[0, 1\]'),
        (PostprocessConfig, {'score_thr': 2}, r'test_cfg.score_thr must lie in \[0, 1\], got 2'),
        (PostprocessConfig, {'max_per_image': 0}, 'max_per_image must be a positive integer, got'),
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
    ('name', 'value', 'message'),
    [
        ('score_thr', '0.3', r"test_cfg.score_thr must lie in \[0, 1\], got '0.3'"),
        ('overlap_thr', None, r'test_cfg.overlap_thr must lie in \[0, 1\], got None'),
        ('max_per_image', 10.0, 'test_cfg.max_per_image must be a positive integer, got 10.0'),
        ('max_per_image', True, 'test_cfg.max_per_image must be a positive integer, got True'),
        ('panoptic_on', 1, 'test_cfg.panoptic_on must be True or False, got 1'),
        ('non_overlap', 'yes', "test_cfg.non_overlap must be True or False, got 'yes'"),
    ],
)
def test_test_cfg_says_so_if_a_value_is_of_the_wrong_kind(name, value, message):
    config = PostprocessConfig()
    # Past the constructor, whose types are checked in tests only.
    object.__setattr__(config, name, value)
    with pytest.raises(ValueError, match=message):
        config.__post_init__()


@pytest.mark.parametrize('name', ['keep_empty_gt', 'panoptic_mask_intersection'])
def test_compat_says_so_if_a_value_is_of_the_wrong_kind(name):
    config = CompatConfig()
    object.__setattr__(config, name, 0)
    with pytest.raises(ValueError, match=f'compat.{name} must be True or False, got 0'):
        config.__post_init__()


def test_unknown_and_positional_settings_are_refused():
    with pytest.raises(TypeError):
        PixelDecoderConfig(dropout=0.1)
    with pytest.raises(TypeError):
        PointConfig(12544)


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PointConfig().num_points = 1
