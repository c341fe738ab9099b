# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The results of a model's heads: boxes, masks, labels, classes.

In pixels and names, whichever package the model is of.
"""

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS
from torch import nn

from .picture import Picture

# Classes of a classifier that are told.
TOP = 5


@dataclass(frozen=True)
class Findings:
    """What a detector, segmentor or classifier finds in a picture of (H, W).

    Attributes:
        names: Names of the objects, or classes of a classifier, the most
            certain first; for a segmentor the names of all classes, by number.
        scores: Their scores, empty for a segmentor.
        boxes: Of the objects, (N, 4) as x1, y1, x2, y2 in pixels.
        labels: Numbers of the classes of the objects, (N,).
        masks: Of the objects, (N, H, W), bool; None if there are none.
        label_map: Classes of all pixels (H, W) of a segmentor.
    """

    names: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    masks: np.ndarray | None = None
    label_map: np.ndarray | None = None

    def objects_mask(self, size: tuple[int, int]) -> np.ndarray:
        """Pixels (H, W) on any object: in its mask, else in its box."""
        if self.masks is not None and len(self.masks):
            return self.masks.any(axis=0)
        inside = np.zeros(size, bool)
        for x1, y1, x2, y2 in self.boxes.round().astype(int).clip(min=0):
            inside[y1:y2, x1:x2] = True
        return inside


def class_names(cfg: Config) -> tuple[str, ...]:
    """Names of the classes of a config's data set, if it has them."""
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    while 'type' in dataset and 'dataset' in dataset:
        dataset = dataset['dataset']
    if isinstance(dataset.get('type'), str):
        with DATASETS.switch_scope_and_registry(cfg.default_scope) as registry:
            known = getattr(registry.get(dataset.type), 'METAINFO', {})
    else:
        known = getattr(dataset.get('type'), 'METAINFO', {})
    metainfo = {**known, **(dataset.get('metainfo') or {})}
    return tuple(map(str, metainfo.get('classes') or ()))


def find(model: nn.Module, picture: Picture, score: float = 0.3) -> Findings:
    """Runs a whole model on a picture.

    Args:
        model: As [`load_model`][] makes it.
        picture: The picture.
        score: Lowest score of an object.

    Returns:
        The results; they are empty if the model has no known heads.
    """
    samples = deepcopy(list(picture.samples))
    with torch.no_grad():
        (found,) = model(picture.inputs, samples, mode='predict')
    names = class_names(model.cfg)
    if 'pred_instances' in found:
        return _objects(found.pred_instances.cpu(), names, score)
    if 'pred_sem_seg' in found:
        label_map = found.pred_sem_seg.data[0].cpu().numpy()
        count = int(label_map.max()) + 1
        return Findings(
            names=[_name(names, i) for i in range(count)], label_map=label_map
        )
    if 'pred_score' in found:
        scores = found.pred_score.cpu()
        best = scores.topk(min(TOP, len(scores)))
        return Findings(
            names=[_name(names, i) for i in best.indices.tolist()],
            scores=best.values.tolist(),
        )
    return Findings()


def _objects(found: Any, names: tuple[str, ...], score: float) -> Findings:
    found = found[found.scores >= score]
    found = found[found.scores.argsort(descending=True)]
    masks = found.get('masks')
    return Findings(
        names=[_name(names, i) for i in found.labels.tolist()],
        scores=found.scores.tolist(),
        boxes=found.bboxes.numpy().reshape(-1, 4),
        labels=found.labels.numpy(),
        masks=None if masks is None else np.asarray(masks, bool),
    )


def _name(names: tuple[str, ...], label: int) -> str:
    return names[label] if label < len(names) else str(label)
