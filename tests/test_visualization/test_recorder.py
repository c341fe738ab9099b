# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Points and attention where they must be, and nothing changed by looking."""

import golden_rule
import numpy as np
import pytest
import released
import torch
import torch.nn.functional as F
from agreement import randomise

from mmdat import DAT
from mmdat.models.arch import POSITION_BIASES
from mmdat.ops import sample_at_points
from mmdat.ops.deformable_attention import BACKENDS
from mmdat.visualization import DATRecorder, Frame, deformable_blocks
from mmdat.visualization.recorder import select_blocks

SMALL = dict(
    embed_dims=[8, 16, 24, 32],
    depths=[1, 2, 2, 1],
    num_heads=[1, 2, 6, 4],
    offset_groups=[1, 2, 3, 2],
    img_size=64,
)


def small(family='dat_pp', **kwargs):
    torch.manual_seed(0)
    arch = dict(family=family, **SMALL)
    return DAT(arch, **kwargs).eval()


def still(model):
    """Takes the offsets away."""
    for attention in deformable_blocks(model).values():
        torch.nn.init.zeros_(attention.conv_offset.proj.weight)
    return model


def images(height=64, width=96, batch=1):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch, 3, height, width, generator=generator)


def grid_xy(xs, ys):
    """(len(ys), len(xs), 2)."""
    x, y = torch.meshgrid(
        torch.tensor(xs, dtype=torch.float64),
        torch.tensor(ys, dtype=torch.float64),
        indexing='xy',
    )
    return torch.stack([x, y], dim=-1)


def test_without_offsets_points_are_at_hand_computed_pixels():
    # DAT, stage 3 of 64 x 96: a map of 2 x 3 with a key for each pixel, whose
    # pixels have centres 15.5, 47.5, 79.5. Reference i of n is at map pixel
    # (i + 0.5) (n - 1) / n: 1/4 and 3/4 of 1, or 1/3, 1 and 5/3.
    model = still(small('dat', attentions=['L', 'LL', 'LD', 'D']))
    with DATRecorder(model) as recorder:
        model(images())
    record = recorder[3, 0]
    wanted = grid_xy(
        [15.5 + 32 / 3, 47.5, 15.5 + 160 / 3], [15.5 + 8, 15.5 + 24]
    )
    torch.testing.assert_close(
        record.reference_xy[0], wanted, rtol=0, atol=2e-5
    )
    for group in range(2):
        torch.testing.assert_close(
            record.points_xy[0, group], wanted, rtol=0, atol=2e-5
        )
    assert record.displacement.max() == 0
    assert record.inside.all() and not record.clamped.any()


def test_points_of_the_authors():
    case = golden_rule.case('v1-dat_tiny-224x224')
    model = DAT('dat_t').eval()
    model.load_state_dict(released.state_dict(case.keys))
    golden = golden_rule.golden(case.name)
    x = torch.from_numpy(golden_rule.image(case.input_shape))
    with torch.no_grad(), DATRecorder(model, received=False) as recorder:
        model(x)
    assert list(recorder.records) == [(2, 1), (2, 3), (2, 5), (3, 1)]
    for (stage, block), record in recorder.records.items():
        y, x = np.moveaxis(golden[f'pos_s{stage}_b{block}'], -1, 0)
        stride, n = {2: (16, 14), 3: (32, 7)}[stage]
        for found, wanted in zip(record.points_xy.unbind(-1), (x, y)):
            wanted = (wanted + 1) / 2 * (n - 1) * stride + (stride - 1) / 2
            np.testing.assert_allclose(found.numpy(), wanted, atol=5e-3)


def test_without_offsets_dat_pp_has_its_points_in_the_middle_of_cells():
    # Stage 3 of 64 x 96, stride 1: reference i of n at map pixel i + 0.5,
    # whose pixels have centres 0, 32, 64: the middle of cells of 32 pixels.
    # The last are beyond the map and held back at its last pixel.
    model = still(small())
    with DATRecorder(model, blocks=[(3, 0)]) as recorder:
        model(images())
    record = recorder[3, 0]
    torch.testing.assert_close(
        record.reference_xy[0], grid_xy([16, 48, 80], [16, 48])
    )
    torch.testing.assert_close(
        record.points_xy[0, 1], grid_xy([16, 48, 64], [16, 32])
    )
    wanted = torch.tensor([[False, False, True], [True, True, True]])
    assert (record.clamped[0] == wanted).all()


def test_twice_the_size_and_padded():
    # A picture of 24 x 40 was doubled to 48 x 80 and padded to 64 x 96, as
    # above: input pixel p is pixel (p - 0.5) / 2.
    model = still(small())
    frame = Frame.from_meta(
        dict(ori_shape=(24, 40), img_shape=(48, 80), scale_factor=(2, 2))
    )
    with DATRecorder(model, frames=frame) as recorder:
        model(images())
    record = recorder[3, 0]
    torch.testing.assert_close(
        record.points_xy[0, 0],
        grid_xy([7.75, 23.75, 31.75], [7.75, 15.75]),
    )
    assert record.inside.all()
    # Stage 2, stride 16 and a key for 2 x 2 pixels: 3 x 2 of them on a map of
    # 4 x 6, at map pixels 0.5 / 2 * 5 and so on, input pixels 20, 60 and
    # 100, which are held back at 80; the picture ends at 79.5.
    record = recorder[2, 1]
    torch.testing.assert_close(
        record.points_xy[0, 0, 0, :, 0],
        torch.tensor([9.75, 29.75, 39.75], dtype=torch.float64),
    )
    assert record.inside[0, 0, 0].tolist() == [True, True, False]


def test_a_known_move():
    # GELU(1) of all channels, so that the offsets are constant: 0.5 along y
    # and -0.125 along x, of half the map each.
    model = small()
    attention = deformable_blocks(model)[3, 0]
    torch.nn.init.zeros_(attention.conv_offset.norm.weight)
    torch.nn.init.ones_(attention.conv_offset.norm.bias)
    channels = attention.conv_offset.proj.in_features
    one = F.gelu(torch.tensor(1.0)) * channels
    attention.conv_offset.proj.weight.data = (
        torch.tensor([[0.5], [-0.125]]) / one
    ).expand(2, channels)
    with DATRecorder(model, blocks=[(3, 0)]) as recorder:
        model(images(160, 160))
    # A map of 5 pixels, 4 strides of 32 long: 0.5 of 64 down, an eighth left.
    # Of 5 rows the last 2 reach the edge, of 5 columns the last.
    moved = recorder[3, 0].points_xy[0] - recorder[3, 0].reference_xy
    free = ~recorder[3, 0].clamped[0]
    assert free.sum() == 2 * 12
    wanted = torch.tensor([-8.0, 32.0], dtype=torch.float64)
    torch.testing.assert_close(
        moved[free], wanted.expand(24, 2), rtol=0, atol=1e-4
    )


def bright_at(x, y, size):
    """A dark picture, as an input of twice its size, with a bright patch."""
    image = torch.zeros(1, 3, *size)
    image[..., y - 8 : y + 8, x - 8 : x + 8] = 20
    return image


def seeks_brightness(model):
    """Weights with which all queries look for bright pixels in stage 0."""
    model = still(model)
    conv = model.patch_embed.conv1
    for parameter in conv.parameters():
        torch.nn.init.zeros_(parameter)
    conv.weight.data[0] = 1 / conv.weight[0].numel()
    conv.bias.data[1] = 1  # so that norms do not take the brightness away
    attention = model.stages[0].blocks[0].attn
    for parameter in (
        *attention.proj_q.parameters(),
        *attention.proj_k.parameters(),
    ):
        torch.nn.init.zeros_(parameter)
    attention.proj_q.bias.data[0] = 100
    attention.proj_k.weight.data[0, 0] = 1
    return model


@pytest.mark.parametrize(('x', 'y'), [(24, 96), (120, 40), (168, 16)])
def test_attention_goes_to_a_planted_bright_spot(x, y):
    # All of it in pixels of a picture half as large as the input.
    model = seeks_brightness(
        small('dat', attentions=['D', 'LL', 'LL', 'L'], offset_stride=2)
    )
    frame = Frame.from_meta(
        dict(ori_shape=(60, 100), img_shape=(120, 200), scale_factor=(2, 2))
    )
    spot = torch.tensor([(x - 0.5 - 0.5) / 2, (y - 0.5 - 0.5) / 2])
    with DATRecorder(
        model, frames=frame, queries_xy=[(3, 3), (90, 50)]
    ) as recorder:
        model(bright_at(x, y, (128, 224)))
    record = recorder[0, 0]
    for weights in (*record.weights[0, 0], record.received[0, 0]):
        # The patch is 8 x 8 of the picture, a key stands for 4 x 4.
        on_spot = (record.points_xy[0, 0] - spot).abs().amax(dim=-1) <= 4
        assert 2 <= on_spot.sum() <= 9
        assert weights[on_spot].sum() > 0.99
        where = (record.points_xy[0, 0] * weights[..., None]).sum((0, 1))
        assert (where - spot).abs().max() < 2


@pytest.mark.parametrize('convention', ['dat', 'dat_pp'])
@pytest.mark.parametrize('position_bias', POSITION_BIASES)
@pytest.mark.parametrize('use_offsets', [True, False])
def test_weights_are_those_of_the_block(
    convention, position_bias, use_offsets
):
    model = small(
        convention, position_bias=position_bias, use_offsets=use_offsets
    )
    model = randomise(model)
    attention = deformable_blocks(model)[2, 1]
    seen = {}
    attention.register_forward_hook(
        lambda _, args, out: seen.update(x=args[0], out=out)
    )
    # Each map pixel of stage 2 is a query, in order.
    height, width = 5, 7
    step = 16 if convention == 'dat_pp' else 16.01
    queries = [
        (step * i + 1, step * j + 1)
        for j in range(height)
        for i in range(width)
    ]
    with (
        torch.no_grad(),
        DATRecorder(model, [(2, 1)], queries_xy=queries) as recorder,
    ):
        model(images(height * 16, width * 16, batch=2).double())
    record, x = recorder[2, 1], seen['x']
    weights = record.weights.flatten(3)  # B, heads, queries, Ns
    torch.testing.assert_close(record.received.flatten(2), weights.mean(dim=2))
    with torch.no_grad():
        q = attention.proj_q(x)
        sampled = (
            sample_at_points(x, attention.points_yx(q))
            if use_offsets
            else attention._pool(x)
        )
        v = attention.proj_v(sampled).unflatten(-1, (6, 4)).flatten(1, 2)
        out = torch.einsum('bhqk,bkhd->bqhd', weights, v).flatten(2)
        out = out.unflatten(1, (height, width))
        if position_bias == 'depthwise_conv':
            out = out + attention.rpe_table(q)
        out = attention.proj_out(out)
    torch.testing.assert_close(out, seen['out'])


def test_padding_does_not_ask():
    # Half the input is padding; what its queries want does not count.
    model = small()
    frame = Frame.from_meta(dict(ori_shape=(64, 96), img_shape=(64, 96)))
    queries = [(16 * i, 16 * j) for j in range(4) for i in range(6)]
    with DATRecorder(model, frames=frame, queries_xy=queries) as recorder:
        model(images(128, 96))
    record = recorder[2, 1]
    assert record.map_size == (8, 6)
    torch.testing.assert_close(record.received, record.weights.mean(dim=2))


def test_a_few_at_a_time_is_the_same(monkeypatch):
    model, x = small(), images()
    with DATRecorder(model) as recorder:
        model(x)
    monkeypatch.setattr('mmdat.visualization.weights.CHUNK_WEIGHTS', 100)
    with DATRecorder(model) as again:
        model(x)
    for key, record in recorder.records.items():
        torch.testing.assert_close(again[key].received, record.received)


@pytest.mark.parametrize('backend', [b.name for b in BACKENDS])
def test_does_not_depend_on_the_backend(backend):
    x = images()
    records = []
    for name in ('reference', backend):
        model = small(backend=name)
        with DATRecorder(model, queries_xy=[(30, 20)]) as recorder:
            try:
                model(x)
            except ValueError as error:
                pytest.skip(str(error))
        records.append(recorder.records)
    assert list(records[0]) == [(1, 1), (2, 1), (3, 0)]
    for key, record in records[0].items():
        other = records[1][key]
        torch.testing.assert_close(
            record.points_xy, other.points_xy, rtol=0, atol=1e-2
        )
        torch.testing.assert_close(
            record.weights, other.weights, rtol=1e-3, atol=1e-5
        )


def test_looking_changes_nothing_and_leaves_nothing():
    model, x = small(), images()
    before = model(x)
    with DATRecorder(model) as recorder:
        during = model(x)
    after = model(x)
    for a, b, c in zip(before, during, after, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
    points = recorder[3, 0].points_xy.clone()
    model(x + 1)
    assert torch.equal(points, recorder[3, 0].points_xy)


def test_hooks_are_gone_after_an_error():
    model = small()
    with (
        pytest.raises(ValueError, match='x in 0 to 95 and y in 0 to 63'),
        DATRecorder(model, queries_xy=[(96, 2)]),
    ):
        model(images())
    assert not any(module._forward_hooks for module in model.modules())
    assert not model._forward_pre_hooks


def test_a_query_that_was_cropped_away():
    # 64 x 160, of which the middle 96 columns are left.
    frame = Frame.from_meta(
        dict(ori_shape=(64, 160), img_shape=(64, 96), scale_factor=(1, 1))
    )
    model = small()
    with DATRecorder(model, frames=frame, queries_xy=[(32, 0)]):
        model(images())
    with (
        pytest.raises(
            ValueError, match='x in 32 to 127 and y in 0 to 63; got x 31'
        ),
        DATRecorder(model, frames=frame, queries_xy=[(31, 0)]),
    ):
        model(images())


def test_gradients_flow_as_before():
    model, x = small(with_cp=True), images()
    model.train()
    with DATRecorder(model):
        sum(out.square().mean() for out in model(x)).backward()
    seen = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    sum(out.square().mean() for out in model(x)).backward()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, seen[name]), name


def test_points_under_autocast_are_those_of_the_forward_pass():
    model = small()
    attention = deformable_blocks(model)[2, 1]
    find, found = attention.points_yx, []

    def spy(q):
        found.append(find(q))
        return found[-1]

    attention.points_yx = spy
    with (
        torch.no_grad(),
        torch.autocast('cpu', torch.bfloat16),
        DATRecorder(model, [(2, 1)]) as recorder,
    ):
        model(images())
    assert len(found) == 2 and torch.equal(*found)
    assert recorder[2, 1].received.dtype == torch.float32


def test_each_picture_of_a_batch_has_its_frame():
    model = still(small())
    frames = Frame((64, 96)), Frame((32, 48), (2.0, 2.0), (0.5, 0.5))
    with DATRecorder(model, frames=frames) as recorder:
        model(images(batch=2))
    one, two = recorder[3, 0].points_xy
    torch.testing.assert_close(two, (one - 0.5) / 2)
    with (
        pytest.raises(ValueError, match='got 2 for 1 pictures'),
        DATRecorder(model, frames=frames),
    ):
        model(images())


def test_blocks_without_deformable_attention():
    model = small('dat', attentions=['L', 'LS', 'LD', 'D'])
    with pytest.raises(
        ValueError,
        match='Block 0 of stage 0 has no deformable attention; stage 2 has it '
        'in block 1, stage 3 in block 0.',
    ):
        DATRecorder(model, [(0, 0)])
    assert select_blocks(model) == [(2, 1), (3, 0)]
    assert select_blocks(model, 3) == [(3, 0)]
    with pytest.raises(ValueError, match='stage 2, block 0 has no'):
        select_blocks(model, 2, 0)
    model = small('dat', attentions=['L', 'LS', 'LL', 'L'])
    with pytest.raises(ValueError, match='no stage of this model has any'):
        select_blocks(model)
    with pytest.raises(ValueError, match='Linear has none'):
        DATRecorder(torch.nn.Linear(1, 1))
