"""Network, matching and losses against Hugging Face's ``Mask2FormerForUniversalSegmentation``.

Both sides share one set of re-drawn weights. Where Hugging Face differs from the official code, a
test of its own says so by name.
"""

from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from mmseg_m2f import core
from mmseg_m2f.checkpoints import from_huggingface
from mmseg_m2f.core.layers import sine_encoding

pytest.importorskip('mmseg')
transformers = pytest.importorskip('transformers')

from transformers.models.mask2former import modeling_mask2former as huggingface  # noqa: E402

from tests.checkpoints.our_models import build_segmentor  # noqa: E402
from tests.checkpoints.published_names import (  # noqa: E402
    BACKBONES,
    NUM_CLASSES,
    NUM_QUERIES,
)
from tests.checkpoints.published_names import NUM_DECODER_LAYERS as NUM_LAYERS  # noqa: E402
from tests.parity.parity_weights import redraw  # noqa: E402
from tests.parity.stock_heads import (  # noqa: E402
    FLOAT32,
    Logits,
    attending,
    error,
    huggingface_config,
    opened,
    our_logits,
)

# Fewer than the paper's 12544 for the sake of time; nothing depends on the number.
NUM_POINTS = 2048
# Neither side a multiple of Swin's window, nor of the last level's size: padding is exercised.
SIZE = (64, 128)


class Pair(NamedTuple):
    """The oracle, our segmentor with its weights, and one batch."""

    oracle: nn.Module
    ours: nn.Module
    images: Tensor
    targets: list[core.MaskTarget]


@pytest.fixture(scope='module', params=BACKBONES)
def pair(request: pytest.FixtureRequest) -> Pair:
    built = build_pair(request.param, NUM_QUERIES, SIZE)
    return Pair(built.oracle.double(), built.ours.double(), built.images.double(), built.targets)


def build_pair(backbone: str, num_queries: int, size: tuple[int, int]) -> Pair:
    config = huggingface_config(backbone, num_queries=num_queries, train_num_points=NUM_POINTS)
    oracle = transformers.Mask2FormerForUniversalSegmentation(config).eval()
    redraw(oracle)
    points = {'num_points': NUM_POINTS}
    ours = build_segmentor(
        backbone, num_queries=num_queries, matcher=points, losses={'points': points}
    )
    ours.load_state_dict(from_huggingface(oracle.state_dict()))
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, *size, generator=generator)
    return Pair(oracle, ours, images, _targets(size, generator))


def _targets(size: tuple[int, int], generator: torch.Generator) -> list[core.MaskTarget]:
    """Label maps of square patches; the second image has another number of classes."""
    coarse = torch.randint(NUM_CLASSES, (2, size[0] // 8, size[1] // 8), generator=generator)
    coarse[1] %= 3
    maps = coarse.repeat_interleave(8, 1).repeat_interleave(8, 2)
    return core.label_map_targets(list(maps), NUM_CLASSES)


def oracle_logits(pair: Pair, images: Tensor) -> Logits:
    out = pair.oracle(images, output_auxiliary_logits=True)
    auxiliary = out.auxiliary_logits
    classes = [*(a['class_queries_logits'] for a in auxiliary), out.class_queries_logits]
    masks = [*(a['masks_queries_logits'] for a in auxiliary), out.masks_queries_logits]
    return Logits(torch.stack(classes), torch.stack(masks))


def assert_close(ours: Tensor, theirs: Tensor, limit: float) -> None:
    difference = (ours - theirs).abs().max().item()
    assert difference <= limit, f'differs by {difference:.2e}, allowed {limit:.2e}'


@torch.no_grad()
def test_all_predictions_in_float64(pair: Pair) -> None:
    theirs = oracle_logits(pair, pair.images)
    ours = our_logits(pair.ours.decode_head, pair.ours.extract_feat(pair.images))
    assert len(theirs.classes) == NUM_LAYERS + 1
    # The comparison means something: logits are of order one and of both signs.
    assert theirs.masks.std() > 0.5
    assert 0.2 < (theirs.masks < 0).double().mean() < 0.8
    for side in Logits._fields:
        assert_close(getattr(ours, side), getattr(theirs, side), 1e-8)


@torch.no_grad()
def test_backbone_in_float64(pair: Pair) -> None:
    theirs = pair.oracle.model.pixel_level_module.encoder(pair.images).feature_maps
    ours = pair.ours.extract_feat(pair.images)
    assert [x.shape for x in ours] == [x.shape for x in theirs]
    for our_map, their_map in zip(ours, theirs, strict=True):
        assert_close(our_map, their_map, 1e-8)


@pytest.fixture
def float32_pair(pair: Pair) -> Iterator[Pair]:
    # The weights were drawn in float32, so the way there and back loses nothing.
    yield Pair(pair.oracle.float(), pair.ours.float(), pair.images.float(), pair.targets)
    pair.oracle.double()
    pair.ours.double()


def test_all_predictions_in_float32(float32_pair: Pair) -> None:
    check_float32(float32_pair)


@pytest.mark.long
@pytest.mark.parametrize('backbone', BACKBONES)
def test_float32_at_the_paper_size(backbone: str) -> None:
    check_float32(build_pair(backbone, 100, (512, 512)))


@torch.no_grad()
def check_float32(pair: Pair) -> None:
    """One attention bit that flips on rounding moves logits by far more than rounding itself, so
    the logits are compared under the oracle's masks and the bits are counted apart."""
    may_attend: list[Tensor] = []
    predictor = pair.oracle.model.transformer_module.decoder.mask_predictor
    hook = predictor.register_forward_hook(
        lambda _, __, output: may_attend.append(opened(output[1], num_heads=8))
    )
    theirs = oracle_logits(pair, pair.images)
    hook.remove()
    head, maps = pair.ours.decode_head, pair.ours.extract_feat(pair.images)
    with attending(may_attend) as injected:
        ours = our_logits(head, maps)
    for found, expected in zip(ours, theirs, strict=True):
        assert error(found, expected) <= FLOAT32
    with attending(may_attend, inject=False) as own:
        our_logits(head, maps)
    # Logits that are as near to the threshold as rounding moves them, and what they move later.
    assert sum(injected) <= 1e-4 * len(injected)
    assert sum(own) <= 1e-3 * len(own)


class Draws:
    """The same points for both sides, each asking for them in its own order.

    Hugging Face works prediction by prediction, the last first, with one draw per matched row of
    all images; ours works image by image with all predictions in one draw.
    """

    def __init__(self, targets: list[core.MaskTarget], *, shared: bool) -> None:
        generator = torch.Generator().manual_seed(2)

        def draw(*shape: int) -> Tensor:
            return torch.rand(*shape, 2, generator=generator, dtype=torch.float64)

        predictions = NUM_LAYERS + 1
        pairs = [min(len(target.labels), NUM_QUERIES) for target in targets]
        uncertain = int(0.75 * NUM_POINTS)
        self.match = [draw(1 if shared else predictions, NUM_POINTS) for _ in targets]
        self.candidates = [draw(predictions, m, 3 * NUM_POINTS) for m in pairs]
        self.rest = [draw(predictions, m, NUM_POINTS - uncertain) for m in pairs]

    def for_ours(self) -> Iterator[Tensor]:
        yield from self.match
        for candidates, rest in zip(self.candidates, self.rest, strict=True):
            yield candidates.flatten(0, 1)
            yield rest.flatten(0, 1)

    def for_theirs(self) -> Iterator[Tensor]:
        for prediction in [NUM_LAYERS, *range(NUM_LAYERS)]:
            for match in self.match:
                yield match[prediction % len(match)][None]
            yield torch.cat([candidates[prediction] for candidates in self.candidates])
            yield torch.cat([rest[prediction] for rest in self.rest])


def their_losses(
    pair: Pair, logits: Logits, draws: Draws, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Tensor], list[list[tuple[Tensor, Tensor]]]]:
    """Weighted losses and, prediction by prediction, the matched indices of each image."""
    queue = draws.for_theirs()
    criterion = pair.oracle.criterion
    matches = []

    def rand(*shape: int, device: torch.device) -> Tensor:
        points = next(queue)
        assert points.shape == shape
        return points

    hook = criterion.matcher.register_forward_hook(lambda _, __, output: matches.append(output))
    with monkeypatch.context() as patch:
        # Their coordinates are float32 whatever the logits: ``torch.rand`` without a dtype.
        patch.setattr(huggingface.torch, 'rand', rand)
        losses = pair.oracle.get_loss_dict(
            logits.masks[-1],
            logits.classes[-1],
            [target.masks.double() for target in pair.targets],
            [target.labels for target in pair.targets],
            pair.oracle.get_auxiliary_logits(list(logits.classes), list(logits.masks)),
        )
    hook.remove()
    assert next(queue, None) is None, 'fewer draws than expected'
    return losses, [*matches[1:], matches[0]]


def our_losses(
    pair: Pair, images: Tensor, draws: Draws, monkeypatch: pytest.MonkeyPatch, mode: str
) -> tuple[list[core.LossTerms], list[core.Match]]:
    queue = draws.for_ours()

    def sample_points(rows: int, points: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        drawn = next(queue)
        assert drawn.shape == (rows, points, 2)
        return drawn

    head = pair.ours.decode_head
    with monkeypatch.context() as patch:
        patch.setattr(head.matcher, 'points', mode)
        patch.setattr(head.matcher, 'sample_points', sample_points)
        patch.setattr(head.criterion.points, 'sample_points', sample_points)
        features = head.pixel_decoder(pair.ours.extract_feat(images))
        predictions = head.decoder(features)
        matches = head.matcher(predictions, features.mask_features, pair.targets)
        terms = head.criterion(predictions, features.mask_features, pair.targets, matches)
    assert next(queue, None) is None, 'fewer draws than expected'
    return terms, matches


THEIR_LOSS_NAMES = {'cls': 'loss_cross_entropy', 'mask': 'loss_mask', 'dice': 'loss_dice'}


def check_losses(
    ours: list[core.LossTerms],
    our_matches: list[core.Match],
    theirs: dict[str, Tensor],
    their_matches: list[list[tuple[Tensor, Tensor]]],
) -> None:
    assert len(theirs) == 3 * len(ours) == 3 * (NUM_LAYERS + 1)
    for index, (terms, images) in enumerate(zip(ours, their_matches, strict=True)):
        for image, (queries, labels) in enumerate(images):
            assert our_matches[image].query_idx[index].tolist() == queries.tolist()
            assert our_matches[image].target_idx[index].tolist() == labels.tolist()
        suffix = '' if index == NUM_LAYERS else f'_{index}'
        for name, value in terms._asdict().items():
            assert_close(value, theirs[THEIR_LOSS_NAMES[name] + suffix], 1e-8)


@torch.no_grad()
def test_matching_and_losses(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """With points of its own for every prediction, as in the official code.

    In one process Hugging Face's normaliser is the official one (H2 concerns several).
    """
    draws = Draws(pair.targets, shared=False)
    logits = oracle_logits(pair, pair.images)
    theirs = their_losses(pair, logits, draws, monkeypatch)
    ours = our_losses(pair, pair.images, draws, monkeypatch, 'per_prediction')
    check_losses(*ours, *theirs)


def test_gradients_of_the_loss(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare every parameter, backbone included, by the key map: it renames and reorders only.

    All predictions share their points, our default.
    """
    draws = Draws(pair.targets, shared=True)
    images = pair.images
    theirs = their_losses(pair, oracle_logits(pair, images), draws, monkeypatch)
    ours = our_losses(pair, images, draws, monkeypatch, 'shared')
    check_losses(*ours, *theirs)
    sum(theirs[0].values()).backward()
    sum(value for terms in ours[0] for value in terms).backward()

    named = pair.oracle.named_parameters()
    expected = from_huggingface({name: p.grad for name, p in named if p.grad is not None})
    expected = {name: grad for name, grad in expected.items() if not name.endswith('_index')}
    found = {name: p.grad for name, p in pair.ours.named_parameters() if p.grad is not None}
    pair.oracle.zero_grad()
    pair.ours.zero_grad()
    assert found.keys() == expected.keys()
    global_norm = torch.stack([grad.norm() for grad in expected.values()]).norm()
    for name, grad in found.items():
        limit = 1e-4 * expected[name].abs().clamp(min=1e-6 * global_norm)
        assert ((grad - expected[name]).abs() <= limit).all(), name


def test_deviation_h3_their_matcher_hides_nan() -> None:
    """Hugging Face gives a NaN cost the largest finite value and trains on; the official code and
    ours stop, ours with the prediction and the image."""
    masks = torch.zeros(1, 3, 4, 4)
    masks[0, 1, 0, 0] = torch.nan
    target = core.MaskTarget(torch.tensor([0]), torch.ones(1, 4, 4, dtype=torch.bool))
    matcher = huggingface.Mask2FormerHungarianMatcher(num_points=NUM_POINTS)
    [(queries, _)] = matcher(masks, torch.zeros(1, 3, 3), [target.masks], [target.labels])
    assert len(queries) == 1

    embed = torch.eye(3)[None]
    prediction = core.MaskPrediction(torch.zeros(1, 3, 3), embed)
    with pytest.raises(core.NonFinitePredictionError, match='prediction 0 of image 0'):
        core.HungarianMatcher()([prediction], masks, [target])


def test_deviation_h12_their_position_encoding_loses_bits() -> None:
    """Hugging Face computes it in the features' type, the official code and ours in float32: their
    bfloat16 encoding is off by more than rounding the exact one (at most 0.004) explains."""
    channels, size = 256, (16, 24)
    theirs = huggingface.Mask2FormerSinePositionEmbedding(channels // 2, normalize=True)
    ours = {
        dtype: sine_encoding(size, channels, device=torch.device('cpu'), dtype=dtype)
        for dtype in (torch.float32, torch.float64, torch.bfloat16)
    }

    def their(dtype: torch.dtype) -> Tensor:
        return theirs(torch.Size((1, channels, *size)), torch.device('cpu'), dtype)[0]

    assert_close(ours[torch.float64], their(torch.float64), 1e-12)
    assert_close(ours[torch.float32], their(torch.float32), 1e-5)
    assert torch.equal(ours[torch.bfloat16], ours[torch.float32].bfloat16())
    assert (their(torch.bfloat16) - ours[torch.bfloat16]).abs().max() > 0.02
