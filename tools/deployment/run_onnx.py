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


def paste(mask, box, height, width):
    """The mask (h, w) of a box in the whole picture (height, width)."""
    weights = []
    for length, low, high, cells in (
        (height, box[1], box[3], mask.shape[0]),
        (width, box[0], box[2], mask.shape[1]),
    ):
        pixel = np.arange(length) + 0.5
        cell = (pixel - low) / max(high - low, 1e-6) * cells - 0.5
        # bilinear: a cell counts for less, the further it is from the pixel
        apart = np.abs(cell[:, None] - np.arange(cells))
        weights.append(np.maximum(0, 1 - apart).astype(np.float32))
    return weights[0] @ mask @ weights[1].T


def detections(outputs, notes, height, width):
    """Boxes, scores and labels by name, and masks in the whole picture."""
    names = 'boxes', 'scores', 'labels', 'masks'
    found = dict(zip(names, outputs))
    if 'masks' in found:
        threshold = float(notes['mask_threshold'])
        whole = np.zeros((len(found['boxes']), height, width), bool)
        for i, (mask, box) in enumerate(zip(found['masks'], found['boxes'])):
            whole[i] = paste(mask, box, height, width) >= threshold
        found['masks'] = whole
    return found


def draw(image, found, path):
    """Writes the picture with its detections."""
    from PIL import Image, ImageDraw

    canvas = image[0, ::-1].transpose(1, 2, 0).copy()
    for mask in found.get('masks', ()):
        canvas[mask] = 0.5 * canvas[mask] + (0, 127, 0)
    canvas = Image.fromarray(canvas.round().astype(np.uint8))
    pen = ImageDraw.Draw(canvas)
    for box, score, label in zip(*(found[n] for n in tuple(found)[:3])):
        pen.rectangle(box.tolist(), outline=(255, 255, 0))
        pen.text(tuple(box[:2] + 2), f'{label}: {score:.2f}', (255, 255, 0))
    canvas.save(path)


def main():
    """Prints classes, labels or detections, and writes the output."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('model')
    parser.add_argument('picture')
    parser.add_argument(
        '--out', help='file for the (first) output, .npy; detections: .npz'
    )
    parser.add_argument(
        '--draw', help='picture file for the detections; needs Pillow'
    )
    args = parser.parse_args()
    session = onnxruntime.InferenceSession(
        args.model, providers=['CPUExecutionProvider']
    )
    notes = session.get_modelmeta().custom_metadata_map
    image = read(args.picture)

    def run(part):
        return session.run(None, {'image': part})[0]

    if notes.get('task') == 'detection':
        outputs = session.run(None, {'image': image})
        found = detections(outputs, notes, *image.shape[2:])
        for box, score, label in zip(*outputs[:3]):
            at = ' '.join(f'{x:.1f}' for x in box)
            print(f'label {label}: {score:.3f} at {at}')
        if args.out:
            np.savez(args.out, **found)
        if args.draw:
            draw(image, found, args.draw)
        return
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
