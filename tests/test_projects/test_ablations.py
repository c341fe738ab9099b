# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The ablations: every model builds, the command goes from start to plot."""

import csv
import json
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmpretrain')
pytest.importorskip('mmdet')

PROJECT = Path(__file__).parents[2] / 'projects' / 'ablations'
sys.path.insert(0, str(PROJECT))

import run as ablation_command  # noqa: E402
from ablations import report, running, studies  # noqa: E402
from ablations.children import Children  # noqa: E402
from test_tools.conftest import digits, run  # noqa: E402, F401

from mmdat.analysis.forward import build_model  # noqa: E402
from mmdat.engine.configuration import load_config  # noqa: E402
from mmdat.models import DAT  # noqa: E402
from mmdat.utils.errors import UserError  # noqa: E402

MODELS = [v for s in studies.STUDIES for v in studies.variants(s, 'small')]
CASES = {v.name: v for v in MODELS}


def backbone(name):
    variant = CASES[name]
    options = running.cfg_options(variant, 3, 'small', None)
    config = variant.config or studies.SCALES['small']
    cfg = load_config(str(config), options)
    assert cfg.randomness.seed == 3
    return build_model(cfg).backbone


@pytest.mark.parametrize('name', CASES)
def test_every_small_model_is_the_one_its_name_says(name):
    model = backbone(name)
    assert isinstance(model, DAT) == (name not in ('swin', 'pvt'))
    if not isinstance(model, DAT):
        return
    deformable = [s for s in model.arch.stages if 'D' in s.attentions]
    offsets = {s.use_offsets for s in deformable}
    biases = {s.position_bias for s in deformable}
    ranges = {s.offset_range for s in deformable}
    if name.startswith('offsets_'):
        word, bias = name.removeprefix('offsets_').split('-bias_')
        assert offsets == {word == 'on'} and biases == {bias}
    elif name.startswith('range_'):
        assert ranges == {int(name.removeprefix('range_'))}
    elif name.startswith('stages_'):
        assert len(deformable) == int(name.removeprefix('stages_'))
    else:
        assert (offsets, biases, ranges) == ({True}, {'table'}, {2})
        assert len(deformable) == 2


@pytest.mark.parametrize('scale', ['in1k', 'coco'])
def test_the_models_of_the_paper_parse(scale):
    for study in studies.STUDIES:
        for variant in studies.variants(study, scale):
            config = variant.config or studies.SCALES[scale]
            options = running.cfg_options(variant, 0, scale, None)
            cfg = load_config(str(config), options)
            for key, value in variant.options.items():
                assert cfg.model.backbone[key] == value


# Of the authors' yaml: parameters with the head of 1000 classes, counted by
# their code.
LATER = {
    'dat_p': 22_772_796,
    'dat_p_full': 22_751_066,
}


@pytest.mark.parametrize('study', ['attention', 'swin_style'])
def test_the_authors_later_studies_build(study):
    models = studies.variants(study, 'in1k')
    assert len(models) == dict(attention=3, swin_style=7)[study]
    assert not studies.variants(study, 'small')
    for variant in models:
        options = running.cfg_options(variant, 0, 'in1k', None)
        cfg = load_config(str(variant.config), options)
        with torch.device('meta'):
            model = build_model(cfg)
        arch = model.backbone.arch
        assert not (arch.conv_embed or arch.conv_mlp or arch.local_perception)
        assert {s.convention for s in arch.stages} == {'dat_pp'}
        assert cfg.model.backbone.drop_path_rate == 0.2
        if study == 'swin_style':
            assert model.backbone.stem_proj.in_features == 64
        if variant.name in LATER:
            count = sum(p.numel() for p in model.parameters())
            assert count == LATER[variant.name]


@pytest.mark.parametrize('name', ['swin', 'pvt'])
def test_small_baselines_are_as_large_as_dat(name):
    base = studies.SCALES['small']
    cost = running.complexity(base, {}, base)['parameters']
    other = running.complexity(CASES[name].config, {}, base)['parameters']
    assert 0.5 < other / cost < 2


def test_configs_are_lean():
    for path in (PROJECT / 'configs').glob('*.py'):
        assert len(path.read_text().splitlines()) <= 15, path


def test_other_numbers_of_epochs_are_for_the_small_scale():
    with pytest.raises(UserError, match='--scale coco'):
        running.cfg_options(CASES['dat'], 0, 'coco', 2)


def test_a_folder_of_other_settings_is_refused(tmp_path):
    running._state(tmp_path, dict(seed=0))
    running._state(tmp_path, dict(seed=0))
    with pytest.raises(UserError, match='another with --work-dir'):
        running._state(tmp_path, dict(seed=1))


def result(accuracy):
    return dict(
        metrics={'accuracy/top1': accuracy},
        parameters=2_000_000,
        multiply_adds=50_000_000,
        seconds=10.0,
        cpu_seconds=7.0,
        memory_mib=1000.0,
        memory_of='process',
    )


def test_a_row_is_mean_and_spread_over_seeds():
    row = report.summarise('DAT', {0: result(50.0), 1: result(54.0)})
    text = report.markdown([row])
    assert '| DAT | 0 1 | 52.0 ± 2.8 (50.0 to 54.0) | 2.000 | 50.0 |' in text
    assert text.endswith('| 10 | 7 | 1000 |\n')
    one = report.summarise('DAT', {0: result(50.0)})
    assert '| 0 | 50.0 |' in report.markdown([one])


def test_some_ranges_are_drawn_at_their_own_places(tmp_path, monkeypatch):
    drawn = []
    row = dict(values=[50.0], mean=50.0, metric='top1')
    monkeypatch.setattr(
        report.plt.Axes,
        'set_xticks',
        lambda _, places, *args, **kwargs: drawn.append(list(places)),
    )
    rows = [dict(row, label='s = 4'), dict(row, label='s = 16')]
    report.plot('range', rows, tmp_path / 'range.png')
    assert [4, 16] in drawn and (tmp_path / 'range.png').is_file()


def test_attention_has_a_grid_of_keys_to_move():
    """As in the paper: two by two windows in stage 3 and one in stage 4."""
    stages = backbone('dat').arch.stages
    sides = [stage.map_size[0] // stage.window_size for stage in stages]
    assert sides == [8, 4, 2, 1]
    assert min(stage.map_size[0] for stage in stages) > 2


def test_processor_time_is_counted_and_waiting_is_not(tmp_path):
    code = 'import time; time.sleep(1)\nwhile time.process_time() < 0.5: pass'
    parts, log = [sys.executable, '-c', code], tmp_path / 'log'
    outcome = Children().run(parts, log, tmp_path, os.environ)
    assert outcome.code == 0 and outcome.cpu_seconds >= 0.5
    parts[-1] = 'import time; time.sleep(2)'
    assert Children().run(parts, log, tmp_path, os.environ).cpu_seconds < 1


def test_memory_is_that_of_the_process_not_of_the_one_that_started_it(
    tmp_path,
):
    held = b'x' * 2**29
    parts = [sys.executable, '-c', "b'x' * 2**27; print('seen')"]
    outcome = Children().run(parts, tmp_path / 'log', tmp_path, os.environ)
    assert len(held) == 2**29 and (tmp_path / 'log').read_text() == 'seen\n'
    assert 128 < outcome.resident_mib < 256


def test_a_process_that_is_told_to_end_says_so(tmp_path):
    children, log = Children(), tmp_path / 'log'
    code = "import time; print('up', flush=True); time.sleep(3600)"
    parts = [sys.executable, '-c', code]
    with ThreadPoolExecutor() as pool:
        run = pool.submit(children.run, parts, log, tmp_path, os.environ)
        while not run.done() and not (log.exists() and log.read_text()):
            time.sleep(0.1)
        children.end()
        assert run.result().code == -signal.SIGTERM
    with pytest.raises(InterruptedError):
        children.run(parts, log, tmp_path, os.environ)


def test_a_failing_run_ends_the_others(tmp_path, monkeypatch, capsys):
    """Soon, and with nothing of theirs left running."""
    commands = {
        'dat': [sys.executable, '-c', 'import time; time.sleep(3600)'],
        'range_1': [sys.executable, '-c', 'raise SystemExit(3)'],
    }
    monkeypatch.setattr(
        running, 'command', lambda _, folder, *__: commands[folder.parent.name]
    )
    monkeypatch.setattr(running, 'complexity', lambda *_: {})
    monkeypatch.setattr(
        sys,
        'argv',
        ['run.py', '--study', 'range', '--jobs', '2']
        + ['--only', 'dat', 'range_1', '--work-dir', str(tmp_path)],
    )
    with pytest.raises(SystemExit):
        ablation_command.main()
    assert 'ended with code 3' in capsys.readouterr().err
    assert not list(tmp_path.rglob('result.json'))


def test_a_report_has_what_is_finished_and_trains_nothing(
    tmp_path, monkeypatch, capsys
):
    command = ['run.py', '--report', '--work-dir', str(tmp_path)]
    command += ['--study', 'range', 'stages', '--seeds', '0', '1']
    monkeypatch.setattr(sys, 'argv', command)
    monkeypatch.setattr(ablation_command, 'train', None)
    with pytest.raises(SystemExit):
        ablation_command.main()
    assert 'train them first' in capsys.readouterr().err
    for seed, name in ((0, 'range_4'), (1, 'range_4'), (1, 'range_0')):
        folder = tmp_path / 'small' / name / f'seed_{seed}'
        folder.mkdir(parents=True)
        content = json.dumps(result(50.0 + seed))
        (folder / 'result.json').write_text(content)
    ablation_command.main()
    output = capsys.readouterr().out
    assert '| s = 0 | 1 | 51.0 |' in output
    assert '| s = 4 | 0 1 | 50.5 ± 0.7 (50.0 to 51.0) |' in output
    assert 's = 2' not in output and '\nstages\n' not in output


def test_metrics_of_detection_are_shares():
    logged = dict(metrics={'coco/bbox_mAP': 0.25})
    assert running.main_metric(logged) == ('coco/bbox_mAP', 25.0)


@pytest.mark.slow
def test_trains_draws_and_keeps_what_is_finished(digits, tmp_path):  # noqa: F811
    def ablate():
        run(
            *(sys.executable, PROJECT / 'run.py', '--epochs', 1),
            *('--jobs', 2),
            *('--study', 'geometry', 'baselines'),
            *('--only', 'offsets_off-bias_none', 'pvt'),
            *('--work-dir', tmp_path, '--data-root', digits / 'imagenet'),
        )

    ablate()
    root = tmp_path / 'small'
    files = list(root.glob('*/seed_0/result.json'))
    assert {f.parts[-3] for f in files} == {'offsets_off-bias_none', 'pvt'}
    for study in ('geometry', 'baselines'):
        with open(root / f'{study}.csv', newline='') as file:
            (row,) = csv.DictReader(file)
        assert 0 <= float(row['mean']) <= 100
        assert float(row['seconds']) > 0 and float(row['cpu_seconds']) > 1
        assert float(row['memory_mib']) > 100
        assert (root / f'{study}.png').stat().st_size > 5000
    for file in files:  # shows that the second time nothing is trained
        content = json.loads(file.read_text())
        content['metrics']['accuracy/top1'] = 12.5
        file.write_text(json.dumps(content))
    ablate()
    assert ' 12.5 ' in (root / 'geometry.md').read_text()
