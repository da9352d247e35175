"""The two tasks, and the making of a replica: train, measure at every snapshot, save, write down."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from jax import Array

from examples.emergence import data, measuring, models, training
from examples.emergence.store import Key, Record, Store
from teleojax.train import Initializer

KINDS = ("untrained", "real", "null")
MLP_STEPS = 3  # for each one of the transformer, which takes longer
SCORED = 256  # training rows, for the score
Tick = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Task:
    """One network on one set of data; `probe` are the inputs for which neurons are measured, the same for all.

    `side_by_side` says that replicas of several seeds are trained in one program, under vmap: quicker for the MLP,
    slower for the transformer, whose matrix products fill both cores by themselves.
    """

    network: str
    data: data.Data
    null: Callable[[data.Data, int], data.Data]
    build: models.Build
    probe: np.ndarray
    steps: int
    batch: int
    side_by_side: bool

    @property
    def settings(self) -> Record:
        """What a replica on disk has to agree with."""
        return {
            "steps": self.steps,
            "batch": self.batch,
            "rate": training.RATE,
            "warm_up": training.warm_up(self.steps),
            "families": list(measuring.FAMILIES),
        }


def tasks(steps: int) -> list[Task]:
    """The MLP on digits and the transformer on text. Raises MissingDataError without the packages that ship them."""
    digits, text = data.digits(), data.text()

    def transformer(init: Initializer, key: Array) -> models.Model:
        return models.Transformer(init, key, classes=text.classes)

    return [
        Task("mlp", digits, data.shuffled_labels, models.Mlp, digits.held_inputs, MLP_STEPS * steps, 64, True),
        Task("transformer", text, data.shuffled_characters, transformer, text.held_inputs[::8], steps, 16, False),
    ]


def make(task: Task, keys: list[Key], store: Store, tick: Tick) -> dict[Key, list[Record]]:
    """The records of replicas that differ in their seeds alone, written and with checkpoints of start and end."""
    began = time.perf_counter()
    own = [task.null(task.data, key.seed) if key.kind == "null" else task.data for key in keys]
    stages = list(_stages(task, keys, own, tick))
    measured = measuring.measure(
        {f"{i}/{stage}/{step}": model for stage, step, row in stages for i, model in enumerate(row)}, task.probe
    )
    seconds = (time.perf_counter() - began) / len(keys)
    made = {}
    for i, key in enumerate(keys):
        ends = {stage: (step, row[i]) for stage, step, row in stages if stage != "path"}
        replica = {
            "record": "replica",
            **key._asdict(),
            "settings": task.settings,
            "parameters": sum(w.size for w in models.parameters(ends["end"][1]).values()),
            "chance": task.data.chance,
            "end": _scores(ends["end"][1], own[i]),
            "seconds": seconds,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "load": os.getloadavg()[0],
        }
        if key.kind != "untrained":
            for step, model in ends.values():
                store.save_checkpoint(key, step, model)
        made[key] = [replica, *_layers(key, [r for r in measured if r["of"].startswith(f"{i}/")])]
        store.finish(key, made[key])  # last: from here on the replica counts as finished
    return made


def _stages(
    task: Task, keys: list[Key], own: list[data.Data], tick: Tick
) -> Iterator[tuple[str, int, list[models.Model]]]:
    """(stage, step, models), stages being "start", "path" and "end"; untrained, the end is a second draw."""
    initializer, kind, seeds = keys[0].initializer, keys[0].kind, [key.seed for key in keys]
    start = [training.untrained(task.build, initializer, seed) for seed in seeds]
    if kind == "untrained":
        yield "start", 0, start
        yield "end", 0, [training.untrained(task.build, initializer, seed, draw=1) for seed in seeds]
        return
    for step, row in training.train(start, own, initializer, seeds, steps=task.steps, batch=task.batch, tick=tick):
        yield {0: "start", task.steps: "end"}.get(step, "path"), step, row


def _layers(key: Key, measured: list[Record]) -> list[Record]:
    records = []
    for layer in measured:
        _, stage, step = layer["of"].split("/")
        fields: dict[str, Any] = {k: v for k, v in layer.items() if k != "of"}
        records.append({"record": "layer", **key._asdict(), "stage": stage, "step": int(step), **fields})
    return records


def _scores(model: models.Model, rows: data.Data) -> Record:
    """On rows that it was, or would be, trained on, and on those held out, whose targets are real ones."""
    train = training.score(model, rows.inputs[:SCORED], rows.targets[:SCORED])
    held_out = training.score(model, rows.held_inputs, rows.held_targets)
    return {"train": train._asdict(), "held_out": held_out._asdict()}
