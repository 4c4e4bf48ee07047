"""Which models have faster backbones, and that a second call changes nothing."""

from mmengine.registry import MODELS, init_default_scope

from mmseg_m2f.cpu.speed_up import speed_up
from tests.adapters import small_models


def faster(model) -> dict[str, object]:
    parts = model.backbone.named_modules()
    return {name: vars(part)['forward'] for name, part in parts if 'forward' in vars(part)}


def test_our_segmentor_has_one():
    init_default_scope('mmseg')
    model = MODELS.build({**small_models.segmentor(), 'type': 'mmseg_m2f.SemanticSegmentor'})
    before = faster(model)
    assert {'', 'layer1.0', 'layer4.1'} <= set(before)
    speed_up(model.backbone)
    assert faster(model).keys() == before.keys()


def test_swin_blocks_are_known():
    from mmseg.models.backbones import SwinTransformer

    network = SwinTransformer(
        embed_dims=32, depths=(1, 1), num_heads=(1, 2), strides=(4, 2), out_indices=(0, 1)
    )
    speed_up(network)
    parts = {name for name, part in network.named_modules() if 'forward' in vars(part)}
    assert parts == {'stages.0.blocks.0', 'stages.0.downsample', 'stages.1.blocks.0'}
