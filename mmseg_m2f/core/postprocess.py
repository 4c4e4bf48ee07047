"""From the last prediction of one picture to results, in the official order of operations."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from mmseg_m2f.core.structures import at_least_float32

# Queries that exist at full size at a time: a quarter of the usual hundred.
QUERY_CHUNK = 25


def semantic_scores(
    class_logits: Float[Tensor, 'Q K1'],
    mask_logits: Float[Tensor, 'Q h w'],
    size: tuple[int, int],
) -> Float[Tensor, 'K H W']:
    """``sum_q softmax(class_logits)[q, c] sigmoid(mask_logits[q])`` at ``size``.

    No-object takes part in the softmax and is dropped after it. The scores lie in ``[0, Q]``; they
    are neither logits nor a distribution over the classes. Mask logits are resized bilinearly
    (``align_corners=False``) before the sigmoid, a chunk of queries at a time.

    Source: official ``maskformer_model.py``, ``semantic_inference``.
    """
    class_probs = at_least_float32(class_logits).softmax(-1)[:, :-1]
    mask_logits = at_least_float32(mask_logits)
    num_classes = class_probs.shape[1]
    scores = mask_logits.new_zeros(num_classes, size[0] * size[1])
    chunks = zip(class_probs.split(QUERY_CHUNK), mask_logits.split(QUERY_CHUNK), strict=True)
    for probs, logits in chunks:
        full_size = F.interpolate(logits[None], size=size, mode='bilinear', align_corners=False)
        mask_probs = full_size.sigmoid_()[0].flatten(1)
        scores.addmm_(probs.T, mask_probs)
    return scores.unflatten(1, size)
