# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Parameters and multiply-adds that the authors report."""

from typing import NamedTuple

#: Sources of the figures: works and pages that quote the papers' tables.
SOURCES = {
    'H': 'README of https://github.com/QingbeiGuo/HybridFormer',
    'P': 'https://paperswithcode.com and https://hyper.ai, results of the '
    'two papers',
    'R': 'RMT, https://arxiv.org/abs/2309.11523, tables 4 and 5',
    'V': 'ViT^3, https://arxiv.org/abs/2512.01643, table 8',
    '?': 'as recalled from the paper, unconfirmed',
}


class Published(NamedTuple):
    """A row of the papers' tables.

    Attributes:
        config: Name of our config, without suffix.
        model: The authors' name of the backbone.
        parameters: Parameters of the whole model in millions, None if unknown.
        flops: Multiply-adds in units of 1e9, None if unknown.
        sources: A letter of ``SOURCES`` for each of these two figures.
    """

    config: str
    model: str
    parameters: float | None = None
    flops: float | None = None
    sources: str = ''


#: The rows of each table, by its title.
TABLES: dict[str, tuple[Published, ...]] = {
    'Classification, at the size of training': (
        Published('classifier_dat_t_in1k', 'DAT-T', 29, 4.6, 'HH'),
        Published('classifier_dat_s_in1k', 'DAT-S', 50, 9.0, 'PP'),
        Published('classifier_dat_b_in1k', 'DAT-B', 88, 15.8, 'HH'),
        Published('classifier_dat_b_384_in1k', 'DAT-B 384', 88, 49.8, '??'),
        Published('classifier_dat_pp_t_in1k', 'DAT-T++', 24, 4.3, 'PP'),
        Published('classifier_dat_pp_s_in1k', 'DAT-S++', 53, 9.4, 'PP'),
        Published('classifier_dat_pp_b_in1k', 'DAT-B++', 93, 16.6, 'PP'),
        Published(
            'classifier_dat_pp_b_384_in1k', 'DAT-B++ 384', 94, 49.7, 'PP'
        ),
    ),
    'RetinaNet at 800 x 1280': (
        Published('retinanet_dat_t_coco', 'DAT-T', 38, 253, '??'),
        Published('retinanet_dat_s_coco', 'DAT-S', 60, 359, '??'),
        Published('retinanet_dat_pp_t_coco', 'DAT-T++'),
        Published('retinanet_dat_pp_s_coco', 'DAT-S++'),
    ),
    'Mask R-CNN at 800 x 1280': (
        Published('mask_rcnn_dat_t_coco', 'DAT-T', 48, 272, 'HH'),
        Published('mask_rcnn_dat_s_coco', 'DAT-S', 69, 378, 'HH'),
        Published('mask_rcnn_dat_pp_t_coco', 'DAT-T++', None, 301, ' V'),
        Published('mask_rcnn_dat_pp_s_coco', 'DAT-S++', None, 430, ' V'),
    ),
    'Cascade Mask R-CNN at 800 x 1280': (
        Published('cascade_mask_rcnn_dat_t_coco', 'DAT-T', 86, 750, '??'),
        Published('cascade_mask_rcnn_dat_s_3x_coco', 'DAT-S', 107, 857, 'RR'),
        Published('cascade_mask_rcnn_dat_b_3x_coco', 'DAT-B', 145, 1003, '??'),
        Published('cascade_mask_rcnn_dat_pp_t_coco', 'DAT-T++'),
        Published('cascade_mask_rcnn_dat_pp_s_3x_coco', 'DAT-S++'),
        Published('cascade_mask_rcnn_dat_pp_b_3x_coco', 'DAT-B++'),
    ),
    'UPerNet at 512 x 2048': (
        Published('upernet_dat_t_ade20k', 'DAT-T', 60, 957, 'RR'),
        Published('upernet_dat_s_ade20k', 'DAT-S', 81, 1079, 'RR'),
        Published('upernet_dat_b_ade20k', 'DAT-B', 121, 1212, 'RR'),
        Published('upernet_dat_pp_t_ade20k', 'DAT-T++'),
        Published('upernet_dat_pp_s_ade20k', 'DAT-S++'),
        Published('upernet_dat_pp_b_ade20k', 'DAT-B++'),
    ),
    'Semantic FPN at 512 x 2048': (
        Published('semantic_fpn_dat_t_ade20k', 'DAT-T', 32, 198, 'RR'),
        Published('semantic_fpn_dat_s_ade20k', 'DAT-S', 53, 320, 'RR'),
        Published('semantic_fpn_dat_b_ade20k', 'DAT-B', 92, 481, 'RR'),
        Published('semantic_fpn_dat_pp_t_ade20k', 'DAT-T++'),
        Published('semantic_fpn_dat_pp_s_ade20k', 'DAT-S++'),
        Published('semantic_fpn_dat_pp_b_ade20k', 'DAT-B++'),
    ),
}
