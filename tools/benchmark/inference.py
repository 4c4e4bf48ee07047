"""Inference from an image to finished results: label map, or panoptic segments and instances.

Scores (semantic) or logits (panoptic) are compared with the baseline's, and the labels of the
finished maps. What is timed keeps no score maps.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tools.benchmark.cases import Case
from tools.benchmark.images import Batch, batch_of, normalized
from tools.benchmark.measure import Agreement, Step
from tools.benchmark.models import build_shared, head_of, is_huggingface, share_weights

# A mask logit near 0 may round to either side. That changes an attention mask and with it one query
# of 100: at most a hundredth of the outputs moves, most of them by less than a tenth of that.
SHARE = 0.1 / 100
# The share of pixels whose label must be equal. Hugging Face forms its masks at 384 x 384 whatever
# the image: of its labels 99.8 % are the others', while its logits are theirs.
LABELS = 0.99


class Outputs(NamedTuple):
    """Scores or logits in float32, and the label of each pixel."""

    values: Tensor
    labels: Tensor


def prepare(case: Case, implementation: str) -> Step:
    """Build a model and return the step of one image."""
    model = build_shared(case.model, implementation).eval()
    return functools.partial(predict, model, batch_of(case))


def compare(case: Case, implementations: Sequence[str]) -> dict[str, Agreement]:
    """Draw the weights and compare the outputs of each implementation with the baseline's.

    The difference is the median, so that a query that changed does not hide the others.
    """
    batch = batch_of(case)
    share_weights(case.model, {*implementations, case.implementations[-1]}, batch)
    baseline = build_shared(case.model, case.implementations[-1]).eval()
    expected = outputs(baseline, batch)
    del baseline
    found = {}
    for name in implementations:
        model = build_shared(case.model, name).eval()
        found[name] = agreement(outputs(model, batch), expected)
    return found


def agreement(found: Outputs, expected: Outputs) -> Agreement:
    """Compare outputs; see `SHARE` and `LABELS`."""
    value_range = float(expected.values.max() - expected.values.min())
    difference = (found.values - expected.values).abs()
    labels = float((found.labels == expected.labels).float().mean())
    return Agreement(
        float(difference.median()) if labels >= LABELS else float('nan'),
        SHARE * value_range,
        float(difference.max()),
        labels,
    )


@torch.no_grad()
def predict(model: Any, batch: Batch) -> Any:
    """Return the results as the framework gives them."""
    if is_huggingface(model):
        sizes = [tuple(sample.ori_shape) for sample in batch['data_samples']]
        output = model(normalized(batch))
        return _processor().post_process_semantic_segmentation(output, sizes)
    return model(**model.data_preprocessor(batch, training=False), mode='predict')


@functools.cache
def _processor() -> Any:
    """Return Hugging Face's post-processing, in the form that needs no torchvision."""
    from transformers.models.mask2former import image_processing_pil_mask2former as module

    return module.Mask2FormerImageProcessorPil()


def outputs(model: Any, batch: Batch) -> Outputs:
    """Run a model on one image and return what is compared."""
    if is_huggingface(model):
        return _huggingface_outputs(model, batch)
    if hasattr(model, 'decode_head'):
        return _semantic_outputs(model, batch)
    noted: list[Any] = []
    hook = head_of(model).register_forward_hook(lambda _, __, output: noted.append(output))
    [sample] = predict(model, batch)
    hook.remove()
    # mmdet's head returns the logits of all predictions, ours those of the last.
    last = [part[-1] if isinstance(part, list) else part for part in noted[0]]
    values = torch.cat([part.flatten().float() for part in last])
    return Outputs(values, sample.pred_panoptic_seg.sem_seg % 1000)


def _semantic_outputs(model: Any, batch: Batch) -> Outputs:
    # The labels are those of what is timed, which has no scores.
    [sample] = predict(model, batch)
    labels = sample.pred_sem_seg.data[0]
    test_cfg = model.test_cfg
    if hasattr(model, 'keep_score_maps'):
        model.keep_score_maps()
        [sample] = predict(model, batch)
    model.test_cfg = test_cfg
    scores = sample.seg_logits.data.float()
    del sample.seg_logits  # the sample is that of all predictions
    return Outputs(scores, labels)


@torch.no_grad()
def _huggingface_outputs(model: Any, batch: Batch) -> Outputs:
    """Return the scores that Hugging Face's logits have by the official rule."""
    output = model(normalized(batch))
    size = batch['inputs'][0].shape[-2:]
    masks = F.interpolate(output.masks_queries_logits, size, mode='bilinear')[0].sigmoid()
    classes = output.class_queries_logits[0].softmax(-1)[:, :-1]
    [labels] = predict(model, batch)
    return Outputs(torch.einsum('qc,qhw->chw', classes, masks), labels)
