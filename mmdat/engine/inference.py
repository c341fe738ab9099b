# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""One picture through a trained model, by the inferencer of its package."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from glob import glob
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import DATASETS, MODELS

from ..checkpoints.loading import load_checkpoint_file
from ..utils.errors import UserError
from ..utils.packages import enter_scope
from .lettering import with_lines
from .weights import check_fits
from .whole_pictures import check_whole, is_needed

# Classes with a smaller share of the picture are not listed.
SMALLEST_SHARE = 0.005


class Sight(NamedTuple):
    """What a model finds in a picture.

    Attributes:
        drawing: The picture with boxes, masks or labels, RGB (H, W, 3) in
            unsigned bytes.
        lines: One line for each object (detection), class in the picture
            (segmentation) or likely class (classification), the most certain
            or largest first.
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


# How names of pictures end that a folder is searched for.
PICTURES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff', '.ppm')


def find_pictures(name: str) -> list[str]:
    """The picture files of a name, a folder or a pattern.

    Raises:
        UserError: There is none.
    """
    path = Path(name)
    if path.is_dir():
        found = sorted(
            str(one)
            for one in path.iterdir()
            if one.suffix.lower() in PICTURES and one.is_file()
        )
        if not found:
            raise UserError(
                f'There are no pictures in {name}; their names must end in '
                f'one of {" ".join(PICTURES)}.'
            )
        return found
    if path.is_file() or not any(sign in name for sign in '*?['):
        return [name]
    found = sorted(
        one for one in glob(name, recursive=True) if Path(one).is_file()
    )
    if not found:
        raise UserError(f'No picture fits the pattern {name}.')
    return found


def check_picture(filename: str) -> None:
    """Raises UserError unless a file is a picture that can be read."""
    import mmcv

    if not Path(filename).is_file():
        raise UserError(
            f'There is no picture {filename} (looked for '
            f'{Path(filename).absolute()}).'
        )
    try:
        if is_needed():
            check_whole(filename)
        readable = mmcv.imread(filename) is not None
    except Exception:  # decoders raise any exception
        readable = False
    if not readable:
        raise UserError(
            f'{filename} is not a picture that can be read; give a JPEG or '
            f'PNG file.'
        )


def look(cfg: Config, checkpoint: str, picture: str, **kwargs: Any) -> Sight:
    """Runs a model on one picture, see [`look_at_each`][]."""
    return next(look_at_each(cfg, checkpoint, [picture], **kwargs))


def look_at_each(
    cfg: Config,
    checkpoint: str,
    pictures: Sequence[str],
    device: str = 'cpu',
    score: float = 0.3,
) -> Iterator[Sight]:
    """Runs a detector, segmentor or classifier on pictures, one by one.

    Args:
        cfg: Config of the model, with ``test_dataloader`` and
            ``default_scope``, which says whose inferencer is used.
        checkpoint: Weights, in OpenMMLab's or the authors' layout.
        pictures: Files of the pictures.
        device: Where to compute.
        score: Lowest score of the boxes to draw and list.

    Returns:
        What the model finds in each of them.

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
    enter_scope(scope)
    names = _check_weights(cfg, checkpoint)
    return _TASKS[scope](cfg, checkpoint, pictures, device, score, names)


def _check_weights(cfg: Config, checkpoint: str) -> dict[str, Any] | None:
    """Compares file and model; returns names of classes if the file has none.

    A file without class names would get those of the package's default data
    set; the config has the right ones.
    """
    if '://' in checkpoint:
        return None
    content = load_checkpoint_file(checkpoint, 'cpu')
    try:
        with torch.device('meta'):
            # A copy, as some models write into their settings (mmdet's DINO).
            model = MODELS.build(deepcopy(cfg.model))
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
    pictures: Sequence[str],
    device: str,
    score: float,
    names: dict[str, Any] | None,
) -> Iterator[Sight]:
    from mmdet.apis import DetInferencer

    inferencer = DetInferencer(
        cfg, checkpoint, device=device, show_progress=False
    )
    inferencer.model.dataset_meta.update(names or {})
    for picture in pictures:
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
        yield Sight(
            result['visualization'][0],
            lines or [f'nothing with a score of {score} or more'],
        )


def _segment(
    cfg: Config,
    checkpoint: str,
    pictures: Sequence[str],
    device: str,
    score: float,
    names: dict[str, Any] | None,
) -> Iterator[Sight]:
    from mmseg.apis import MMSegInferencer

    inferencer = MMSegInferencer(cfg, checkpoint, device=device)
    inferencer.show_progress = False  # mmseg 1.2 takes it only like this
    if names is not None:
        inferencer.model.dataset_meta = {
            'classes': names.get('classes'),
            'palette': names.get('palette'),
        }
    for picture in pictures:
        result = inferencer(picture, return_vis=True, opacity=0.5)
        labels, areas = np.unique(result['predictions'], return_counts=True)
        shares = areas / areas.sum()
        classes = inferencer.model.dataset_meta.get('classes')
        lines = [
            f'{_name(classes, labels[i])} {100 * shares[i]:.1f}%'
            for i in shares.argsort()[::-1]
            if shares[i] >= SMALLEST_SHARE
        ]
        yield Sight(result['visualization'], lines)


def _classify(
    cfg: Config,
    checkpoint: str,
    pictures: Sequence[str],
    device: str,
    score: float,
    names: dict[str, Any] | None,
) -> Iterator[Sight]:
    import mmcv
    from mmpretrain import ImageClassificationInferencer
    from mmpretrain.utils import progress

    inferencer = ImageClassificationInferencer(cfg, checkpoint, device=device)
    if names is not None:
        inferencer.classes = names.get('classes')
    progress.disable_progress_bar = True
    for picture in pictures:
        samples = inferencer(picture, return_datasamples=True)
        scores = samples[0].pred_score.cpu()
        top = scores.topk(min(5, len(scores)))
        lines = [
            f'{_name(inferencer.classes, int(label))} {float(certainty):.3f}'
            for certainty, label in zip(top.values, top.indices)
        ]
        image = mmcv.imread(picture, channel_order='rgb')
        yield Sight(with_lines(image, lines), lines)


_TASKS: dict[str, Callable[..., Iterator[Sight]]] = {
    'mmdet': _detect,
    'mmseg': _segment,
    'mmpretrain': _classify,
}
