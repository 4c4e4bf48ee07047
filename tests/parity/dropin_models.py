"""Run stock Mask2Former configs without and with the drop-in, in a process of its own.

``python -m tests.parity.dropin_models PACKAGE FOLDER [BLOCKED]`` builds every stock config of the
package with small widths and records its logits. Then it imports the drop-in by a child config,
loads the stock weights, compares, trains two iterations and writes the record to
``FOLDER/PACKAGE.json``. One config is also built in full size and loads its weights from a file.
If the module ``BLOCKED`` is given, its import fails: nothing is compared, but one config is trained
and tested on small images in the layout of its data set.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from mmengine import Config
from mmengine.optim import build_optim_wrapper
from mmengine.runner import load_checkpoint
from torch import Tensor, nn

from tests import reduced
from tests.adapters.stock_models import HEADS, batch, build_model, reduce, stock_configs
from tests.parity.parity_weights import redraw
from tests.parity.stock_heads import Logits, attending, error, our_logits, stock_logits

FULL = {
    'mmseg': 'mask2former_r50_8xb2-90k_cityscapes-512x1024',
    'mmdet': 'mask2former_r50_8xb2-lsj-50e_coco-panoptic',
}
# Stock panoptic pipelines need panopticapi, which no package index has.
WHOLE = 'mask2former_r50_8xb2-lsj-50e_coco'


def with_dropin(path: Path, folder: Path) -> Config:
    child = folder / path.name
    line = "custom_imports = dict(imports=['mmseg_m2f.dropin'])"
    child.write_text(f"_base_ = ['{path}']\n{line}\n")
    return Config.fromfile(child)


@torch.no_grad()
def maps_of(model: nn.Module, data: dict) -> list[Tensor]:
    return model.extract_feat(model.data_preprocessor(data, training=True)['inputs'])


@torch.no_grad()
def compare(model: nn.Module, head: Any, data: dict, stock: tuple) -> dict[str, float]:
    """Return the errors of all predictions, with the stock attention masks, and how ours differ."""
    theirs, may_attend = stock
    with attending(may_attend) as differing:
        ours = our_logits(head, maps_of(model, data))
    errors = {name: error(getattr(ours, name), getattr(theirs, name)) for name in Logits._fields}
    return {**errors, 'attention': max(differing)}


def train(model: nn.Module, cfg: Config, data: dict) -> dict[str, Any]:
    """Return the losses of two iterations, and the weight decay of the level embeddings."""
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    decay = {id(p): g['weight_decay'] for g in wrapper.param_groups for p in g['params']}
    model.train()
    steps = [model.train_step(data, wrapper) for _ in range(2)]
    return {
        'steps': [{name: float(value) for name, value in step.items()} for step in steps],
        'decay': {n: decay[id(p)] for n, p in model.named_parameters() if 'level_embed' in n},
    }


def parts(head: Any) -> list[str]:
    losses = [head.criterion.class_loss, head.criterion.mask_loss, head.criterion.dice_loss]
    objects = [head, head.pixel_decoder, head.decoder, head.matcher, head.criterion, *losses]
    return [f'{type(o).__module__}.{type(o).__name__}' for o in objects]


def run(path: Path, package: str, folder: Path, stock: tuple, full: bool) -> dict[str, Any]:
    """Return the record of one config with the drop-in."""
    cfg = reduce(with_dropin(path, folder), package, full)
    model, data = build_model(package, cfg.model), batch(package)
    head = getattr(model, HEADS[package])
    state, logits = stock
    if full:
        torch.save({'state_dict': state}, folder / 'stock.pth')
        load_checkpoint(model, str(folder / 'stock.pth'), strict=True)
    else:
        model.load_state_dict(state)
    seen = {'parts': parts(head), 'model': type(model).__module__}
    seen |= compare(model.eval(), head, data, logits)
    return seen if full else {**seen, **train(model, cfg, data)}


def run_stock(path: Path, package: str, full: bool) -> tuple:
    """Return the state dict, and the logits with the attention masks."""
    model = build_model(package, reduce(Config.fromfile(path), package, full).model).eval()
    redraw(model)
    logits = stock_logits(getattr(model, HEADS[package]), maps_of(model, batch(package)))
    return model.state_dict(), logits


def run_to_the_end(path: Path, package: str, folder: Path) -> dict[str, float]:
    """Train two iterations and test with the runner and the config's own data and metrics."""
    cfg = reduced.shorten(reduce(with_dropin(path, folder), package), folder, path.stem)
    cfg.train_cfg.dynamic_intervals = None
    return {name: float(value) for name, value in reduced.train_and_test(cfg).items()}


def main(package: str, folder: Path, blocked: str = '') -> None:
    paths = stock_configs(package)
    if blocked:
        sys.modules[blocked] = None
        seen = run_to_the_end(paths[WHOLE], package, folder)
        assert sys.modules[blocked] is None
    else:
        cases = [(path, False) for path in paths.values()] + [(paths[FULL[package]], True)]
        # The drop-in stays, so that all stock models come first.
        stock = {case: run_stock(case[0], package, case[1]) for case in cases}
        seen = {}
        for path, full in cases:
            name = f'{path.stem}{" in full" * full}'
            seen[name] = run(path, package, folder, stock.pop((path, full)), full)
    (folder / f'{package}.json').write_text(json.dumps(seen))


if __name__ == '__main__':
    torch.manual_seed(0)
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
