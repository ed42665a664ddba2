"""Logs whether the layers of a binary network are alive."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor

from mmgroupnet.errors import UserError
from mmgroupnet.layers import BinaryConv2d
from mmgroupnet.layers.observers import SignObserver
from mmgroupnet.quantizers import is_standard_weight
from mmgroupnet.registry import HOOKS


@dataclass
class _SignRecord:
    """Signs of one layer since the last report."""

    positive: int = 0
    total: int = 0
    ever_positive: Tensor = field(default_factory=lambda: torch.tensor(False))  # (K*C, ), per channel
    ever_negative: Tensor = field(default_factory=lambda: torch.tensor(False))

    def add(self, positive: Tensor) -> None:
        """Adds signs, ``(N, K*C, H, W)``, True where one is +1."""
        self.positive += int(positive.sum())
        self.total += positive.numel()
        per_channel = positive.transpose(0, 1).flatten(1)
        self.ever_positive = self.ever_positive | per_channel.any(1)
        self.ever_negative = self.ever_negative | (~per_channel).any(1)


def _both(observer: SignObserver, other: SignObserver | None) -> SignObserver:
    """An observer that also calls another one that was set before."""
    if other is None:
        return observer

    def observe(positive: Tensor) -> None:
        observer(positive)
        other(positive)

    return observe


def _signs_of(layer: Any) -> Tensor:
    """The signs that a binary layer multiplies with, ``(K*C_out, C_in/groups, kh, kw)``, True where one is +1; of a
    quantizer with a computation of its own, those of the latent weights."""
    quantizer = layer.weight_quantizer
    is_standard = is_standard_weight(quantizer)
    latent = quantizer.binarise(layer.weight, layer.num_bases).latent if is_standard else layer.weight
    return latent >= 0


@HOOKS.register_module()
class BinaryStatisticsHook(Hook):
    """Logs once per epoch the share of +1 at the sign, dead channels, and flipped weight signs of every binary layer.

    A channel is *dead* if its sign was constant over all sampled iterations, so it carries no information about the
    image. A layer whose share of +1 is outside ``alive_range`` gets a warning. The log has one line; the full table
    goes to ``binary_statistics.jsonl`` in the work directory, one line per report and layer.

    All processes observe in the same way, through the ``sign_observer`` of each layer, so observing changes neither
    path nor memory of training. The first process reports the signs of its images.

    Args:
        interval: Signs are sampled in the first iteration of an epoch and in every ``interval``-th after it; other
            iterations cost nothing. Default: 50.
        alive_range: Lowest and highest share of +1 of a healthy layer. Default: (0.02, 0.98).

    Raises:
        UserError: If ``interval`` is not at least 1.
    """

    priority = 'ABOVE_NORMAL'  # Before EMAHook swaps in averaged weights for the validation.

    def __init__(self, interval: int = 50, alive_range: tuple[float, float] = (0.02, 0.98)) -> None:
        if interval < 1:
            raise UserError(f'interval={interval}: give the number of iterations between two samples, an int >= 1')
        self.interval = interval
        self.alive_range = alive_range
        self._records: dict[str, _SignRecord] = {}
        self._weight_signs: dict[str, Tensor] = {}
        self._replaced: dict[str, SignObserver | None] = {}

    @staticmethod
    def _layers(runner: Runner) -> dict[str, BinaryConv2d]:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        return {name: module for name, module in model.named_modules() if isinstance(module, BinaryConv2d)}

    @torch.no_grad()
    def _signs_of_weights(self, runner: Runner) -> dict[str, Tensor]:
        return {name: _signs_of(layer) for name, layer in self._layers(runner).items()}

    def before_train(self, runner: Runner) -> None:
        """Records the signs of the weights.

        Args:
            runner: The runner.
        """
        self._weight_signs = self._signs_of_weights(runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        """Observes the signs in sampled iterations.

        Args:
            runner: The runner.
            batch_idx: Index of the batch in the epoch.
            data_batch: Not used.
        """
        if batch_idx % self.interval:
            return
        for name, layer in self._layers(runner).items():
            self._replaced[name] = layer.sign_observer
            layer.sign_observer = _both(self._records.setdefault(name, _SignRecord()).add, layer.sign_observer)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: dict | None = None
    ) -> None:
        """Stops observing.

        Args:
            runner: The runner.
            batch_idx: Index of the batch in the epoch.
            data_batch: Not used.
            outputs: Not used.
        """
        if batch_idx % self.interval == 0:
            for name, layer in self._layers(runner).items():
                layer.sign_observer = self._replaced.pop(name)

    def after_train_epoch(self, runner: Runner) -> None:
        """Reports.

        Args:
            runner: The runner.
        """
        self._report(runner, epoch=runner.epoch + 1)

    def before_val_epoch(self, runner: Runner) -> None:
        """Reports samples that no end of an epoch has reported: training that counts iterations, as in mmseg, has no
        epochs.

        Args:
            runner: The runner.
        """
        self._report(runner, epoch=runner.epoch)

    def _report(self, runner: Runner, epoch: int) -> None:
        """Writes the table, logs its summary, and resets the statistics."""
        records, self._records = self._records, {}
        if not records:
            return
        before, signs = self._weight_signs, self._signs_of_weights(runner)
        self._weight_signs = signs
        if not is_main_process():
            return
        rows = [
            dict(
                epoch=epoch,
                iteration=runner.iter,
                layer=name,
                positive_share=record.positive / record.total,
                dead_channels=int((record.ever_positive ^ record.ever_negative).sum()),
                channels=record.ever_positive.numel(),
                weight_flips=int((signs[name] != before[name]).sum()),
                weights=signs[name].numel(),
            )
            for name, record in records.items()
            if record.total  # A layer may not have run, for example if only some images use its branch.
        ]
        if not rows:
            return
        with (Path(runner.work_dir) / 'binary_statistics.jsonl').open('a') as file:
            file.writelines(json.dumps(row) + '\n' for row in rows)
        lowest, highest = (choose(rows, key=lambda row: row['positive_share']) for choose in (min, max))
        deadest = max(rows, key=lambda row: row['dead_channels'] / row['channels'])
        flips = sum(row['weight_flips'] for row in rows) / sum(row['weights'] for row in rows)
        runner.logger.info(
            f'{len(rows)} binary layers: share of +1 from {lowest["positive_share"]:.3f} ({lowest["layer"]}) to '
            f'{highest["positive_share"]:.3f} ({highest["layer"]}); {sum(row["dead_channels"] for row in rows)} of '
            f'{sum(row["channels"] for row in rows)} channels dead (most: {deadest["dead_channels"]} of '
            f'{deadest["channels"]} in {deadest["layer"]}); {flips:.2%} of the weights changed sign'
        )
        low, high = self.alive_range
        dying = [
            f'{row["layer"]} ({row["positive_share"]:.3f})' for row in rows if not low <= row['positive_share'] <= high
        ]
        if dying:
            runner.logger.warning(
                f'{len(dying)} of {len(rows)} binary layers are dying, their share of +1 lies outside {low}-{high}: '
                f'{", ".join(dying)}'
            )
