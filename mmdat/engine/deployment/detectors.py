# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The heads of detectors, made of operators that ONNX has.

mmdet selects boxes with Python's conditions and with operators of mmcv. The
functions here call the same layers and do the same selection with sorting,
indexing, ``NonMaxSuppression`` and ``RoiAlign``, for one picture.
[`detector`][] refuses every setting that they do not compute.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .supported_detectors import check_detector, listed

Maps = Sequence[Tensor]


class Detector(NamedTuple):
    """What a file contains of a detector, and what it is compared with.

    Attributes:
        run: Maps a normalised picture (1, 3, H, W) to the outputs.
        reference: Maps a picture (1, 3, H, W), BGR from 0 to 255, to the
            outputs of the detector in mmdet.
        outputs: Names of the outputs: ``boxes`` (N, 4), x1, y1, x2, y2 in
            pixels of the picture; ``scores`` (N,), descending; ``labels``
            (N,); with a mask head ``masks`` (N, h, w), the probability inside
            each box.
        notes: Metadata for programs that run the file.
    """

    run: Callable[[Tensor], tuple[Tensor, ...]]
    reference: Callable[[Tensor], list[Tensor]]
    outputs: tuple[str, ...]
    notes: dict[str, str]


def detector(model: nn.Module) -> Detector:
    """Returns the exportable form of a detector with anchors.

    Args:
        model: A single-stage detector with an anchor head, or a two-stage
            detector with a region proposal network and a standard or cascade
            head.

    Raises:
        UserError: The detector computes something else.
    """
    check_detector(model)
    outputs: tuple[str, ...] = ('boxes', 'scores', 'labels')
    notes = {}
    if hasattr(model, 'roi_head'):
        select: Callable = _two_stage
        if model.roi_head.with_mask:
            outputs = (*outputs, 'masks')
            notes['mask_threshold'] = str(
                model.roi_head.test_cfg.mask_thr_binary
            )
    else:
        select = _single_stage

    def run(x: Tensor) -> tuple[Tensor, ...]:
        return select(model, model.extract_feat(_padded(model, x)), _limits(x))

    def reference(image: Tensor) -> list[Tensor]:
        return _by_mmdet(model, image)[: len(outputs)]

    return Detector(run, reference, outputs, notes)


def _padded(model: nn.Module, x: Tensor) -> Tensor:
    """Pads a normalised picture at the bottom and right as mmdet does."""
    divisor = getattr(model.data_preprocessor, 'pad_size_divisor', 1)
    value = getattr(model.data_preprocessor, 'pad_value', 0)
    height, width = x.shape[2:]
    bottom = (height + divisor - 1) // divisor * divisor - height
    right = (width + divisor - 1) // divisor * divisor - width
    return F.pad(x, (0, right, 0, bottom), value=value)


def _limits(x: Tensor) -> Tensor:
    """Returns the largest coordinates of boxes, (W, H, W, H)."""
    from torch.onnx.operators import shape_as_tensor

    return shape_as_tensor(x)[[3, 2, 3, 2]].to(x.dtype)


def _single_stage(model: nn.Module, maps: Maps, limits: Tensor) -> tuple:
    head = model.bbox_head
    return _dense(head, maps, limits, head.test_cfg.score_thr)


def _two_stage(model: nn.Module, maps: Maps, limits: Tensor) -> tuple:
    head = model.roi_head
    # each anchor has one score, which may be 0
    boxes, _, _ = _dense(model.rpn_head, maps, limits, threshold=-1)
    detected = _detected(head, maps, boxes, limits)
    if not head.with_mask:
        return detected
    boxes, _, labels = detected
    return *detected, _masks(head, maps, boxes, labels)


def _dense(
    head: nn.Module, maps: Maps, limits: Tensor, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes a head with anchors at every position of every map.

    Boxes suppress others of their class, and in a region proposal network
    others of their map.

    Returns:
        Boxes (N, 4), scores (N,) and classes or maps (N,), best first.
    """
    cfg = head.test_cfg
    of_maps = []
    scores_of, deltas_of = head(maps)
    anchors_of = head.prior_generator.grid_priors(
        [scores.shape[-2:] for scores in scores_of],
        dtype=scores_of[0].dtype,
        device=scores_of[0].device,
    )
    for level, (scores, deltas, anchors) in enumerate(
        zip(scores_of, deltas_of, anchors_of, strict=True)
    ):
        scores = scores[0].permute(1, 2, 0).reshape(-1, head.cls_out_channels)
        scores = scores.sigmoid()
        anchor, group = (scores > threshold).nonzero().unbind(1)
        best, order = scores[anchor, group].sort(descending=True)
        if cfg.nms_pre > 0:
            best, order = best[: cfg.nms_pre], order[: cfg.nms_pre]
        anchor, group = anchor[order], group[order]
        if threshold < 0:
            group = torch.full_like(group, level)
        deltas = deltas[0].permute(1, 2, 0).reshape(-1, 4)
        of_maps.append((anchors[anchor], deltas[anchor], best, group))
    anchors, deltas, scores, groups = (
        torch.cat(parts) for parts in zip(*of_maps, strict=True)
    )
    boxes = _decoded(head, anchors, deltas, limits)
    least = cfg.get('min_bbox_size', -1)
    if least >= 0:
        large = ((boxes[:, 2:] - boxes[:, :2]) > least).all(1)
        boxes, scores, groups = boxes[large], scores[large], groups[large]
    kept = _suppressed(boxes, scores, groups, cfg)
    return boxes[kept], scores[kept], groups[kept]


def _decoded(
    head: nn.Module, boxes: Tensor, deltas: Tensor, limits: Tensor
) -> Tensor:
    """Moves boxes (N, 4) by deltas (N, 4) and clips them to the picture."""
    moved = head.bbox_coder.decode(boxes, deltas)
    return torch.minimum(moved.clamp(min=0), limits)


def _suppressed(
    boxes: Tensor, scores: Tensor, groups: Tensor, cfg: Any
) -> Tensor:
    """Returns the indices of the boxes to keep, best first.

    As in mmcv, boxes of a group are moved away from those of others. With the
    same sums the same overlaps are rounded up or down.
    """
    from torchvision.ops import nms

    largest = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max()
    apart = groups.to(boxes.dtype) * (largest + 1)
    kept = nms(boxes + apart[:, None], scores, cfg.nms.iou_threshold)
    return kept[: cfg.max_per_img] if cfg.max_per_img > 0 else kept


def _detected(
    head: nn.Module, maps: Maps, boxes: Tensor, limits: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Classifies boxes (N, 4) and moves them, in one or more stages.

    Returns:
        Boxes (M, 4), scores (M,) and classes (M,), best first.
    """
    cfg, sums = head.test_cfg, []
    stages = listed(head.bbox_head)
    extractors = listed(head.bbox_roi_extractor)
    for stage, (layer, extractor) in enumerate(
        zip(stages, extractors, strict=True)
    ):
        logits, deltas = layer(_regions(extractor, maps, boxes))
        sums.append(logits)
        if stage < len(stages) - 1:
            label = logits[:, :-1].argmax(1)
            deltas = _of_class(layer, deltas, _count(label), label)
            boxes = _decoded(layer, boxes, deltas, limits)
    scores = (sum(sums) / len(sums)).softmax(1)[:, :-1]
    box, label = (scores > cfg.score_thr).nonzero().unbind(1)
    boxes = _decoded(
        layer, boxes[box], _of_class(layer, deltas, box, label), limits
    )
    scores = scores[box, label]
    kept = _suppressed(boxes, scores, label, cfg)
    return boxes[kept], scores[kept], label[kept]


def _count(x: Tensor) -> Tensor:
    return torch.arange(x.shape[0], device=x.device)


def _of_class(
    layer: nn.Module, deltas: Tensor, box: Tensor, label: Tensor
) -> Tensor:
    """Picks the deltas (M, 4) of classes from those of boxes (N, 4 C)."""
    if layer.reg_class_agnostic:
        return deltas[box]
    return deltas.reshape(-1, 4)[box * layer.num_classes + label]


def _regions(extractor: nn.Module, maps: Maps, boxes: Tensor) -> Tensor:
    """Samples a grid in each box (N, 4), on the map for its size.

    Returns:
        Samples (N, C, h, w).
    """
    from torchvision.ops import roi_align

    regions = F.pad(boxes, (1, 0))  # the first column is the picture, 0
    levels = extractor.map_roi_levels(regions, extractor.num_inputs)
    samples, places = [], []
    for level, layer in enumerate(extractor.roi_layers):
        place = (levels == level).nonzero()[:, 0]
        places.append(place)
        samples.append(
            roi_align(
                maps[level],
                regions[place],
                layer.output_size,
                layer.spatial_scale,
                layer.sampling_ratio,
                layer.aligned,
            )
        )
    return torch.cat(samples)[torch.cat(places).sort()[1]]


def _masks(
    head: nn.Module, maps: Maps, boxes: Tensor, labels: Tensor
) -> Tensor:
    """Returns the mask (N, h, w) of each box, the mean of all stages."""
    stages = [
        layer(_regions(extractor, maps, boxes)).sigmoid()
        for layer, extractor in zip(
            listed(head.mask_head),
            listed(head.mask_roi_extractor),
            strict=True,
        )
    ]
    mean = torch.stack(stages).mean(0)
    last = listed(head.mask_head)[-1]
    if last.class_agnostic:
        return mean[:, 0]
    return mean.flatten(0, 1)[_count(labels) * last.num_classes + labels]


def _by_mmdet(model: nn.Module, image: Tensor) -> list[Tensor]:
    """Runs the detector of mmdet on a picture (1, 3, H, W).

    Returns:
        Boxes, scores and labels, and for a mask head the probabilities that
        it pastes into the picture.
    """
    from mmdet.structures import DetDataSample

    size = tuple(image.shape[2:])
    sample = DetDataSample(
        metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0))
    )
    masks = image.new_zeros(0, 1, 1)
    head = getattr(getattr(model, 'roi_head', None), 'mask_head', None)
    last = None if head is None else listed(head)[-1]

    def seen(mask_preds: Any, *, activate_map: bool = False, **rest: Any):
        nonlocal masks
        masks = mask_preds[0] if activate_map else mask_preds[0].sigmoid()
        return type(last).predict_by_feat(
            last, mask_preds, activate_map=activate_map, **rest
        )

    if last is not None:
        last.predict_by_feat = seen
    try:
        done = model.test_step(dict(inputs=[image[0]], data_samples=[sample]))
    finally:
        if last is not None:
            del last.predict_by_feat
    found = done[0].pred_instances
    if last is not None and len(found):
        which = found.labels * (not last.class_agnostic)
        masks = masks[torch.arange(len(found)), which]
    return [found.bboxes, found.scores, found.labels, masks]
