# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""What is timed: a forward pass, or forward and backward."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import build_attention
from .backbones import build_backbone
from .cases import Case, Conditions

AMP = {'bf16': torch.bfloat16, 'fp16': torch.float16}


@dataclass(frozen=True)
class Step:
    """Something to run again and again.

    Attributes:
        run: Runs once; leaves nothing behind.
        parameters: Learnable numbers.
    """

    run: Callable[[], None]
    parameters: int


def build_step(case: Case) -> Step:
    """Builds weights and input of a case.

    Raises:
        ValueError: A backend that is unknown or declines.
        ImportError: A missing package.
    """
    torch.manual_seed(0)
    conditions, setting = case.conditions, case.setting
    training = setting.mode == 'train'
    if setting.attention is not None:
        dtype = AMP.get(conditions.amp, torch.float32)
        call = build_attention(case.subject, setting, conditions.device, dtype)
        forward, inputs, leaves, parameters = call.run, call.inputs, (), 0
        if training:
            leaves = inputs = tuple(x.requires_grad_() for x in inputs)
    else:
        model = forward = build_backbone(case.subject)
        model.to(conditions.device).train(training)
        shape = (setting.batch, 3, setting.height, setting.width)
        inputs = (torch.randn(shape).to(conditions.device),)
        leaves = tuple(model.parameters())
        parameters = sum(p.numel() for p in leaves)
    if case.subject.compiled:
        forward = torch.compile(forward)
    run = _training if training else _inference
    precision = _precision(conditions)
    return Step(
        lambda: run(forward, inputs, leaves, precision),
        parameters,
    )


def _precision(conditions: Conditions) -> Callable[[], Any]:
    if conditions.amp is None:
        return nullcontext
    kind = torch.device(conditions.device).type
    return lambda: torch.autocast(kind, AMP[conditions.amp])


@torch.no_grad()
def _inference(
    forward: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    leaves: tuple[Tensor, ...],
    precision: Callable[[], Any],
) -> None:
    with precision():
        forward(*inputs)


def _training(
    forward: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    leaves: tuple[Tensor, ...],
    precision: Callable[[], Any],
) -> None:
    with precision():
        outs = list(tensors(forward(*inputs)))
    torch.autograd.backward(outs, [torch.ones_like(out) for out in outs])
    for leaf in leaves:
        leaf.grad = None


def tensors(nest: Any) -> Iterator[Tensor]:
    """The tensors of what a model returns, that gradients can start from."""
    if isinstance(nest, Tensor):
        if nest.requires_grad:
            yield nest
    elif isinstance(nest, dict):
        yield from tensors(list(nest.values()))
    elif isinstance(nest, list | tuple):
        for part in nest:
            yield from tensors(part)


def wake_libraries(conditions: Conditions) -> None:
    """Uses what every model uses, so that no model pays for the first call.

    Thread pools, code and workspaces of the libraries behind torch are made
    when they are needed first.
    """
    model = nn.Sequential(
        nn.Conv2d(3, 32, 4, 4), nn.GELU(), nn.Flatten(2), nn.LayerNorm(64)
    ).to(conditions.device)
    with _precision(conditions)():
        x = model(torch.randn(2, 3, 32, 32).to(conditions.device))
        x = F.scaled_dot_product_attention(x, x, x) @ x.mT
    x.float().sum().backward()
