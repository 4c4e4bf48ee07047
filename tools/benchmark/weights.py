"""Random weights that all implementations share, written once and read by fresh processes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# Of the weights that write into the decoder's queries; of the class logits over the queries; of the
# mask logits.
BRANCH, SPREAD, SHARPNESS = 0.25, 6.0, 4.0


@torch.no_grad()
def redraw(model: nn.Module) -> None:
    """Draw the weights of one of our heads so that every layer matters.

    Those of the start are a poor test: all offsets of the deformable attention are alike, and mask
    logits lie near 0, where a rounding error flips an attention mask.
    """
    generator = torch.Generator().manual_seed(0)
    for name, value in model.named_parameters():
        if 'sampling_offsets' in name and name.endswith('weight'):
            std = 0.5 * value.shape[1] ** -0.5
        elif 'query' in name or 'level_embed' in name:
            std = 1.0
        elif value.dim() > 1:
            # What all queries gather from the image must not drown what tells them apart.
            branch = 'decoder.layers' in name and ('out_proj' in name or 'linear2' in name)
            std = (BRANCH if branch else 1.0) * value[0].numel() ** -0.5
        else:
            continue
        value.copy_(std * torch.randn(value.shape, generator=generator))


@torch.no_grad()
def tell_queries_apart(model: Any, head: Any, batch: dict[str, Any]) -> None:
    """Let segments of several classes survive in a image, as a trained model would.

    What is common to the mask embeddings of all queries goes, then what is common to their class
    logits, and the rest of these is brought to a spread at which the best class is sure.
    """
    data = model.eval().data_preprocessor(batch, training=False)
    features = head.pixel_decoder(model.extract_feat(data['inputs']))
    decoder = head.decoder
    embed = decoder.predict(features).mask_embed
    decoder.mask_embed[-1].bias.sub_(embed.mean((0, 1)))
    logits = decoder.predict(features).class_logits
    factor = SPREAD / (logits - logits.mean((0, 1))).std()
    decoder.class_embed.bias.sub_(logits.mean((0, 1)))
    for parameter in decoder.class_embed.parameters():
        parameter.mul_(factor)
    for parameter in decoder.mask_embed[-1].parameters():
        parameter.mul_(SHARPNESS)


def save_weights(path: Path, state: dict[str, Tensor]) -> None:
    """One array after the other, so that reading needs no second copy of the model."""
    path.with_suffix('.json').write_text(json.dumps(list(state)))
    with path.open('wb') as file:
        for value in state.values():
            np.save(file, value.detach().numpy())


@torch.no_grad()
def load_weights(path: Path, model: nn.Module) -> None:
    """Into a model of the same layout; what the file lacks stays as the model was built."""
    state = model.state_dict()
    with path.open('rb') as file:
        for name in json.loads(path.with_suffix('.json').read_text()):
            state[name].copy_(torch.from_numpy(np.load(file)))
