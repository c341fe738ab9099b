# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""What the maps of a backbone are, in timm's vocabulary."""

from collections.abc import Iterable, Sequence
from typing import Any

from .arch import Architecture


class FeatureInfo(list):
    """A dict for each stage, with those that are put out known.

    timm takes it for the list that its own models have.

    Args:
        info: For each stage its ``num_chs``, ``reduction`` and ``module``.
        out_indices: The stages that are put out.
    """

    def __init__(
        self, info: Iterable[dict[str, Any]], out_indices: Sequence[int]
    ) -> None:
        super().__init__(dict(one, index=i) for i, one in enumerate(info))
        self.out_indices = tuple(out_indices)

    def get(self, key: str, idx: int | Sequence[int] | None = None) -> Any:
        """A value of each stage put out, or of the stages `idx`."""
        if isinstance(idx, int):
            return self[idx][key]
        chosen = self.out_indices if idx is None else idx
        return [self[i][key] for i in chosen]

    def channels(self, idx: int | Sequence[int] | None = None) -> Any:
        """Channels of the maps."""
        return self.get('num_chs', idx)

    def reduction(self, idx: int | Sequence[int] | None = None) -> Any:
        """Strides of the maps in pixels of the image."""
        return self.get('reduction', idx)

    def module_name(self, idx: int | Sequence[int] | None = None) -> Any:
        """Names of the modules whose results the maps are."""
        return self.get('module', idx)


def feature_info(
    arch: Architecture, out_indices: Sequence[int], prefix: str = ''
) -> FeatureInfo:
    """That of a backbone.

    Args:
        arch: Its architecture.
        out_indices: The stages that it puts out.
        prefix: Its place in the model, such as ``'backbone.'``.
    """
    return FeatureInfo(
        (
            dict(
                num_chs=stage.dim,
                reduction=4 * 2**i,
                module=f'{prefix}stages.{i}',
            )
            for i, stage in enumerate(arch.stages)
        ),
        out_indices,
    )
