"""From images to finished results on the CPU, our head beside mmseg, mmdet and Hugging Face.

    python -m tools.benchmark.inference --threads 2 --csv docs/benchmarks/inference_fp32_cpu.csv

One real image, the same random weights, post-processing included. ``-tuned`` is without a change
to anybody's code: of a peer, batch norms fused, channels last, inference mode, the best number of
threads up to ``--threads``; ours by ``mmseg_m2f.prepare_inference(channels_last=True)`` alone.
``-bf16`` is a peer ``-tuned`` under autocast, and ours under autocast alone (``-bf16-mixed`` with
``mixed_precision`` of the pixel decoder, too). ``-compiled`` uses ``torch.compile``, which takes
minutes. ``-accelerated`` is the stock peer of mmseg or mmdet after ``mmseg_m2f.accelerate`` and
nothing else, ``ours-channels-last`` and ``ours-fused`` have one setting each; these run where they
are named. Before any timing the scores (semantic) or logits (panoptic) are compared; the labels are
those of the finished maps. Hugging Face forms its masks at 384 x 384 whatever the image, so that
its labels differ while its logits do not.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

import mmseg_m2f
from mmseg_m2f import core
from tools.benchmark import harness
from tools.benchmark.cases import CASES
from tools.benchmark.tuning import (
    compile_peer,
    in_bfloat16,
    our_parts,
    tuned,
    with_best_threads,
)

SMALL = ('r50_256', 'r18_128', 'panoptic_200x333')
NAMES = ('r50_512', 'swin-l_640', 'panoptic_800x1333', *SMALL)
# Turns a function into one that is called as the variant asks.
Calling = Callable[[Callable[..., Any]], Callable[..., Any]]

VARIANTS = ('-compiled', '-bf16', '-tuned', '')
ACCELERATED = 'accelerated'
# Ours in bfloat16 with the pixel decoder, which '-bf16' leaves in float32.
MIXED = 'bf16-mixed'
PLAIN, KEPT = 'plain', 'kept'
# As they were built, and called as they are.
AS_BUILT = ('', ACCELERATED, PLAIN, KEPT)
# Of ours alone, each setting by itself.
SWITCHES = {'channels-last': {'channels_last': True}, 'fused': {'fuse_norms': True}}
# What prepare_inference is asked for, variant by variant.
PREPARED: dict[str, dict[str, Any]] = {
    **SWITCHES,
    **{key: {'dtype': 'bfloat16'} for key in ('bf16', MIXED)},
    'compiled': {'compile': True},
    'tuned': {'channels_last': True},
}
# Of a peer, where they are named.
NAMED = (ACCELERATED, KEPT)

# Share of the outputs' range that float32 may differ by: one attention mask whose logit rounds to
# the other side of 0 moves its query. With Swin-L's random weights one bit of 2.5 million does,
# with maps equal to 2e-6, and then scores by 2e-3. bfloat16 flips many of them.
TOLERANCE = {
    '': 3e-3,
    **dict.fromkeys((ACCELERATED, PLAIN, KEPT), 3e-3),
    'tuned': 3e-3,
    'compiled': 3e-3,
    **dict.fromkeys(SWITCHES, 3e-3),
    'bf16': 1.0,
    MIXED: 1.0,
}


def main() -> None:
    """See ``harness.main``."""
    harness.main(
        harness.Benchmark(
            'tools.benchmark.inference',
            NAMES,
            {case: implementations(case) for case in NAMES},
            prepare,
            disagreement,
            optional=[
                *SMALL,
                *(f'{name}-compiled' for name in ('ours', 'hf', 'mmseg', 'mmdet')),
                *(f'ours-{variant}' for variant in (*SWITCHES, PLAIN)),
                *(f'{name}-{kind}' for name in ('hf', 'mmseg', 'mmdet') for kind in named(name)),
            ],
        )
    )


def named(peer: str) -> tuple[str, ...]:
    """The variants of a peer that run only where they are named."""
    return (KEPT,) if peer == 'hf' else NAMED


def implementations(case: str) -> list[str]:
    """Ours first, the stock peer last: the baseline."""
    # mmdet's own way to bfloat16 is the one that is asked of mmseg.
    names = [f'ours-{MIXED}', *(f'ours-{variant}' for variant in (*SWITCHES, PLAIN))]
    names += [f'ours{variant}' for variant in VARIANTS]
    for peer in CASES[case].peers:
        names += [f'{peer}-{kind}' for kind in named(peer)]
        names += [f'{peer}{kind}' for kind in VARIANTS]
    return names


def prepare(case: str, implementation: str) -> harness.Step:
    """One image through one model."""
    batch = CASES[case].test()
    model, calling = load_variant(case, implementation)
    step = calling(functools.partial(run, model, batch))
    if implementation.partition('-')[2] not in AS_BUILT:
        return with_best_threads(step, f'{case}-{implementation}')
    return step


def load_variant(case: str, implementation: str) -> tuple[Any, Calling]:
    """A model in test mode with the weights that all share, and how it is to be called."""
    layout, _, variant = implementation.partition('-')
    switches = {'mixed_precision': True} if variant == MIXED else {}
    model = CASES[case].build(layout, **switches).eval()
    if variant == ACCELERATED:
        mmseg_m2f.accelerate(model)
    if variant in AS_BUILT:
        return model, lambda step: step
    if layout == 'ours':
        mmseg_m2f.prepare_inference(model, **PREPARED[variant])
    else:
        model = tuned(model, fuse=layout != 'hf')
        if variant == 'compiled':
            compile_peer(model)
    if variant == 'bf16' and layout != 'ours':
        return model, lambda step: in_bfloat16(torch.inference_mode()(step))
    return model, torch.inference_mode()


def run(model: Any, batch: dict[str, Any]) -> Any:
    """Results as the framework gives them."""
    if is_hugging_face(model):
        return _hf_labels(model, batch)
    with torch.no_grad():
        return model(**model.data_preprocessor(batch, training=False), mode='predict')


def is_hugging_face(model: Any) -> bool:
    """By its class: the module is slow to import for those who do without."""
    return type(model).__name__ == 'Mask2FormerForUniversalSegmentation'


@functools.cache
def _hf_processor() -> Any:
    """The one that needs no torchvision; they post-process alike."""
    from transformers.models.mask2former import image_processing_pil_mask2former as module

    return module.Mask2FormerImageProcessorPil()


@torch.no_grad()
def _hf_labels(model: Any, batch: dict[str, Any]) -> list[Tensor]:
    pixels = normalised(batch)
    sizes = [tuple(sample.ori_shape) for sample in batch['data_samples']]
    return _hf_processor().post_process_semantic_segmentation(model(pixels), sizes)


def normalised(batch: dict[str, Any]) -> Tensor:
    """As mmseg's preprocessor does it: RGB, the mean and deviation of ImageNet."""
    mean = torch.tensor([123.675, 116.28, 103.53])[:, None, None]
    std = torch.tensor([58.395, 57.12, 57.375])[:, None, None]
    return (torch.stack(batch['inputs']).flip(1).float() - mean) / std


def disagreement(case: str, names: Sequence[str]) -> dict[str, harness.Agreement | str]:
    """Each against the stock peer; what cannot run says why."""
    CASES[case].share_weights(CASES[case].test())
    expected = outputs(case, CASES[case].peers[-1])
    value_range = float(expected.values.max() - expected.values.min())
    verdict: dict[str, harness.Agreement | str] = {}
    for implementation in names:
        try:
            found = outputs(case, implementation)
        except (RuntimeError, NotImplementedError) as error:
            verdict[implementation] = f'{type(error).__name__}: {error}'.splitlines()[0]
            continue
        variant = implementation.partition('-')[2]
        verdict[implementation] = harness.Agreement(
            float((found.values - expected.values).abs().max()),
            TOLERANCE[variant] * value_range,
            float((found.labels == expected.labels).float().mean()),
        )
    return verdict


class Outputs(NamedTuple):
    """Scores or logits in float32, and the label of each pixel."""

    values: Tensor
    labels: Tensor


def outputs(case: str, implementation: str) -> Outputs:
    """Of one implementation on the image of a case."""
    model, calling = load_variant(case, implementation)
    batch = CASES[case].test()
    if CASES[case].is_panoptic:
        return _panoptic_outputs(model, batch, calling)
    if is_hugging_face(model):
        return _hf_outputs(model, batch, calling)
    step = calling(functools.partial(run, model, batch))
    [sample] = step()
    labels = sample.pred_sem_seg.data[0]
    if hasattr(model, 'keep_score_maps'):
        # The labels are of what is timed, which has no scores.
        model.keep_score_maps()
        [sample] = step()
    return Outputs(sample.seg_logits.data.float(), labels)


def _hf_outputs(model: Any, batch: dict[str, Any], calling: Calling) -> Outputs:
    """The scores are those of its logits by the official rule."""
    with torch.no_grad():
        out = calling(model)(normalised(batch))
        size = tuple(batch['inputs'][0].shape[-2:])
        masks, classes = out.masks_queries_logits[0], out.class_queries_logits[0]
        [labels] = calling(functools.partial(run, model, batch))()
        return Outputs(
            core.semantic_scores(classes, masks, core.ImageGeometry(size, size, size)), labels
        )


def _panoptic_outputs(model: Any, batch: dict[str, Any], calling: Calling) -> Outputs:
    # A hook on an accelerated head would send to the stock path.
    head, noted = our_parts(model.panoptic_head) or model.panoptic_head, []
    hook = head.register_forward_hook(lambda _, __, output: noted.append(output))
    [sample] = calling(functools.partial(run, model, batch))()
    hook.remove()
    # mmdet's head gives the logits of all predictions, ours those of the last.
    last = [part[-1] if isinstance(part, list) else part for part in noted[0]]
    values = torch.cat([part.flatten().float() for part in last])
    return Outputs(values, sample.pred_panoptic_seg.sem_seg % 1000)


if __name__ == '__main__':
    main()
