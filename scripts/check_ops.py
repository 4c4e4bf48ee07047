"""Exit with status 0 if mmcv's compiled operators work with the installed torch.

Importing is not enough: a wheel that pip cached may have been built against another torch, built
without operators, or built without CUDA on a machine that has a GPU.
"""

import sys

import torch
from mmcv.ops import nms
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction


def check_cpu() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0], [20.0, 20.0, 30.0, 30.0]])
    kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5)[1].tolist()
    if kept != [0, 2]:
        raise RuntimeError(f'mmcv.ops.nms kept boxes {kept}, expected [0, 2]')


def check_cuda() -> None:
    value = torch.ones(1, 4, 1, 32, device='cuda')
    shapes = torch.tensor([[2, 2]], device='cuda')
    starts = torch.tensor([0], device='cuda')
    locations = torch.full((1, 1, 1, 1, 1, 2), 0.5, device='cuda')
    weights = torch.ones(1, 1, 1, 1, 1, device='cuda')
    output = MultiScaleDeformableAttnFunction.apply(value, shapes, starts, locations, weights, 1)
    if not torch.allclose(output, torch.ones_like(output)):
        raise RuntimeError('ms_deform_attn of mmcv returned a wrong value on the GPU')


def main() -> int:
    check_cpu()
    if torch.cuda.is_available():
        check_cuda()
    return 0


if __name__ == '__main__':
    sys.exit(main())
