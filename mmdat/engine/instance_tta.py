# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Merging detections of flipped and resized pictures, masks included.

MMDetection's own model refuses masks.
"""

import torch
from mmcv.ops import batched_nms
from mmdet.models import DetTTAModel
from mmdet.structures import DetDataSample
from mmengine.registry import MODELS
from mmengine.structures import InstanceData
from torch import Tensor

FLIPPED_AXES = {'horizontal': (-1,), 'vertical': (-2,), 'diagonal': (-2, -1)}


def _flip_back(masks: Tensor, view: DetDataSample) -> Tensor:
    """Turns masks (n, H, W) of a view into those of the picture."""
    if not view.flip:
        return masks
    return masks.flip(FLIPPED_AXES[view.flip_direction])


@MODELS.register_module()
class InstanceTTAModel(DetTTAModel):
    """Merges boxes by non-maximum suppression; each box keeps its mask.

    The arguments are those of ``mmdet.models.DetTTAModel``; ``tta_cfg`` holds
    ``nms``, as in mmcv, and ``max_per_img``.
    """

    def _merge_single_sample(
        self, data_samples: list[DetDataSample]
    ) -> DetDataSample:
        """Merges the views of one picture."""
        views = [sample.pred_instances for sample in data_samples]
        boxes, scores = self.merge_aug_bboxes(
            [view.bboxes for view in views],
            [view.scores for view in views],
            [sample.metainfo for sample in data_samples],
        )
        labels = torch.cat([view.labels for view in views])
        if len(boxes) == 0:
            return data_samples[0]
        kept, order = batched_nms(boxes, scores, labels, self.tta_cfg['nms'])
        order = order[: self.tta_cfg['max_per_img']]
        kept = kept[: self.tta_cfg['max_per_img']]
        merged = InstanceData(
            bboxes=kept[:, :4], scores=kept[:, 4], labels=labels[order]
        )
        if 'masks' in views[0]:
            masks = [
                _flip_back(view.masks, sample)
                for view, sample in zip(views, data_samples)
            ]
            merged.masks = torch.cat(masks)[order]
        data_samples[0].pred_instances = merged
        return data_samples[0]
