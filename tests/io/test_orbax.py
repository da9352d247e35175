"""Checkpoints that Orbax itself has written: every leaf under its name, bit for bit what was saved; damage named."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import teleojax as tj
from teleojax._errors import CorruptInputError, InputError, MissingExtraError
from teleojax.sources import Source, _orbax, open_source
from teleojax.sources._orbax import OrbaxSource, is_checkpoint

KINDS = {
    "ocdbt zarr": {},
    "zarr": {"use_ocdbt": False},
    "ocdbt zarr3": {"use_zarr3": True},
    "zarr3": {"use_ocdbt": False, "use_zarr3": True},
}
ARRAYS = {"params.h.0.w", "params.h.0.b", "params.h.1.w", "params.f8", "params.e5", "params.t", "params.a/b.c", "d"}


@flax.struct.dataclass
class TrainState:
    step: Any
    params: Any
    opt_state: Any


class Pair(NamedTuple):
    left: Any
    right: Any


def normal(seed: int, shape: tuple[int, ...], dtype="float32") -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def params() -> dict[str, Any]:
    return {
        "h": [{"w": normal(0, (300, 70)), "b": normal(1, (70,), jnp.bfloat16)}, {"w": normal(2, (33, 5), jnp.float16)}],
        "f8": normal(3, (40, 9), jnp.float8_e4m3fn),
        "e5": normal(4, (7,), jnp.float8_e5m2),
        "t": jnp.float32(0.7),
        "i": jnp.arange(3),
        "a/b.c": normal(5, (4,)),
        "none": None,
        "empty": {},
    }


def tree() -> dict[str, Any]:
    return {
        "params": params(),
        "opt_state": optax.adam(1e-3).init({"w": jnp.ones(3)}),
        "d": np.random.default_rng(6).standard_normal((3, 4)),
        "py": 3,
        "rate": 0.5,
        "words": "text",
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """One tree in each of the KINDS, a dataclass, and two runs of steps. Tests that do damage copy what they damage."""
    base = tmp_path_factory.mktemp("orbax")
    for kind, options in KINDS.items():
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
            checkpointer.save(base / kind, tree())
    state = TrainState(jnp.int32(3), params(), Pair(normal(7, (6,)), normal(8, (6,))))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(base / "state", state)
    with ocp.CheckpointManager(base / "run") as manager:
        for step in (2, 9, 10):
            manager.save(step, args=ocp.args.StandardSave({"w": normal(step, (5, 6))}))
    options = ocp.CheckpointManagerOptions(step_prefix="ckpt", step_format_fixed_length=8)
    with ocp.CheckpointManager(base / "items", options=options) as manager:
        for step in (1, 2):
            items = {
                "params": ocp.args.StandardSave(params()),
                "state": ocp.args.PyTreeSave({"opt_state": {"mu": normal(9, (5,))}, "ema": normal(10, (5,))}),
                "opt": ocp.args.StandardSave({"nu": normal(11, (5,))}),
                "extra": ocp.args.JsonSave({"a": 1}),
            }
            manager.save(step, args=ocp.args.Composite(**items))
    return base


def copied(saved: Path, tmp_path: Path, kind: str) -> Path:
    return Path(shutil.copytree(saved / kind, tmp_path / "copy"))


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_are_those_of_the_tree_in_memory(saved, kind):
    found, memory = tj.measure(saved / kind), tj.measure(tree())
    assert set(found) == ARRAYS
    assert {name: found[name] for name in ARRAYS} == {name: memory[name] for name in ARRAYS}
    assert {n: (s.shape, s.dtype) for n, s in found.specs.items() if n in ARRAYS} == {
        n: (s.shape, s.dtype) for n, s in memory.specs.items() if n in ARRAYS
    }
    assert not found.failed
    optimizer = {f"opt_state.0.{k}": "optimizer state" for k in ("count", "mu.w", "nu.w")}
    assert found.skipped == {
        **optimizer,
        "params.i": "integer type int32",
        "py": "not an array: scalar",
        "rate": "not an array: scalar",
        "words": "not an array: string",
    }


def test_names_are_those_of_the_tree_in_memory(saved):
    state = TrainState(jnp.int32(3), params(), Pair(normal(7, (6,)), normal(8, (6,))))
    source = open_source(saved / "state")
    assert isinstance(source, OrbaxSource)
    assert isinstance(source, Source)
    with source.open(source.storages[0]) as skipped:
        assert (source.specs[0].skip, skipped.size) == ("integer type int32", 0)
    assert sorted(s.name for s in source.specs) == sorted(s.name for s in open_source(state).specs)
    assert tj.measure(source).skipped["opt_state.left"] == "optimizer state"


def test_the_newest_finished_step_is_read_and_named(saved, tmp_path):
    found = tj.measure(saved / "run")
    assert found.source == "run/10"
    assert found["w"] == tj.measure({"w": normal(10, (5, 6))})["w"]
    assert tj.measure(saved / "run" / "9")["w"] == tj.measure({"w": normal(9, (5, 6))})["w"]
    assert tj.measure(saved / "run" / "2" / "default").source == "default"
    run = copied(saved, tmp_path, "run")
    (run / "10").rename(run / "10.orbax-checkpoint-tmp-1234")
    assert tj.measure(run).source == "copy/9"


def test_items_come_before_the_names_of_their_leaves(saved):
    found = tj.measure(saved / "items")
    assert found.source == "items/ckpt_00000002"
    assert set(found) == {n for n in ARRAYS if n != "d"} | {"state.ema"}
    assert {n: r for n, r in found.skipped.items() if n != "params.i"} == {
        "opt.nu": "optimizer state",
        "state.opt_state.mu": "optimizer state",
        "extra": "not a tree of arrays: JsonCheckpointHandler",
    }
    assert set(tj.measure(saved / "items" / "ckpt_00000001" / "params")) == {
        n.removeprefix("params.") for n in ARRAYS if n != "d"
    }


def test_the_one_tree_among_other_items_needs_no_item_in_its_names(tmp_path):
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        items = {"state": ocp.args.StandardSave({"opt": normal(0, (3,)), "w": normal(1, (3,))})}
        manager.save(7, args=ocp.args.Composite(**items, notes=ocp.args.JsonSave({"a": 1})))
    found = tj.measure(tmp_path / "run")
    assert (found.source, set(found), set(found.skipped)) == ("run/7", {"w"}, {"opt", "notes"})


def test_the_layout_of_orbax_version_1(tmp_path):
    v1 = pytest.importorskip("orbax.checkpoint.experimental.v1")
    v1.save(tmp_path / "tree", params())
    found, memory = tj.measure(tmp_path / "tree"), tj.measure(params())
    assert dict(found) == dict(memory)


def test_chunks_that_are_cut_on_request(tmp_path):
    tree = {"w": normal(0, (600, 70)), "b": normal(1, (5000,), jnp.bfloat16)}
    cut = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=4096), tree)
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "cut", tree, ocp.args.PyTreeSave(tree, save_args=cut))
    with OrbaxSource(tmp_path / "cut").open(f"{tmp_path / 'cut'}: tensor 'w'") as storage:
        assert storage._layout.chunk_bytes <= 4096
    assert dict(tj.measure(tmp_path / "cut")) == dict(tj.measure(tree))


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("ocdbt zarr/opt_state", {"opt_state.0.mu.w", "opt_state.0.nu.w"}),
        ("ocdbt zarr/opt_state/0/mu", {"opt_state.0.mu.w"}),
        ("ocdbt zarr/params/h/1", {"params.h.1.w"}),
        ("items/opt/nu", {"opt.nu"}),
        ("items/ckpt_00000001/state/opt_state", {"opt_state.mu"}),
        ("items/state/opt_state", {"state.opt_state.mu"}),
    ],
)
def test_keys_after_the_path_ask_for_a_part_of_the_tree(saved, path, names):
    assert set(tj.measure(saved / path, include=r"[^t]$")) == names  # counts of steps end in "count"


def test_keys_that_are_not_there_are_refused(saved):
    with pytest.raises(InputError, match=r"no leaf under the keys 'params/h/7'"):
        open_source(saved / "zarr" / "params" / "h" / "7")
    with pytest.raises(InputError, match=r"run/10: found no leaf under the keys '11'"):
        open_source(saved / "run" / "11")
    with pytest.raises(InputError, match="nothing: found no such file"):
        open_source(saved / "nothing")


@pytest.mark.parametrize("name", ["_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt"])
def test_a_file_of_the_checkpoint_stands_for_it(saved, name):
    assert set(tj.measure(saved / "ocdbt zarr" / name)) == ARRAYS


def test_relative_paths_and_links_are_followed(saved, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(saved / "run")
    monkeypatch.chdir(tmp_path)
    assert set(tj.measure("link")) == set(tj.measure("../" + tmp_path.name + "/link/")) == {"w"}


def test_fit_in_python_and_from_the_shell(saved):
    report = tj.fit(saved / "ocdbt zarr", include=r"h\.0\.w$")
    expected = tj.fit(tree(), include=r"h\.0\.w$")["params.h.0.w"].lognormal
    assert report["params.h.0.w"].lognormal.mu == expected.mu
    command = [sys.executable, "-m", "teleojax", "fit", str(saved / "run"), "--format", "jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[0]["mu"] == tj.fit({"w": normal(10, (5, 6))})["w"].lognormal.mu


def test_nothing_of_orbax_is_imported(saved):
    code = "import sys, teleojax; print(len(teleojax.measure(sys.argv[1]))); assert 'orbax' not in sys.modules"
    command = [sys.executable, "-c", code, str(saved / "state")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "7\n", done.stderr


def test_without_tensorstore_the_extra_is_named(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    with pytest.raises(MissingExtraError, match=r"state: found no module 'tensorstore'.*'teleojax\[orbax\]'"):
        open_source(saved / "state")


# What is damaged or unfinished


def test_one_array_with_a_missing_chunk_fails_alone(saved, tmp_path):
    path = copied(saved, tmp_path, "zarr")
    (path / "params.h.0.w" / "0.0").unlink()
    (path / "params.h.1.w" / ".zarray").unlink()
    (path / "params.f8" / "0.0").write_bytes(b"short")
    found, memory = tj.measure(path), tj.measure(tree())
    good = ARRAYS - {"params.h.0.w", "params.h.1.w", "params.f8"}
    assert {n: found[n] for n in good} == {n: memory[n] for n in good}
    assert set(found.failed) == ARRAYS - good
    assert "tensor 'params.h.0.w': found chunk {0, 0}" in found.failed["params.h.0.w"]
    assert "missing" in found.failed["params.h.0.w"]
    assert ".zarray" in found.failed["params.h.1.w"]
    assert "data that cannot be read" in found.failed["params.f8"]


def test_a_shape_beyond_measure_fails_alone(saved, tmp_path):
    path = copied(saved, tmp_path, "zarr")
    metadata = json.loads((path / "params.h.0.w" / ".zarray").read_text())
    (path / "params.h.0.w" / ".zarray").write_text(json.dumps({**metadata, "shape": [2**40, 2**20]}))
    found = tj.measure(path)
    assert set(found) == ARRAYS - {"params.h.0.w"}
    assert "an array of 4611686018427387904 bytes" in found.failed["params.h.0.w"]


def test_zeros_left_out_by_an_old_version_are_zeros(saved, tmp_path):
    path = copied(saved, tmp_path, "zarr")
    (path / "params.h.0.w" / "0.0").unlink()
    metadata = json.loads((path / "_METADATA").read_text())
    del metadata["store_array_data_equal_to_fill_value"]
    (path / "_METADATA").write_text(json.dumps(metadata))
    assert tj.measure(path)["params.h.0.w"].moments.n_zero == 300 * 70


def test_a_truncated_data_file_of_ocdbt_is_an_error(saved, tmp_path):
    path = copied(saved, tmp_path, "ocdbt zarr")
    largest = max((p for p in path.rglob("d/*")), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:1000])
    found = tj.measure(path)
    assert "params.h.0.w" in found.failed
    assert "params.h.0.w" not in found
    assert found["params.t"] == tj.measure(tree())["params.t"]  # small values lie in the index


@pytest.mark.parametrize(
    ("removed", "words"),
    [
        ("_METADATA", "copy: found no _METADATA; needed"),
        ("manifest.ocdbt", r"copy: found no manifest\.ocdbt; needed"),
    ],
)
def test_a_missing_file_of_the_checkpoint_is_named(saved, tmp_path, removed, words):
    path = copied(saved, tmp_path, "ocdbt zarr")
    (path / removed).unlink()
    with pytest.raises(CorruptInputError, match=words):
        open_source(path)


def test_an_item_without_its_metadata_is_named(saved, tmp_path):
    path = copied(saved, tmp_path, "items")
    (path / "ckpt_00000002" / "state" / "_METADATA").unlink()
    with pytest.raises(CorruptInputError, match="ckpt_00000002/state: found no _METADATA"):
        open_source(path)


def test_data_files_that_are_gone_fail_their_arrays(saved, tmp_path):
    path = copied(saved, tmp_path, "ocdbt zarr3")
    for file in path.rglob("ocdbt.process_0/d/*"):
        file.unlink()
    found = tj.measure(path)
    assert set(found) == ARRAYS - {"params.h.0.w"}  # the others are small enough to lie in the index
    assert re.search("tensor 'params.h.0.w': found .*needed every chunk", found.failed["params.h.0.w"])


@pytest.mark.parametrize("damage", ["not JSON", "[]", '{"tree_metadata": {"a": 1}}', "{}"])
def test_damaged_metadata_are_refused(saved, tmp_path, damage):
    path = copied(saved, tmp_path, "state")
    (path / "_METADATA").write_text(damage)
    with pytest.raises(CorruptInputError, match="_METADATA: found"):
        open_source(path)


def test_metadata_without_end_are_refused(saved, monkeypatch):
    monkeypatch.setattr(_orbax, "MAX_JSON_BYTES", 100)
    with pytest.raises(CorruptInputError, match="more than 100 bytes"):
        open_source(saved / "state")


@pytest.mark.parametrize("name", ["10.orbax-checkpoint-tmp-99", "10.orbax-checkpoint-tmp"])
def test_unfinished_checkpoints_are_refused(saved, tmp_path, name):
    shutil.copytree(saved / "run" / "10", tmp_path / name)
    with pytest.raises(InputError, match=r"never finished.*committed"):
        open_source(tmp_path / name)
    with pytest.raises(InputError, match="only checkpoints that were never finished"):
        open_source(tmp_path)


def test_several_checkpoints_are_not_one(saved):
    with pytest.raises(InputError, match=r"5 checkpoints \(ocdbt zarr, ocdbt zarr3, state, ...\).*Give the directory"):
        open_source(saved)


def test_steps_of_two_runs_are_not_one(saved, tmp_path):
    for name in ("a_1", "a_2", "b_7"):
        shutil.copytree(saved / "run" / "10", tmp_path / name)
    with pytest.raises(InputError, match=r"3 checkpoints \(a_1, a_2, b_7\)"):
        open_source(tmp_path)


def test_items_that_are_no_trees_are_said(tmp_path):
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(1, args=ocp.args.Composite(notes=ocp.args.JsonSave({"a": 1})))
    with pytest.raises(InputError, match=r"only items that are no trees of arrays \(notes\)"):
        open_source(tmp_path)


def test_keys_lead_to_no_place_outside(saved, tmp_path):
    path = copied(saved, tmp_path, "zarr")
    outside = shutil.copytree(path / "d", tmp_path / "outside")
    assert outside.exists()
    metadata = json.loads((path / "_METADATA").read_text())
    entry = metadata["tree_metadata"]["('d',)"]
    entry["key_metadata"][0]["key"] = "../outside"
    (path / "_METADATA").write_text(json.dumps(metadata))
    assert "Invalid file path" in tj.measure(path).failed["../outside"]


def test_directories_beside_a_format_are_no_checkpoint(tmp_path):
    np.save(tmp_path / "a.npy", np.ones(3, np.float32))
    (tmp_path / "1").mkdir()
    assert not is_checkpoint(tmp_path, tuple(tmp_path.iterdir()))
    assert set(tj.measure(tmp_path)) == {"a"}


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("_METADATA", r".*_METADATA: found Permission denied"),
        ("params.h.0.w/0.0", r".*'params.h.0.w': found permission denied"),
    ],
)
def test_no_permission_is_said(saved, tmp_path, path, words):
    checkpoint = copied(saved, tmp_path, "zarr")
    (checkpoint / path).chmod(0)
    # the superuser may read everything unless that is taken away
    less = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    code = "import sys, teleojax; print(list(teleojax.measure(sys.argv[1], include=sys.argv[2])))"
    command = [*less, sys.executable, "-c", code, str(checkpoint), r"h\.0\.w"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.match(words, done.stderr.splitlines()[-1]), done.stderr
