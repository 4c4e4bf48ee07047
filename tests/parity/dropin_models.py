"""Run stock Mask2Former configs without and with the drop-in, in a process of its own.

``python -m tests.parity.dropin_models PACKAGE FOLDER [BLOCKED]`` builds every stock config of the
package with small widths and records its logits. Then it imports the drop-in by a child config,
loads the stock weights, compares, trains two iterations and writes the record to
``FOLDER/PACKAGE.json``. One config is also built in full size and loads its weights from a file.
If the module ``BLOCKED`` is given, its import fails: nothing is compared, but one config is trained
and tested on small images in the layout of its data set.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from mmengine import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn

from tests import reduced
from tests.parity.parity_weights import redraw
from tests.parity.stock_heads import Logits, attending, error, our_logits, stock_logits

HEADS = {'mmseg': 'decode_head', 'mmdet': 'panoptic_head'}
FULL = {
    'mmseg': 'mask2former_r50_8xb2-90k_cityscapes-512x1024',
    'mmdet': 'mask2former_r50_8xb2-lsj-50e_coco-panoptic',
}
# Stock panoptic pipelines need panopticapi, which no package index has.
WHOLE = {
    'mmseg': 'mask2former_r50_8xb2-160k_ade20k-512x512',
    'mmdet': 'mask2former_r50_8xb2-lsj-50e_coco',
}
SIZE = (64, 96)
# Every width of the stock heads to a small one.
SMALLER = {
    'embed_dims': {256: 64},
    'feat_channels': {256: 64},
    'out_channels': {256: 64},
    'num_feats': {128: 32},
    'feedforward_channels': {1024: 96, 2048: 128},
    'num_groups': {32: 8},
    'num_layers': {6: 2, 9: 4},
    'num_queries': {100: 12, 200: 14},
    'num_points': {12544: 64},
}


def stock_configs(package: str) -> list[Path]:
    folder = Path(importlib.util.find_spec(package).submodule_search_locations[0])
    return sorted((folder / '.mim/configs/mask2former').glob('*.py'))


def reduce(cfg: Config, package: str, full: bool) -> Config:
    model = cfg.model
    model.backbone.init_cfg = None
    if package == 'mmseg':
        model.data_preprocessor.size = SIZE
    else:
        model.data_preprocessor.batch_augments[0].size = SIZE
    if full:
        return cfg
    if model.backbone.type == 'ResNet':
        model.backbone.update(stem_channels=8, base_channels=8)
    else:
        model.backbone.update(embed_dims=4 * model.backbone.num_heads[0], depths=[2, 2, 2, 2])
    model[HEADS[package]] = smaller(model[HEADS[package]])
    model[HEADS[package]].in_channels = backbone_channels(model.backbone)
    if 'train_cfg' in model:
        model.train_cfg = smaller(model.train_cfg)
    return cfg


def backbone_channels(backbone: dict[str, Any]) -> list[int]:
    """Channels of the four maps of a ResNet of bottlenecks or a Swin."""
    if backbone['type'] == 'ResNet':
        return [4 * backbone['base_channels'] * 2**i for i in range(4)]
    return [backbone['embed_dims'] * 2**i for i in range(4)]


def smaller(node: Any) -> Any:
    if isinstance(node, dict):
        node = {key: smaller_value(key, value) for key, value in node.items()}
        return Config(node)._cfg_dict
    return node


def smaller_value(key: str, value: Any) -> Any:
    if isinstance(value, dict):
        return smaller(value)
    return SMALLER[key][value] if value in SMALLER.get(key, ()) else value


def build(cfg: Config, package: str) -> nn.Module:
    init_default_scope(package)
    return importlib.import_module(f'{package}.registry').MODELS.build(cfg.model)


def batch(package: str, num_classes: int, num_things: int) -> dict:
    """Return two images of noise with a few segments each, in the layout of the pipelines."""
    generator = torch.Generator().manual_seed(0)
    height, width = SIZE
    inputs, samples = [], []
    for index in range(2):
        size = (height - 8 * index, width)
        inputs.append(torch.randint(256, (3, *size), dtype=torch.uint8, generator=generator))
        label_map = torch.randint(num_classes, (4, 6), generator=generator)
        label_map = label_map.repeat_interleave(16, 0).repeat_interleave(16, 1)[: size[0]]
        samples.append(sample(package, label_map, num_things, index))
    return {'inputs': inputs, 'data_samples': samples}


def sample(package: str, label_map: Tensor, num_things: int, index: int) -> Any:
    size = tuple(label_map.shape)
    meta = {'img_path': f'{index}.jpg', 'img_shape': size, 'ori_shape': size, 'pad_shape': size}
    if package == 'mmseg':
        from mmseg.structures import SegDataSample

        label_map = torch.where(torch.arange(size[1]) < 5, 255, label_map)
        return SegDataSample(gt_sem_seg=PixelData(data=label_map[None]), metainfo=meta)
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    labels = label_map[label_map < num_things].unique()
    masks = (label_map == labels[:, None, None]).numpy().astype('uint8')
    data = DetDataSample(metainfo=meta)
    data.gt_instances = InstanceData(labels=labels, masks=BitmapMasks(masks, *size))
    if (label_map >= num_things).any():
        data.gt_sem_seg = PixelData(sem_seg=label_map[None])
    return data


def maps_of(model: nn.Module, data: dict) -> list[Tensor]:
    with torch.no_grad():
        return model.extract_feat(model.data_preprocessor(data, training=True)['inputs'])


@torch.no_grad()
def compare(model: nn.Module, head: Any, data: dict, stock: tuple) -> dict[str, float]:
    """Return the errors of all predictions, with the stock attention masks, and how ours differ."""
    theirs, may_attend = stock
    with attending(may_attend) as differing:
        ours = our_logits(head, maps_of(model, data))
    errors = {name: error(getattr(ours, name), getattr(theirs, name)) for name in Logits._fields}
    return {**errors, 'attention': max(differing)}


def decay_of(model: nn.Module, wrapper: Any, part: str) -> dict[str, float]:
    """Return the weight decay of the parameters with ``part`` in their name."""
    decay = {id(p): g['weight_decay'] for g in wrapper.param_groups for p in g['params']}
    return {name: decay[id(p)] for name, p in model.named_parameters() if part in name}


def train(model: nn.Module, wrapper: Any, data: dict) -> list[dict[str, float]]:
    """Train two iterations and return their losses."""
    model.train()
    steps = [model.train_step(data, wrapper) for _ in range(2)]
    return [{name: float(value) for name, value in step.items()} for step in steps]


def parts(head: nn.Module) -> list[str]:
    objects = [head, head.pixel_decoder, head.decoder, head.matcher, head.criterion]
    losses = [head.criterion.class_loss, head.criterion.mask_loss, head.criterion.dice_loss]
    return [f'{type(o).__module__}.{type(o).__name__}' for o in [*objects, *losses]]


def data_for(cfg: Config, package: str) -> dict:
    head = cfg.model[HEADS[package]]
    if package == 'mmseg':
        return batch(package, head.num_classes, head.num_classes)
    return batch(package, head.num_things_classes + head.num_stuff_classes, head.num_things_classes)


def run(path: Path, package: str, folder: Path, stock: dict, is_full: bool) -> dict[str, Any]:
    """Return the record of one config with the drop-in."""
    child = folder / path.name
    child.write_text(f"_base_ = ['{path}']\n{LINE}\n")
    cfg = reduce(Config.fromfile(child), package, is_full)
    model = build(cfg, package)
    head, data = getattr(model, HEADS[package]), data_for(cfg, package)
    seen: dict[str, Any] = {'parts': parts(head), 'model': type(model).__module__}
    state, logits = stock.pop((path, is_full))
    if is_full:
        torch.save({'state_dict': state}, folder / 'stock.pth')
        load_checkpoint(model, str(folder / 'stock.pth'), strict=True)
    else:
        model.load_state_dict(state)
    seen |= compare(model.eval(), head, data, logits)
    if not is_full:
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
        seen['decay'] = decay_of(model, wrapper, 'level_embed')
        seen['steps'] = train(model, wrapper, data)
    return seen


def run_to_the_end(path: Path, package: str, folder: Path) -> dict[str, float]:
    """Train two iterations and test with the runner and the config's own data and metrics."""
    child = folder / path.name
    child.write_text(f"_base_ = ['{path}']\n{LINE}\n")
    cfg = reduce(Config.fromfile(child), package, full=False)
    reduced._move_data(cfg, folder)
    for loader in reduced.LOADERS:
        reduced._reduce_dataloader(cfg[loader])
    cfg.train_cfg.update(max_iters=2, val_interval=2, dynamic_intervals=None)
    if package == 'mmseg':
        del cfg.train_cfg.dynamic_intervals
    cfg.vis_backends = cfg.visualizer.vis_backends = [{'type': 'LocalVisBackend'}]
    cfg.work_dir = cfg.experiment_name = cfg.visualizer.name = str(folder / path.stem)
    return {name: float(value) for name, value in reduced.train_and_test(cfg).items()}


def main(package: str, folder: Path, blocked: str | None = None) -> None:
    paths, seen = stock_configs(package), {}
    if blocked:
        sys.modules[blocked] = None
        for path in paths:
            if path.stem == WHOLE[package]:
                seen[path.stem] = run_to_the_end(path, package, folder)
        assert sys.modules[blocked] is None
    else:
        cases = [(path, path.stem == FULL[package]) for path in paths]
        cases += [(path, False) for path, is_full in cases if is_full]
        stock = {}
        for path, is_full in cases:
            cfg = reduce(Config.fromfile(path), package, is_full)
            model = build(cfg, package).eval()
            redraw(model)
            maps = maps_of(model, data_for(cfg, package))
            logits = stock_logits(getattr(model, HEADS[package]), maps)
            stock[path, is_full] = (model.state_dict(), logits)
        for path, is_full in cases:
            name = f'{path.stem}{" in full" * is_full}'
            seen[name] = run(path, package, folder, stock, is_full)
    (folder / f'{package}.json').write_text(json.dumps(seen))


LINE = "custom_imports = dict(imports=['mmseg_m2f.dropin'])"


if __name__ == '__main__':
    torch.manual_seed(0)
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
