"""The decode head inside mmseg's own segmentor."""

import pytest
import torch
from mmengine import ConfigDict
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from torch.nn import functional as F

mmseg_structures = pytest.importorskip('mmseg.structures')
from mmseg.evaluation import IoUMetric  # noqa: E402
from mmseg.registry import MODELS  # noqa: E402

from tests.adapters import small_models  # noqa: E402

# Scores lie in [0, 8]. In float64 thousands of roundings stay far below this.
DOUBLE = 1e-10
PADDED = {'size_divisor': 32, 'seg_pad_val': 255, 'test_cfg': {'size_divisor': 32}}


def build_segmentor(num_classes=3, test_cfg=None, kind='EncoderDecoder', **head):
    init_default_scope('mmseg')
    model = small_models.segmentor(num_classes, num_queries=8)
    model['data_preprocessor'].update(**small_models.NORMALIZED, **PADDED)
    model['decode_head'].update(head)
    model |= {'type': kind, 'test_cfg': ConfigDict(test_cfg or model['test_cfg'])}
    return MODELS.build(model)


def batch(size=(50, 70), num_images=2, num_classes=3):
    generator = torch.Generator().manual_seed(0)
    inputs, samples = [], []
    for _ in range(num_images):
        inputs.append(torch.randint(256, (3, *size), dtype=torch.uint8, generator=generator))
        labels = torch.randint(num_classes, (1, *size), generator=generator)
        meta = {'img_path': 'street.jpg', 'seg_map_path': 'street.png'}
        meta |= {'ori_shape': size, 'img_shape': size}
        samples.append(
            mmseg_structures.SegDataSample(gt_sem_seg=PixelData(data=labels), metainfo=meta)
        )
    return {'inputs': inputs, 'data_samples': samples}


def losses_of(model, data):
    return model(**model.data_preprocessor(data, training=True), mode='loss')


@torch.no_grad()
def predict(model, data, **test_cfg):
    model.eval()
    model.test_cfg = ConfigDict(test_cfg)
    data = model.data_preprocessor(data)
    data['inputs'] = data['inputs'].to(next(model.parameters()).dtype)
    return [out.seg_logits.data for out in model(**data, mode='predict')]


# A label that all pixels have and that the head ignores; None: labels of classes.
@pytest.mark.parametrize('ignored', [None, 255, 7])
def test_loss_names_and_every_parameter_gets_a_gradient(ignored):
    # No padding, whose label is 255.
    model, data = build_segmentor(ignore_index=ignored or 255), batch(size=(64, 96))
    for data_sample in data['data_samples'] * (ignored is not None):
        data_sample.gt_sem_seg.data[:] = ignored
    losses = losses_of(model, data)
    expected = {f'decode.{p}loss_{n}' for p in ('d0.', 'd1.', '') for n in ('cls', 'mask', 'dice')}
    assert set(losses) == expected
    assert (losses['decode.loss_mask'] == 0) == (ignored is not None)
    total, _ = model.parse_losses(losses)
    total.backward()
    assert torch.isfinite(total)
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_each_loss_is_named_after_its_prediction():
    """Prediction 0 depends on no decoder layer, the last one on all of them."""
    model = build_segmentor()
    losses = losses_of(model, batch())

    def depends(loss, layer):
        options = {'retain_graph': True, 'allow_unused': True}
        grads = torch.autograd.grad(loss, list(layer.parameters()), **options)
        return any(grad is not None and bool(grad.any()) for grad in grads)

    for prefix, depth in (('d0.', 0), ('d1.', 1), ('', 2)):
        loss = losses[f'decode.{prefix}loss_cls']
        found = [depends(loss, layer) for layer in model.decode_head.decoder.layers]
        assert found == [index < depth for index in range(2)]


@pytest.mark.parametrize('window', [(64, 96), (200, 300)])
def test_a_window_as_large_as_the_padded_image_equals_whole_bit_for_bit(window):
    model = build_segmentor()
    whole = predict(model, batch(), mode='whole')
    slide = predict(model, batch(), mode='slide', crop_size=window, stride=(32, 32))
    assert all(torch.equal(a, b) for a, b in zip(whole, slide, strict=True))


def test_whole_prediction_follows_the_official_order():
    """Scores at the padded size, then crop, then bilinear resize to the original size."""
    model, data = build_segmentor().double().eval(), batch(num_images=1)
    data['data_samples'][0].set_metainfo({'ori_shape': (100, 140)})
    [got] = predict(model, data, mode='whole')

    inputs = model.data_preprocessor(batch(num_images=1))['inputs'].double().requires_grad_()
    features = model.extract_feat(inputs)
    class_logits, mask_logits = model.decode_head(features)
    masks = F.interpolate(mask_logits, size=(64, 96), mode='bilinear')
    scores = torch.einsum('qk,qhw->khw', class_logits[0].softmax(-1)[:, :-1], masks[0].sigmoid())
    expected = F.interpolate(scores[None, :, :50, :70], size=(100, 140), mode='bilinear')[0]
    torch.testing.assert_close(got, expected, rtol=0, atol=DOUBLE)
    # Scores carry a gradient where one is asked for.
    [found] = model.decode_head.predict(features, [{'img_shape': (64, 96)}])
    torch.testing.assert_close(found, scores, rtol=0, atol=DOUBLE)
    grads = [torch.autograd.grad(x.sum(), inputs, retain_graph=True)[0] for x in (found, scores)]
    assert grads[1].abs().sum() > 0
    torch.testing.assert_close(*grads, rtol=1e-8, atol=DOUBLE)


@pytest.mark.parametrize(('num_classes', 'wrong'), [(3, 7), (1, 2)])
def test_a_wrong_label_names_the_file_and_the_value(num_classes, wrong):
    model, data = build_segmentor(num_classes), batch(num_classes=num_classes)
    data['data_samples'][1].gt_sem_seg.data[0, 3, 4] = wrong
    with pytest.raises(ValueError, match=rf'street\.png.*\[{wrong}\]'):
        losses_of(model, data)


def test_one_class_learns_label_one_and_predicts_it(monkeypatch):
    """A perfect model of one class scores 100 on a data set of background and foreground."""
    model, data, learned = build_segmentor(num_classes=1).eval(), batch((64, 96), 1), []
    # mmseg compares the sigmoid of the score with the threshold: a score above 1/2 is foreground.
    is_foreground = torch.tensor([0.4999, 0.5001]).sigmoid() > model.decode_head.threshold
    assert is_foreground.tolist() == [False, True]
    label_map = data['data_samples'][0].gt_sem_seg.data
    label_map[:] = torch.arange(96) >= 40
    monkeypatch.setattr(
        model.decode_head, '_losses', lambda _, targets, __: learned.extend(targets) or {}
    )
    losses_of(model, data)
    [target] = learned
    assert target.labels.tolist() == [0]
    assert torch.equal(target.masks, label_map == 1)

    # Logits that say so: every query is sure of its class, one in a hundred thousand is not.
    logits = (target.masks[None, :, ::4, ::4].float() - 0.5) * 40
    perfect = torch.tensor([[[9.0, -9.0]]]), logits
    monkeypatch.setattr(model.decode_head, 'forward', lambda maps: perfect)
    metric = IoUMetric()
    metric.dataset_meta = {'classes': ('background', 'foreground')}
    metric.process({}, [out.to_dict() for out in model.test_step(data)])
    assert metric.evaluate(1)['mIoU'] == 100


def test_bfloat16_autocast_keeps_the_pixel_decoder_and_the_losses_in_float32():
    model, seen = build_segmentor(), []
    model.decode_head.pixel_decoder.register_forward_hook(
        lambda module, args, out: seen.append(out.mask_features.dtype)
    )
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = losses_of(model, batch())
    assert {*seen, *(loss.dtype for loss in losses.values())} == {torch.float32}
