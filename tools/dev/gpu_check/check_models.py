# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Compares whole backbones with the plain version in float64."""

import torch
from common import (
    ARCHS,
    DEVICE,
    DRY,
    Rows,
    error,
    guarded,
    model,
    no_tf32,
    slopes_like,
)
from torch import Tensor, nn

TABLE = 'Whole backbones: errors compared with float64'
SIZE = (2, 3, 64, 70) if DRY else (2, 3, 250, 333)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@torch.no_grad()
def stir(backbone: nn.Module) -> nn.Module:
    """Randomises tables, offsets and layer scales, which start near zero."""
    torch.manual_seed(1)
    for name, parameter in backbone.named_parameters():
        if any(word in name for word in ('table', 'rpb')):
            nn.init.normal_(parameter, std=0.5)
        elif 'conv_offset' in name and parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
        elif parameter.abs().max() < 1e-3 and parameter.ndim == 1:
            nn.init.normal_(parameter, std=0.3)  # layer scales and biases
    return backbone


def run(
    backbone: nn.Module, images: Tensor, amp: torch.dtype | None
) -> tuple[list[Tensor], Tensor]:
    """Returns the outputs, and all gradients in one tensor."""
    backbone.zero_grad(set_to_none=True)
    with torch.autocast(DEVICE, amp, enabled=amp is not None):
        outs = backbone(images)
    slopes = [s / s.numel() ** 0.5 for s in slopes_like(outs)]
    torch.autograd.backward(outs, slopes)
    # The bias of keys does not change a softmax; its gradient is rounding.
    grads = [
        p.grad.double().flatten()
        for name, p in backbone.named_parameters()
        if 'proj_k.bias' not in name
    ]
    return [o.detach().double() for o in outs], torch.cat(grads)


def compare(arch: str) -> None:
    """Adds a row for each precision of an architecture."""
    built = {}
    for backend in (None, 'reference'):
        torch.manual_seed(0)
        built[backend] = stir(model(arch, backend)).to(DEVICE).train()
    built[None].load_state_dict(built['reference'].state_dict())
    torch.manual_seed(2)
    images = torch.randn(SIZE, device=DEVICE)
    wide = model(arch, 'reference').to(DEVICE).double().train()
    wide.load_state_dict(built['reference'].state_dict())
    exact, exact_grads = run(wide, images.double(), None)
    for dtype in DTYPES:
        amp = None if dtype == torch.float32 else dtype
        what = f'{arch}, {"autocast " * bool(amp)}{str(dtype)[6:]}'
        with guarded(TABLE, what):
            off = {}
            for backend, backbone in built.items():
                outs, grads = run(backbone, images, amp)
                off[backend] = (
                    max(map(error, outs, exact)),
                    error(grads, exact_grads),
                )
            ours, plain = off[None], off['reference']
            ok = all(a <= 3 * b + 1e-6 for a, b in zip(ours, plain))
            Rows.add(
                TABLE,
                what,
                ok,
                f'errors {ours}, of the plain implementation {plain}',
                outputs=ours[0],
                plain_outputs=plain[0],
                gradients=ours[1],
                plain_gradients=plain[1],
            )


def main(_) -> None:
    """Compares DAT and DAT++."""
    no_tf32()
    for arch in ARCHS:
        with guarded(TABLE, arch):
            compare(arch)
