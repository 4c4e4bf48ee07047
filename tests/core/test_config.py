import dataclasses

import pytest

from mmseg_m2f.core.config import (
    CompatConfig,
    DecoderConfig,
    PixelDecoderConfig,
    PointConfig,
    PostprocessConfig,
)

CONFIGS = {
    'pixel_decoder': PixelDecoderConfig(),
    'decoder': DecoderConfig(num_classes=150),
    'points': PointConfig(),
    'test_cfg': PostprocessConfig(),
    'compat': CompatConfig(),
}


def test_defaults_are_the_papers():
    assert repr(CONFIGS['pixel_decoder']) == (
        'PixelDecoderConfig(channels=256, num_layers=6, num_heads=8, num_points=4, num_levels=3, '
        'ffn_dim=1024, norm_groups=32, checkpointing=False, mixed_precision=False)'
    )
    assert repr(CONFIGS['decoder']) == (
        'DecoderConfig(num_classes=150, channels=256, num_queries=100, num_layers=9, num_heads=8, '
        'num_levels=3, ffn_dim=2048, checkpointing=False)'
    )
    assert repr(CONFIGS['points']) == (
        'PointConfig(num_points=12544, oversample_ratio=3.0, importance_ratio=0.75)'
    )
    assert repr(CONFIGS['test_cfg']) == (
        'PostprocessConfig(semantic_on=True, instance_on=True, panoptic_on=True, '
        'object_mask_thr=0.8, overlap_thr=0.8, score_thr=0.0, max_per_image=100, '
        "non_overlap=False, mask_format='bitmap')"
    )
    assert repr(CONFIGS['compat']) == (
        "CompatConfig(init='official', num_masks_mode='official', keep_empty_gt=True, "
        'panoptic_mask_intersection=True)'
    )


def refused(part, settings):
    """The message for settings of any type: the constructor checks types in tests only."""
    config = dataclasses.replace(CONFIGS[part])
    for name, value in settings.items():
        object.__setattr__(config, name, value)
    with pytest.raises(ValueError) as caught:
        config.__post_init__()
    return str(caught.value)


@pytest.mark.parametrize('part', CONFIGS)
def test_each_size_is_a_positive_integer_and_each_switch_a_boolean(part):
    for field in dataclasses.fields(CONFIGS[part]):
        if field.type is int and field.name != 'num_layers':
            for value in (0, -1, 10.0, True, '3'):
                message = f'{part}.{field.name} must be a positive integer, got {value!r}'
                assert refused(part, {field.name: value}) == message
        if field.type is bool:
            for value in (0, 'yes', None):
                message = f'{part}.{field.name} must be True or False, got {value!r}'
                assert refused(part, {field.name: value}) == message


@pytest.mark.parametrize(
    ('part', 'settings', 'message'),
    [
        ('pixel_decoder', {'num_layers': -1}, 'num_layers must be 0 or more, got -1'),
        ('pixel_decoder', {'channels': 100}, '2*num_heads (16) and of norm_groups (32), got 100'),
        ('pixel_decoder', {'channels': 48}, 'of norm_groups (32), got 48'),
        (
            'pixel_decoder',
            {'channels': 6, 'num_heads': 3, 'norm_groups': 3},
            'pixel_decoder.channels must be a multiple of 4, ',
        ),
        ('decoder', {'num_layers': -1}, 'decoder.num_layers must be 0 or more, got -1'),
        ('decoder', {'channels': 100}, 'must be even and a multiple of num_heads (8), got 100'),
        ('decoder', {'channels': 9, 'num_heads': 3}, 'must be even and a multiple of'),
        ('points', {'oversample_ratio': 0.5}, 'oversample_ratio must be at least 1, got 0.5'),
        ('points', {'importance_ratio': 1.5}, 'importance_ratio must lie in [0, 1], got 1.5'),
        ('points', {'importance_ratio': -0.1}, 'importance_ratio must lie in [0, 1], got -0.1'),
        ('test_cfg', {'object_mask_thr': 1.1}, 'test_cfg.object_mask_thr must lie in [0, 1]'),
        ('test_cfg', {'overlap_thr': None}, 'test_cfg.overlap_thr must lie in [0, 1], got None'),
        ('test_cfg', {'score_thr': '0.3'}, "test_cfg.score_thr must lie in [0, 1], got '0.3'"),
        ('test_cfg', {'mask_format': 'png'}, "must be one of ('bitmap', 'rle'), got 'png'"),
        ('test_cfg', {'mask_format': 'rle', 'non_overlap': True}, "set mask_format='bitmap'"),
        ('compat', {'init': 'x'}, "compat.init must be one of ('official', 'mmdet'), got 'x'"),
        ('compat', {'num_masks_mode': ''}, 'compat.num_masks_mode must be one of'),
    ],
)
def test_a_wrong_setting_says_what_is_allowed_and_what_was_given(part, settings, message):
    assert message in refused(part, settings)


def test_thresholds_may_lie_at_either_end_and_there_may_be_no_layer():
    for value in (0, 1, 0.0, 1.0):
        PostprocessConfig(object_mask_thr=value, overlap_thr=value, score_thr=value)
    PixelDecoderConfig(num_layers=0)


def test_settings_are_frozen_and_take_known_keywords_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PointConfig().num_points = 1
    with pytest.raises(TypeError):
        PixelDecoderConfig(dropout=0.1)
    with pytest.raises(TypeError):
        PointConfig(12544)
