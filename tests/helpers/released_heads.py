# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Names and shapes of whole released models, written down from their layout.

Necks and heads are those of MMDetection 2.26 and MMSegmentation 0.29, which
the authors trained with, for 80 classes of COCO and 150 of ADE20K. Nothing
here asks our configs or the packages that are installed.
"""

import golden_rule

Shapes = dict[str, tuple[int, ...]]

DIMS = {
    'tiny': (64, 128, 256, 512),
    'small': (96, 192, 384, 768),
    'base': (128, 256, 512, 1024),
}


def backbone(size: str, first_norm: int = 0) -> Shapes:
    """A dense DAT++; output norms start with that of stage `first_norm`."""
    shapes = {
        name: tuple(shape)
        for name, shape in golden_rule.key_shapes(
            f'keys-pp-dat_{size}'
        ).items()
        if not name.startswith('cls_')
    }
    for stage in range(first_norm, 4):
        for kind in ('weight', 'bias'):
            shapes[f'norms.{stage}.norm.{kind}'] = (DIMS[size][stage],)
    return _under('backbone', shapes)


def _under(prefix: str, shapes: Shapes) -> Shapes:
    return {f'{prefix}.{name}': shape for name, shape in shapes.items()}


def _weights(name: str, *shape: int) -> Shapes:
    """A convolution or linear layer with bias; outputs come first."""
    return {f'{name}.weight': shape, f'{name}.bias': shape[:1]}


def _conv_bn(name: str, *shape: int) -> Shapes:
    """A convolution without bias and its batch norm."""
    shapes = {
        f'{name}.conv.weight': shape,
        f'{name}.bn.num_batches_tracked': (),
    }
    for entry in ('weight', 'bias', 'running_mean', 'running_var'):
        shapes[f'{name}.bn.{entry}'] = shape[:1]
    return shapes


def _fpn(dims: tuple[int, ...], extra: int = 0) -> Shapes:
    """A feature pyramid; `extra` convolutions start from the last map."""
    shapes = {}
    for i, dim in enumerate(dims):
        shapes |= _weights(f'lateral_convs.{i}.conv', 256, dim, 1, 1)
        shapes |= _weights(f'fpn_convs.{i}.conv', 256, 256, 3, 3)
    for i in range(extra):
        shapes |= _weights(
            f'fpn_convs.{len(dims) + i}.conv',
            256,
            256 if i else dims[-1],
            3,
            3,
        )
    return _under('neck', shapes)


def _rpn() -> Shapes:
    return {
        **_weights('rpn_head.rpn_conv', 256, 256, 3, 3),
        **_weights('rpn_head.rpn_cls', 3, 256, 1, 1),
        **_weights('rpn_head.rpn_reg', 12, 256, 1, 1),
    }


def _boxes(prefix: str, cascade: bool) -> Shapes:
    """Two linear layers, or four convolutions with norms and one."""
    shapes = {
        **_weights('fc_cls', 81, 1024),
        **_weights('fc_reg', 320, 1024),
        **_weights('shared_fcs.0', 1024, 256 * 49),
    }
    if cascade:
        for i in range(4):
            shapes |= _conv_bn(f'shared_convs.{i}', 256, 256, 3, 3)
    else:
        shapes |= _weights('shared_fcs.1', 1024, 1024)
    return _under(prefix, shapes)


def _masks(prefix: str) -> Shapes:
    shapes = {
        'upsample.weight': (256, 256, 2, 2),
        'upsample.bias': (256,),
        **_weights('conv_logits', 80, 256, 1, 1),
    }
    for i in range(4):
        shapes |= _weights(f'convs.{i}.conv', 256, 256, 3, 3)
    return _under(prefix, shapes)


def retinanet(size: str) -> Shapes:
    """Levels 3 to 5 and two more; no norm on the first stage."""
    shapes = {
        **backbone(size, first_norm=1),
        **_fpn(DIMS[size][1:], extra=2),
        **_weights('bbox_head.retina_cls', 9 * 80, 256, 3, 3),
        **_weights('bbox_head.retina_reg', 9 * 4, 256, 3, 3),
    }
    for branch in ('cls', 'reg'):
        for i in range(4):
            shapes |= _weights(
                f'bbox_head.{branch}_convs.{i}.conv', 256, 256, 3, 3
            )
    return shapes


def mask_rcnn(size: str) -> Shapes:
    """The fifth level is a convolution of its own."""
    return {
        **backbone(size),
        **_fpn(DIMS[size], extra=1),
        **_rpn(),
        **_boxes('roi_head.bbox_head', cascade=False),
        **_masks('roi_head.mask_head'),
    }


def cascade_mask_rcnn(size: str) -> Shapes:
    """Three heads for boxes and three for masks; the fifth level is pooled."""
    shapes = {**backbone(size), **_fpn(DIMS[size]), **_rpn()}
    for i in range(3):
        shapes |= _boxes(f'roi_head.bbox_head.{i}', cascade=True)
        shapes |= _masks(f'roi_head.mask_head.{i}')
    return shapes


def upernet(size: str) -> Shapes:
    """512 channels, and an auxiliary head on the third stage."""
    dims = DIMS[size]
    head = {
        **_weights('conv_seg', 150, 512, 1, 1),
        **_conv_bn('bottleneck', 512, dims[3] + 4 * 512, 3, 3),
        **_conv_bn('fpn_bottleneck', 512, 4 * 512, 3, 3),
    }
    for i in range(4):
        head |= _conv_bn(f'psp_modules.{i}.1', 512, dims[3], 1, 1)
    for i in range(3):
        head |= _conv_bn(f'lateral_convs.{i}', 512, dims[i], 1, 1)
        head |= _conv_bn(f'fpn_convs.{i}', 512, 512, 3, 3)
    auxiliary = {
        **_weights('conv_seg', 150, 256, 1, 1),
        **_conv_bn('convs.0', 256, dims[2], 3, 3),
    }
    return {
        **backbone(size),
        **_under('decode_head', head),
        **_under('auxiliary_head', auxiliary),
    }


def semantic_fpn(size: str) -> Shapes:
    """Each level has a convolution for each doubling of its size."""
    head = _weights('conv_seg', 150, 128, 1, 1)
    for level, convolutions in enumerate((1, 1, 2, 3)):
        for i in range(convolutions):
            # Every second module is an upsampling.
            head |= _conv_bn(
                f'scale_heads.{level}.{2 * i}', 128, 128 if i else 256, 3, 3
            )
    return {
        **backbone(size),
        **_fpn(DIMS[size]),
        **_under('decode_head', head),
    }
