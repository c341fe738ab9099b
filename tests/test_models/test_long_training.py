# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Hundreds of iterations in mixed precision beside the same in float32."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmdat.models import DAT

ITERATIONS, WINDOW, CLASSES = 300, 25, 10
# Window, neighbourhood and deformable attention.
ARCH = dict(
    family='dat_pp',
    attentions=['L', 'N', 'D', 'D'],
    embed_dims=[16, 32, 32, 64],
    depths=[1, 1, 1, 1],
    num_heads=[1, 2, 2, 4],
    img_size=32,
)


def batches():
    """Ten patterns, each time under new noise that is twice as strong."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(CLASSES, 3, 8, 8, generator=generator)
    patterns = F.interpolate(patterns, size=32, mode='bilinear')
    for _ in range(ITERATIONS):
        labels = torch.randint(CLASSES, (8,), generator=generator)
        noise = torch.randn(8, 3, 32, 32, generator=generator)
        yield patterns[labels] + 2 * noise, labels


def losses(dtype):
    """The loss of each iteration."""
    torch.manual_seed(0)
    model = nn.ModuleList([DAT(ARCH, out_indices=(3,)), nn.Linear(64, 10)])
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05)
    seen = []
    for images, labels in batches():
        with torch.autocast('cpu', torch.bfloat16, dtype is torch.bfloat16):
            features = model[0](images)[0].mean((2, 3))
            loss = F.cross_entropy(model[1](features), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 5)
        optimizer.step()
        seen.append(loss.item())
    assert all(p.isfinite().all() for p in parameters)
    return torch.tensor(seen)


@pytest.mark.slow
def test_bfloat16_tracks_float32():
    full, mixed = (losses(dtype) for dtype in (None, torch.bfloat16))
    assert not full.equal(mixed)
    full, mixed = (x.view(-1, WINDOW).mean(1) for x in (full, mixed))
    assert full[0] > 1 and full[-1] < 0.1
    # Several times what they differ by here.
    torch.testing.assert_close(mixed, full, rtol=0.02, atol=0.005)
