# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Trains a detector, segmentor or classifier."""

import argparse

from mmengine.runner import Runner

from mmdat.checkpoints.loading import use_safe_loading
from mmdat.engine.arguments import common_parser, parse
from mmdat.engine.configuration import (
    enable_amp,
    enable_auto_scale_lr,
    load_config,
    set_loader_defaults,
    set_work_dir,
)
from mmdat.engine.data_files import set_data_root
from mmdat.engine.distributed import end_launch, prepare_launch
from mmdat.engine.preflight import check_run, check_weights
from mmdat.engine.resuming import set_resume
from mmdat.utils.errors import one_sentence_errors


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = common_parser(__doc__)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='continue from this checkpoint, or without a name from the '
        'latest one in the work dir',
    )
    parser.add_argument(
        '--amp', action='store_true', help='train in mixed precision'
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate to the total batch size',
    )
    return parse(parser)


def main() -> None:
    """Trains."""
    args = parse_args()
    use_safe_loading()
    with one_sentence_errors('train'):
        cfg = load_config(args.config, args.cfg_options)
        set_work_dir(cfg, args.work_dir)
        if args.data_root is not None:
            set_data_root(cfg, args.data_root)
        if args.amp:
            enable_amp(cfg)
        if args.auto_scale_lr:
            enable_auto_scale_lr(cfg)
        set_resume(cfg, args.resume)
        set_loader_defaults(cfg)
        check_run(cfg, ('train', 'val'))
        prepare_launch(cfg, args.launcher)
        runner = Runner.from_cfg(cfg)
        check_weights(runner, training=True)
        runner.train()
        end_launch()


if __name__ == '__main__':
    main()
