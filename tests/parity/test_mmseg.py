"""Our head against the one mmseg has (mmdet's, wrapped), on copied weights."""

import pytest
import torch
from torch import Tensor, nn

from mmseg_m2f import core
from mmseg_m2f.checkpoints import to_ours, to_theirs
from mmseg_m2f.core import decoder as core_decoder

pytest.importorskip('mmseg')
pytest.importorskip('mmdet')

from tests.parity.parity_weights import redraw
from tools.benchmark.models import MMSEG_R50, Spec, build

NUM_CLASSES, NUM_QUERIES, NUM_HEADS = 7, 12, 8
SPEC = Spec('mmseg', MMSEG_R50, NUM_CLASSES, depth=18, num_queries=NUM_QUERIES)


@pytest.fixture(scope='module')
def models() -> tuple[nn.Module, nn.Module]:
    """Ours and theirs on a ResNet-18, both in test mode."""
    torch.manual_seed(0)
    theirs = build(SPEC, 'mmseg').eval()
    redraw(theirs)
    ours = build(SPEC, 'ours').eval()
    ours.load_state_dict(to_ours(theirs.state_dict(), 'mmseg'))
    return ours, theirs


def test_key_map_round_trip(models: tuple[nn.Module, nn.Module]) -> None:
    ours, theirs = (model.state_dict() for model in models)
    converted, back = to_theirs(ours, 'mmseg'), to_ours(theirs, 'mmseg')
    assert converted.keys() == theirs.keys()
    assert back.keys() == ours.keys()
    assert all(torch.equal(converted[key], value) for key, value in theirs.items())


@pytest.mark.filterwarnings('ignore:torch.meshgrid')
@torch.no_grad()
def test_all_predictions(
    models: tuple[nn.Module, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """float32 only: mmdet's position encoding has no other. Their attention masks are injected."""
    ours, theirs = models
    features = theirs.extract_feat(torch.randn(2, 3, 96, 160))
    blocked: list[Tensor] = []
    forward_head = theirs.decode_head._forward_head

    def note_mask(*args: object, **kwargs: object) -> tuple[Tensor, Tensor, Tensor]:
        output = forward_head(*args, **kwargs)
        blocked.append(output[2].unflatten(0, (-1, NUM_HEADS))[:, :1])
        return output

    monkeypatch.setattr(theirs.decode_head, '_forward_head', note_mask)
    their_classes, their_masks = theirs.decode_head(features, None)
    may_attend = iter([~mask | mask.all(-1, keepdim=True) for mask in blocked])
    monkeypatch.setattr(core_decoder, 'attention_mask', lambda *_: next(may_attend))

    pixel_features = ours.decode_head.pixel_decoder(features)
    predictions = ours.decode_head.decoder(pixel_features)
    our_masks = [core.mask_logits(p.mask_embed, pixel_features.mask_features) for p in predictions]
    assert_in_range([p.class_logits for p in predictions], their_classes)
    assert_in_range(our_masks, their_masks)


def assert_in_range(ours: list[Tensor], theirs: list[Tensor]) -> None:
    """Within 1e-4 of the range of all predictions."""
    found, expected = torch.stack(ours), torch.stack(theirs)
    value_range = expected.max() - expected.min()
    assert value_range > 1
    assert (found - expected).abs().max() <= 1e-4 * value_range
