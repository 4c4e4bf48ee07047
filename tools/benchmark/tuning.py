"""What a user can switch on without a change to anybody's code."""

import functools
import time
from collections.abc import Callable
from typing import Any

import torch

from tools.benchmark import harness


def tuned(model: Any, *, fuse: bool) -> Any:
    """A peer in channels last and, where its backbone is mmcv's, with fused batch norms.

    Ours have ``mmseg_m2f.prepare_inference`` for it.
    """
    if fuse:
        from mmcv.cnn import fuse_conv_bn

        model = fuse_conv_bn(model)
    return model.to(memory_format=torch.channels_last)


def compile_peer(model: Any) -> None:
    """``torch.compile`` of what takes and gives tensors alone, as ours are compiled.

    A model of mmseg or mmdet as a whole would be compiled anew for each image's annotation.
    """
    head = getattr(model, 'decode_head', None) or getattr(model, 'panoptic_head', None)
    if head is None:  # Hugging Face's
        model.compile()
        return
    for part in (model.backbone, head.pixel_decoder, *head.transformer_decoder.layers):
        part.compile()


def our_parts(accelerated: Any) -> Any:
    """What computes in the place of an accelerated head or model, or None of any other."""
    twin = getattr(getattr(accelerated.forward, '__self__', None), 'twin', None)
    return None if twin is None else twin.ours


def in_bfloat16(step: Callable[..., Any]) -> Callable[..., Any]:
    """The step under autocast on the CPU."""

    @functools.wraps(step)
    def run(*args: Any, **options: Any) -> Any:
        with torch.autocast('cpu', torch.bfloat16):
            return step(*args, **options)

    return run


def with_best_threads(step: harness.Step, key: str) -> harness.Step:
    """The step on as many threads as it likes best, at most those of the run.

    They are tried in the first call, by the first process of a run; its finding holds for the
    others.
    """
    most = torch.get_num_threads()
    path = harness.folder() / f'{key}.threads'

    def run() -> Any:
        if not path.exists():
            step()
            candidates = sorted({1, (most + 1) // 2, most})
            path.write_text(str(min(candidates, key=lambda number: _seconds(step, number))))
        torch.set_num_threads(int(path.read_text()))
        return step()

    return run


def _seconds(step: harness.Step, num_threads: int) -> float:
    torch.set_num_threads(num_threads)
    step()  # what is compiled may be so for each number of threads
    start = time.perf_counter()
    step()
    return time.perf_counter() - start
