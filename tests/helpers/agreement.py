# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Comparing modules with the oracle, on one another's parameters."""

import re

import numpy as np
import torch
from torch import Tensor, nn

# Square, rectangular, odd, and as thin as a map can be.
UGLY_SIZES = [(7, 7), (8, 13), (15, 6), (1, 9), (10, 1), (1, 1), (23, 17)]


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Float64, eval mode, and parameters large enough that each matters."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    for parameter in module.parameters():
        values = torch.randn(
            parameter.shape, generator=generator, dtype=torch.float64
        )
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
        parameter.data = values / fan_in**0.5
    return module


def _first(match: re.Match) -> str:
    return match[0].partition('.')[0] + '.0'


def published(module: nn.Module) -> dict[str, np.ndarray]:
    """Parameters of an attention module as the authors name and shape them."""
    parameters = {}
    for name, value in module.state_dict().items():
        name = re.sub(r'(conv_offset|proj_ds)\.norm\.', r'\1.1.norm.', name)
        name = re.sub(r'conv_offset\.dwconv|proj_ds\.conv', _first, name)
        name = name.replace('conv_offset.proj', 'conv_offset.3')
        if name == 'conv_offset.3.weight':
            value = value[..., None, None]
        parameters[name] = value.numpy()
    return parameters


def random_map(height: int, width: int, dim: int, batch: int = 2) -> Tensor:
    """A batch of maps (B, H, W, C), float64."""
    generator = torch.Generator().manual_seed(100 * height + width)
    return torch.randn(
        batch, height, width, dim, generator=generator, dtype=torch.float64
    )


def assert_close(ours: Tensor, wanted: np.ndarray, tolerance: float = 1e-10):
    """Largest difference over the largest value."""
    wanted = np.asarray(wanted)
    assert tuple(ours.shape) == wanted.shape
    error = np.abs(ours.detach().numpy() - wanted).max()
    assert error <= tolerance * max(np.abs(wanted).max(), 1), error
