"""The feature store against what it promises: exact rows, no pass twice, nothing trusted that is not whole."""

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from hftransfer.core.errors import UserError
from hftransfer.core.hashing import content_key
from hftransfer.features.store import FeatureStore, space_key

SPACE = space_key(weights="w", transform={"size": 8})
LENGTH = 5


def row_of(key: str) -> np.ndarray:
    """What the pretended network gives for an input: known for every key, different between keys."""
    return np.random.default_rng(int(key, 16)).normal(size=LENGTH).astype(np.float32)


def keys_of(count: int, first: int = 0) -> list[str]:
    return [content_key(f"input {number}") for number in range(first, first + count)]


class Network:
    """A compute callback that remembers what it was asked for and answers in batches of four, last position first."""

    def __init__(self, keys, dtype=np.float32, pause=0.0):
        self.keys, self.dtype, self.pause, self.asked = keys, dtype, pause, []

    def __call__(self, positions):
        self.asked += positions
        backwards = list(positions)[::-1]
        for begin in range(0, len(backwards), 4):
            batch = backwards[begin : begin + 4]
            time.sleep(self.pause)
            pooled = np.stack([row_of(self.keys[position]) for position in batch]).astype(self.dtype)
            yield batch, {"pooled": pooled, "tokens": [np.full((position % 3, 2), position) for position in batch]}


@pytest.fixture
def store(tmp_path):
    return FeatureStore(tmp_path / "features", shard_bytes=400)


def shards(store):
    return sorted(store.folder.glob("*/*.safetensors"))


def expected(keys):
    return np.stack([row_of(key) for key in keys])


def test_rows_come_back_exactly_in_the_order_of_the_keys(store):
    keys = keys_of(25)
    features = store.collect(SPACE, keys, Network(keys))
    assert len(shards(store)) > 1
    assert features.names == ["pooled", "tokens"]
    assert features["pooled"].shape == (25, LENGTH) and features["pooled"].dtype == np.float32
    np.testing.assert_array_equal(features["pooled"], expected(keys))
    np.testing.assert_array_equal(features["pooled"][[7, 3, 3]], expected(keys)[[7, 3, 3]])
    np.testing.assert_array_equal(features["pooled"][-2:], expected(keys)[-2:])
    np.testing.assert_array_equal(features["pooled"][np.int64(4)], row_of(keys[4]))
    for position, row in enumerate(features.rows("tokens", range(25))):
        np.testing.assert_array_equal(row, np.full((position % 3, 2), position))


def test_second_run_computes_nothing_and_fifty_new_rows_exactly_fifty(store):
    keys = keys_of(30)
    assert store.collect(SPACE, keys, Network(keys)).computed == 30
    again = Network(keys)
    assert FeatureStore(store.folder).collect(SPACE, keys, again).computed == 0 and not again.asked
    more = keys_of(50, first=30) + keys
    network = Network(more)
    features = FeatureStore(store.folder).collect(SPACE, more, network)
    assert features.computed == 50 and sorted(network.asked) == list(range(50))
    np.testing.assert_array_equal(features["pooled"], expected(more))


def test_equal_inputs_are_computed_once(store):
    keys = keys_of(3) * 4
    network = Network(keys)
    features = store.collect(SPACE, keys, network)
    assert network.asked == [0, 1, 2] and features.computed == 3
    np.testing.assert_array_equal(features["pooled"], expected(keys))


def test_another_space_shares_nothing(store):
    keys = keys_of(4)
    store.collect(SPACE, keys, Network(keys))
    assert store.collect(space_key(weights="other", transform={"size": 8}), keys, Network(keys)).computed == 4


def test_every_ingredient_changes_the_space_and_their_order_does_not():
    one = space_key(weights="w", transform={"size": 8, "mean": [0.5]}, split_point=3)
    assert one == space_key(split_point=3, transform={"mean": [0.5], "size": 8}, weights="w")
    others = [
        space_key(weights="v", transform={"size": 8, "mean": [0.5]}, split_point=3),
        space_key(weights="w", transform={"size": 9, "mean": [0.5]}, split_point=3),
        space_key(weights="w", transform={"size": 8, "mean": [0.5]}, split_point=4),
        space_key(weights="w", transform={"size": 8, "mean": [0.5]}, split_point="3"),
        space_key(weights="w", transform={"size": 8, "mean": [0.5]}, split_point=3, precision="bf16"),
    ]
    assert len({one, *others}) == 6
    with pytest.raises(TypeError):
        space_key(model=object())


def test_content_key_tells_where_a_part_ends():
    assert content_key("ab", "c") != content_key("a", "bc") != content_key("abc")
    assert content_key("é") == content_key("é".encode())
    assert content_key("\ud800") != content_key("\ud801")  # unpaired surrogates occur in scraped text


@pytest.mark.parametrize(("dtype", "given_back"), [(torch.bfloat16, np.float32), (torch.float16, np.float16)])
def test_half_precision_is_stored_in_two_bytes_and_exact(store, dtype, given_back):
    values = torch.randn(6, 40).to(dtype)
    keys = keys_of(6)
    features = store.collect(SPACE, keys, lambda positions: iter([(positions, {"x": values[list(positions)]})]))
    assert features["x"].dtype == given_back and features.tensors("x", [0])[0].dtype == dtype
    np.testing.assert_array_equal(features["x"], values.float().numpy().astype(given_back))
    assert shards(store)[0].stat().st_size < 6 * 40 * 2 + 600


def test_rows_of_different_shapes_need_rows(store):
    keys = keys_of(5)
    features = store.collect(SPACE, keys, Network(keys))
    with pytest.raises(ValueError, match="differ in length: read them with `rows`"):
        features["tokens"]


def test_rows_that_change_their_type_or_shape_are_refused(store):
    keys = keys_of(2)

    def changing(second):
        return lambda positions: iter([([0], {"x": np.zeros((1, 3))}), ([1], {"x": second})])

    for second in (np.zeros((1, 4)), np.zeros((1, 3), np.float32), [np.zeros(3)]):
        with pytest.raises(ValueError, match="Rows of 'x' changed"):
            store.collect(SPACE, keys, changing(second))
    with pytest.raises(ValueError, match="same names: \\['x'\\], not \\['y'\\]"):
        store.collect(
            SPACE, keys, lambda positions: iter([([0], {"x": np.zeros((1, 2))}), ([1], {"y": np.ones((1, 2))})])
        )


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "header"])
def test_a_damaged_shard_is_computed_again_and_said(store, damage, caplog):
    keys = keys_of(25)
    store.collect(SPACE, keys, Network(keys))
    path = shards(store)[1]
    data = bytearray(path.read_bytes())
    lost = len(json.loads(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["keys"]))
    if damage == "flipped":
        data[-3] ^= 1
    if damage == "header":
        data[9] ^= 255
    path.write_bytes({"truncated": data[:-5], "empty": b""}.get(damage, data))
    network = Network(keys)
    features = FeatureStore(store.folder).collect(SPACE, keys, network)
    assert len(network.asked) == features.computed == lost > 0
    np.testing.assert_array_equal(features["pooled"], expected(keys))
    assert f"Damaged shard in the feature store, its rows are computed again: {path}" in caplog.text


def test_rows_computed_before_an_error_are_kept(store):
    keys = keys_of(10)

    def failing(positions):
        yield positions[:4], {"pooled": expected(keys[:4])}
        raise UserError("picture 5 cannot be read")

    with pytest.raises(UserError, match="picture 5"):
        store.collect(SPACE, keys, failing)
    assert store.collect(SPACE, keys[:4], Network(keys)).computed == 0


def test_a_callback_that_forgets_rows_is_refused(store):
    keys = keys_of(3)
    with pytest.raises(ValueError, match="1 of 3 rows asked for were not computed"):
        store.collect(SPACE, keys, lambda positions: iter([([0, 1], {"pooled": expected(keys[:2])})]))
    with pytest.raises(ValueError, match="2 rows of 'pooled' came for 1 positions"):
        store.collect(SPACE, keys[2:], lambda positions: iter([([0], {"pooled": expected(keys[:2])})]))


def test_least_recently_used_shards_go_first_and_never_those_in_use(tmp_path):
    keys, spaces = keys_of(20), [space_key(number=number) for number in range(3)]

    def sized(limit_bytes):
        return FeatureStore(tmp_path, limit_bytes=limit_bytes)

    for age, space in enumerate(spaces[:2]):
        sized(10**9).collect(space, keys, Network(keys))
        os.utime(shards(sized(0))[0].parent.parent / space, None)
        for path in (tmp_path / space).glob("*.safetensors"):
            os.utime(path, (1000 + age, 1000 + age))
    sized(10**9).collect(spaces[0], keys, Network(keys))  # used again: now the newer one
    one = sum(path.stat().st_size for path in (tmp_path / spaces[0]).glob("*.safetensors"))
    small = sized(2 * one + one // 2)
    features = small.collect(spaces[2], keys, Network(keys))
    assert {space.space for space in small.summary()} == {spaces[0], spaces[2]}

    tiny = sized(1)
    held = tiny.collect(spaces[0], keys, Network(keys))
    tiny.collect(spaces[1], keys, Network(keys))
    np.testing.assert_array_equal(held["pooled"], expected(keys))
    assert spaces[0] in {space.space for space in tiny.summary()}
    np.testing.assert_array_equal(features["pooled"], expected(keys))  # evicted by another process, still mapped here


def stored_bytes(folder):
    return sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors"))


def test_what_one_collection_took_beyond_the_limit_goes_when_it_is_no_longer_read(tmp_path):
    keys = keys_of(20)
    small = FeatureStore(tmp_path, limit_bytes=1000, shard_bytes=200)
    features = small.collect(SPACE, keys, Network(keys))
    assert stored_bytes(tmp_path) > 1000
    small.keep_to_limit()
    np.testing.assert_array_equal(features["pooled"], expected(keys))
    del features
    small.keep_to_limit()
    assert 0 < stored_bytes(tmp_path) <= 1000


def test_reading_alone_keeps_to_the_limit_too(tmp_path):
    keys, other = keys_of(20), space_key(number=1)
    for space in (SPACE, other):
        FeatureStore(tmp_path).collect(space, keys, Network(keys))
    FeatureStore(tmp_path, limit_bytes=1).collect(SPACE, keys, Network(keys))  # all of it is there
    assert not list((tmp_path / other).glob("*.safetensors"))


def test_a_run_leaves_the_store_within_its_limit(tmp_path, monkeypatch):
    from hftransfer.train import run
    from tests.behaviour.test_matrix import configuration

    monkeypatch.setenv("HFTRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(FeatureStore.__init__, "__defaults__", (None, 1000, 32 * 2**20))
    run(configuration("probe", "text", tmp_path))
    assert stored_bytes(tmp_path / "cache") <= 1000


def test_summary_and_clear(store):
    keys = keys_of(10)
    store.collect(SPACE, keys, Network(keys), about="tiny network after block 2")
    (space,) = store.summary()
    size = sum(path.stat().st_size for path in shards(store))
    assert (space.space, space.about, space.rows, space.bytes) == (SPACE, "tiny network after block 2", 10, size)
    other = store.folder.parent / "mine.safetensors"
    other.write_bytes(b"not of the store")
    assert store.clear("nothing") == 0 and store.clear() == size
    assert store.summary() == [] and other.exists()


def test_folder_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HFTRANSFER_CACHE", str(tmp_path / "here"))
    assert FeatureStore().folder == tmp_path / "here" / "features"
    monkeypatch.delenv("HFTRANSFER_CACHE")
    assert FeatureStore().folder == Path.home() / ".cache/hftransfer/features"


def test_a_folder_that_cannot_be_written_is_the_users_mistake(tmp_path):
    (tmp_path / "file").write_text("")
    keys = keys_of(2)
    with pytest.raises(UserError, match=r"could not write to .*file.*HFTRANSFER_CACHE"):
        FeatureStore(tmp_path / "file").collect(SPACE, keys, Network(keys))


def test_features_travel_to_workers_as_paths(store):
    keys = keys_of(40)
    features = store.collect(SPACE, keys, Network(keys))
    pickled = pickle.dumps(features)
    assert len(pickled) < 40 * LENGTH * 4 + 4000
    np.testing.assert_array_equal(pickle.loads(pickled)["pooled"], expected(keys))


def test_ranks_share_the_work(tmp_path):
    keys = keys_of(23)
    FeatureStore(tmp_path).collect(SPACE, keys[:3], Network(keys))
    barrier, results = threading.Barrier(2), {}

    def rank(number):
        network = Network(keys)
        store = FeatureStore(tmp_path, shard_bytes=200)
        features = store.collect(SPACE, keys, network, share=(number, 2), barrier=barrier.wait)
        results[number] = (network.asked, np.asarray(features["pooled"]))

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(2)]
    [thread.start() for thread in threads]
    [thread.join(30) for thread in threads]
    assert sorted(results[0][0] + results[1][0]) == list(range(3, 23))
    assert len(results[0][0]) == len(results[1][0]) == 10
    for _, rows in results.values():
        np.testing.assert_array_equal(rows, expected(keys))


def collect_in_process(folder, keys, queue):
    features = FeatureStore(folder, shard_bytes=200).collect(SPACE, keys, Network(keys, pause=0.02))
    queue.put((features.computed, np.asarray(features["pooled"])))


def test_two_processes_at_once_compute_every_row_once(tmp_path):
    keys, context = keys_of(60), multiprocessing.get_context("fork")
    queue = context.Queue()
    wanted = [keys[:40], keys[20:]]
    processes = [context.Process(target=collect_in_process, args=(tmp_path, part, queue)) for part in wanted]
    [process.start() for process in processes]
    results = [queue.get(timeout=60) for _ in processes]
    [process.join(60) for process in processes]
    assert sum(computed for computed, _ in results) == 60
    for _, rows in results:
        assert any(np.array_equal(rows, expected(part)) for part in wanted)


def test_a_killed_process_leaves_only_whole_shards(tmp_path):
    keys, context = keys_of(400), multiprocessing.get_context("fork")
    store = FeatureStore(tmp_path)
    process = context.Process(target=collect_in_process, args=(tmp_path, keys, context.Queue()))
    process.start()
    while len(shards(store)) < 3:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    (tmp_path / SPACE / "half.tmp").write_bytes(shards(store)[0].read_bytes()[:50])
    kept = sum(space.rows for space in store.summary())
    features = store.collect(SPACE, keys, Network(keys))
    assert kept >= 12 and features.computed == 400 - kept
    np.testing.assert_array_equal(features["pooled"], expected(keys))


def test_stale_temporary_files_are_swept(store):
    keys = keys_of(8)
    store.collect(SPACE, keys[:4], Network(keys))
    stale, fresh = (store.folder / SPACE / name for name in ("stale.tmp", "fresh.tmp"))
    for path in (stale, fresh):
        path.write_bytes(b"half")
    os.utime(stale, (1, 1))
    store.collect(SPACE, keys, Network(keys))
    assert not stale.exists() and fresh.exists()


MEMORY = """
import resource, sys, torch
from pathlib import Path
from hftransfer.core.hashing import content_key
from hftransfer.features.store import FeatureStore

rows, width = int(sys.argv[2]), 1280

def network(positions):
    for begin in range(0, len(positions), 32):
        batch = positions[begin:begin + 32]
        activations = torch.ones(len(batch), 6, width)
        yield batch, {"pooled": activations[:, 0]}  # a view: the store must not keep the activations alive

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

list(network(range(64)))
before = peak()
keys = [content_key(str(number)) for number in range(rows)]
features = FeatureStore(Path(sys.argv[1]), shard_bytes=8 * 2**20).collect("space", keys, network)
print(peak() - before, len(features))
"""


def test_memory_stays_small_while_rows_stream_through(tmp_path):
    rows = 20_000
    arguments = [sys.executable, "-c", MEMORY, str(tmp_path), str(rows)]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # measure the store, not what glibc holds back
    answer = subprocess.run(arguments, capture_output=True, text=True, check=True, env=environment).stdout
    grown, count = map(int, answer.split())
    data = rows * 1280 * 4
    assert count == rows and sum(path.stat().st_size for path in tmp_path.glob("*/*.safetensors")) > data
    assert grown < 0.8 * data  # measured 60 MB, half of it file pages; holding the rows would take 102 MB and more
