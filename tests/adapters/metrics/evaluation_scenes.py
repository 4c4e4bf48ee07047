"""Images of the small COCO set, with predictions made from their ground truth; run by torchrun."""

import json
import pickle
import sys
from collections import ChainMap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import distributed

from mmseg_m2f.adapters.results import SaveResultsHook
from mmseg_m2f.evaluation.panoptic_map import read_segments
from mmseg_m2f.registry import DATASETS, METRICS

COCO = Path(__file__).parents[3] / 'data/tiny/coco'
ANN_FILE = COCO / 'annotations/panoptic_val.json'
INSTANCES = COCO / 'annotations/instances_val.json'
FIELDS = {'pred_instances': InstanceData, 'pred_panoptic_seg': PixelData, 'pred_sem_seg': PixelData}
METRIC_TYPES = ('PanopticMetric', 'InstanceMetric', 'SemanticMetric')


def panoptic_dataset(ann_file=ANN_FILE, **settings):
    """Build the data set of the 14 images as the test loop does."""
    prefixes = {'img': str(COCO / 'img/val'), 'seg': str(COCO / 'panoptic/val')}
    built = {'ann_file': str(ann_file), 'data_prefix': prefixes, 'test_mode': True, **settings}
    return DATASETS.build({'type': 'mmseg_m2f.PanopticDataset', **built})


def true_segments(record) -> tuple[list[np.ndarray], list[int]]:
    """Return masks and labels of the segments that are no crowd."""
    truth = read_segments(record['seg_map_path'], record['segments_info'])
    chosen = np.flatnonzero(~truth.is_crowd)
    return [truth.segment_map == 1 + i for i in chosen], truth.labels[chosen].tolist()


def sample_of(record, meta, masks, labels, scores=None) -> dict:
    """Return the output of a model that predicts these segments; later ones lie on top."""
    num_classes, things = len(meta['classes']), set(meta['thing_ids'])
    size = record['height'], record['width']
    encoded = torch.full(size, num_classes, dtype=torch.int32)
    for number, (mask, label) in enumerate(zip(masks, labels, strict=True), 1):
        encoded[mask] = label + 1000 * number * (label in things)
    label_map = torch.where(encoded == num_classes, num_classes - 1, encoded % 1000).long()
    scores = np.ones(len(labels)) if scores is None else scores
    kept = [i for i, label in enumerate(labels) if label in things]
    return {
        **record,
        'pred_panoptic_seg': {'sem_seg': encoded[None]},
        'pred_sem_seg': {'sem_seg': label_map[None]},
        'pred_instances': {
            'masks': torch.from_numpy(np.array(masks, bool).reshape(-1, *size)[kept]),
            'labels': torch.tensor(labels, dtype=torch.int64)[kept],
            'scores': torch.from_numpy(np.asarray(scores, float)[kept]),
        },
    }


def perfect_samples(dataset) -> list[dict]:
    return [sample_of(record, dataset.metainfo, *true_segments(record)) for record in dataset]


def empty_samples(dataset) -> list[dict]:
    return [sample_of(record, dataset.metainfo, [], []) for record in dataset]


def guessed_samples(dataset) -> list[dict]:
    """Move the segments, drop a few, change the class of a few; the scores have ties."""
    random, num_classes = np.random.default_rng(0), len(dataset.metainfo['classes'])
    samples = []
    for record in dataset:
        masks, labels = true_segments(record)
        kept = np.flatnonzero(random.random(len(labels)) < 0.85)
        moved = [np.roll(masks[i], random.integers(-3, 4, 2), (0, 1)) for i in kept]
        others = random.integers(num_classes, size=len(kept))
        changed = np.where(random.random(len(kept)) < 0.1, others, np.array(labels)[kept]).tolist()
        scores = random.integers(1, 10, len(kept)) / 10
        samples.append(sample_of(record, dataset.metainfo, moved, changed, scores))
    return samples


def evaluate(metric: str, samples: list[dict], meta, size=None, **settings) -> dict[str, float]:
    """Run a metric; its results are pickled as between processes, of which all have `size`."""
    built = METRICS.build({'type': f'mmseg_m2f.{metric}', **settings})
    built.dataset_meta = meta
    for start in range(0, len(samples), 4):
        built.process({}, samples[start : start + 4])
    assert len(built.results) == len(samples)
    built.results = pickle.loads(pickle.dumps(built.results))
    return built.evaluate(size or len(samples))


def runner_of(dataset) -> SimpleNamespace:
    """Return the part of a runner that hooks use."""
    return SimpleNamespace(test_dataloader=SimpleNamespace(dataset=dataset))


def element(sample: dict) -> BaseDataElement:
    """Turn a sample into what a model returns."""
    fields = {name: FIELDS[name](**sample[name]) for name in FIELDS if name in sample}
    meta = {key: value for key, value in sample.items() if key not in FIELDS}
    return BaseDataElement(metainfo=meta, **fields)


def save(out: Path, dataset, samples: list[dict]) -> None:
    """Run a test that saves its results."""
    hook, runner = SaveResultsHook(str(out)), runner_of(dataset)
    hook.before_test(runner)
    for index in range(0, len(samples), 4):
        outputs = [element(sample) for sample in samples[index : index + 4]]
        hook.after_test_iter(runner, index, outputs=outputs)
    hook.after_test(runner)


def evaluate_all(out: Path, rank: int = 0, world_size: int = 1) -> dict[str, float]:
    """Compute all metrics and files of five images as one of several processes."""
    dataset = panoptic_dataset(indices=5)
    samples = guessed_samples(dataset)
    # The sampler fills the last share with images from the start.
    share = (samples + samples)[rank : -(-len(samples) // world_size) * world_size : world_size]
    save(out, dataset, share)
    parts = (evaluate(name, share, dataset.metainfo, size=5) for name in METRIC_TYPES)
    return dict(ChainMap(*parts))


if __name__ == '__main__':
    distributed.init_process_group('gloo')
    rank, size, folder = distributed.get_rank(), distributed.get_world_size(), Path(sys.argv[1])
    (folder / f'metrics_{rank}.json').write_text(json.dumps(evaluate_all(folder, rank, size)))
    distributed.destroy_process_group()
