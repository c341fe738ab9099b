# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""What a test leaves behind: pictures and predictions."""

from pathlib import Path

from mmengine.config import Config
from mmengine.evaluator import DumpResults
from mmengine.runner import Runner

from ..utils.errors import UserError
from ..utils.output_file import check_output_file
from .data_files import evaluators_of


def draw_predictions(
    cfg: Config, show_dir: str | None, show: bool = False, wait: float = 2
) -> None:
    """Turns on the drawing hook of the config's package.

    Args:
        cfg: The config to change.
        show_dir: Folder for the pictures; mmdet and mmseg put a relative one
            under the work dir's time stamp.
        show: Whether to open a window for each picture.
        wait: Seconds that a window stays.

    Raises:
        UserError: The config has no visualisation hook.
    """
    hook = (cfg.get('default_hooks') or {}).get('visualization')
    if hook is None:
        raise UserError(
            '--show and --show-dir need default_hooks.visualization in the '
            f'config and {cfg.filename} has none; inherit a default_runtime.'
        )
    hook.show = show
    hook.wait_time = wait
    # mmpretrain draws every 5000th picture, mmseg 1.2 every 50th batch.
    hook.interval = 1
    if cfg.default_scope == 'mmpretrain':
        hook.enable = True
        hook.out_dir = show_dir
        return
    hook.draw = True
    if cfg.default_scope == 'mmdet':
        hook.test_out_dir = show_dir
    elif cfg.default_scope != 'mmseg':
        raise UserError(
            f'--show and --show-dir are for mmdet, mmseg and mmpretrain; '
            f'{cfg.filename} has default_scope={cfg.default_scope!r}.'
        )
    elif show_dir is not None:
        if cfg.get('visualizer') is None:
            raise UserError(
                f'--show-dir needs a visualizer in the config and '
                f'{cfg.filename} has none; inherit a default_runtime.'
            )
        cfg.visualizer.save_dir = show_dir


def check_out(cfg: Config, out: str) -> None:
    """Raises UserError unless predictions can be written as `out`."""
    path = Path(out)
    pickled = path.suffix in ('.pkl', '.pickle')
    if cfg.default_scope == 'mmseg':
        if pickled or path.is_file():
            raise UserError(
                f'--out must name a folder for mmseg configs, in which each '
                f'label map becomes a file; got {out}.'
            )
        check_output_file(path / 'map.png')
        return
    if not pickled:
        raise UserError(
            f'--out must name a .pkl file for {cfg.default_scope} configs; '
            f'got {out}.'
        )
    check_output_file(out)


def save_label_maps(cfg: Config, out: str) -> None:
    """Makes mmseg's metrics write each predicted label map to a folder.

    Raises:
        UserError: No metric of the config can.
    """
    metrics = [
        metric
        for metric in evaluators_of(cfg, 'test')
        if isinstance(metric, dict)
        and getattr(metric.get('type'), '__name__', metric.get('type'))
        in ('IoUMetric', 'mmseg.IoUMetric', 'CityscapesMetric')
    ]
    if not metrics:
        raise UserError(
            f'--out writes label maps through an IoUMetric in test_evaluator '
            f'and {cfg.filename} has none; add one.'
        )
    # One is enough; each would write the same files.
    metrics[0]['output_dir'] = out
    metrics[0]['keep_results'] = True


def save_predictions(runner: Runner, out: str) -> None:
    """Makes a detection or classification test pickle its predictions."""
    if runner.cfg.default_scope == 'mmdet':
        from mmdet.evaluation import DumpDetResults as Dump
    else:
        Dump = DumpResults
    runner.test_evaluator.metrics.append(Dump(out_file_path=out))
