# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Golden outputs without weight files: every weight follows from its name.

The files in `tests/data/golden` hold outputs of the authors' published
implementation whose parameters were filled by :func:`weight` and which was
fed :func:`image`, in eval mode and float32. A file is called
KIND-NAME-HxW.npz, where KIND is

* `v1`: DAT classifier (Xia et al., CVPR 2022); `logits` (B, 1000),
  `stage{i}`, the stage outputs before any output norm, and `pos_s{i}_b{j}`
  (B, groups, Hk, Wk, 2), the deformed points of stage i, block j, (y, x);
* `v1det`: the same architecture as a dense backbone; `feat{i}`, the four
  normalised outputs;
* `pp`: DAT++ classifier (arXiv 2309.01430); `logits`, `stage{i}`;
* `det`: DAT++ dense backbone; `feat{i}`;
* `p`: DAT+ classifier (their `dat_p`); `logits`, `stage{i}`.

B is 2, or 1 where H * W >= 70000. Maps of stage i are stored with a spatial
stride of 4, 2, 1, 1. The parameters' names and shapes are in
`keys-KIND-NAME.json`.
"""

import json
import re
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

GOLDEN_DIR = Path(__file__).parents[1] / 'data' / 'golden'
MAP_STRIDES = (4, 2, 1, 1)
BIAS_TABLES = ('rpe_table', 'relative_position_bias_table', 'rpb')


class Case(NamedTuple):
    """What the name of a golden file says.

    Attributes:
        name: Stem of the file.
        arch: Name of the architecture, as in `oracle.variants`.
        dense: Whether it is a dense backbone (else a classifier).
        keys: Stem of the file with parameter names and shapes.
        input_shape: (B, 3, H, W).
    """

    name: str
    arch: str
    dense: bool
    keys: str
    input_shape: tuple[int, int, int, int]


def case(name: str) -> Case:
    """Parses the stem of a golden file."""
    kind, size, height, width = re.fullmatch(
        r'(v1|v1det|pp|det|p)-dat_(\w+)-(\d+)x(\d+)', name
    ).groups()
    suffix = dict(tiny='t', small='s', base='b', base_384='b_384')[size]
    family = dict(v1='dat_', v1det='dat_', p='dat_p_').get(kind, 'dat_pp_')
    height, width = int(height), int(width)
    batch = 1 if height * width >= 70000 else 2
    return Case(
        name,
        family + suffix,
        kind.endswith('det'),
        f'keys-{kind}-dat_{size}',
        (batch, 3, height, width),
    )


def case_names() -> list[str]:
    """Stems of all golden files."""
    return sorted(path.stem for path in GOLDEN_DIR.glob('*.npz'))


def _normal(name: str, shape: tuple) -> np.ndarray:
    seed = zlib.crc32(b'open' + name.encode())
    generator = np.random.default_rng(seed)
    return generator.standard_normal(shape, dtype=np.float32)


def weight(key: str, shape: tuple) -> np.ndarray:
    """The values of the learnable entry `key` of a published state dict."""
    values = _normal(key, shape)
    if key.endswith('bias'):
        return 0.1 * values
    if len(shape) == 1:  # scales of layer norms
        return 1 + 0.1 * values
    if key.endswith(BIAS_TABLES):
        return 0.5 * values
    # The residual 3x3 convolutions are kept small so that deep models stay
    # in a sensible range; everything else preserves variance.
    residual = 'local_perception_units' in key or '.dwc.' in key
    gain = 0.3 if residual else 1.0
    return (gain / np.sqrt(np.prod(shape[1:]))) * values


def image(shape: tuple) -> np.ndarray:
    """The input batch, (B, 3, H, W), float32."""
    return _normal('input', shape)


def key_shapes(keys: str) -> dict[str, list[int]]:
    """Names and shapes of all learnable entries, e.g. of keys-v1-dat_tiny."""
    return json.loads((GOLDEN_DIR / f'{keys}.json').read_text())


def state_dict(keys: str) -> dict[str, np.ndarray]:
    """A published state dict, filled by the rule, float32."""
    return {
        key: weight(key, tuple(shape)).astype(np.float32)
        for key, shape in key_shapes(keys).items()
    }


def golden(name: str) -> dict[str, np.ndarray]:
    """The stored arrays of one golden file."""
    with np.load(GOLDEN_DIR / f'{name}.npz') as arrays:
        return dict(arrays)
