"""ViT-L/16 with Mask2Former at 640 x 640 on a GPU: from the stock head to ours, step by step.

    python -m tools.benchmark.gpu_waterfall OUT [--dry-run]

The stock head in float32 and under autocast in float16; ours in its place, to which each row adds
one thing; the stock head compiled. All have the same random weights and the same real image: a
plain vision transformer with maps at strides 4 to 32 made from its last layer, and a panoptic head
with 133 classes and 200 queries. The time is from the normalised image to class and mask logits,
batch 1, without post-processing. The difference is of the mask logits to the stock head's in
float32. The published start is 29 images per second: a ViT-Adapter-L on an H100, compiled (arXiv
2503.19108). ``stock-compiled`` is that without the adapter, ``-graph`` as a CUDA graph.
"""

import contextlib
import dataclasses
import functools
import os
import signal
import statistics
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tools.benchmark import gpu_timing, harness, segmentors
from tools.benchmark.gpu_images import panoptic_training_batch
from tools.benchmark.gpu_models import use_backend
from tools.benchmark.inference import normalised

WARM_UP, ROUNDS, BUDGET = 5, 3, 1.5
# Of every step, compilation included, in seconds.
PATIENCE = 60
CHANNELS = (256, 512, 1024, 2048)
BASELINE = 'stock'


class Size(NamedTuple):
    """Of the transformer, the image and the head."""

    dim: int
    heads: int
    depth: int
    side: int
    queries: int


LARGE, TINY = Size(1024, 16, 24, 640, 200), Size(32, 2, 1, 64, 10)


class Stage(NamedTuple):
    """What a row of the waterfall is.

    ``mixed`` is ``mixed_precision`` of our pixel decoder, ``mode`` that of ``torch.compile``, if it
    is compiled.
    """

    name: str
    layout: str
    backend: str = 'auto'
    dtype: torch.dtype = torch.float32
    mixed: bool = False
    channels_last: bool = False
    mode: str | None = None


class Timed(NamedTuple):
    """The figures of a stage and its mask logits in float32."""

    figures: gpu_timing.Figures
    masks: Tensor


class Block(nn.Module):
    """One layer of a vision transformer."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, tokens: Tensor) -> Tensor:
        """Attention, then the perceptron."""
        qkv = self.qkv(self.norm1(tokens)).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.transpose(1, 3).unbind(2)
        attended = F.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.proj(attended.transpose(1, 2).flatten(2))
        return tokens + self.mlp(self.norm2(tokens))


class PlainViT(nn.Module):
    """Patches of 16, and maps at strides 4, 8, 16 and 32 from the last layer (ViTDet's way)."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        dim, grid = size.dim, size.side // 16
        self.patches = nn.Conv2d(3, dim, 16, 16)
        self.positions = nn.Parameter(0.02 * torch.randn(1, grid * grid, dim))
        self.blocks = nn.Sequential(*(Block(dim, size.heads) for _ in range(size.depth)))
        self.norm = nn.LayerNorm(dim)
        finer = [nn.ConvTranspose2d(dim, dim // 2, 2, 2), nn.GELU()]
        self.maps = nn.ModuleList(
            [
                nn.Sequential(*finer, nn.ConvTranspose2d(dim // 2, CHANNELS[0], 2, 2)),
                nn.ConvTranspose2d(dim, CHANNELS[1], 2, 2),
                nn.Conv2d(dim, CHANNELS[2], 1),
                nn.Conv2d(dim, CHANNELS[3], 2, 2),
            ]
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Four maps, the finest first."""
        patches = self.patches(images)
        tokens = patches.flatten(2).transpose(1, 2) + self.positions
        tokens = self.norm(self.blocks(tokens))
        last = tokens.transpose(1, 2).reshape(patches.shape)
        return [layer(last) for layer in self.maps]


class Network(nn.Module):
    """The transformer and a head, stock or ours."""

    def __init__(self, backbone: nn.Module, head: nn.Module, layout: str) -> None:
        super().__init__()
        self.backbone, self.head, self.is_ours = backbone, head, layout == 'ours'

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits and mask logits of the last prediction."""
        maps = self.backbone(images)
        if self.is_ours:
            return self.head(maps)
        classes, masks = self.head(maps, [])
        return classes[-1], masks[-1]


def stages(device: torch.device) -> list[Stage]:
    """What is added from row to row."""
    if device.type == 'cpu':  # which has no float16
        half = functools.partial(Stage, layout='ours', dtype=torch.bfloat16)
        return [
            Stage('stock', 'mmdet'),
            Stage('head', 'ours'),
            half('bf16'),
            half('mixed', mixed=True),
        ]
    stock = functools.partial(Stage, layout='mmdet', dtype=torch.float16)
    head = functools.partial(Stage, layout='ours', dtype=torch.float16)
    kernel = functools.partial(head, backend='triton')
    mixed = functools.partial(kernel, mixed=True)
    return [
        stock('stock', dtype=torch.float32),
        stock('stock-amp'),
        head('head'),
        kernel('kernel'),
        mixed('mixed'),
        mixed('channels-last', channels_last=True),
        mixed('compiled', channels_last=True, mode='default'),
        mixed('compiled-graph', channels_last=True, mode='reduce-overhead'),
        stock('stock-compiled', mode='default'),
        stock('stock-compiled-graph', mode='reduce-overhead'),
    ]


def main() -> None:
    """Time every stage."""
    options = gpu_timing.parse(__doc__)
    table = gpu_timing.Table('gpu-waterfall', options)
    size = TINY if options.dry_run else LARGE
    case = f'vit-l_{size.side}'
    torch.manual_seed(0)
    batch = panoptic_training_batch(size.side, 1)
    networks = build(size, batch, options.device)
    images = normalised(batch).to(options.device)
    found: dict[str, Timed] = {}
    for stage in stages(options.device):
        work = functools.partial(timed, networks[stage.layout], stage, images, found.get(BASELINE))
        result = gpu_timing.attempt(table, case, stage.name, work, ours=stage.layout == 'ours')
        if result is None:
            continue
        found[stage.name] = result
        start = found[BASELINE].figures if BASELINE in found else None
        table.add(case, {stage.name: result.figures}, start)
        rate = 1 / statistics.median(result.figures.seconds)
        print(f'{stage.name}: {rate:.1f} images per second', flush=True)
    table.finish()


def build(size: Size, batch: dict[str, Any], device: torch.device) -> dict[str, Network]:
    """The network with either head, of equal weights."""
    spec = segmentors.SPECS['panoptic']._replace(num_queries=size.queries)
    backbone = PlainViT(size)
    networks = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ[harness.FOLDER] = folder
        segmentors.share_weights(spec, 'panoptic', ['mmdet'], batch)
        for layout in ('ours', 'mmdet'):
            head = segmentors.build_shared(spec, 'panoptic', layout).panoptic_head
            networks[layout] = Network(backbone, head, layout).to(device).eval()
    return networks


def timed(network: Network, stage: Stage, images: Tensor, start: Timed | None) -> Timed:
    """Bring the network to a stage and time it.

    Raises:
        TimeoutError: it takes longer than PATIENCE.
    """
    device = images.device
    with patience():
        step = prepared(network, stage, images)
        for _ in range(WARM_UP if device.type == 'cuda' else 1):
            step()
        # A graph's outputs are written over by its next run.
        masks = step()[1].float().cpu()
        [seconds] = gpu_timing.timed_by_turns(
            {stage.name: step}, device, rounds=ROUNDS, budget=BUDGET
        ).values()
        figures = gpu_timing.Figures(
            seconds,
            gpu_timing.peak_mib(step, device),
            float((masks - (masks if start is None else start.masks)).abs().max()),
            gpu_timing.count_synchronisations(step, device),
        )
    return Timed(figures, masks)


@contextlib.contextmanager
def patience() -> Iterator[None]:
    """Give up after a while: a compiler may take minutes."""

    def give_up(*_: Any) -> None:
        raise TimeoutError(f'not done after {PATIENCE} s')

    previous = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def prepared(network: Network, stage: Stage, images: Tensor) -> Callable[[], Any]:
    """A call of the network as the stage has it."""
    if network.is_ours:
        use_backend(network.head, stage.backend)
        decoder: Any = network.head.pixel_decoder
        decoder.config = dataclasses.replace(decoder.config, mixed_precision=stage.mixed)
    layout = torch.channels_last if stage.channels_last else torch.contiguous_format
    # As Any: the annotations of torch do not know of this argument.
    model: Any = network
    model.to(memory_format=layout)
    images = images.contiguous(memory_format=layout)
    call: Callable[[Tensor], Any] = network
    if stage.mode is not None:
        torch.compiler.reset()
        call = torch.compile(network, mode=stage.mode)
    halved = stage.dtype != torch.float32

    def step() -> Any:
        if stage.mode == 'reduce-overhead':
            torch.compiler.cudagraph_mark_step_begin()
        with torch.no_grad(), _autocast(images.device, stage.dtype, halved):
            return call(images)

    return step


def _autocast(device: torch.device, dtype: torch.dtype, enabled: bool) -> torch.autocast:
    return torch.autocast(device.type, dtype if enabled else torch.bfloat16, enabled=enabled)


if __name__ == '__main__':
    main()
