# Copyright (c) mmdat contributors. Apache-2.0 licence.
# ruff: noqa: E402
"""Evaluates a checkpoint on a config's test data."""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Ctrl-C while packages are imported ends without their traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse

from mmengine.runner import Runner

from mmdat.checkpoints.loading import use_safe_loading
from mmdat.engine.arguments import common_parser, parse
from mmdat.engine.building import one_sentence_builds
from mmdat.engine.configuration import (
    load_config,
    set_loader_defaults,
    set_work_dir,
)
from mmdat.engine.data_files import set_data_root
from mmdat.engine.distributed import end_launch, prepare_launch
from mmdat.engine.outputs import (
    check_out,
    draw_predictions,
    save_label_maps,
    save_predictions,
)
from mmdat.engine.preflight import check_contents, check_run, check_weights
from mmdat.engine.tta import enable_tta
from mmdat.utils.errors import one_sentence_errors


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = common_parser(__doc__)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--out',
        help='save predictions: a .pkl file for detection and '
        'classification, a folder of label maps for segmentation',
    )
    parser.add_argument(
        '--show', action='store_true', help='show predictions in a window'
    )
    parser.add_argument('--show-dir', help='draw predictions to this folder')
    parser.add_argument(
        '--wait-time', type=float, default=2, help='seconds per window'
    )
    parser.add_argument(
        '--tta', action='store_true', help='test-time augmentation'
    )
    return parse(parser)


def main() -> None:
    """Evaluates."""
    args = parse_args()
    use_safe_loading()
    with one_sentence_errors('test'), one_sentence_builds(args.config):
        cfg = load_config(args.config, args.cfg_options)
        set_work_dir(cfg, args.work_dir)
        if args.data_root is not None:
            set_data_root(cfg, args.data_root)
        cfg.load_from = args.checkpoint
        cfg.resume = False
        if args.out is not None:
            check_out(cfg, args.out)
        check_run(cfg, ('test',))
        set_loader_defaults(cfg)
        if args.show or args.show_dir is not None:
            draw_predictions(cfg, args.show_dir, args.show, args.wait_time)
        if args.tta:
            enable_tta(cfg, drawing=args.show or args.show_dir is not None)
        label_maps = args.out is not None and cfg.default_scope == 'mmseg'
        if label_maps:
            save_label_maps(cfg, args.out)
        prepare_launch(cfg, args.launcher)
        if not args.no_check:
            check_contents(cfg, ('test',), args.launcher)
        runner = Runner.from_cfg(cfg)
        check_weights(runner)
        if args.out is not None and not label_maps:
            save_predictions(runner, args.out)
        runner.test()
        end_launch()


if __name__ == '__main__':
    main()
