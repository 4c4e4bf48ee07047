"""The network is one graph to torch.compile, forward and backward, and gives the same numbers.

In a process of its own: the tests' check of shapes wraps every function of the core, which the
compiler cannot see through.
"""

import subprocess
import sys

PROGRAM = """
import torch
from mmseg_m2f.core import (
    DecoderConfig, MaskedAttentionDecoder, MSDeformAttnPixelDecoder, PixelDecoderConfig
)

class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        sizes = dict(channels=16, num_heads=2, ffn_dim=16)
        pixel_config = PixelDecoderConfig(num_layers=1, norm_groups=4, **sizes)
        self.pixel_decoder = MSDeformAttnPixelDecoder([8, 8, 8, 8], pixel_config)
        config = DecoderConfig(num_classes=3, num_queries=5, num_layers=3, **sizes)
        self.decoder = MaskedAttentionDecoder(config)

    def forward(self, *maps):
        features = self.pixel_decoder(maps)
        if not self.training:
            return [features.mask_features, *self.decoder.predict(features)]
        return [features.mask_features, *(x for p in self.decoder(features) for x in p)]

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
network = Network()
maps = [torch.randn(2, 8, 32 // 2**i, 48 // 2**i) for i in range(4)]
compiled = torch.compile(network, fullgraph=True, backend='aot_eager')
for is_training in (True, False):
    network.train(is_training)
    outputs, parameters = [], list(network.parameters())
    for function in (network, compiled):
        with torch.set_grad_enabled(is_training):
            out = function(*maps)
            loss = sum((x * torch.linspace(-1, 1, x.shape[-1])).sum() for x in out)
        grads = torch.autograd.grad(loss, parameters, allow_unused=True) if is_training else []
        outputs.append([x.detach() for x in (*out, *grads) if x is not None])
    for expected, got in zip(*outputs, strict=True):
        torch.testing.assert_close(got, expected)
"""


def test_one_graph_with_the_same_numbers():
    done = subprocess.run([sys.executable, '-c', PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
