"""The network is one graph to torch.compile, forward and backward, and gives the same numbers.

In a process of its own: the tests' check of shapes wraps every function of the core, which the
compiler cannot see through.
"""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import torch
from tests.conftest import TinyModel

class Network(TinyModel):
    def forward(self, *maps):
        features = self.pixel_decoder(maps)
        predictions = self.decoder(features) if self.training else [self.decoder.predict(features)]
        return [features.mask_features, *(x for p in predictions for x in p)]

torch.manual_seed(0)
network = Network().double()
maps = network.maps(2, 8, 12)
compiled = torch.compile(network, fullgraph=True, backend='aot_eager')
for is_training in (True, False):
    network.train(is_training)
    outputs, parameters = [], list(network.parameters())
    for function in (network, compiled):
        with torch.set_grad_enabled(is_training):
            out = function(*maps)
            loss = sum((x * torch.linspace(-1, 1, x.shape[-1]).double()).sum() for x in out)
        grads = torch.autograd.grad(loss, parameters, allow_unused=True) if is_training else []
        outputs.append([x.detach() for x in (*out, *grads) if x is not None])
    for expected, got in zip(*outputs, strict=True):
        torch.testing.assert_close(got, expected)
"""


def test_one_graph_with_the_same_numbers():
    command, root = [sys.executable, '-c', PROGRAM], Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
