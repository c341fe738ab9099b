# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Links lead somewhere, commands exist, and configs on the pages build."""

import re
import shlex
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from test_model_zoo import letter_of

import mmdat  # noqa: F401
from mmdat.datasets.digits import DigitsOptions

ROOT = Path(__file__).parents[2]
PAGES = sorted(ROOT.glob('*.md'))
PAGES += sorted((ROOT / 'docs').rglob('*.md'))
PAGES += [ROOT / 'configs/README.md', ROOT / 'demo/README.md']
PAGES += sorted((ROOT / 'projects').rglob('README.md'))
# No config of a project.
SCRIPT = re.compile(r'(?!.*/configs/)(tools|demo|projects)/.*\.(py|sh)$')
FENCE = re.compile(r'^```(\w*)\n(.*?)^```', re.M | re.S)


def blocks(page, language):
    return [
        b for kind, b in FENCE.findall(page.read_text()) if kind in language
    ]


def anchors(page):
    titles = re.findall(r'^#+ (.+)$', FENCE.sub('', page.read_text()), re.M)
    return {
        re.sub(r'[^\w\- ]', '', t.lower()).replace(' ', '-') for t in titles
    }


@pytest.mark.parametrize(
    'page', PAGES, ids=lambda p: f'{p.parent.name}-{p.stem}'
)
def test_links_lead_somewhere(page):
    text = FENCE.sub('', page.read_text())
    links = re.findall(r'\]\(([^)\s]+)\)', text)
    links += re.findall(r'^\[[^\]]+\]: (\S+)$', text, re.M)
    for link in links:
        if '://' in link:
            continue
        path, _, anchor = link.partition('#')
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def commands():
    for page in PAGES:
        for block in blocks(page, ('bash', 'console')):
            for line in block.replace('\\\n', ' ').splitlines():
                words = shlex.split(line.removeprefix('$ '), comments=True)
                for i, word in enumerate(words):
                    if re.match(r'projects/\w+/configs/\w+\.py$', word):
                        assert (ROOT / word).is_file(), (page.name, word)
                    elif re.match(SCRIPT, word):
                        yield page.name, word, words[i + 1 :]


def options_of(script):
    if script == 'tools/dev/gpu_check.sh':
        script = 'tools/dev/gpu_check/run.py'
    if script.endswith('.sh'):
        script = 'tools/' + script.split('_')[-1].replace('.sh', '.py')
    source = (ROOT / script).read_text()
    if 'common_parser' in source:
        source += (ROOT / 'mmdat/engine/arguments.py').read_text()
    if script == 'tools/make_digits.py':
        names = [f.name.replace('_', '-') for f in fields(DigitsOptions)]
        return {'--out', *(f'--{name}' for name in names)}
    return set(re.findall(r"'(--[\w-]+)'", source))


def test_commands_options_and_configs_exist():
    found = list(commands())
    assert len(found) > 25
    for page, script, words in found:
        assert (ROOT / script).is_file(), (page, script)
        for word in words:
            if word.startswith('--'):
                option = word.partition('=')[0]
                assert option in options_of(script), (page, script, word)
            elif re.match(r'(projects/\w+/)?configs/\w+\.py$', word):
                ours = (ROOT / word).is_file() or word == 'configs/mine.py'
                assert ours, (page, word)


@pytest.mark.parametrize('number', range(3))
def test_snippets_build(number, tmp_path):
    snippet = blocks(ROOT / 'docs/use_in_your_config.md', ('python',))[number]
    package = ('mmdet', 'mmseg', 'mmpretrain')[number]
    pytest.importorskip(package)
    path = tmp_path / 'config.py'
    path.write_text(snippet)
    cfg = Config.fromfile(str(path))
    init_default_scope(package)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert type(model.backbone).__name__ == 'DAT'


@pytest.mark.parametrize('page', ['README.md', 'docs/index.md'])
def test_the_first_snippet_runs(page, capsys):
    exec(blocks(ROOT / page, ('python',))[0], {})
    shapes = capsys.readouterr().out.splitlines()
    assert shapes[0] == '(1, 96, 56, 56)' and shapes[-1] == '(1, 768, 7, 7)'
    assert len(shapes) == 4


def metafile_models():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    for path in index['Import']:
        yield from yaml.safe_load((ROOT / path).read_text())['Models']


def test_the_zoo_agrees_with_the_metafiles():
    text = (ROOT / 'docs/model_zoo.md').read_text()
    rows = re.findall(r'^\| \[(\w+)\]\((\S+)\) \| (.+) \|$', text, re.M)
    found = {name: [path, *cells.split(' | ')] for name, path, cells in rows}
    released = dict(
        reversed(row)
        for row in re.findall(
            r'^\| (`\w+\.pth`) \| `(\w+)\.py` \|',
            (ROOT / 'docs/evaluate_released.md').read_text(),
            re.M,
        )
    )
    models = list(metafile_models())
    assert len(rows) == len(models) == len(found)
    for m in models:
        data = m['Metadata']
        (path, model, length, batch, parameters, flops) = found[m['Name']][:6]
        *metrics, recipe, file = found[m['Name']][6:]
        assert path == f'../{m["Config"]}'
        assert model == ', '.join(data['Architecture'])
        assert int(length) == data.get('Epochs', data.get('Iterations'))
        assert int(batch) == data['Batch Size']
        assert parameters == f'{data["Parameters"] / 1e6:.1f}'
        assert float(flops) == data['FLOPs'] / 1e9
        reported = [
            str(value)
            for result in m.get('Results', [])
            for value in result['Metrics'].values()
        ]
        assert [cell for cell in metrics if cell != '-'] == reported
        assert (recipe == '-') == (not reported)
        assert file == released.get(m['Name'], '-')


def test_recipes_of_the_zoo_are_those_of_its_commands():
    text = (ROOT / 'docs/model_zoo.md').read_text()
    for name, cells in re.findall(
        r'^\| \[(\w+)\]\(\S+\) \| (.+) \|$', text, re.M
    ):
        *_, recipe, file = cells.split(' | ')
        if '_pp_' in name and not name.startswith('classifier'):
            assert recipe == letter_of(name) and file != '-'
        elif recipe != '-':
            kind = name.startswith('classifier')
            assert recipe == ('config' if kind else 'unknown')


def test_flops_of_the_metafiles_are_those_of_the_complexity_page():
    page = (ROOT / 'docs/complexity.md').read_text()
    counted = {
        name.replace('_3x', ''): flops
        for name, flops in re.findall(
            r'/configs/(\w+)\.py\) \| [\d.]+ \| [^|]*\| ([\d.]+) \|', page
        )
    }
    for m in metafile_models():
        name = m['Name'].replace('_3x', '')
        assert m['Metadata']['FLOPs'] == round(float(counted[name]) * 1e9)


def test_fine_tuning_snippets_build():
    pytest.importorskip('mmdet')
    import family
    from mmengine.optim import build_optim_wrapper

    cfg = family.load('mask_rcnn_dat_pp_t_coco')
    for snippet in blocks(ROOT / 'docs/finetune.md', ('python',)):
        settings = {}
        exec(snippet, {}, settings)
        cfg.merge_from_dict(settings)
    with torch.device('meta'):
        model = family.build(cfg)
    assert model.backbone.frozen_stages == 1
    assert not model.backbone.patch_embed[0].weight.requires_grad
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    rates = {group['lr'] for group in wrapper.optimizer.param_groups}
    assert len(rates) > 20 and max(rates) == cfg.optim_wrapper.optimizer.lr


def test_the_walk_names_each_file_once():
    page = ROOT / 'docs/how_dat_works.md'
    walk = page.read_text().split('## A walk from image to map')[1]
    package = ROOT / 'mmdat'
    files = [*package.glob('models/**/*.py'), *package.glob('ops/*.py')]
    wanted = {f for f in files if f.name != '__init__.py'}
    named = re.findall(r'\[([\w/]+\.py)\]\(\.\./mmdat/\1\)', walk)
    assert sorted(named) == sorted(
        f.relative_to(package).as_posix() for f in wanted
    )


def launched():
    """The first two launches of README, each in one process."""
    text = '\n'.join(blocks(ROOT / 'README.md', ('bash',)))
    lines = text.replace('\\\n', ' ').splitlines()
    lines = [line for line in lines if line.startswith('tools/dist_')]
    return [re.sub(r' 8( |$)', ' 1 ', line, count=1) for line in lines[:2]]


@pytest.mark.slow
@pytest.mark.skipif(
    not (ROOT / '.venv/bin/python').exists(), reason='set up another way'
)
def test_launches_from_a_plain_shell_end_with_a_sentence(tmp_path):
    """Nobody activated .venv, and there is neither COCO nor a weight file."""
    commands = launched()
    assert len(commands) == 2
    for command in commands:
        done = subprocess.run(
            ['bash', '-c', command],
            cwd=ROOT,
            env=dict(HOME=str(tmp_path), PATH='/usr/bin:/bin'),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2, done.stderr
        first, *_, last = done.stderr.strip().splitlines()
        assert 'source' in first and '.venv/bin/activate' in first
        assert re.search(r'There is no checkpoint .+; check', last), last
        assert 'Traceback' not in done.stderr + done.stdout
