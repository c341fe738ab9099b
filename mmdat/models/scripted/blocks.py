# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Layers, blocks and the backbone for TorchScript."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..block import Block, ConvBlock, Stage
from ..dat import DAT
from ..layers import Conv2d, DropPath, PatchConv
from ..mlp import MLP
from .forms import form_of, scriptable


def pad_to_multiple(x: Tensor, divisor: int) -> Tensor:
    """Pads (B, H, W, C) with zeros to multiples, at the bottom right."""
    below = -x.shape[1] % divisor
    right = -x.shape[2] % divisor
    return F.pad(x, (0, 0, 0, right, 0, below))


@form_of(Conv2d, PatchConv)
class _Conv(nn.Module):
    def __init__(self, conv: Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.stride, self.dilation = list(conv.stride), list(conv.dilation)
        self.padding, self.groups = conv.padding, conv.groups
        if not isinstance(conv.padding, str):
            self.padding = list(conv.padding)
        self.whole_patches = isinstance(conv, PatchConv)

    def forward(self, x: Tensor) -> Tensor:
        if self.whole_patches:
            x = pad_to_multiple(x, self.stride[0])
        x = F.conv2d(
            x.permute(0, 3, 1, 2),
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )
        return x.permute(0, 2, 3, 1)


@form_of(DropPath)
class _DropPath(nn.Module):
    def __init__(self, drop: DropPath) -> None:
        super().__init__()
        self.rate = float(drop.rate)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = torch.empty([x.shape[0], 1, 1, 1], device=x.device)
        out = x * keep.bernoulli_(1 - self.rate).to(x.dtype)
        return out / (1 - self.rate) if self.rate < 1 else out


@form_of(MLP)
class _MLP(nn.Module):
    def __init__(self, mlp: MLP) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = mlp.fc1, mlp.act, mlp.fc2
        self.dwconv = scriptable(mlp.dwconv)
        self.drop = mlp.drop

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        if self.dwconv is not None:
            x = self.drop(x)
            return self.drop(self.fc2(self.act(x + self.dwconv(x))))
        return self.drop(self.fc2(self.drop(self.act(x))))


@form_of(Block)
class _Block(nn.Module):
    def __init__(self, block: Block) -> None:
        super().__init__()
        self.local_perception = scriptable(block.local_perception)
        self.norm1, self.attn = block.norm1, scriptable(block.attn)
        self.layer_scale1 = block.layer_scale1
        self.norm2, self.mlp = block.norm2, scriptable(block.mlp)
        self.layer_scale2 = block.layer_scale2
        self.drop_path = scriptable(block.drop_path)

    def forward(self, x: Tensor) -> Tensor:
        if self.local_perception is not None:
            x = x + self.local_perception(x)
        out = self.layer_scale1(self.attn(self.norm1(x)))
        x = x + self.drop_path(out)
        out = self.layer_scale2(self.mlp(self.norm2(x)))
        return x + self.drop_path(out)


@form_of(ConvBlock)
class _ConvBlock(nn.Module):
    def __init__(self, block: ConvBlock) -> None:
        super().__init__()
        self.local_perception = scriptable(block.local_perception)
        self.conv, self.norm = scriptable(block.conv), block.norm
        self.mlp, self.layer_scale = scriptable(block.mlp), block.layer_scale
        self.drop_path = scriptable(block.drop_path)

    def forward(self, x: Tensor) -> Tensor:
        if self.local_perception is not None:
            x = x + self.local_perception(x)
        out = self.layer_scale(self.mlp(self.norm(self.conv(x))))
        return x + self.drop_path(out)


@form_of(Stage)
class _Stage(nn.Module):
    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.blocks = scriptable(stage.blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@form_of(DAT)
class _DAT(nn.Module):
    def __init__(self, model: DAT) -> None:
        super().__init__()
        self.patch_embed = scriptable(model.patch_embed)
        self.stem_proj = model.stem_proj
        self.stages = scriptable(model.stages)
        self.downsamples = scriptable(model.downsamples)
        for i in range(4):
            norm = getattr(model, f'norm{i}', None)
            setattr(self, f'norm{i}', norm)

    def forward(self, x: Tensor) -> list[Tensor]:
        outs: list[Tensor] = []
        x = self.patch_embed(x.permute(0, 2, 3, 1))
        if self.stem_proj is not None:
            x = self.stem_proj(x)
        x = self.stages[0](x)
        if self.norm0 is not None:
            outs.append(self.norm0(x).permute(0, 3, 1, 2).contiguous())
        x = self.stages[1](self.downsamples[0](x))
        if self.norm1 is not None:
            outs.append(self.norm1(x).permute(0, 3, 1, 2).contiguous())
        x = self.stages[2](self.downsamples[1](x))
        if self.norm2 is not None:
            outs.append(self.norm2(x).permute(0, 3, 1, 2).contiguous())
        x = self.stages[3](self.downsamples[2](x))
        if self.norm3 is not None:
            outs.append(self.norm3(x).permute(0, 3, 1, 2).contiguous())
        return outs
