# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Pictures and models, prepared by a config and its test pipeline."""

import warnings
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from torch import Tensor, nn

from ..analysis.forward import build_model
from ..checkpoints.fitting import load_and_compare
from ..checkpoints.loading import load_checkpoint_file
from ..engine.configuration import load_config
from ..engine.preflight import check_run
from ..engine.weights import check_fits
from ..utils.errors import UserError
from ..utils.packages import enter_scope
from .frames import Frame
from .recorder import BlockRecord, DATRecorder, Queries, find_backbone

# What may change the size of an image on its way, in the order that
# Frame.from_meta takes for granted.
_STEPS = (
    ('Resize', 'ResizeEdge', 'ResizeShortestEdge', 'RandomChoiceResize'),
    ('CenterCrop',),
    ('Pad',),
)


# Stands for the weights before a training, where checkpoints are listed.
INIT = 'init'


@dataclass(frozen=True)
class Picture:
    """A picture, and the input that a model gets.

    Attributes:
        image: The original, (H, W, 3), RGB, uint8.
        inputs: Input of the backbone, (1, 3, H', W').
        frame: Where the pixels of the input lie in the original.
        samples: Data samples of the packages, for the heads of the model.
    """

    image: np.ndarray
    inputs: Tensor
    frame: Frame
    samples: tuple[Any, ...] = ()


def load_model(
    config: str | Config, checkpoint: str | None = None
) -> nn.Module:
    """Builds the model of a config in eval mode, on the CPU.

    Args:
        config: A detection, segmentation or classification config.
        checkpoint: A checkpoint or a released file of the authors, with the
            heads of the config or others. None uses the file of the backbone's
            ``init_cfg``, or random weights.

    Returns:
        The model, with the config as ``cfg`` and the source of its weights as
        ``weights``.

    Raises:
        UserError: A file is missing, or does not fit.

    Warns:
        UserWarning: The weights are random.
    """
    cfg = load_config(config) if isinstance(config, str) else config
    check_run(cfg, ())
    model = build_model(cfg).eval()
    try:
        backbone = find_backbone(model)
    except ValueError as error:
        raise UserError(f'{cfg.filename}: {error}') from error
    model.cfg = cfg
    if checkpoint is not None:
        load_weights(model, checkpoint)
        return model
    if backbone.init_cfg:  # else nothing but many lines of log
        backbone.init_weights()
    settings = backbone.init_cfg or {}
    parts = settings if isinstance(settings, list) else [settings]
    source = next((p['checkpoint'] for p in parts if 'checkpoint' in p), None)
    model.weights = Weights('random' if source is None else str(source))
    if source is None:
        warnings.warn(
            'No checkpoint was given, so the weights are random and what is '
            'drawn is noise; name a checkpoint to see what a model has learnt.'
        )
    return model


@dataclass(frozen=True)
class Weights:
    """Where the weights of a model come from.

    Attributes:
        source: The file's name, ``random`` if there is none.
        whole: Whether the heads have weights of the file too, so that their
            results are meaningful.
    """

    source: str
    whole: bool = False

    @property
    def warning(self) -> str:
        """What a picture must say of them, if anything."""
        return 'random weights' if self.source == 'random' else ''


def load_weights(model: nn.Module, checkpoint: str) -> None:
    """Gives a model the weights of a file, which must have its backbone's.

    ``init`` stands for the weights before any training, drawn with the seed
    of the config.

    Raises:
        UserError: The file is missing, or does not fit.
    """
    if checkpoint == INIT:
        seed = (model.cfg.get('randomness') or {}).get('seed') or 0
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            fresh = find_backbone(build_model(model.cfg))
            if fresh.init_cfg:
                fresh.init_weights()
        find_backbone(model).load_state_dict(fresh.state_dict())
        model.weights = Weights('before training')
        return
    entries = load_checkpoint_file(checkpoint, 'cpu')
    misfit = load_and_compare(model, entries)
    if misfit.within('backbone.').is_fatal:
        check_fits(checkpoint, entries, model, 'backbone.')
    model.weights = Weights(Path(checkpoint).name, not misfit.is_fatal)


def load_picture(
    model: nn.Module, path: str | Path, cfg: Config | None = None
) -> Picture:
    """Sends a picture through the test pipeline of a model.

    Args:
        model: The result of [`load_model`][].
        path: An image file.
        cfg: Config with the pipeline; None for the ``cfg`` of the model.

    Raises:
        UserError: The image does not exist, or the config has no pipeline that
            reads images.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f'There is no image {path} (looked for {path.absolute()}); check '
            f'the path.'
        )
    cfg = model.cfg if cfg is None else cfg
    enter_scope(cfg.get('default_scope'))
    (_, load), *rest = (
        (_name(t), Compose([t])) for t in _image_transforms(cfg)
    )
    try:
        results = load(dict(img_path=str(path), img_id=0))
    except Exception as error:  # whatever the decoder thinks of it
        raise UserError(
            f'{path} cannot be read as an image ({error}); convert it to PNG '
            f'or JPEG.'
        ) from error
    image = _displayable(results['img'][..., ::-1])
    step = 0
    for name, transform in rest:
        size = np.shape(results.get('img'))
        results = transform(results)
        if 'img' in results and np.shape(results['img']) != size:
            step = _follow(name, step)
    return pack(model, results, image)


def _follow(name: str, step: int) -> int:
    """Raises UserError for a change of size whose pixels would be lost."""
    for i, names in enumerate(_STEPS[step:], start=step + 1):
        if name in names:
            return i
    known = ', then '.join(' or '.join(names) for names in _STEPS)
    raise UserError(
        f'To find pixels again the test pipeline may change the size of '
        f'images by {known}; got {name} out of this order, so leave it out '
        f'with --cfg-options test_dataloader.dataset.pipeline=...'
    )


def pack(
    model: nn.Module, packed: dict[str, Any], image: np.ndarray | None = None
) -> Picture:
    """Makes a picture of what a pipeline packed.

    Args:
        model: Detector, segmentor or classifier.
        packed: ``inputs`` (3, H, W) in BGR and ``data_samples``.
        image: The original, (H, W, 3), RGB; None stands for the input itself,
            without its padding.
    """
    sample = packed['data_samples']
    data = dict(inputs=[packed['inputs']], data_samples=[deepcopy(sample)])
    data = model.data_preprocessor(data, False)
    inputs, samples = data['inputs'], tuple(data['data_samples'])
    if image is not None:
        frame = Frame.from_meta(sample.metainfo)
        return Picture(image, inputs, frame, samples)
    image = packed['inputs'].permute(1, 2, 0).flip(-1).cpu().numpy()
    frame = Frame(image.shape[:2])
    return Picture(_displayable(image), inputs, frame, samples)


def record(
    model: nn.Module,
    picture: Picture,
    blocks: Iterable[tuple[int, int]] | None = None,
    queries_xy: Queries = (),
    received: bool = True,
) -> dict[tuple[int, int], BlockRecord]:
    """Runs only the backbone of a model on a picture, and records blocks.

    Args:
        model: The model.
        picture: The picture.
        blocks: As in [`DATRecorder`][], and so the next two.
        queries_xy: Pixels (x, y) of the queries whose attention to record.
        received: Whether to compute how much attention each key receives.

    Returns:
        The records by (stage, block).
    """
    recorder = DATRecorder(model, blocks, queries_xy, picture.frame, received)
    with recorder, torch.no_grad():
        find_backbone(model)(picture.inputs)
    return recorder.records


def _image_transforms(cfg: Config) -> list[Any]:
    """Of the test pipeline, what reads and changes the image."""
    for split in ('test', 'val'):
        dataset = (cfg.get(f'{split}_dataloader') or {}).get('dataset')
        while dataset is not None and 'pipeline' not in dataset:
            inner = dataset.get('datasets') or [dataset.get('dataset')]
            dataset = inner[0]
        if dataset is None:
            continue
        pipeline = list(dataset['pipeline'])
        names = [_name(transform) for transform in pipeline]
        if names and names[0] == 'LoadImageFromFile':
            return [
                transform
                for transform, name in zip(pipeline, names)
                if name == names[0] or not name.startswith('Load')
            ]
    raise UserError(
        f'To prepare an image the config needs a test_dataloader whose '
        f'pipeline starts with LoadImageFromFile; {cfg.filename} has none.'
    )


def _name(transform: Any) -> str:
    kind = transform.get('type') if isinstance(transform, dict) else transform
    name = kind if isinstance(kind, str) else getattr(kind, '__name__', '')
    return name.rpartition('.')[2].rpartition('/')[2]


def _displayable(image: np.ndarray) -> np.ndarray:
    """An RGB image of any type as uint8, contiguous."""
    return np.ascontiguousarray(image.clip(0, 255).astype(np.uint8))
