# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Whatever the constructor is given, it refuses at once or it works."""

import inspect

import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st

from mmdat.models import DAT

TINY = dict(embed_dims=8, depths=1, num_heads=2, img_size=32)
NAN, INF = float('nan'), float('inf')

# What no argument of the kind may be; each also comes as one of four.
NO_WHOLE = ['7', 2.5, 0, -3, True, NAN, {}, object, b'7', 7j]
NO_FLAG = ['yes', 1, 0.0, {}, object]
NO_NUMBER = ['0.1', NAN, INF, -INF, True, {}, 1j, b'1']
NO_WORD = ['swin', 3, True, {}, b'table', object]
WRONG = {
    'arch': ['dat', '', 3, None, [], {}, dict(depths=1), object, {3: 4}],
    'in_channels': [*NO_WHOLE, None, [3]],
    'out_indices': [(), (4,), (-1,), (1, 0), (1, 1), '3', None, 1.0, [True]]
    + [{0: 1}, ([0],), object],
    'img_size': [*NO_WHOLE, (), (32,), (32, 32, 32), (32, 0), (32, '3')],
    'attentions': ['D', 3, ['D'] * 3, ['D', 'D', 'D', 'Z'], ['DD'] * 4, [3]]
    + [[3] * 4, {}, ['d'] * 4, [''] * 4, [None] * 4, object],
    'window_size': NO_WHOLE,
    'neighborhood_size': [*NO_WHOLE, 4],
    'sr_ratio': NO_WHOLE,
    'offset_groups': [*NO_WHOLE, 3, 4],
    'offset_kernel': [*NO_WHOLE, 4],
    'offset_stride': NO_WHOLE,
    'offset_range': [*NO_NUMBER, -2, -0.5],
    'use_offsets': NO_FLAG,
    'position_bias': NO_WORD,
    'layer_scale_init_value': [*NO_NUMBER, -1e-6],
    'mlp_ratio': [*NO_NUMBER, 0, -4, 0.05, [4] * 4, [4, 4]],
    'drop_rate': [*NO_NUMBER, -0.1, 1.1, None, [0.1]],
    'attn_drop_rate': [*NO_NUMBER, -0.1, 1.1, None, [0.1]],
    'drop_path_rate': [*NO_NUMBER, -0.1, 1.1, None, [0.1]],
    'frozen_stages': [-2, 5, 1.0, '1', True, None, [0], {}],
    'norm_eval': [*NO_FLAG, None, [True]],
    'with_cp': [*NO_FLAG, None, [True]],
    'backend': ['cuda', '', 3, True, ['triton'], {}, object],
    # An empty one is none, as in mmengine; the configs fill it in later.
    'init_cfg': [3, True, 'model.pth', [3], dict(a=1), dict(type=3), [None]],
}
PER_STAGE = {
    *('window_size', 'neighborhood_size', 'sr_ratio', 'offset_groups'),
    *('offset_kernel', 'offset_stride', 'offset_range', 'use_offsets'),
    *('position_bias', 'layer_scale_init_value', 'with_cp'),
}
# Each kind of attention is in use in one of the two.
LAYOUTS = [['NLSD'] * 4, ['PXEQ'] * 4]


def wrong_settings(name):
    for value in WRONG[name]:
        yield value
        if name in PER_STAGE:
            good = 'table' if name == 'position_bias' else True
            if name not in ('position_bias', 'use_offsets', 'with_cp'):
                good = 1
            yield [good, good, good, value]
    if name in PER_STAGE:
        good = WRONG[name][0]
        yield from ([], [good] * 3, [good] * 5, (None,) * 4)


def test_every_argument_is_looked_at():
    names = set(inspect.signature(DAT).parameters)
    assert set(WRONG) == names


@pytest.mark.parametrize('name', WRONG)
def test_wrong_arguments_are_refused(name):
    arch = dict(TINY, embed_dims=16, depths=4, attentions=LAYOUTS[0])
    for value in wrong_settings(name):
        kwargs = {'arch': arch, name: value}
        with pytest.raises(ValueError) as caught:
            DAT(**kwargs)
        message = str(caught.value)
        assert name in message, (value, message)
        assert '; got ' in message and message.endswith('.'), message
        assert '\n' not in message


@pytest.mark.parametrize(
    'name', [n for n in WRONG if n in {*PER_STAGE, 'img_size'} - {'with_cp'}]
)
def test_wrong_values_in_an_arch_dict_are_refused_alike(name):
    for value in wrong_settings(name):
        with pytest.raises(ValueError, match=f'{name}.*; got '):
            DAT(dict(TINY, depths=4, attentions=LAYOUTS[0], **{name: value}))


@pytest.mark.parametrize('name', ['embed_dims', 'depths', 'num_heads'])
def test_wrong_sizes_in_an_arch_dict_are_refused(name):
    for value in [*NO_WHOLE, None, [], [8] * 3, [8, 8, 8, '8'], [[8]] * 4]:
        with pytest.raises(ValueError, match=f'{name}.*; got '):
            DAT({**TINY, name: value})


@pytest.mark.parametrize(
    'name', ['conv_embed', 'conv_mlp', 'local_perception', 'family']
)
def test_wrong_parts_of_a_family_are_refused(name):
    for value in ['yes', 1, None, [], {}, [True] * 4]:
        with pytest.raises(ValueError, match=f'{name}.*; got '):
            DAT({**TINY, name: value})


# ------------------------------------------------------------------- fuzzed

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 9),
    st.floats(-2, 9) | st.just(NAN),
    st.sampled_from(
        [INF, 'table', 'LD', '', 'reference', 'dat', b'', {}, (), [2]]
    ),
    st.lists(st.integers(-1, 9), max_size=5),
    st.lists(st.sampled_from(['D', 'N', 'LS', 'E', 'Q', 'X', 'P', 'Z'])),
)


def per_stage(values):
    return st.one_of(values, st.lists(values, min_size=4, max_size=4))


@st.composite
def sound_settings(draw):
    """Settings of the right types, which may still contradict each other."""
    depths = draw(st.lists(st.integers(1, 2), min_size=4, max_size=4))
    letters = [
        ''.join(draw(st.sampled_from('LSNDPXEFQ')) for _ in range(depth))
        for depth in depths
    ]
    arch = dict(
        family=draw(st.sampled_from(['dat', 'dat_pp'])),
        embed_dims=draw(per_stage(st.sampled_from([8, 16, 6]))),
        depths=depths,
        num_heads=draw(per_stage(st.sampled_from([1, 2, 2, 4]))),
        attentions=draw(st.one_of(st.just(letters), st.none()))
        or ['D' * depth for depth in depths],
    )
    options = dict(
        img_size=st.integers(1, 64)
        | st.tuples(st.integers(1, 64), st.integers(1, 64)),
        window_size=per_stage(st.integers(1, 7)),
        neighborhood_size=per_stage(st.sampled_from([1, 3, 5, 4])),
        sr_ratio=per_stage(st.integers(1, 4)),
        offset_groups=per_stage(st.sampled_from([1, 1, 2])),
        offset_kernel=per_stage(st.sampled_from([1, 3, 5, 2])),
        offset_stride=per_stage(st.integers(1, 4)),
        offset_range=per_stage(st.sampled_from([-1, 0, 2, 1.5])),
        use_offsets=per_stage(st.booleans()),
        position_bias=per_stage(
            st.sampled_from(
                ['table', 'fixed', 'depthwise_conv', 'log_continuous', 'none']
            )
        ),
        layer_scale_init_value=per_stage(st.sampled_from([0, 1e-5, 1])),
        mlp_ratio=st.sampled_from([1, 0.5, 4, 0.01]),
        in_channels=st.integers(1, 4),
        out_indices=st.sampled_from([(0, 1, 2, 3), (3,), 2, [1, 3]]),
        drop_rate=st.sampled_from([0, 0.5, 1]),
        attn_drop_rate=st.sampled_from([0, 0.5, 1.0]),
        drop_path_rate=st.sampled_from([0.0, 0.5]),
        frozen_stages=st.integers(-1, 4),
        norm_eval=st.booleans(),
        with_cp=st.booleans(),
        backend=st.sampled_from([None, 'reference', 'sdpa']),
    )
    chosen = draw(st.lists(st.sampled_from(sorted(options)), unique=True))
    return dict({name: draw(options[name]) for name in chosen}, arch=arch)


def builds_and_forwards_or_refuses(settings):
    try:
        model = DAT(**settings)
    except ValueError as error:
        event('refused')
        assert '; got ' in str(error), error
        return
    event('built')
    images = torch.randn(2, model.in_channels, 33, 40)
    levels = model.eval()(images)
    assert len(levels) == len(model.out_indices)
    for i, level in zip(model.out_indices, levels, strict=True):
        stride = 4 << i
        sides = -(-33 // stride), -(-40 // stride)
        assert level.shape == (2, model.arch.stages[i].dim, *sides)
        assert level.isfinite().all()
    out = sum(level.sum() for level in model.train()(images))
    if out.requires_grad:
        out.backward()


@pytest.mark.fuzz
@given(sound_settings())
def test_sound_settings_work_or_are_refused(settings):
    builds_and_forwards_or_refuses(settings)


@pytest.mark.fuzz
@given(sound_settings(), st.sampled_from(sorted(WRONG)), JUNK)
def test_one_odd_argument_works_or_is_refused(settings, name, value):
    if name == 'init_cfg':
        value = [value, dict(type=value)]
    builds_and_forwards_or_refuses({**settings, name: value})


@pytest.mark.fuzz
@given(
    sound_settings(),
    st.sampled_from(['embed_dims', 'depths', 'num_heads', 'family', 'typo']),
    JUNK,
)
def test_an_odd_arch_dict_works_or_is_refused(settings, name, value):
    arch = {**settings['arch'], name: value}
    builds_and_forwards_or_refuses({**settings, 'arch': arch})
