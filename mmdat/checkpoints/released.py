# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Names in the authors' released files, and ours."""

import re
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

# The kinds of entries a file may wrap the state dict in.
_WRAPPERS = ('state_dict', 'model')

# Tables computed from the architecture; we compute them ourselves.
_INDEX_TABLES = re.compile(
    r'\.(relative_position_index|attn_mask|q_grid|reference)$'
)


# Names that PyTorch gives to the module inside a wrapper.
_PART_WRAPPERS = re.compile(
    r'\.(?:(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.)+'
)


def _halves(name: str) -> Callable[[re.Match], str]:
    """Numbers 2d and 2d + 1 of a stage are the first and second of block d."""

    def replace(match: re.Match) -> str:
        block, which = divmod(int(match[1]), 2)
        return f'.blocks.{block}.{name}{which + 1}.'

    return replace


_RULES: list[tuple[str, str | Callable[[re.Match], str]]] = [
    (r'^patch_proj\.0\.', 'patch_embed.conv1.'),
    (r'^patch_proj\.1\.norm\.', 'patch_embed.norm1.'),
    (r'^patch_proj\.3\.', 'patch_embed.conv2.'),
    (r'^patch_proj\.4\.norm\.', 'patch_embed.norm2.'),
    (r'^stages\.0\.proj\.', 'stem_proj.'),
    (r'^down_projs\.(\d)\.0\.', r'downsamples.\1.conv.'),
    (r'^down_projs\.(\d)\.1\.norm\.', r'downsamples.\1.norm.'),
    (r'^norms\.(\d)\.norm\.', r'norm\1.'),
    (r'^cls_norm\.norm\.', 'norm3.'),
    (r'\.layer_norms\.(\d+)\.norm\.', _halves('norm')),
    (r'\.layer_scales\.(\d+)\.', _halves('layer_scale')),
    (r'\.ln_cnvnxt\.(\d+)\.norm\.', r'.blocks.\1.norm.'),
    (r'\.local_perception_units\.(\d+)\.', r'.blocks.\1.local_perception.'),
    (r'\.mlps\.(\d+)\.(?:chunk\.)?', r'.blocks.\1.mlp.'),
    (r'\.mlp\.linear(\d)\.(?:0\.)?', r'.mlp.fc\1.'),
    (r'\.mlp\.dwc\.', '.mlp.dwconv.'),
    (r'\.attns\.(\d+)\.(weight|bias)$', r'.blocks.\1.conv.\2'),
    (r'\.attns\.(\d+)\.', r'.blocks.\1.attn.'),
    (r'\.conv_offset\.0\.', '.conv_offset.dwconv.'),
    (r'\.conv_offset\.1\.norm\.', '.conv_offset.norm.'),
    (r'\.conv_offset\.3\.', '.conv_offset.proj.'),
    (r'\.proj_ds\.0\.', '.proj_ds.conv.'),
    (r'\.proj_ds\.1\.norm\.', '.proj_ds.norm.'),
]


def rename(key: str) -> str:
    """Our name of a released backbone entry (without ``backbone.``)."""
    for pattern, replacement in _RULES:
        key = re.sub(pattern, replacement, key)
    return key


def is_released(keys: Iterable[str]) -> bool:
    """Whether these names are those of a released backbone."""
    return any(key.startswith('patch_proj.') for key in keys)


def unwrap(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state dict inside a checkpoint, or the checkpoint if it is one."""
    for name in _WRAPPERS:
        if isinstance(checkpoint.get(name), Mapping):
            return checkpoint[name]
    return checkpoint


def entries_of(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict inside a checkpoint, without the ``module.`` of DDP."""
    return {
        name.removeprefix('module.'): value
        for name, value in unwrap(checkpoint).items()
    }


def without_wrappers(
    entries: Mapping[str, Any], own: Container[str]
) -> dict[str, Any]:
    """Entries without the names of wrappers of single blocks or stages.

    ``block.compile``d, sharded and checkpointed parts of a model have such
    names in the middle of those of their weights.

    Args:
        entries: A backbone's state dict.
        own: Names in the model, which may be wrapped itself.
    """
    found = {}
    for name, value in entries.items():
        bare = _PART_WRAPPERS.sub('.', name)
        found[bare if name not in own and bare in own else name] = value
    return found


def is_index_table(name: str) -> bool:
    """Whether an entry follows from the architecture and is not loaded."""
    return bool(_INDEX_TABLES.search(name))


def translate(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """A released backbone's state dict under our names.

    Index tables are left out and so is the classifier ``cls_head``.
    ``cls_norm``, the norm before it, becomes ``norm3``.
    """
    return {
        rename(key): value
        for key, value in state_dict.items()
        if not is_index_table(key) and not key.startswith('cls_head.')
    }
