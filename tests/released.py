# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Files in the layouts the authors released, made from the golden rule."""

import golden_rule
import torch

ARCHS = {'tiny': 't', 'small': 's', 'base': 'b', 'base_384': 'b_384'}


def arch_of(keys: str) -> str:
    """Our name of the architecture of keys-KIND-dat_NAME.json."""
    kind, name = keys.split('-')[1:]
    family = 'dat_pp' if kind in ('pp', 'det') else 'dat'
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
