# Copyright (c) mmdat contributors. Apache-2.0 licence.
import copy

import pytest
import torch
from agreement import assert_close
from oracle.model import dense_outputs, forward_stages
from oracle.variants import Variant
from versions import needs_torch

from mmdat.models import DAT
from mmdat.models.layers import Conv2d, DropPath

SMALL = dict(
    embed_dims=[16, 32, 32, 64], depths=[2] * 4, num_heads=[2, 2, 4, 4]
)
FAMILIES = ('dat', 'dat_pp')
SIZES = [(32, 32), (64, 96), (33, 57), (97, 32), (20, 7), (1, 1)]


def small(family='dat_pp', **kwargs) -> DAT:
    torch.manual_seed(0)
    return DAT(dict(SMALL, family=family), **kwargs)


def total(levels):
    return sum(level.square().mean() + level.sum() for level in levels)


# ----------------------------------------------------------- architectures


@pytest.mark.parametrize(
    ('arch', 'parameters'),
    [
        # Counted on the authors' models; classifier and its norm included.
        ('dat_t', 28_319_138),
        ('dat_b', 87_881_632),
        ('dat_b_384', 88_178_272),
        ('dat_pp_t', 23_962_876),
        ('dat_pp_s', 53_127_366),
        ('dat_pp_b_384', 94_119_440),
    ],
)
def test_parameters_of_classifiers(arch, parameters):
    with torch.device('meta'):
        model = DAT(arch, out_indices=(3,))
    classifier = 1000 * model.arch.stages[3].dim + 1000
    own = sum(p.numel() for p in model.parameters())
    assert own + classifier == parameters


@pytest.mark.parametrize(
    ('arch', 'parameters'),
    [
        ('dat_t', 27_551_482),
        ('dat_pp_t', 23_450_772),
        ('dat_pp_b', 92_667_432),
    ],
)
def test_parameters_of_dense_backbones(arch, parameters):
    with torch.device('meta'):
        model = DAT(arch)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_arch_may_be_a_dict_and_overrides_win():
    model = small('dat', position_bias='none', window_size=[3, 4, 5, 6])
    assert model.stages[3].blocks[1].attn.rpe_table is None
    assert model.stages[1].blocks[0].attn.window_size == 4
    assert model.arch.stages[2].attentions == 'LD'
    assert small('dat_pp').arch.stages[3].attentions == 'DD'


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(arch='dat_x'), "one of dat_t, dat_s, .*got 'dat_x'"),
        (dict(arch=3), 'name or a dict; got 3'),
        (dict(arch=dict(depths=[1] * 4)), 'embed_dims, depths, num_heads'),
        (dict(arch=dict(SMALL, heads=3)), "may hold .*got 'heads'"),
        (dict(arch=dict(SMALL, family='swin')), "dat, dat_pp; got 'swin'"),
        (
            dict(arch=dict(SMALL, depths=[2] * 3)),
            r'list of 4; got \[2, 2, 2\]',
        ),
        (dict(arch=dict(SMALL, depths=[2, 0, 2, 2])), 'positive whole'),
        (dict(arch=dict(SMALL, num_heads=5)), 'multiple of num_heads; got'),
        (dict(attentions='LD'), 'four strings'),
        (dict(attentions=['LD', 'LZ', 'LDLDLD', 'LD']), "stage 1 .*got 'LZ'"),
        (dict(attentions=['LD', 'L', 'LDLDLD', 'LD']), "2 blocks; got 'L'"),
        (dict(offset_groups=5), 'multiple of offset_groups; got'),
        (dict(offset_kernel=4), 'odd number of at least 1; got 4'),
        (dict(offset_stride=0), 'at least 1; got 0'),
        (dict(offset_range='far'), "must be a number.*'far'"),
        (dict(window_size=0), 'at least 2; got 0'),
        (
            dict(attentions=['ND', 'ND', 'ND' * 3, 'DD'], neighborhood_size=4),
            'odd number.*got 4',
        ),
        (dict(position_bias='swin'), "must be one of table.*got 'swin'"),
        (dict(layer_scale_init_value=-1), 'at least 0; got -1'),
        (dict(mlp_ratio=0), 'at least one channel; got 0'),
        (dict(img_size=0), 'img_size must be a positive.*got 0'),
        (dict(drop_path_rate=1.5), r'lie in \[0, 1\]; got 1.5'),
        (dict(out_indices=(0, 4)), r'0 to 3; got \(0, 4\)'),
        (dict(out_indices=(3, 1)), r'rising .*got \(3, 1\)'),
        (dict(out_indices=()), r'got \(\)'),
        (dict(frozen_stages=5), '-1 to 4; got 5'),
        (
            dict(backend='cuda'),
            "triton, separable, sdpa, reference, or None.*got 'cuda'",
        ),
        (dict(backend='pieces'), "got 'pieces'"),
        (
            dict(attentions=['LS', 'LS', 'LSLSLS', 'PX'], backend='separable'),
            "model has, sdpa, reference, or.*got 'separable'",
        ),
        (
            dict(attentions=['PX', 'PX', 'PXPXPX', 'EQ'], backend='sdpa'),
            "model has, none, or None.*got 'sdpa'",
        ),
    ],
)
def test_wrong_settings_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        DAT(**kwargs)


# ------------------------------------------------------------------ outputs


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('size', SIZES)
def test_strides_and_sizes(family, size):
    model = small(family).eval()
    images = torch.randn(2, 3, *size)
    levels = model(images)
    assert isinstance(levels, tuple)
    for level, stride, dim in zip(
        levels, (4, 8, 16, 32), SMALL['embed_dims'], strict=True
    ):
        sides = (-(-n // stride) for n in size)
        assert level.shape == (2, dim, *sides)
        assert level.is_contiguous()
        assert level.isfinite().all()
    # Batch, memory format and strides of the input do not matter.
    for other in (
        images.contiguous(memory_format=torch.channels_last),
        torch.randn(2, 3, size[1], size[0]).transpose(2, 3).copy_(images),
    ):
        torch.testing.assert_close(model(other), levels)
    torch.testing.assert_close(
        model(images[1:])[3], levels[3][1:], atol=1e-5, rtol=1e-5
    )


def published_names(model):
    """State dict of a model under the authors' names (inverse, by search)."""
    import golden_rule

    from mmdat.checkpoints.released import rename

    kind = 'v1det' if model.arch.stages[0].convention == 'dat' else 'det'
    names = {}
    for key in golden_rule.key_shapes(f'keys-{kind}-dat_tiny'):
        names[rename(key)] = key
    return {
        names[key]: (
            value[..., None, None].numpy()
            if value.ndim == 2 and _is_conv(names[key])
            else value.numpy()
        )
        for key, value in model.state_dict().items()
    }


def _is_conv(name):
    return name.endswith('weight') and (
        'conv_offset.3' in name
        or 'proj_q' in name
        or 'proj_k' in name
        or 'proj_v' in name
        or ('linear' in name and 'chunk' not in name)
    )


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('size', [(64, 96), (32, 160)])
def test_whole_model_equals_oracle_in_float64(family, size):
    model = small(family).double().eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    images = torch.randn(2, 3, *size).double()
    variant = Variant(
        family,
        tuple(stage.attentions for stage in model.arch.stages),
        tuple(SMALL['num_heads']),
        tuple(stage.offset_groups for stage in model.arch.stages),
        tuple(stage.offset_stride for stage in model.arch.stages),
        -1 if family == 'dat_pp' else 2,
    )
    parameters = published_names(model)
    stages = forward_stages(images.numpy(), parameters, variant)
    for ours, wanted in zip(
        model(images), dense_outputs(stages, parameters), strict=True
    ):
        assert_close(ours, wanted, 1e-9)


def test_out_indices():
    model = small(out_indices=(1, 3)).eval()
    assert not hasattr(model, 'norm0')
    every = small().eval()
    every.load_state_dict(model.state_dict(), strict=False)
    images = torch.randn(1, 3, 64, 64)
    levels = model(images)
    assert len(levels) == 2
    torch.testing.assert_close(levels, every(images)[1::2])


@pytest.mark.parametrize('shape', [(3, 64, 64), (1, 4, 64, 64), (1, 3, 0, 9)])
def test_other_inputs_are_refused(shape):
    with pytest.raises(ValueError, match=r'images of shape .*got \('):
        small()(torch.zeros(shape))


@pytest.mark.parametrize('images', [None, [torch.rand(1, 3, 8, 8)], 'x'])
def test_what_is_no_tensor_is_refused(images):
    with pytest.raises(ValueError, match='as one tensor .*got a '):
        small()(images)


@pytest.mark.parametrize('dtype', [torch.uint8, torch.int64, torch.bool])
def test_whole_numbers_are_refused(dtype):
    with pytest.raises(ValueError, match=r'floating type; got torch\.'):
        small()(torch.zeros(1, 3, 32, 32, dtype=dtype))


# ----------------------------------------------------------------- training

KINDS = [
    dict(),
    dict(family='dat'),
    dict(attentions=['PX', 'EQ', 'LS', 'DN']),
    dict(attentions=['FF', 'FD', 'DF', 'FF']),
    dict(position_bias='fixed'),
    dict(position_bias='log_continuous'),
    dict(position_bias='depthwise_conv'),
    dict(position_bias='none'),
    dict(use_offsets=False),
    dict(layer_scale_init_value=1e-5, offset_range=4),
]


@pytest.mark.parametrize('kwargs', KINDS, ids=str)
@pytest.mark.parametrize('with_cp', [False, True])
def test_gradients_reach_every_parameter(kwargs, with_cp):
    model = small(**kwargs, with_cp=with_cp)
    total(model(torch.randn(2, 3, 65, 90))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize('family', FAMILIES)
def test_checkpointing_changes_nothing(family):
    plain = small(family, drop_path_rate=0.3, drop_rate=0.1)
    saving = small(family, drop_path_rate=0.3, drop_rate=0.1, with_cp=True)
    saving.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 64, 96)
    grads = []
    for model in (plain, saving):
        torch.manual_seed(1)
        levels = model(images)
        total(levels).backward()
        grads.append([levels[3], *(p.grad for p in model.parameters())])
    torch.testing.assert_close(*grads)


def test_checkpointing_is_a_choice_of_each_stage():
    """Stages told to are computed again in the backward pass; no other is."""
    chosen = [True, False, True, False]
    plain, saving = small(), small(with_cp=chosen)
    saving.load_state_dict(plain.state_dict())
    times = dict.fromkeys(range(4), 0)

    def count(i):
        times[i] += 1

    for i, stage in enumerate(saving.stages):
        for block in stage.blocks:
            block.norm1.register_forward_hook(lambda *_, i=i: count(i))
    images = torch.randn(1, 3, 64, 96)
    for model in (plain, saving):
        total(model(images)).backward()
    assert times == {i: 2 * (1 + again) for i, again in enumerate(chosen)}
    torch.testing.assert_close(
        *([p.grad for p in model.parameters()] for model in (plain, saving))
    )


def test_drop_path_rises_linearly():
    rates = [
        module.rate
        for module in DAT('dat_t', drop_path_rate=0.2).modules()
        if isinstance(module, DropPath)
    ]
    torch.testing.assert_close(rates, torch.linspace(0, 0.2, 12).tolist())


def test_drop_path_drops_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    layer, x = DropPath(0.25), torch.ones(4000, 2, 2, 3)
    out = layer(x)
    each = out.flatten(1)
    assert (each == each[:, :1]).all()
    kept = each[:, 0] > 0
    assert (each[~kept] == 0).all() and 0.2 < 1 - kept.double().mean() < 0.3
    torch.testing.assert_close(each[kept], torch.full_like(each[kept], 4 / 3))
    assert abs(out.mean() - 1) < 0.05
    assert torch.equal(layer.eval()(x), x)


@pytest.mark.parametrize('frozen', range(-1, 5))
def test_frozen_stages(frozen):
    model = small(frozen_stages=frozen).train()
    loss = total(model(torch.randn(1, 3, 64, 64)))
    if frozen == 4:
        assert not loss.requires_grad
    else:
        loss.backward()

    def is_frozen(module):
        still = not module.training
        grads = [p.grad is not None for p in module.parameters()]
        assert still == (not any(grads)) and len(set(grads)) == 1
        return still

    assert is_frozen(model.patch_embed) == (frozen >= 0)
    for i in range(4):
        assert is_frozen(model.stages[i]) == (i < frozen)
        assert is_frozen(getattr(model, f'norm{i}')) == (i < frozen)
        if i > 0:
            assert is_frozen(model.downsamples[i - 1]) == (i < frozen)


def test_norm_eval():
    norms = [
        m
        for m in small(norm_eval=True).train().modules()
        if isinstance(m, torch.nn.LayerNorm)
    ]
    assert norms and not any(norm.training for norm in norms)
    assert small().train().norm0.training


# ---------------------------------------------------- precision and compile


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
def test_without_gradients_at_a_size_for_fast_backends(family, mode):
    """They run in threads, which know nothing of the caller's modes."""
    model = small(family, img_size=512).eval()
    x = torch.rand(1, 3, 512, 512)
    with mode():
        outs = model(x)
    for out, wanted in zip(outs, model(x), strict=True):
        assert not out.requires_grad
        torch.testing.assert_close(out, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('family', FAMILIES)
def test_autocast_bfloat16(family):
    model = small(family).eval()
    images = torch.randn(2, 3, 64, 96)
    exact = model(images)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        levels = model(images)
        total(levels).backward()
    for ours, wanted in zip(levels, exact, strict=True):
        # 8 significant bits through a few blocks of unit-variance maps.
        assert (ours.float() - wanted).abs().mean() < 0.02
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize('width', [1, 2, 5])
@pytest.mark.parametrize('args', [(3, 2, 1), (9, 8, 4, 1, 16)])
def test_bfloat16_gradients_of_a_kernel_wider_than_the_map(args, width):
    torch.manual_seed(0)
    conv = Conv2d(16, 16, *args)
    x = torch.randn(2, 9, width, 16)
    slope = torch.randn(conv(x).shape)
    (exact,) = torch.autograd.grad(conv(x), conv.weight, slope)
    for _ in range(6):
        # Memory that is freed here is taken next, and may stay as it is.
        freed = [torch.full((n,), 1e9) for n in (100, 300, 1000, 2304, 5000)]
        del freed
        with torch.autocast('cpu', dtype=torch.bfloat16):
            out = conv(x)
        (low,) = torch.autograd.grad(out, conv.weight, slope.to(out.dtype))
        assert (low - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_whole_model_in_another_type(dtype):
    model = copy.deepcopy(small().eval()).to(dtype)
    levels = model(torch.randn(1, 3, 64, 64).to(dtype))
    assert all(x.dtype == dtype and x.isfinite().all() for x in levels)


@needs_torch('2.4')
@pytest.mark.slow
@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('grad', [False, True])
def test_compiles_without_graph_breaks(family, grad):
    model = small(family).train(grad)
    images = torch.randn(1, 3, 64, 96)
    compiled = torch.compile(
        model, backend='eager', fullgraph=True, dynamic=False
    )
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(compiled(images), model(images))
        other = torch.randn(2, 3, 65, 40)
        torch.testing.assert_close(compiled(other), model(other))


def test_copies_and_pickles(tmp_path):
    import pickle

    model = small().eval()
    images = torch.randn(1, 3, 32, 32)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other(images), model(images))
