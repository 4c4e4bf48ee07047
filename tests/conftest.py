"""Fixtures of every test: a seed, poisoned memory in the core, a tiny model, the GPU marker.

Nothing here may import ``mmseg_m2f`` at the top: the shape checker has to be in place first.
"""

from collections.abc import Iterator

import pytest
import torch


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker('cuda') and not torch.cuda.is_available():
        pytest.skip('needs an NVIDIA GPU')


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def _is_numeric(request: pytest.FixtureRequest) -> bool:
    return request.path.parent.name in ('core', 'cpu', 'ops')


@pytest.fixture(autouse=True)
def one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tiny tensors gain nothing from threads, and on a busy machine lose a lot by waiting."""
    num_threads = torch.get_num_threads()
    if _is_numeric(request) or request.path.parent.name == 'parity':
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(autouse=True)
def poisoned_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests of core, cpu and ops find NaN in memory that nobody initialized.

    PyTorch fills it in deterministic mode only, which lacks CUDA kernels we need: CPU tests only.
    """
    if not _is_numeric(request) or 'cuda' in request.keywords:
        yield
        return
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        assert torch.empty(1).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


class TinyModel(torch.nn.Module):
    """Pixel decoder and decoder of 32 channels for a four-map backbone, with its inputs."""

    in_channels = (4, 6, 8, 10)
    num_classes = 5
    num_queries = 7

    def __init__(self) -> None:
        from mmseg_m2f import core

        super().__init__()
        self.pixel_decoder = core.MSDeformAttnPixelDecoder(
            self.in_channels,
            core.PixelDecoderConfig(
                channels=32, num_layers=2, num_heads=4, num_points=2, ffn_dim=48, norm_groups=4
            ),
        )
        self.decoder = core.MaskedAttentionDecoder(
            core.DecoderConfig(
                num_classes=self.num_classes,
                channels=32,
                num_queries=self.num_queries,
                num_layers=4,
                num_heads=4,
                ffn_dim=64,
            )
        )

    def maps(self, batch: int, height: int, width: int) -> list[torch.Tensor]:
        """Backbone maps for an image whose stride-4 map is ``height x width``."""
        dtype = next(self.parameters()).dtype
        return [
            torch.randn(batch, channels, -(-height // step), -(-width // step), dtype=dtype)
            for channels, step in zip(self.in_channels, (1, 2, 4, 8), strict=True)
        ]

    def forward(self, maps):
        """All predictions and the mask features."""
        features = self.pixel_decoder(maps)
        return self.decoder(features), features.mask_features


@pytest.fixture
def tiny_model() -> TinyModel:
    return TinyModel()
