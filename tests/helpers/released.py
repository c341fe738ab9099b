# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Files in the layouts the authors released, made from the golden rule."""

from pathlib import Path
from typing import Any

import golden_rule
import numpy as np
import torch

ARCHS = {'tiny': 't', 'small': 's', 'base': 'b', 'base_384': 'b_384'}


def arch_of(keys: str) -> str:
    """Our name of the architecture of keys-KIND-dat_NAME.json."""
    kind, name = keys.split('-')[1:]
    family = dict(pp='dat_pp', det='dat_pp', p='dat_p').get(kind, 'dat')
    return f'{family}_{ARCHS[name.removeprefix("dat_")]}'


def state_dict(keys: str) -> dict[str, torch.Tensor]:
    """A published state dict, with the index tables real files carry."""
    entries = {
        key: torch.from_numpy(value)
        for key, value in golden_rule.state_dict(keys).items()
    }
    windows = [k for k in entries if k.endswith('position_bias_table')]
    for key in windows:
        block = key.rpartition('.')[0]
        entries[f'{block}.relative_position_index'] = torch.zeros(
            49, 49
        ).long()
        entries[f'{block}.attn_mask'] = torch.zeros(4, 49, 49)
    return entries


def dense_state_dict(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """Numbers for a whole detector or segmentor of `released_heads`."""
    entries = {}
    for name, shape in shapes.items():
        if name.endswith('num_batches_tracked'):
            entries[name] = torch.tensor(87948)
        else:
            values = golden_rule.weight(name, shape).astype(np.float32)
            entries[name] = torch.from_numpy(values).view(shape)
        if name.endswith('running_var'):
            entries[name] = entries[name].abs() + 0.5
    return entries


def _adam(entries: dict[str, Any]) -> dict[str, Any]:
    """The state of an optimiser, of two parameters."""
    some = list(entries.values())[:2]
    return dict(
        state={
            i: dict(step=7, exp_avg=value, exp_avg_sq=value**2)
            for i, value in enumerate(some)
        },
        param_groups=[dict(lr=1e-4, betas=(0.9, 0.999), params=[0, 1])],
    )


def save_classification(path: Path, entries: dict[str, Any]) -> None:
    """As the authors' classification code saves."""
    torch.save(
        dict(
            model=entries,
            optimizer=_adam(entries),
            lr_scheduler=dict(base_values=[1e-3], t_initial=375300),
            max_accuracy=83.9,
            epoch=300,
        ),
        path,
    )


def save_dense(
    path: Path, entries: dict[str, Any], classes: tuple[str, ...], **meta: Any
) -> None:
    """As mmcv 1 saves, for MMDetection 2 or MMSegmentation 0."""
    torch.save(
        dict(
            meta=dict(
                mmcv_version='1.4.0',
                time='Mon Aug 21 10:11:12 2023',
                env_info='sys.platform: linux\nPython: 3.9.16',
                config="model = dict(type='DAT')\n",
                seed=np.int64(1234567890),
                exp_name='dat.py',
                hook_msgs=dict(best_score=np.float64(0.487)),
                CLASSES=classes,
                **meta,
            ),
            state_dict=entries,
            optimizer=_adam(entries),
        ),
        path,
    )


def save_shapes(path: Path, shapes: dict[str, Any], wrapper: str) -> None:
    """A file of full size in which every number is the same, stored once."""
    entries = {
        name: torch.zeros(()).expand(tuple(shape))
        for name, shape in shapes.items()
    }
    torch.save({wrapper: entries}, path)
