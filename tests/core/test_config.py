import dataclasses

import pytest

from mmseg_m2f.core.config import DecoderConfig, PixelDecoderConfig, PointConfig


def test_defaults_are_the_papers():
    assert dataclasses.asdict(PixelDecoderConfig()) == {
        'channels': 256,
        'num_layers': 6,
        'num_heads': 8,
        'num_points': 4,
        'num_levels': 3,
        'ffn_dim': 1024,
        'norm_groups': 32,
    }
    assert dataclasses.asdict(DecoderConfig(num_classes=150)) == {
        'num_classes': 150,
        'channels': 256,
        'num_queries': 100,
        'num_layers': 9,
        'num_heads': 8,
        'num_levels': 3,
        'ffn_dim': 2048,
    }
    assert dataclasses.asdict(PointConfig()) == {
        'num_points': 12544,
        'oversample_ratio': 3.0,
        'importance_ratio': 0.75,
    }


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
        (PointConfig, {'num_points': 0}, 'num_points must be positive, got 0'),
        (PointConfig, {'oversample_ratio': 0.5}, 'oversample_ratio must be at least 1, got 0.5'),
        (PointConfig, {'importance_ratio': 1.5}, r'importance_ratio must lie in \[0, 1\], got 1.5'),
        (PointConfig, {'importance_ratio': -0.1}, r'importance_ratio must lie in \[0, 1\]'),
    ],
)
def test_wrong_setting_says_what_is_allowed_and_what_was_given(make, settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_unknown_and_positional_settings_are_refused():
    with pytest.raises(TypeError):
        PixelDecoderConfig(dropout=0.1)
    with pytest.raises(TypeError):
        PointConfig(12544)


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PointConfig().num_points = 1
