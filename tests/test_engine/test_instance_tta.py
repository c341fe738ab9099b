# Copyright (c) mmdat contributors. Apache-2.0 licence.
import pytest
import torch
from mmengine.structures import InstanceData

pytest.importorskip('mmdet')


class Detector(torch.nn.Module):
    def test_step(self, data):
        raise NotImplementedError


def view(box, score, flip, mask_column):
    from mmdet.structures import DetDataSample

    mask = torch.zeros(1, 6, 10, dtype=torch.bool)
    mask[0, 2, mask_column] = True
    sample = DetDataSample(
        metainfo=dict(
            ori_shape=(6, 10), flip=flip, flip_direction='horizontal'
        )
    )
    sample.pred_instances = InstanceData(
        bboxes=torch.tensor([box]),
        scores=torch.tensor([score]),
        labels=torch.tensor([3]),
        masks=mask,
    )
    return sample


def merge(*views):
    from mmengine.registry import MODELS

    from mmdat.engine import instance_tta  # noqa: F401

    model = MODELS.build(
        dict(
            type='InstanceTTAModel',
            module=Detector(),
            tta_cfg=dict(
                nms=dict(type='nms', iou_threshold=0.5), max_per_img=5
            ),
        )
    )
    return model.merge_preds([list(views)])[0].pred_instances


def test_the_better_of_two_views_wins_with_its_mask_flipped_back():
    # The same object, seen in the picture and in its mirror image.
    plain = view([1.0, 1.0, 4.0, 5.0], 0.6, False, mask_column=1)
    mirror = view([6.0, 1.0, 9.0, 5.0], 0.8, True, mask_column=7)
    merged = merge(plain, mirror)
    assert len(merged) == 1 and merged.labels.tolist() == [3]
    assert merged.scores.tolist() == pytest.approx([0.8])
    assert merged.bboxes.tolist() == [[1, 1, 4, 5]]
    assert merged.masks.nonzero().tolist() == [[0, 2, 2]]


def test_different_objects_stay():
    merged = merge(
        view([1.0, 1.0, 4.0, 5.0], 0.6, False, 1),
        view([1.0, 1.0, 4.0, 5.0], 0.8, True, 7),
    )
    assert len(merged) == 2
    assert merged.bboxes.tolist() == [[6, 1, 9, 5], [1, 1, 4, 5]]
    assert merged.masks.nonzero()[:, 2].tolist() == [2, 1]
