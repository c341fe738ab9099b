# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Training one model as a process of its own, and what came of it."""

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from mmdat.analysis.counting import count, total
from mmdat.analysis.forward import build_model, forward_whole, usual_shape
from mmdat.engine.configuration import load_config
from mmdat.utils.errors import UserError

from .children import Children
from .studies import REPO, SCALES, Variant

#: What a run is judged by: the first of these that its log has.
METRICS = ('accuracy/top1', 'coco/bbox_mAP')
# Registries and default scopes of mmengine are not made for threads.
_building = threading.Lock()


def train(
    variant: Variant,
    seed: int,
    scale: str,
    folder: Path,
    children: Children,
    epochs: int | None = None,
    data_root: str | None = None,
    processes: int = 1,
) -> dict[str, Any]:
    """Trains a model, or goes on, or reads the result if there is one.

    Args:
        variant: The model.
        seed: Of all chance.
        scale: One of ``.studies.SCALES``.
        folder: Work dir of this one run.
        children: Where the process that trains is kept.
        epochs: Replaces the config's number, schedule included.
        data_root: Replaces the config's folder of data.
        processes: Above 1, that many are started, one for each GPU.

    Returns:
        The metrics, ``seconds`` of wall time and ``cpu_seconds`` of processor
        time (user and system) over all attempts, ``memory_mib`` the peak (of
        the GPU if it was logged, else the largest resident size of the
        process), ``parameters``, ``multiply_adds`` and the settings.

    Raises:
        UserError: Training failed, or the folder holds a different run.
    """
    options = cfg_options(variant, seed, scale, epochs)
    config = variant.config or SCALES[scale]
    settings = dict(
        config=str(config.relative_to(REPO)),
        options=options,
        data_root=data_root,
        processes=processes,
    )
    state = _state(folder, settings)
    result_file = folder / 'result.json'
    if result_file.exists():
        return json.loads(result_file.read_text())
    with _building:
        costs = complexity(config, options, SCALES[scale])
    start = time.monotonic()
    outcome = children.run(
        command(config, folder, options, data_root, processes),
        folder / 'output.txt',
        REPO,
        _environment(),
    )
    state['seconds'] += time.monotonic() - start
    state['cpu_seconds'] += outcome.cpu_seconds
    state['resident_mib'] = max(state['resident_mib'], outcome.resident_mib)
    _write(folder / 'state.json', state)
    if outcome.code:
        raise UserError(
            f'Training {variant.label} ended with code {outcome.code}; read '
            f'{folder / "output.txt"}, fix the cause and run this again.'
        )
    logged = read_logs(folder)
    result = dict(
        **costs,
        metrics=logged['metrics'],
        seconds=state['seconds'],
        cpu_seconds=state['cpu_seconds'],
        memory_mib=logged['gpu_mib'] or state['resident_mib'],
        memory_of='GPU' if logged['gpu_mib'] else 'process',
        **settings,
    )
    _write(result_file, result)
    return result


def cfg_options(
    variant: Variant, seed: int, scale: str, epochs: int | None
) -> dict[str, Any]:
    """Settings of a run over its config."""
    options = {f'model.backbone.{k}': v for k, v in variant.options.items()}
    options['randomness.seed'] = seed
    if epochs is None:
        return options
    if scale != 'small':
        raise UserError(
            f'--epochs goes with --scale small, as other schedules have '
            f'milestones; got --scale {scale}.'
        )
    return {
        **options,
        'train_cfg.max_epochs': epochs,
        'train_cfg.val_interval': epochs,
        'param_scheduler.1.end': epochs,
        'param_scheduler.1.T_max': epochs,
    }


def command(
    config: Path,
    folder: Path,
    options: dict[str, Any],
    data_root: str | None,
    processes: int,
) -> list[str]:
    """The command line that trains."""
    if processes > 1:
        parts = ['bash', str(REPO / 'tools' / 'dist_train.sh'), str(config)]
        parts.append(str(processes))
    else:
        parts = [sys.executable, str(REPO / 'tools/train.py'), str(config)]
    parts += ['--work-dir', str(folder), '--resume']
    if data_root is not None:
        parts += ['--data-root', data_root]
    return parts + [
        '--cfg-options',
        *(f'{key}={_text(value)}' for key, value in options.items()),
    ]


def complexity(
    config: Path, options: dict[str, Any], reference: Path
) -> dict[str, int]:
    """Parameters and multiply-adds, at the image size of `reference`."""
    cfg = load_config(str(config), dict(options))
    base = load_config(str(reference), None)
    height, width = usual_shape(base, build_model(base))
    model = build_model(cfg)
    counts = count(model, (1, 3, height, width), forward_whole)
    return dict(
        parameters=sum(p.numel() for p in model.parameters()),
        multiply_adds=total(counts),
    )


def read_logs(folder: Path) -> dict[str, Any]:
    """Last value of each metric, and the GPU's peak memory, 0 if none.

    Raises:
        UserError: No log of the run has a metric of ``METRICS``.
    """
    metrics, gpu = {}, 0
    for path in sorted(folder.glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            values = json.loads(line)
            gpu = max(gpu, values.get('memory', 0))
            metrics.update({k: v for k, v in values.items() if '/' in k})
    if not set(METRICS) & set(metrics):
        raise UserError(
            f'A finished run must have logged one of {", ".join(METRICS)}; '
            f'{folder} has none; remove it and run this again.'
        )
    return dict(metrics=metrics, gpu_mib=gpu)


def main_metric(result: dict[str, Any]) -> tuple[str, float]:
    """Name and value, in per cent, of what a run is judged by."""
    name = next(m for m in METRICS if m in result['metrics'])
    value = result['metrics'][name]
    return name, value if name == 'accuracy/top1' else 100 * value


def _state(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What earlier attempts left, after making sure that they are ours."""
    path = folder / 'state.json'
    if path.exists():
        state = json.loads(path.read_text())
        if state['settings'] != settings:
            raise UserError(
                f'A folder of results holds runs of one setting; {folder} has '
                f'{state["settings"]}; name another with --work-dir.'
            )
        return state
    folder.mkdir(parents=True, exist_ok=True)
    state = dict(
        settings=settings, seconds=0.0, cpu_seconds=0.0, resident_mib=0.0
    )
    _write(path, state)
    return state


def _environment() -> dict[str, str]:
    """That of this process, and in it what trains finds this mmdat."""
    paths = [str(REPO), os.environ.get('PYTHONPATH', '')]
    return {
        **os.environ,
        'PYTHON': sys.executable,
        'PYTHONPATH': os.pathsep.join(p for p in paths if p),
    }


def _text(value: Any) -> str:
    """A value as --cfg-options reads it."""
    if isinstance(value, list):
        return f'[{",".join(map(_text, value))}]'
    return str(value)


def _write(path: Path, content: Any) -> None:
    """Writes JSON in one step, so that no half file is ever read."""
    part = path.with_suffix('.part')
    part.write_text(json.dumps(content, indent=1))
    part.replace(path)
