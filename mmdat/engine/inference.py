# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""One picture through a trained model, by the inferencer of its package."""

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import DATASETS, MODELS, init_default_scope

from ..checkpoints.fitting import check_fits
from ..checkpoints.loading import load_checkpoint_file
from ..utils.errors import UserError

# Smaller shares of a picture are not mentioned.
SMALLEST_SHARE = 0.005
# Smaller pictures have no room for the names and scores of classes.
READABLE_SIDE = 320


class Sight(NamedTuple):
    """What a model sees in a picture.

    Attributes:
        drawing: The picture with boxes, masks or labels, RGB (H, W, 3) in
            unsigned bytes.
        lines: One for each object, kind of surface or class, the most
            certain or largest first.
    """

    drawing: np.ndarray
    lines: list[str]


def choose_device(device: str | None) -> str:
    """The device asked for, or the accelerator of this machine, or its CPU.

    Raises:
        UserError: There is no such device here.
    """
    if device is None:
        return get_device()
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f'--device {device} cannot be used here '
            f'({str(error).splitlines()[0]}); try --device cpu.'
        ) from error
    return device


def check_picture(filename: str) -> None:
    """Raises UserError unless a file is a picture that can be read."""
    import mmcv

    if not Path(filename).is_file():
        raise UserError(
            f'There is no picture {filename} (looked for '
            f'{Path(filename).absolute()}).'
        )
    try:
        readable = mmcv.imread(filename) is not None
    except Exception:  # decoders raise what they like
        readable = False
    if not readable:
        raise UserError(
            f'{filename} is not a picture that can be read; give a JPEG or '
            f'PNG file.'
        )


def look(
    cfg: Config,
    checkpoint: str,
    picture: str,
    device: str = 'cpu',
    score: float = 0.3,
) -> Sight:
    """Shows a picture to a detector, segmentor or classifier.

    Args:
        cfg: Config of the model, with ``test_dataloader`` and
            ``default_scope``, which says whose inferencer is used.
        checkpoint: Weights, in OpenMMLab's or the authors' layout.
        picture: File of the picture.
        device: Where to compute.
        score: Lowest score of the boxes to draw and mention.

    Raises:
        UserError: The weights are not those of the model, or there is no
            inferencer for it.
    """
    scope = cfg.get('default_scope')
    if scope not in _TASKS or cfg.get('test_dataloader') is None:
        raise UserError(
            f'A demo needs a config with a test_dataloader and a '
            f'default_scope out of {", ".join(_TASKS)}; {cfg.filename} has '
            f'default_scope={scope!r}.'
        )
    init_default_scope(scope)
    names = _check_weights(cfg, checkpoint)
    return _TASKS[scope](cfg, checkpoint, picture, device, score, names)


def _check_weights(cfg: Config, checkpoint: str) -> dict[str, Any] | None:
    """Compares file and model; returns names of classes if the file has none.

    Without names of its own, a file would get those of the data set that its
    package thinks of first; the config knows better.
    """
    if '://' in checkpoint:
        return None
    content = load_checkpoint_file(checkpoint, 'meta')
    try:
        with torch.device('meta'):
            model = MODELS.build(cfg.model)
    except (TypeError, ValueError, KeyError, ImportError) as error:
        raise UserError(
            f'The model of {cfg.filename} cannot be built: {error}'
        ) from error
    check_fits(checkpoint, content, model)
    meta = content.get('meta')
    if isinstance(meta, Mapping) and {'dataset_meta', 'CLASSES'} & set(meta):
        return None
    dataset = cfg.test_dataloader.dataset
    with DATASETS.switch_scope_and_registry(cfg.default_scope) as registry:
        known = getattr(registry.get(dataset.type), 'METAINFO', {})
    return {**known, **dataset.get('metainfo', {})}


def _name(names: Any, label: int) -> str:
    """The name of a class, or its number where there is none."""
    return names[label] if names and label < len(names) else str(label)


def _detect(
    cfg: Config,
    checkpoint: str,
    picture: str,
    device: str,
    score: float,
    names: dict[str, Any] | None,
) -> Sight:
    from mmdet.apis import DetInferencer

    inferencer = DetInferencer(
        cfg, checkpoint, device=device, show_progress=False
    )
    inferencer.model.dataset_meta.update(names or {})
    result = inferencer(
        picture,
        return_vis=True,
        pred_score_thr=score,
        return_datasamples=True,
    )
    found = result['predictions'][0].pred_instances.cpu()
    found = found[found.scores >= score]
    found = found[found.scores.argsort(descending=True)]
    classes = inferencer.model.dataset_meta.get('classes')
    lines = [
        f'{_name(classes, int(label))} {float(certainty):.2f} at '
        f'{" ".join(f"{side:.0f}" for side in box.tolist())}'
        for label, certainty, box in zip(
            found.labels, found.scores, found.bboxes
        )
    ]
    return Sight(
        result['visualization'][0],
        lines or [f'nothing with a score of {score} or more'],
    )


def _segment(
    cfg: Config,
    checkpoint: str,
    picture: str,
    device: str,
    score: float,
    names: dict[str, Any] | None,
) -> Sight:
    from mmseg.apis import MMSegInferencer

    inferencer = MMSegInferencer(
        cfg, checkpoint, device=device, show_progress=False
    )
    if names is not None:
        inferencer.model.dataset_meta = {
            'classes': names.get('classes'),
            'palette': names.get('palette'),
        }
    result = inferencer(picture, return_vis=True, opacity=0.5)
    labels, areas = np.unique(result['predictions'], return_counts=True)
    shares = areas / areas.sum()
    classes = inferencer.model.dataset_meta.get('classes')
    lines = [
        f'{_name(classes, labels[i])} {100 * shares[i]:.1f}%'
        for i in shares.argsort()[::-1]
        if shares[i] >= SMALLEST_SHARE
    ]
    return Sight(result['visualization'], lines)


def _classify(
    cfg: Config,
    checkpoint: str,
    picture: str,
    device: str,
    score: float,
    names: dict[str, Any] | None,
) -> Sight:
    from mmpretrain import ImageClassificationInferencer
    from mmpretrain.utils import progress

    inferencer = ImageClassificationInferencer(cfg, checkpoint, device=device)
    if names is not None:
        inferencer.classes = names.get('classes')
    progress.disable_progress_bar = True
    samples = inferencer(picture, return_datasamples=True)
    side = min(samples[0].ori_shape[:2])
    with TemporaryDirectory() as folder:
        drawings = inferencer.visualize(
            [picture],
            samples,
            resize=READABLE_SIDE if side < READABLE_SIDE else None,
            show_dir=folder,
        )
    scores = samples[0].pred_score.cpu()
    top = scores.topk(min(5, len(scores)))
    lines = [
        f'{_name(inferencer.classes, int(label))} {float(certainty):.3f}'
        for certainty, label in zip(top.values, top.indices)
    ]
    return Sight(drawings[0], lines)


_TASKS: dict[str, Callable[..., Sight]] = {
    'mmdet': _detect,
    'mmseg': _segment,
    'mmpretrain': _classify,
}
