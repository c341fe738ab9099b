# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Builds what is measured: backbones, attentions, and a pass of them."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from cases import PLAIN, Case, Conditions, Setting, Subject
from torch import Tensor, nn

from mmdat.models import DAT
from mmdat.ops import deformable_attention, neighborhood_attention
from mmdat.ops.coordinates import deformed_points_yx, query_axis
from mmdat.ops.position_bias import TableBias
from mmdat.utils.errors import UserError

AMP = {'bf16': torch.bfloat16, 'fp16': torch.float16}
# Class of mmdet.models.backbones, and its arguments. Stochastic depth is off
# for all, so that every block runs in every training step.
PEERS = {
    'swin_t': (
        'SwinTransformer',
        dict(
            embed_dims=96,
            depths=(2, 2, 6, 2),
            num_heads=(3, 6, 12, 24),
            window_size=7,
            drop_path_rate=0.0,
        ),
    ),
    'pvt_v2_b2': (
        'PyramidVisionTransformerV2',
        dict(embed_dims=64, num_layers=(3, 4, 6, 3), drop_path_rate=0.0),
    ),
    'resnet50': ('ResNet', dict(depth=50)),
}


def check_backbone(name: str) -> None:
    """Raises UserError for a name that is neither ours nor a peer."""
    if name not in DAT.arch_zoo and name not in PEERS:
        raise UserError(
            f'A backbone must be one of {", ".join((*DAT.arch_zoo, *PEERS))}; '
            f'got {name!r}; give others as --foreign NAME=file.py:function.'
        )


def why_missing(subject: Subject) -> str | None:
    """Why a subject cannot be had in this environment, None if it can."""
    if subject.factory is None and subject.name in PEERS:
        for package in ('mmcv', 'mmdet'):
            if find_spec(package) is None:
                return f'{package} is not installed'
    return None


def build_backbone(subject: Subject) -> nn.Module:
    """Builds a backbone that maps images (B, 3, H, W) to feature maps.

    Raises:
        ValueError: A backend that the backbone does not know.
        ImportError: A package that is missing.
        UserError: A factory that is not there.
    """
    if subject.factory is not None:
        return load_factory(subject.factory)()
    if subject.name in DAT.arch_zoo:
        return DAT(subject.name, backend=subject.backend)
    from mmdet.models import backbones

    kind, arguments = PEERS[subject.name]
    return getattr(backbones, kind)(**arguments)


def load_factory(place: str):
    """The function that ``path/to/file.py:function`` names.

    Files beside it can be imported by it, as if it were run.

    Raises:
        UserError: There is no such file or function.
    """
    file, _, name = place.rpartition(':')
    path = Path(file).resolve()
    if not file or not path.is_file():
        raise UserError(
            f'A foreign backbone is given as NAME=file.py:function, and there '
            f'is no file {file!r}; got {place!r}.'
        )
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    if not callable(getattr(module, name, None)):
        raise UserError(f'{file} has no function {name!r}.')
    return getattr(module, name)


@dataclass(frozen=True)
class AttentionCall:
    """An attention and what goes in.

    Attributes:
        run: Takes the inputs.
        inputs: Tensors that may get gradients.
    """

    run: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]


def build_attention(
    subject: Subject,
    setting: Setting,
    device: str = 'cpu',
    dtype: torch.dtype = torch.float32,
) -> AttentionCall:
    """Random inputs of an attention, of the sizes the setting says.

    Args:
        subject: Named ``deformable_attention``, ``neighborhood_attention`` or
            ``sdpa``, which is fused attention on the same queries, keys and
            values, without bias.
        setting: With sizes of an attention.
        device: Where the tensors lie.
        dtype: Of queries, keys and values; coordinates and tables are
            float32.
    """
    sizes = setting.attention
    if sizes.kind == 'neighborhood':
        return _neighborhood(subject, setting, device, dtype)
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    grid = (setting.batch, setting.height, setting.width)
    keys = (setting.batch, *sizes.key_size)
    q, k, v = (
        normal(*where, sizes.heads, sizes.head_dim).to(device, dtype)
        for where in (grid, keys, keys)
    )
    if subject.name == PLAIN:
        return AttentionCall(_plain, (q, k, v))
    height, width = sizes.map_size
    table = normal(sizes.heads, 2 * height - 1, 2 * width - 1)
    offset_yx = normal(setting.batch, sizes.groups, *sizes.key_size, 2)
    if sizes.convention == 'dat':
        points_yx = deformed_points_yx(offset_yx, 'dat', 2)
    else:  # about as far, there being no range to bound it
        offset_yx = offset_yx / torch.tensor(sizes.key_size)
        points_yx = deformed_points_yx(offset_yx, 'dat_pp', -1)
    table, points_yx = table.to(device), points_yx.to(device)
    query_y, query_x = (
        query_axis(n, sizes.convention, points_yx)
        for n in (setting.height, setting.width)
    )

    def run(
        q: Tensor, k: Tensor, v: Tensor, table: Tensor, points_yx: Tensor
    ) -> Tensor:
        bias = TableBias(table, query_y, query_x, points_yx)
        return deformable_attention(q, k, v, bias, backend=subject.backend)

    return AttentionCall(run, (q, k, v, table, points_yx))


def _neighborhood(
    subject: Subject, setting: Setting, device: str, dtype: torch.dtype
) -> AttentionCall:
    sizes = setting.attention
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(
        (setting.batch, setting.height, setting.width)
        + (3, sizes.heads, sizes.head_dim),
        generator=generator,
    ).to(device, dtype)
    side = 2 * sizes.kernel_size - 1
    table = torch.randn((sizes.heads, side, side), generator=generator)

    def run(qkv: Tensor, table: Tensor) -> Tensor:
        return neighborhood_attention(
            *qkv.unbind(3), table, sizes.kernel_size, backend=subject.backend
        )

    return AttentionCall(run, (qkv, table.to(device)))


def _plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v)


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
