import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mmseg_m2f.core.postprocess import (
    input_band,
    mask_areas,
    original_band,
    resize_band,
    resize_masks,
    restore_masks,
    rows_read,
    to_original,
)
from mmseg_m2f.core.structures import ImageGeometry
from tests.core import slow_postprocess as slow


def test_restoring_by_hand():
    # Ramp of 4 to 8 pixels; the last three are padding; two pixels of the file for each of five.
    ramp = torch.tensor([[[0.0, 4.0, 8.0, 12.0]]])
    padded = [0, 1, 3, 5, 7, 9, 11, 12]
    assert resize_masks(ramp, (1, 8)).tolist() == [[padded]]
    original = [0, 0.25, 0.75, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7]
    geometry = ImageGeometry((1, 8), (1, 5), (1, 10))
    assert restore_masks(ramp, geometry).tolist() == [[original]]
    assert to_original(torch.tensor([[padded]]).float(), geometry).tolist() == [[original]]


def test_each_query_is_restored_alone():
    # Bit for bit: neither the other queries nor the chunks may decide whether a logit is above 0.
    for seed in range(12):
        scene = slow.random_scene(seed)
        stack = restore_masks(scene.mask_logits, scene.geometry)
        alone = [restore_masks(logits[None], scene.geometry)[0] for logits in scene.mask_logits]
        assert torch.equal(stack, torch.stack(alone))
        assert torch.equal(stack, scene.full_logits)


def test_restoring_to_the_same_size_changes_no_bit():
    mask_logits = 9 * torch.randn(5, 6, 7)
    padded = resize_masks(mask_logits, (24, 28))
    restored = restore_masks(mask_logits, ImageGeometry((24, 28), (23, 21), (23, 21)))
    assert torch.equal(restored, padded[:, :23, :21])
    assert torch.equal(restored, resize_masks(padded[:, :23, :21], (23, 21)))


def test_areas_are_exact_beyond_what_float32_counts():
    masks = torch.ones(1, 4099, 4099, dtype=torch.bool)
    masks[0, 0, :2] = False
    area = 4099**2 - 2
    assert int(np.float32(area)) != area
    assert mask_areas(masks).tolist() == [area]


HUGE_IMAGE = """
import resource, sys, torch
from mmseg_m2f import core

def form(task, geometry):
    class_logits = torch.zeros(100, 3)
    class_logits[:, 2] = 9
    class_logits[::8, 0] = 18
    mask_logits = torch.randn(100, 200, 256)
    prediction = class_logits, mask_logits, geometry
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
def test_any_band_equals_those_rows_of_the_whole(geometry):
    mask_logits = torch.randn(5, geometry.padded[0] // 4, geometry.padded[1] // 4).double()
    whole = restore_masks(mask_logits, geometry)
    height = geometry.original[0]
    for start in range(0, height, 5):
        for stop in (start + 1, min(start + 7, height), height):
            rows = range(start, stop)
            lines = rows_read(geometry.resized[0], height, rows)
            got = original_band(input_band(mask_logits, geometry, lines), lines, geometry, rows)
            torch.testing.assert_close(got, whole[:, start:stop], rtol=0, atol=1e-10)


def test_a_band_by_hand():
    # A column of four rows, resized to eight: rows 2 to 4 lie a quarter below row 0 and so on.
    held, lines = torch.tensor([[[0.0], [4.0], [8.0]]]), range(3)
    assert resize_band(held, lines, 4, (8, 1), range(2, 5)).tolist() == [[[3.0], [5.0], [7.0]]]
    # The last output row repeats the last input row.
    assert resize_band(torch.tensor([[[8.0], [12.0]]]), range(2, 4), 4, (8, 1), range(7, 8)) == 12


@pytest.mark.parametrize('sizes', [(1, 5), (5, 1), (7, 7), (30, 97), (97, 30), (9, 10)], ids=str)
def test_a_band_needs_no_other_rows_than_rows_read(sizes):
    height, new_height = sizes
    maps = torch.randn(2, height, 6, dtype=torch.float64)
    whole = resize_masks(maps, (new_height, 11))
    for start in range(new_height):
        rows = range(start, min(start + 3, new_height))
        lines = rows_read(height, new_height, rows)
        assert 0 <= lines.start < lines.stop <= height
        held = maps[:, lines.start : lines.stop]
        got = resize_band(held, lines, height, (new_height, 11), rows)
        torch.testing.assert_close(got, whole[:, start : rows.stop], rtol=0, atol=1e-12)
