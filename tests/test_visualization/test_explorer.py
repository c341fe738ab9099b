# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""What the explorer shows is what ``record`` gives."""

import base64
import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import needs_chromium, visit
from PIL import Image

from mmdat.engine.configuration import load_config
from mmdat.utils.errors import UserError
from mmdat.visualization import explore, load_model, load_picture, record
from mmdat.visualization.explorer.encode import (
    Blob,
    Plan,
    Rows,
    plan_block,
    plan_blocks,
)

CONFIG = str(
    Path(__file__).parents[2] / 'configs' / 'classifier_dat_digits.py'
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A picture and two checkpoints of a classifier."""
    pytest.importorskip('mmpretrain')
    folder = tmp_path_factory.mktemp('explorer')
    noise = np.random.default_rng(0).integers(0, 255, (9, 13, 3), np.uint8)
    Image.fromarray(noise).resize((130, 90)).save(folder / 'picture.png')
    torch.manual_seed(0)
    model = load_model(CONFIG)
    for number in (1, 2):
        for module in model.backbone.modules():
            if getattr(module, 'conv_offset', None) is not None:
                module.conv_offset.proj.weight.data *= 4
                module.proj_q.weight.data *= 6
        torch.save(
            dict(state_dict=model.state_dict()), folder / f'epoch_{number}.pth'
        )
    return folder


@pytest.fixture(scope='module')
def page(folder):
    checkpoints = [folder / 'epoch_1.pth', folder / 'epoch_2.pth']
    return explore(folder / 'picture.png', CONFIG, checkpoints)


@pytest.fixture(scope='module')
def model(folder):
    return load_model(CONFIG, str(folder / 'epoch_2.pth'))


@pytest.fixture(scope='module')
def picture(folder, model):
    return load_picture(model, folder / 'picture.png')


def embedded(html):
    """Header and arrays of a page, read anew."""
    header = json.loads(re.search(r'id="header">(.*?)</script>', html)[1])
    packed = re.search(r'id="weights">(.*?)</script>', html)[1]
    data = gzip.decompress(base64.b64decode(packed))
    return header, lambda kind, start, count: np.frombuffer(
        data, kind, count, start
    )


def weights_of(block, run, array):
    """(heads, Q, keys), 0 for what was left out."""
    heads, rows = block['heads'], np.prod(block['queries'])
    keys, kept = np.prod(block['keys']), run['kept']
    peaks = (array(*run['peaks']) / 65535.0).reshape(heads, rows, 1) ** 2
    found = np.zeros((heads, rows, keys))
    if 'codes' in run:
        return peaks * (array(*run['codes']).reshape(found.shape) / 255) ** 2
    falls = array(*run['falls']).reshape(heads, rows, kept).astype(int)
    index = array(*run['low']).reshape(heads, rows, kept).astype(int)
    if 'high' in run:
        index += 256 * array(*run['high']).reshape(index.shape).astype(int)
    values = peaks * ((255 - falls.cumsum(-1)) / 255) ** 2
    np.put_along_axis(found, index, values, -1)
    return found


def test_the_page_holds_what_was_recorded(page, model, picture):
    header, array = embedded(page.html)
    assert header == page.header
    assert [run['name'] for run in header['runs']] == ['epoch_1', 'epoch_2']
    for block, run in zip(header['blocks'], header['runs'][1]['blocks']):
        key = block['stage'], block['block']
        rows, columns = block['queries']
        queries = [
            (
                block['start'][0] + i % columns * block['pace'][0],
                block['start'][1] + i // columns * block['pace'][1],
            )
            for i in range(rows * columns)
        ]
        inside = np.clip(queries, 0, (129, 89))
        one = record(model, picture, [key], inside.tolist())[key]
        np.testing.assert_allclose(one.queries_xy[0], queries, atol=1e-3)
        for name, wanted in (
            ('points', one.points_xy[0]),
            ('reference', one.reference_xy[0]),
        ):
            found = array(*run[name]).reshape(wanted.shape) / run['unit']
            np.testing.assert_allclose(found, wanted, atol=0.01)
        received = (array(*run['received']) / 65535.0) ** 2
        np.testing.assert_allclose(received, one.received.flatten(), atol=5e-5)
        wanted = one.weights[0].flatten(-2).numpy()
        found = weights_of(block, run, array)
        largest = wanted.max(-1, keepdims=True)
        assert (np.abs(found - wanted) / largest).max() < 2.1 / 255
        assert run['held'] == 1.0 and block['step'] == 1


@pytest.mark.parametrize(('keys', 'kept'), [(300, 20), (300, 300), (100, 7)])
def test_the_largest_keys_are_kept(keys, kept):
    weights = np.random.default_rng(0).dirichlet(np.ones(keys), (2, 6))
    order = (-weights).argsort(-1)
    rows = Rows(
        order[..., :kept].astype(np.uint16),
        np.take_along_axis(weights, order, -1)[..., :kept],
        keys,
    )
    blob = Blob()
    run = rows.encode(kept, blob)
    data = gzip.decompress(base64.b64decode(blob.text()))

    def array(kind, start, count):
        return np.frombuffer(data, kind, count, start)

    block = dict(heads=2, queries=[2, 3], keys=[1, keys])
    found = weights_of(block, run, array)
    assert (np.count_nonzero(found, axis=-1) <= kept).all()
    wanted = weights * (weights >= -np.sort(-weights)[..., kept - 1 : kept])
    error = np.abs(found - wanted) / weights.max(-1, keepdims=True)
    assert error.max() < 2.1 / 255
    share = wanted.sum(-1).mean()
    assert run['held'] == pytest.approx(share, abs=1e-4)


def test_plans_fit_and_leave_nothing_out_without_need():
    assert plan_block((10, 12), 4, 30, 1e5) == Plan(1, 30)
    # 120 queries, 4 heads, 3 bytes a key with its number and 2 for a row.
    tight = plan_block((100, 120), 4, 850, 1e6)
    rows = 4 * -(-100 // tight.step) * -(-120 // tight.step)
    assert rows * (2 + 3 * tight.keys) <= 1e6 and tight.keys >= 24
    assert plan_block((100, 120), 4, 850, 100) is None
    both = plan_blocks([((100, 120), 4, 850), ((2, 3), 4, 850)], 1e6)
    # What the small block leaves goes to the large one.
    assert both[1] == Plan(1, 850)
    assert both[0].step <= tight.step + 1


def test_a_small_page_says_what_is_left_out(folder):
    cfg = load_config(
        CONFIG, {'test_dataloader.dataset.pipeline.1.scale': (256, 256)}
    )
    small = explore(
        folder / 'picture.png', cfg, folder / 'epoch_1.pth', megabytes=0.07
    )
    assert len(small.html.encode()) <= 70_000
    (run,) = small.header['runs']
    cut = [
        (block, one)
        for block, one in zip(small.header['blocks'], run['blocks'])
        if block['step'] > 1 or one['kept'] < np.prod(block['keys'])
    ]
    # The shares that are told are those that are there.
    assert cut
    _, array = embedded(small.html)
    for block, one in cut:
        share = weights_of(block, one, array).sum(-1).mean()
        assert share == pytest.approx(one['held'], abs=0.02)
    with pytest.raises(UserError, match='no room for so many blocks'):
        explore(folder / 'picture.png', cfg, megabytes=0.04)


def test_random_weights_are_said(folder):
    with pytest.warns(UserWarning, match='the weights are random'):
        page = explore(folder / 'picture.png', CONFIG, stage=3)
    assert page.header['warning'] == 'random weights'
    assert {b['stage'] for b in page.header['blocks']} == {3}


def test_a_notebook_shows_it(page):
    shown = page._repr_html_()
    assert shown.startswith('<iframe') and 'srcdoc="&lt;!DOCTYPE' in shown


def test_the_page_needs_no_network(page):
    html = re.sub(r'https?://www\.w3\.org/2000/svg', '', page.html)
    assert 'http://' not in html and 'https://' not in html
    assert "default-src 'none'" in html


LOOK = """
const name = 'mean';
for (const head of [null, 1]) {
  explorer.choose({block: BLOCK, head});
  at(XX, YY, 'pointermove');
  told.push({keys: explorer.shown().legend.keys.map(
    k => [...explorer.current().pointAt(k.group, k.key), k.weight]),
    star: explorer.current().queryAt(explorer.state.query),
    circles: explorer.shown().shapes.filter(s => s.kind === 'circle').map(
      s => [s.x, s.y, s.r])});
}
"""


@needs_chromium
def test_the_pointer_shows_the_keys_that_record_gives(
    page, model, picture, tmp_path
):
    number = 1
    block = page.header['blocks'][number]
    key = block['stage'], block['block']
    steps = LOOK.replace('BLOCK', str(number))
    told = visit(
        page.html, tmp_path, steps.replace('XX', '70').replace('YY', '33')
    )
    one = record(model, picture, [key], [(70, 33)])[key]
    for head, found in zip((None, 1), told):
        np.testing.assert_allclose(
            found['star'], one.queries_xy[0, 0], atol=1e-3
        )
        if head is None:
            points = one.points_xy[0].reshape(-1, 2).numpy()
            weights = one.by_group(one.weights)[0, :, 0] / one.groups
        else:
            points = one.points_xy[0, one.group_of(head)].reshape(-1, 2)
            weights = one.weights[0, head, 0]
        weights = weights.flatten().numpy()
        keys = np.array(found['keys'])
        assert len(keys) == len(weights)
        np.testing.assert_allclose(
            keys[:, 2], -np.sort(-weights), atol=2.1 / 255 * weights.max()
        )
        # Each with its own weight.
        for x, y, weight in keys:
            far = np.abs(np.asarray(points) - (x, y)).max(-1)
            near = weights[far < 0.02]
            assert np.abs(near - weight).min() < 2.1 / 255 * weights.max()
        # Areas are proportional to weights.
        circles = np.array(found['circles'])
        assert len(circles) == len(keys)
        large = circles[::-1, 2] > circles[:, 2].min() * 1.01
        ratio = circles[::-1, 2][large] ** 2 / keys[large, 2]
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-6)


@needs_chromium
def test_keys_and_controls(page, tmp_path):
    told = visit(
        page.html,
        tmp_path,
        """
        const state = () => ({...explorer.state});
        explorer.choose({block: 1});
        at(70, 33, 'pointerdown'); at(10, 10, 'pointermove');
        const held = state();
        press('ArrowRight'); const right = state();
        press('Escape'); at(10, 10, 'pointermove'); const freed = state();
        press('p'); const points = explorer.shown().shapes.length;
        press('k'); const reverse = explorer.shown().legend;
        const key = state().key, block = explorer.current();
        let most = 0;
        for (let q = 0; q < block.rows; q++)
          for (const k of block.keysOf(q, 0))
            if (k.key === key.key && block.groupOf(0) === key.group)
              most = Math.max(most, k.weight);
        explorer.choose({head: 0}); const high = explorer.shown().legend.high;
        explorer.choose({head: null});
        press('-'); const run = state().run;
        press(']'); const next = state().block;
        press('q'); press('.'); const head = state().head;
        press('t'); const theme = document.documentElement.dataset.theme;
        told.push(held, right, freed, points, most, high, run, next, head,
          theme, explorer.svg(), document.getElementById('says').textContent);
        """,
    )
    held, right, freed, points, most, high, run, block, head, theme = told[:10]
    assert held['held'] and right['query'] == held['query'] + 1
    assert not freed['held'] and freed['query'] != right['query']
    entry = page.header['blocks'][1]
    count = entry['groups'] * np.prod(entry['keys'])
    # A line, its start and a circle for each point, and nothing else.
    assert points == 3 * count
    assert high == pytest.approx(most) and most > 0
    assert (run, block, head) == (0, 2, 0)
    assert theme in ('dark', 'light')
    assert told[10].startswith('<svg') and 'data:image/jpeg' in told[10]
    assert told[11].startswith('Query at pixel')


@needs_chromium
def test_a_finger_holds_and_drags(page, tmp_path):
    told = visit(
        page.html,
        tmp_path,
        """
        // No finger is on this screen that could be captured.
        document.getElementById('view').setPointerCapture = () => {};
        const finger = {pointerType: 'touch', pointerId: 5, buttons: 1};
        const query = () => explorer.state.query;
        explorer.choose({block: 1});
        at(70, 33, 'pointerdown', finger); const first = query();
        at(10, 10, 'pointermove', finger); const dragged = query();
        at(70, 33, 'pointermove'); const left = query();
        at(70, 33, 'pointerdown', finger); const again = query();
        told.push(first, dragged, left, again, explorer.state.held);
        """,
    )
    first, dragged, left, again, held = told
    assert dragged != first and left == dragged
    assert again == first and held


@needs_chromium
@pytest.mark.parametrize('size', [(1100, 800), (380, 720)])
def test_it_looks_like_something(page, size, tmp_path):
    path = tmp_path / 'shot.png'
    visit(page.html, tmp_path, '', size, path)
    with Image.open(path) as shot:
        pixels = np.asarray(shot.convert('RGB')).astype(int)
    # Circles have the colours of viridis, on a dimmed picture.
    yellow = (pixels[..., 0] > 180) & (pixels[..., 1] > 170)
    yellow &= pixels[..., 2] < 90
    assert yellow.sum() > 50
    assert pixels.std() > 20
