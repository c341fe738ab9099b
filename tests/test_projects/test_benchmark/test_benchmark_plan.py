# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Who is compared with whom, in which settings."""

from cases import (
    Baseline,
    Subject,
    add_foreign,
    also_compiled,
    attention_groups,
    backbone_groups,
    keep,
    preset,
)


def labels(group):
    return [subject.label for subject in group.subjects]


def test_every_combination():
    groups = backbone_groups(
        ['dat_t', 'swin_t'],
        [(32, 32), (32, 64)],
        [1, 2],
        ['inference', 'train'],
        [None, 'reference'],
    )
    assert len({group.setting for group in groups}) == len(groups) == 8
    for group in groups:  # a peer has no backends to choose from
        assert labels(group) == ['dat_t', 'dat_t@reference', 'swin_t']


def test_compiled_stand_beside_eager():
    (group,) = also_compiled(backbone_groups(['dat_t', 'swin_t'], [(8, 8)]))
    assert labels(group) == [
        'dat_t',
        'dat_t+compile',
        'swin_t',
        'swin_t+compile',
    ]


def test_foreign_go_where_they_are_compared():
    groups = [
        *backbone_groups(['dat_t', 'swin_t'], [(8, 8)]),
        *backbone_groups(['dat_pp_t'], [(8, 8)]),
        *attention_groups(['deformable']),
    ]
    guest = Subject('guest', factory='x.py:f')
    everywhere = [['dat_t', 'swin_t', 'guest'], ['dat_pp_t', 'guest']]
    for baselines in ([], [Baseline('swin_t')], [Baseline('guest')]):
        added = add_foreign(groups, [guest], baselines)
        assert [labels(g) for g in added[:2]] == everywhere
        assert added[2:] == groups[2:]  # a backbone is no attention
    added = add_foreign(groups, [guest], [Baseline('guest', of='dat_pp_t')])
    assert [labels(g) for g in added[:2]] == [
        ['dat_t', 'swin_t'],
        ['dat_pp_t', 'guest'],
    ]


def test_presets_hold_what_the_documentation_shows():
    def sizes(name, mode, subject):
        return {
            (g.setting.batch, g.setting.height, g.setting.width)
            for g in preset(name)
            if g.setting.mode == mode and subject in labels(g)
        }

    large, larger, crop = (1, 800, 1344), (1, 1600, 2688), (512, 512)
    assert sizes('cpu', 'inference', 'dat_t') == {
        large,
        larger,
        (8, 224, 224),
    }
    assert sizes('cpu', 'inference', 'dat_pp_t') == {
        large,
        larger,
        (4, 224, 224),
    }
    for arch in ('dat_t', 'dat_pp_t', 'swin_t'):
        assert sizes('cpu', 'train', arch) == {large, (1, *crop)}
    for arch in ('dat_t', 'dat_pp_t@reference'):
        for mode in ('inference', 'train'):
            assert sizes('gpu', mode, arch) == {(2, 800, 1344)}
    for name in ('cpu', 'gpu'):
        attentions = [g for g in preset(name) if g.setting.attention]
        queries_and_keys = {
            (g.setting.height * g.setting.width, keys[0] * keys[1])
            for g in attentions
            if (keys := g.setting.attention.key_size) != (0, 0)
        }
        assert queries_and_keys == {(4200, 4200), (67200, 1050)}
        for g in attentions:
            plain = g.setting.attention.kind == 'deformable'
            assert ('sdpa' in labels(g)) == plain
            assert len(labels(g)) == 2 + plain


def test_choosing_from_a_preset():
    groups = keep(
        preset('cpu'), ['dat_t'], [(800, 1344)], [1], ['inference', 'train']
    )
    assert [g.setting.mode for g in groups] == ['inference', 'train']
    assert all(labels(g) == ['dat_t'] for g in groups)
    assert keep(preset('cpu'), batches=[3]) == []
    assert keep(preset('gpu')) == preset('gpu')
