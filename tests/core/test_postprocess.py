import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from mmseg_m2f.core.postprocess import (
    mask_areas,
    query_chunks,
    resize_masks,
    restore_masks,
    restore_rows,
    restore_scores,
    restored_size,
)
from mmseg_m2f.core.structures import ImageGeometry
from tests.core import slow_postprocess as slow


def at(*size):
    return partial(resize_masks, size=size)


def test_restoring_by_hand():
    # Ramp of 4 to 8 pixels; the last three are padding; two pixels of the file for each of five.
    ramp = torch.tensor([[[0.0, 4.0, 8.0, 12.0]]])
    padded = [0, 1, 3, 5, 7, 9, 11, 12]
    assert resize_masks(ramp, (1, 8)).tolist() == [[padded]]
    original = [0, 0.25, 0.75, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7]
    geometry = ImageGeometry((1, 8), (1, 5), (1, 10))
    assert restore_masks(ramp, geometry).tolist() == [[original]]
    assert restore_scores(torch.tensor([[padded]]).float(), geometry).tolist() == [[original]]


def test_each_query_is_restored_alone():
    # Bit for bit: neither the other queries nor the chunks may decide whether a logit is above 0.
    for seed in range(12):
        scene = slow.random_scene(seed)
        geometry = ImageGeometry(scene.padded, scene.cropped, scene.original)
        stack = restore_masks(scene.mask_logits, geometry)
        alone = [restore_masks(logits[None], geometry)[0] for logits in scene.mask_logits]
        assert torch.equal(stack, torch.stack(alone))
        assert torch.equal(stack, scene.full_logits)


def test_restoring_to_the_same_size_changes_no_bit():
    mask_logits = 9 * torch.randn(5, 6, 7)
    padded = resize_masks(mask_logits, (24, 28))
    restored = restore_masks(mask_logits, ImageGeometry((24, 28), (23, 21), (23, 21)))
    assert torch.equal(restored, padded[:, :23, :21])
    assert torch.equal(restored, resize_masks(padded[:, :23, :21], (23, 21)))


def test_no_query_has_a_size_too():
    geometry = ImageGeometry((24, 28), (23, 21), (50, 31))
    restore = partial(restore_masks, geometry=geometry)
    assert restored_size(torch.randn(4, 6, 7), restore) == (50, 31)
    assert restored_size(torch.randn(0, 6, 7).half(), restore) == (50, 31)


@pytest.mark.parametrize(
    ('stride_4', 'size', 'step', 'on_cpu'),
    [
        ((200, 272), (480, 640), 25, 4),  # 2^22 floats hold 4 times 800 x 1088
        ((256, 512), (1024, 2048), 25, 2),
        ((200, 256), (4000, 5000), 3, 1),
        ((512, 1024), (600, 1200), 8, 1),  # the padded image is the larger one
        ((200, 256), (10000, 10000), 1, 1),
        ((16, 16), (64, 64), 25, 25),
    ],
)
@pytest.mark.parametrize('device', ['cpu', 'meta'])
@pytest.mark.parametrize('num_queries', [0, 1, 100])
def test_queries_at_a_time_follow_from_the_sizes(stride_4, size, step, on_cpu, device, num_queries):
    step = on_cpu if device == 'cpu' else step
    mask_logits = torch.zeros(1, 1, 1, device=device).expand(num_queries, *stride_4)
    chunks = list(query_chunks(mask_logits, size))
    assert [chunk.start for chunk in chunks] == list(range(0, num_queries, step))
    covered = [query for chunk in chunks for query in range(num_queries)[chunk]]
    assert covered == list(range(num_queries))


def test_areas_are_exact_beyond_what_float32_counts():
    masks = torch.ones(1, 4099, 4099, dtype=torch.bool)
    masks[0, 0, :2] = False
    area = 4099**2 - 2
    assert int(np.float32(area)) != area
    assert mask_areas(masks, torch.empty(1, 4099, 4099)).tolist() == [area]


HUGE_IMAGE = """
import resource, sys, torch
from functools import partial
from mmseg_m2f import core

def form(task, geometry):
    class_logits = torch.zeros(100, 3)
    class_logits[:, 2] = 9
    class_logits[::8, 0] = 18
    mask_logits = torch.randn(100, 200, 256)
    prediction = class_logits, mask_logits, partial(core.restore_masks, geometry=geometry)
    things = torch.tensor([True, False]), core.PostprocessConfig(score_thr=0.3)
    if task == 'semantic':
        return [core.semantic_scores(*prediction)]
    return getattr(core, task)(*prediction, *things)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

torch.set_num_threads(1)
form(sys.argv[1], core.ImageGeometry((800, 1024), (800, 1000), (40, 50)))
before = peak()
result = form(sys.argv[1], core.ImageGeometry((800, 1024), (800, 1000), (4000, 5000)))
print(peak() - before - sum(part.nbytes for part in result))
"""


@pytest.mark.long
@pytest.mark.parametrize('task', ['semantic', 'instances', 'panoptic'])
def test_huge_images_need_less_than_a_gigabyte_beside_their_result(task):
    command = [sys.executable, '-c', HUGE_IMAGE, task]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1e9


GEOMETRIES = [
    ImageGeometry((32, 48), (32, 48), (32, 48)),  # nothing to undo
    ImageGeometry((32, 64), (30, 41), (30, 41)),  # padding
    ImageGeometry((32, 64), (30, 41), (97, 133)),  # enlarged after
    ImageGeometry((64, 64), (60, 37), (13, 8)),  # made smaller after
    ImageGeometry((32, 32), (1, 32), (3, 96)),  # one row
]


@pytest.mark.parametrize('geometry', GEOMETRIES, ids=str)
def test_any_rows_equal_those_of_the_whole(geometry):
    mask_logits = torch.randn(5, geometry.padded[0] // 4, geometry.padded[1] // 4).double()
    whole = restore_masks(mask_logits, geometry)
    height = geometry.original[0]
    for start in range(0, height, 5):
        for stop in (start + 1, min(start + 7, height), height):
            rows = range(start, stop)
            got = restore_rows(mask_logits, geometry, rows)
            torch.testing.assert_close(got, whole[:, start:stop], rtol=0, atol=1e-10)
