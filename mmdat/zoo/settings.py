# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Image preprocessing of a model, in timm's terms."""

from collections.abc import Mapping
from typing import Any

from ..models.arch import Architecture, resolve_arch
from .names import describe


def default_cfg(
    arch: str | Mapping[str, Any], resolved: Architecture | None = None
) -> dict[str, Any]:
    """Returns timm's ``default_cfg`` (``pretrained_cfg``) of a model.

    The authors test at 224 on the central 0.875 of an image, and DAT++ at 384
    on the whole image. Both keep the aspect ratio; timm does not.

    Args:
        arch: Name of the architecture, or an arch dict.
        resolved: The architecture, if it differs from that of the name.
    """
    settings = resolved or resolve_arch(arch, {})
    sides = tuple(4 * side for side in settings.stages[0].map_size)
    named = isinstance(arch, str)
    whole = named and arch == 'dat_pp_b_384'
    return dict(
        architecture=describe(arch) if named else 'dat',
        url='',
        input_size=(3, *sides),
        pool_size=settings.stages[-1].map_size,
        num_classes=1000,
        crop_pct=1.0 if whole else 0.875,
        interpolation='bicubic',
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        first_conv='backbone.patch_embed.conv1',
        classifier='head.fc',
        license='apache-2.0',
        origin_url='https://github.com/LeapLabTHU/DAT',
        paper_ids='arXiv:2309.01430'
        if named and arch.startswith('dat_p')
        else 'arXiv:2201.00520',
    )
