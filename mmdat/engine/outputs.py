# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""What a test leaves behind: pictures and predictions."""

from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.evaluator import DumpResults
from mmengine.runner import Runner

from ..utils.errors import UserError


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
    hook = cfg.default_hooks.get('visualization')
    if hook is None:
        raise UserError(
            '--show and --show-dir need default_hooks.visualization in the '
            f'config and {cfg.filename} has none; inherit a default_runtime.'
        )
    hook.show = show
    hook.wait_time = wait
    if cfg.default_scope == 'mmpretrain':
        hook.enable = True
        hook.out_dir = show_dir
        return
    hook.draw = True
    if cfg.default_scope == 'mmdet':
        hook.test_out_dir = show_dir
    elif show_dir is not None:
        cfg.visualizer.save_dir = show_dir


def check_out(cfg: Config, out: str) -> None:
    """Raises UserError unless predictions can be written as `out`."""
    if cfg.default_scope == 'mmseg':
        return
    if Path(out).suffix not in ('.pkl', '.pickle'):
        raise UserError(
            f'--out must name a .pkl file for {cfg.default_scope} configs; '
            f'got {out}.'
        )


def save_label_maps(cfg: Config, out: str) -> None:
    """Makes mmseg's metrics write each predicted label map to a folder."""
    metrics: Any = cfg.test_evaluator
    for metric in metrics if isinstance(metrics, list) else [metrics]:
        metric['output_dir'] = out
        metric['keep_results'] = True


def save_predictions(runner: Runner, out: str) -> None:
    """Makes a detection or classification test pickle its predictions."""
    if runner.cfg.default_scope == 'mmdet':
        from mmdet.evaluation import DumpDetResults as Dump
    else:
        Dump = DumpResults
    runner.test_evaluator.metrics.append(Dump(out_file_path=out))
