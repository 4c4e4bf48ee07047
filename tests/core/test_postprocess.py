"""Resizing, and what holds for every result: precision, memory, chunks."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mmseg_m2f import core
from mmseg_m2f.core import chunks
from mmseg_m2f.core.postprocess import mask_areas, resize_masks, restore_masks, to_original
from tests.core import slow_postprocess as slow
from tests.core.watching import Watch


def things_of(class_logits):
    """Every other class."""
    return torch.arange(class_logits.shape[1] - 1) % 2 == 0


def form_instances(*scene):
    return core.instances(*scene, things_of(scene[0]), core.PostprocessConfig())


def form_panoptic(*scene):
    config = core.PostprocessConfig(object_mask_thr=0.3, overlap_thr=0.1)
    return core.panoptic(*scene, things_of(scene[0]), config)


def form_scores(*scene):
    return [core.semantic_scores(*scene)]


def form_labels(*scene):
    return [core.semantic_labels(*scene)]


def form_semantic_only_labels(*scene):
    return [core.semantic_only_labels(*scene)]


RESULTS = [form_instances, form_panoptic, form_scores, form_labels, form_semantic_only_labels]


def test_restoring_by_hand():
    # Ramp of 4 to 8 pixels; the last three are padding; two pixels of the file for each of five.
    ramp = torch.tensor([[[0.0, 4.0, 8.0, 12.0]]])
    padded = [0, 1, 3, 5, 7, 9, 11, 12]
    assert resize_masks(ramp, (1, 8)).tolist() == [[padded]]
    original = [0, 0.25, 0.75, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7]
    geometry = core.ImageGeometry((1, 8), (1, 5), (1, 10))
    assert restore_masks(ramp, geometry).tolist() == [[original]]
    assert to_original(torch.tensor([[padded]]).float(), geometry).tolist() == [[original]]


def test_each_query_is_restored_alone():
    # Bit for bit: neither the other queries nor the chunks may decide whether a logit is above 0.
    for seed in range(12):  # some are as large as the network's input
        scene = slow.random_scene(seed)
        stack = restore_masks(scene.mask_logits, scene.geometry)
        alone = [restore_masks(logits[None], scene.geometry)[0] for logits in scene.mask_logits]
        assert torch.equal(stack, torch.stack(alone))
        assert torch.equal(stack, scene.full_logits)


def test_areas_are_exact_beyond_what_float32_counts():
    masks = torch.ones(1, 4099, 4099, dtype=torch.bool)
    masks[0, 0, :2] = False
    area = 4099**2 - 2
    assert int(np.float32(area)) != area
    assert mask_areas(masks).tolist() == [area]


@pytest.mark.parametrize('form', RESULTS)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_half_types_are_computed_in_float32_whatever_the_autocast(form, dtype):
    """The rounding of half types would make hundreds of pixels' best classes tie."""
    scene = 3 * torch.randn(50, 22).to(dtype), torch.randn(50, 16, 24).to(dtype)
    geometry = core.ImageGeometry((64, 96), (60, 90), (75, 110))
    in_float = [part.float() for part in scene]
    given = [part.clone() for part in in_float]
    expected = form(*in_float, geometry)
    with torch.autocast('cpu', dtype=dtype):
        assert all(map(torch.equal, form(*scene, geometry), expected))
        assert all(map(torch.equal, form(*in_float, geometry), expected))
    assert all(map(torch.equal, in_float, given))
    assert len(expected[-1]) > 3


@pytest.mark.parametrize('form', RESULTS)
@pytest.mark.parametrize('original', [(100, 100), (16, 16)], ids=str)
def test_only_a_chunk_exists_at_full_size(form, original, monkeypatch):
    monkeypatch.setattr(chunks, 'CHUNK_BYTES', 80_000)
    geometry = core.ImageGeometry((64, 64), (64, 64), original)
    scene = torch.tensor([4.0, 0]) + torch.randn(20, 2), torch.randn(20, 16, 16)
    with Watch() as watch:
        form(*scene, geometry)
    assert 5_000 < watch.largest <= 20_000


@pytest.mark.parametrize('form', RESULTS[:3])  # of the labels, see test_postprocess_semantic
@pytest.mark.parametrize('budget', [500, 12_000])
def test_results_do_not_depend_on_the_chunks(form, budget, monkeypatch):
    scenes = [slow.random_scene(seed)[:3] for seed in range(0, 90, 3)]
    before = [form(*scene) for scene in scenes]
    monkeypatch.setattr(chunks, 'CHUNK_BYTES', budget)
    for scene, wanted in zip(scenes, before, strict=True):
        for part, expected in zip(form(*scene), wanted, strict=True):
            torch.testing.assert_close(part, expected, rtol=0, atol=1e-5)


HUGE_IMAGE = """
import resource, sys, torch
from tests.core import test_postprocess
from mmseg_m2f.core import ImageGeometry

def form(task, geometry):
    class_logits = torch.zeros(100, 3)
    class_logits[:, 2] = 9
    class_logits[::8, 0] = 18
    return getattr(test_postprocess, task)(class_logits, torch.randn(100, 200, 256), geometry)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

torch.set_num_threads(1)
form(sys.argv[1], ImageGeometry((800, 1024), (800, 1000), (40, 50)))
before = peak()
result = form(sys.argv[1], ImageGeometry((800, 1024), (800, 1000), (4000, 5000)))
print(peak() - before - sum(part.nbytes for part in result))
"""


@pytest.mark.long
@pytest.mark.parametrize('form', RESULTS)
def test_huge_images_need_less_than_a_gigabyte_beside_their_result(form):
    command = [sys.executable, '-c', HUGE_IMAGE, form.__name__]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1e9
