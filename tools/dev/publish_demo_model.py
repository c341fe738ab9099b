# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Writes a trained checkpoint to demo/ in half precision."""

import argparse
from pathlib import Path

from mmdat.checkpoints import safetensors_files
from mmdat.checkpoints.loading import load_checkpoint_file
from mmdat.checkpoints.released import entries_of
from mmdat.engine.demo_model import CHECKPOINT

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Writes the file and says how large it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('checkpoint', help='of the training')
    args = parser.parse_args()
    content = load_checkpoint_file(args.checkpoint, 'cpu')
    meta = content.get('meta', {})
    kept = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in entries_of(content).items()
    }
    target = ROOT / CHECKPOINT
    safetensors_files.write(
        target,
        {name: tensor.contiguous() for name, tensor in kept.items()},
        dict(
            dataset_meta=dict(classes=list('0123456789')),
            iterations=meta.get('iter'),
            licence='Apache-2.0',
        ),
    )
    print(f'{target}: {target.stat().st_size / 1e6:.1f} MB')


if __name__ == '__main__':
    main()
