# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Times training and inference, of mmdat, its plain version and Swin-T."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from common import ARCHS, BF16, DEVICE, DRY, Rows, guarded, model, slopes_like
from torch import nn

SIZE = (1, 3, 64, 96) if DRY else (2, 3, 800, 1344)
SWIN = 'Swin-T of timm'
TOP = 12
# Aims of the project: time divided by Swin-T's and by the plain version's.
TARGETS = {
    ('dat_t', 'train'): (1.3, 1 / 3),
    ('dat_pp_t', 'train'): (1.6, 1 / 3),
    ('dat_t', 'inference'): (1.2, None),
    ('dat_pp_t', 'inference'): (1.2, None),
}


@dataclass
class Cost:
    """Time and memory of a model.

    Attributes:
        device_ms: Median time between two events on the device.
        host_ms: Median time until Python has launched everything.
        peak_gb: Peak memory, without weights and images.
        step: Runs one pass.
    """

    device_ms: float
    host_ms: float
    peak_gb: float
    step: Callable[[], None]


def swin() -> nn.Module:
    """Builds Swin-T without its classifier."""
    import timm

    return timm.create_model(
        'swin_tiny_patch4_window7_224',
        features_only=True,
        img_size=SIZE[2:],
        strict_img_size=False,
    )


def passes(backbone: nn.Module, train: bool) -> Callable[[], None]:
    """Returns a pass over random images; training excludes the optimiser."""
    images = torch.randn(SIZE, device=DEVICE)
    slopes = []

    def inference() -> None:
        with torch.no_grad(), torch.autocast(DEVICE, BF16):
            backbone(images)

    def training() -> None:
        with torch.autocast(DEVICE, BF16):
            outs = list(backbone(images))
        if not slopes:
            slopes.extend(slopes_like(outs))
        torch.autograd.backward(outs, slopes)
        backbone.zero_grad(set_to_none=True)

    return training if train else inference


def measure(build: Callable[[], nn.Module], train: bool, rounds: int) -> Cost:
    """Measures time and memory of a pass, after three warm-up passes."""
    torch.manual_seed(0)
    step = passes(build().to(DEVICE).train(train), train)
    if DRY:
        step()
        return Cost(float('nan'), float('nan'), float('nan'), step)
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    device, host = [], []
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start = time.perf_counter()
        begin.record()
        step()
        end.record()
        host.append((time.perf_counter() - start) * 1e3)
        torch.cuda.synchronize()
        device.append(begin.elapsed_time(end))
    peak = (torch.cuda.max_memory_allocated() - before) / 1e9
    return Cost(statistics.median(device), statistics.median(host), peak, step)


def profile(arch: str, step: Callable[[], None]) -> None:
    """Reports the slowest kernels of a training step."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    activities = [ProfilerActivity.CPU]
    if not DRY:
        activities.append(ProfilerActivity.CUDA)
    with record(activities=activities) as recorded:
        step()
        if not DRY:
            torch.cuda.synchronize()
    name = 'self_cpu_time_total' if DRY else 'self_device_time_total'
    events = [
        event
        for event in recorded.key_averages()
        if DRY or event.device_type.name == 'CUDA'
    ]
    events.sort(key=lambda event: -getattr(event, name))
    total = sum(getattr(event, name) for event in events)
    table = f'Kernels of a training step, {arch}'
    Rows.add(
        table,
        'all',
        None,
        calls=sum(event.count for event in events),
        ms=total / 1e3,
        percent=100.0,
    )
    for event in events[:TOP]:
        taken = getattr(event, name)
        Rows.add(
            table,
            event.key[:80].replace('|', '/'),
            None,
            calls=event.count,
            ms=taken / 1e3,
            percent=100 * taken / total,
        )


def compare(mode: str) -> None:
    """Adds a row per model; times Swin-T again at the end to show drift."""
    batch, _, height, width = SIZE
    table = f'{mode}, {batch}x3x{height}x{width}, bfloat16 autocast'
    train = mode == 'train'
    costs: dict[str, Cost] = {}
    peers: list[tuple[str, Callable[[], nn.Module]]] = [(SWIN, swin)]
    if find_spec('timm') is None:
        Rows.add(table, SWIN, None, note='timm is not installed')
        peers = []
    subjects = list(peers)
    for arch in ARCHS:
        for backend in ('reference', 'sdpa', None):
            label = arch if backend is None else f'{arch}@{backend}'
            subjects.append((label, lambda a=arch, b=backend: model(a, b)))
    subjects += [(f'{label}, again', build) for label, build in peers]
    for label, build in subjects:
        with guarded(table, label, proves=label in ARCHS):
            rounds = 7 if '@' in label else 15
            cost = measure(build, train, rounds)
            costs[label] = cost
            add_row(table, label, mode, costs)
            if train and label in ARCHS:
                profile(label, cost.step)
            cost.step = None  # frees the model too
        if not DRY:
            torch.cuda.empty_cache()


def add_row(table: str, label: str, mode: str, costs: dict[str, Cost]) -> None:
    """Adds time and memory, also relative to Swin-T and the plain version."""
    cost, peer = costs[label], costs.get(SWIN)
    plain = costs.get(f'{label.partition("@")[0]}@reference')
    cells = dict(ms=cost.device_ms, host_ms=cost.host_ms, peak_GB=cost.peak_gb)
    if peer is not None:
        cells['time / Swin-T'] = cost.device_ms / peer.device_ms
        cells['memory / Swin-T'] = cost.peak_gb / peer.peak_gb
    if plain is not None:
        cells['time / plain'] = cost.device_ms / plain.device_ms
    if (label, mode) in TARGETS and not DRY:
        most, most_plain = TARGETS[label, mode]
        met = [
            cells.get(name, float('nan')) <= limit
            for name, limit in (
                ('time / Swin-T', most),
                ('memory / Swin-T', 1.0),
                ('time / plain', most_plain),
            )
            if limit is not None
        ]
        wanted = f'{most:.2f} of Swin-T, no more memory'
        if most_plain is not None:
            wanted += f', {most_plain:.2f} of plain'
        cells['target'] = f'{wanted}: {"met" if all(met) else "not met"}'
    Rows.add(table, label, None, **cells)


def main(_) -> None:
    """Times training first, because it matters most."""
    for mode in ('train', 'inference'):
        compare(mode)
