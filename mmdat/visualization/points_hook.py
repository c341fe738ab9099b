# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Drawing the points while a model trains."""

from collections.abc import Sequence
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from ..registry import HOOKS
from .figures import points_figure, to_array
from .picture import Picture, load_picture, pack, record
from .recorder import deformable_blocks, select_blocks
from .statistics import offset_statistics


@HOOKS.register_module()
class PointsHook(Hook):
    """Draws points and logs offset statistics during training.

    Before the first iteration, after every `interval` iterations and after
    the last, the hook runs the backbone on the same few pictures, without
    gradients and in eval mode. It draws the points of the last deformable
    block of each stage to all backends of the runner's visualiser (local
    files, TensorBoard, WandB, ...) as ``points_<i>``, and logs the numbers of
    [`offset_statistics`][] as ``points/<name>``. The training itself is not
    changed. In a distributed training only the first process does this.

    Examples:
        One line in a config:

        >>> custom_hooks = [dict(type='mmdat.PointsHook', interval=500)]

    Args:
        interval: Iterations between two pictures.
        images: Image files, which go through the config's test pipeline. None
            uses the first images of the validation data or, without
            validation, of the training data with its augmentation.
        num_images: Number of images from the data, if `images` is None.
        group: The group of heads to draw; None for all.
        received: Whether the area of a circle shows the attention that the
            point receives. This costs about as much as the backbone's forward
            pass.
    """

    priority = 'LOW'

    def __init__(
        self,
        interval: int = 500,
        images: str | Sequence[str] | None = None,
        num_images: int = 1,
        group: int | None = None,
        received: bool = True,
    ) -> None:
        for name, value in (
            ('interval', interval),
            ('num_images', num_images),
        ):
            if not isinstance(value, int) or value < 1:
                raise ValueError(
                    f'{name} of PointsHook must be a positive whole number; '
                    f'got {value!r}.'
                )
        self.interval = interval
        self.images = [images] if isinstance(images, str) else images
        self.num_images = num_images
        self.group = group
        self.received = received
        self.pictures: list[Picture] = []

    def before_train(self, runner: Runner) -> None:
        """Raises ValueError where there is nothing that can be drawn."""
        if 'FullyShardedDataParallel' in type(runner.model).__name__:
            raise ValueError(
                'PointsHook runs the backbone in the first process alone, '
                'which FSDP does not allow; remove it from custom_hooks.'
            )
        select_blocks(runner.model)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Draws what the weights are before this iteration."""
        if runner.iter % self.interval == 0 and is_main_process():
            if not self.pictures:
                self.pictures = self._find_pictures(runner, data_batch)
            self._draw(runner)

    def after_train(self, runner: Runner) -> None:
        """Draws what the weights are in the end."""
        if self.pictures and is_main_process():
            self._draw(runner)

    def _find_pictures(self, runner: Runner, data_batch: Any) -> list[Picture]:
        """The pictures to look at from now on."""
        model = _unwrap(runner.model)
        if self.images is not None:
            return [load_picture(model, p, runner.cfg) for p in self.images]
        if runner.val_loop is not None:
            dataset = runner.val_dataloader.dataset
            count = min(self.num_images, len(dataset))
            packed = [dataset[i] for i in range(count)]
        else:
            inputs, samples = data_batch['inputs'], data_batch['data_samples']
            count = min(self.num_images, len(inputs))
            packed = [
                dict(inputs=inputs[i], data_samples=samples[i])
                for i in range(count)
            ]
        return [pack(model, one) for one in packed]

    def _draw(self, runner: Runner) -> None:
        model = _unwrap(runner.model)
        last = {stage: (stage, i) for stage, i in deformable_blocks(model)}
        modes = {module: module.training for module in model.modules()}
        model.eval()
        try:
            records = [
                record(model, picture, last.values(), received=self.received)
                for picture in self.pictures
            ]
        finally:
            for module, mode in modes.items():
                module.training = mode
        for i, (picture, blocks) in enumerate(zip(self.pictures, records)):
            figure = points_figure(
                picture.image,
                list(blocks.values()),
                self.group,
                f'iteration {runner.iter}',
            )
            runner.visualizer.add_image(
                f'points_{i}', to_array(figure), runner.iter
            )
        numbers = offset_statistics(
            one for blocks in records for one in blocks.values()
        )
        runner.visualizer.add_scalars(
            {f'points/{name}': value for name, value in numbers.items()},
            step=runner.iter,
        )


def _unwrap(model: nn.Module) -> nn.Module:
    return model.module if is_model_wrapper(model) else model
