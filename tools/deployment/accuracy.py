# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Compares the accuracy of a classifier in float32, bfloat16 and int8.

float32 and bfloat16 (autocast) run in PyTorch. int8 is the dynamic
quantisation of onnxruntime, applied to the matrix products of the exported
file. All of them classify the validation pictures of the config.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.runner import Runner
from torch import Tensor, nn
from tqdm import tqdm

from mmdat.analysis.forward import build_model
from mmdat.checkpoints.loading import load_checkpoint_file
from mmdat.engine.arguments import OptionsAction
from mmdat.engine.configuration import load_config, set_loader_defaults
from mmdat.engine.data_files import set_data_root
from mmdat.engine.deployment import export
from mmdat.engine.deployment.formats import FORMATS
from mmdat.engine.weights import check_fits
from mmdat.utils.errors import UserError, one_sentence_errors


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file of a classifier')
    parser.add_argument('checkpoint', help='weights of the whole model')
    parser.add_argument('--data-root', help='folder of the data set')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=OptionsAction,
        help='settings to override, key=value; lists as key="[a,b]"',
    )
    return parser.parse_args()


def ways(
    model: nn.Module, shape: tuple[int, int], folder: Path
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Returns functions from pictures (B, 3, H, W) to logits, by name.

    The pictures are those of the data set, BGR from 0 to 255.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    def in_pytorch(pictures: Tensor) -> Tensor:
        data = model.data_preprocessor(dict(inputs=list(pictures)))
        return model(data['inputs'], mode='tensor')

    def in_bfloat16(pictures: Tensor) -> Tensor:
        with torch.autocast('cpu', torch.bfloat16):
            return in_pytorch(pictures)

    path, small = folder / 'model.onnx', folder / 'int8.onnx'
    export(model, path, shape=shape)
    quantize_dynamic(
        path,
        small,
        op_types_to_quantize=['MatMul'],
        weight_type=QuantType.QInt8,
    )
    float32, int8 = (FORMATS['onnx'].load(file) for file in (path, small))
    return {
        'PyTorch, float32': in_pytorch,
        'PyTorch, bfloat16 autocast': in_bfloat16,
        'onnxruntime, float32': lambda x: float32(x.float())[0],
        'onnxruntime, int8': lambda x: int8(x.float())[0],
    }


def main() -> None:
    """Prints the accuracy of each way."""
    args = parse_args()
    FORMATS['onnx'].check('onnx')
    cfg = load_config(args.config, args.cfg_options)
    if args.data_root is not None:
        set_data_root(cfg, args.data_root)
    set_loader_defaults(cfg)
    checkpoint = load_checkpoint_file(args.checkpoint, 'cpu')
    model = build_model(cfg)
    check_fits(args.checkpoint, checkpoint, model)
    if not hasattr(model, 'head') or cfg.default_scope != 'mmpretrain':
        raise UserError(
            f'The model must be a classifier of mmpretrain; '
            f'{type(model).__name__} is none.'
        )
    loader = Runner.build_dataloader(cfg.val_dataloader)
    first = next(iter(loader))['inputs'][0]
    right: dict[str, int] = {}
    same: dict[str, int] = {}
    total = 0
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        runs = ways(model.eval(), tuple(first.shape[1:]), Path(folder))
        for batch in tqdm(loader, unit='batch'):
            pictures = torch.stack(list(batch['inputs']))
            labels = torch.cat([s.gt_label for s in batch['data_samples']])
            total += len(labels)
            usual = None
            for name, run in runs.items():
                found = run(pictures).argmax(1)
                usual = found if usual is None else usual
                right[name] = right.get(name, 0) + int((found == labels).sum())
                same[name] = same.get(name, 0) + int((found == usual).sum())
    print(f'{total} pictures')
    for name in right:
        print(
            f'{name}: top 1 accuracy {100 * right[name] / total:.2f} %, '
            f'{total - same[name]} predictions differ from float32'
        )


if __name__ == '__main__':
    with one_sentence_errors('accuracy'):
        main()
