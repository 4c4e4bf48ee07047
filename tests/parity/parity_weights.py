"""Weights that make a comparison mean something."""

import torch
from torch import nn

from mmseg_m2f.adapters.checkpoints.convert_on_load import head_name

EMBEDDINGS = ('level_embed', 'level_encoding', 'relative_position_bias_table')


@torch.no_grad()
def redraw(model: nn.Module, seed: int = 0) -> None:
    """Draw all parameters anew so that every layer matters.

    Initial weights are a poor test: zero biases hide swapped biases, unit norms hide swapped norms,
    tiny weights give mask logits near 0 and zero offset weights make all queries look alike.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(value: torch.Tensor, std: float, mean: float = 0.0) -> None:
        value.copy_(mean + std * torch.randn(value.shape, generator=generator))

    for name, value in model.named_parameters():
        if 'sampling_offsets.bias' in name:
            # Keep the fan of directions: it reaches beyond the maps' borders.
            value.add_(0.3 * torch.randn(value.shape, generator=generator))
        elif 'sampling_offsets.weight' in name:
            normal(value, 0.5 * value.shape[1] ** -0.5)
        elif any(part in name for part in EMBEDDINGS) or 'quer' in name:
            normal(value, 1.0)
        elif value.dim() > 1:
            normal(value, value[0].numel() ** -0.5)
        else:
            normal(value, 0.1, mean=float(name.endswith('weight')))
    for name, value in model.named_buffers():
        if name.endswith('running_mean'):
            normal(value, 0.1)
        elif name.endswith('running_var'):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)


@torch.no_grad()
def tell_queries_apart(model: nn.Module, data: dict, factor: float = 4.0) -> nn.Module:
    """Redraw the weights of a model so that segments of several classes survive in ``data``.

    Alone, random weights let all queries say nearly the same: their common class logits go.
    """
    redraw(model)
    model.eval()
    class_embed = getattr(model, head_name(model)).decoder.class_embed
    class_embed.weight.mul_(factor)
    class_logits, _ = model(**model.data_preprocessor(data), mode='tensor')
    class_embed.bias.sub_(class_logits.mean((0, 1)))
    return model
