# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Runs an exported ONNX file on a picture; onnxruntime and numpy do.

The picture is a .npy file (H, W, 3) in bytes, BGR as OpenCV has it and
already of the size to run at; other files are read if Pillow is there.
"""

import argparse
import json

import numpy as np
import onnxruntime


def read(path):
    """(1, 3, H, W) in float32, BGR."""
    if path.endswith('.npy'):
        image = np.load(path, allow_pickle=False)
    else:
        from PIL import Image

        image = np.asarray(Image.open(path).convert('RGB'))[:, :, ::-1]
    return image.transpose(2, 0, 1)[None].astype(np.float32)


def slide(run, image, crop, stride):
    """Means of the outputs of overlapping crops, as mmseg slides them."""
    height, width = image.shape[2:]
    total, count = 0, np.zeros((height, width), np.float32)
    rows, columns = (
        [
            max(min(i * step, side - size), 0)
            for i in range(max(side - size + step - 1, 0) // step + 1)
        ]
        for side, size, step in zip((height, width), crop, stride)
    )
    for top in rows:
        for left in columns:
            part = image[:, :, top : top + crop[0], left : left + crop[1]]
            if part.shape[2:] != tuple(crop):
                raise SystemExit(
                    f'A picture must be at least as large as a crop of '
                    f'{crop[0]} x {crop[1]}; got {height} x {width}.'
                )
            out = run(part)
            if isinstance(total, int):
                total = np.zeros((*out.shape[:2], height, width), np.float32)
            place = np.s_[top : top + crop[0], left : left + crop[1]]
            total[(..., *place)] += out
            count[place] += 1
    return total / count


def main():
    """Prints the classes or writes the label map."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('model')
    parser.add_argument('picture')
    parser.add_argument('--out', help='.npy file for the (first) output')
    args = parser.parse_args()
    session = onnxruntime.InferenceSession(
        args.model, providers=['CPUExecutionProvider']
    )
    notes = session.get_modelmeta().custom_metadata_map
    image = read(args.picture)

    def run(part):
        return session.run(None, {'image': part})[0]

    if 'crop' in notes:
        crop, stride = (json.loads(notes[n]) for n in ('crop', 'stride'))
        out = slide(run, image, crop, stride)
    else:
        out = run(image)
    if args.out:
        np.save(args.out, out)
    if notes.get('task') == 'classification':
        scores = np.exp(out[0] - out[0].max())
        scores /= scores.sum()
        for i in np.argsort(-scores)[:5]:
            print(f'class {i}: {scores[i]:.3f}')
    elif notes.get('task') == 'segmentation':
        labels, pixels = np.unique(out[0].argmax(0), return_counts=True)
        for label, number in zip(labels, pixels):
            print(f'label {label}: {number} pixels')
    else:
        print(f'first output: {out.shape}')


if __name__ == '__main__':
    main()
