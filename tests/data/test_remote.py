"""Remote shards: the same samples as from a folder, whatever the other side does; a cache that keeps its promises."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest

from common.errors import DataError
from common.files import sha256_of
from data import download as download_module
from data import shard_cache
from data.download import Downloaded, DownloadLimits, NotDownloaded, download
from data.locations import read_places, shard_names
from data.shard_cache import ShardCache
from data.skips import BadSample
from data.sources import build_source
from data.stores import parse_counts
from tests.data.sample_files import sample, write_shards, write_tar
from tests.data.shard_server import ShardServer, serving, wait_for
from tests.data.test_pipeline import keys_of, open_data, take
from tests.data.test_sources import read_all

IMPATIENT = DownloadLimits(attempts=3, timeout_s=0.3)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    """Attempts follow each other without delay."""
    monkeypatch.setattr(download_module, "_LONGEST_PAUSE_S", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def server(tmp_path):
    """A server of the folder `shards`."""
    (tmp_path / "shards").mkdir()
    with serving(tmp_path / "shards") as server:
        yield server


def options(server: ShardServer, tmp_path: Path, pattern: str = "{00..03}.tar", **others) -> dict:
    return {
        "path": f"{server.url}/{pattern}",
        "cache_dir": str(tmp_path / "cache"),
        "download_attempts": 3,
        "download_timeout_s": 0.3,
        **others,
    }


def write_counts(tmp_path: Path, counts: list[int]) -> None:
    content = {f"{number:02d}.tar": count for number, count in enumerate(counts)}
    (tmp_path / "shards" / "sizes.json").write_text(json.dumps(content))


def cached(tmp_path: Path) -> list[str]:
    """Names of the whole shards in the cache."""
    return sorted(path.name for path in (tmp_path / "cache" / "shards").glob("*/*.tar"))


# --- places ----------------------------------------------------------------------------------------------------------


def test_a_pattern_names_every_shard():
    assert read_places("s3://b/x-{08..11}.tar") == [f"s3://b/x-{n}.tar" for n in ("08", "09", "10", "11")]
    assert read_places("https://h/a.tar") == ["https://h/a.tar"]


def test_a_list_has_one_pattern_per_line(tmp_path):
    (tmp_path / "list.txt").write_text("# shards\nhttps://h/{0..1}.tar\n\n  https://h/z.tar  \n")
    assert read_places(str(tmp_path / "list.txt")) == ["https://h/0.tar", "https://h/1.tar", "https://h/z.tar"]


def test_a_command_in_a_list_is_refused_and_not_run(tmp_path):
    (tmp_path / "list.txt").write_text(f"https://h/0.tar\npipe:touch {tmp_path}/ran; cat a.tar\n")
    with pytest.raises(DataError, match=r"list\.txt: found the command 'pipe:touch .*expected URLs or paths"):
        open_data(tmp_path / "list.txt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("places", "root", "names"),
    [
        (["https://h/d/a.tar?token=1", "https://h/d/e/b.tar"], "/h/d", ["a.tar", "e/b.tar"]),
        (["pipe:curl -s 'https://h/a.tar' | cat", "pipe:cat /h/b.tar"], "/h", ["a.tar", "b.tar"]),
        (["https://h/../../a.tar", "https://h/b.tar"], "/", ["a.tar", "h/b.tar"]),
    ],
)
def test_names_are_relative_to_the_common_folder(places, root, names):
    assert shard_names(places) == (root, names)


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (["https://h/a.tar", "https://h/a.tar?x"], "the shard a.tar is named twice"),
        (["pipe:make-a-shard 3"], "names no .tar file"),
    ],
)
def test_shards_that_cannot_be_told_apart_are_refused(places, message):
    with pytest.raises(DataError, match=message):
        shard_names(places)


def test_mixed_and_malformed_places_are_refused(tmp_path):
    (tmp_path / "list.txt").write_text("https://h/0.tar\n/data/1.tar\n")
    with pytest.raises(DataError, match="mixes URLs"):
        open_data(tmp_path / "list.txt")
    with pytest.raises(DataError, match="Unbalanced braces"):
        open_data("https://h/{0..3.tar")


def test_local_shards_can_be_named_one_by_one(tmp_path):
    keys = write_shards(tmp_path, [2, 2, 2])
    assert list(read_all(open_data(f"{tmp_path}/{{00..01}}.tar").source)) == keys[:4]
    with pytest.raises(DataError, match=r"1 of 4 shards are missing, expected at most .* = 0\.01\. 03\.tar: missing"):
        open_data(f"{tmp_path}/{{00..03}}.tar")
    source = open_data(f"{tmp_path}/{{00..03}}.tar", max_skip_fraction=0.25).source
    assert list(read_all(source)) == keys and [str(p) for p in source.report.problems] == ["03.tar: missing shard"]


# --- the same samples ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_remote_shards_give_the_batches_of_a_folder(tmp_path, server, counted, workers):
    write_shards(tmp_path / "shards", [3, 4, 2, 5])
    if counted:
        write_counts(tmp_path, [3, 4, 2, 5])
    local = open_data(tmp_path / "shards", label_type="cls2id")
    remote = open_data(**options(server, tmp_path, label_type="cls2id", workers=workers))
    assert remote.fingerprint() == local.fingerprint()
    for found, expected in zip(take(remote, 8), take(local, 8), strict=True):
        assert found.keys == expected.keys and found.images.equal(expected.images)
        assert found.labels.equal(expected.labels)
    assert remote.skips.skipped == 0
    assert sorted(name for name in server.served if name.endswith(".tar")) == ["00.tar", "01.tar", "02.tar", "03.tar"]


def test_counts_spare_the_start_every_download(tmp_path, server):
    write_shards(tmp_path / "shards", [3, 3, 3, 3])
    write_counts(tmp_path, [3, 3, 3, 3])
    data = open_data(**options(server, tmp_path, shuffle_window_shards=1), global_batch=3)
    assert len(data) == 12 and server.served == ["sizes.json"]
    take(data, 1)
    assert len(cached(tmp_path)) == 1


def test_a_key_filter_scans_counted_shards_too(tmp_path, server):
    write_shards(tmp_path / "shards", [2, 2, 2, 2])
    write_counts(tmp_path, [2, 2, 2, 2])
    (tmp_path / "keys.txt").write_text("1_000\n3_001\n")
    data = open_data(**options(server, tmp_path, filter_keys_path=str(tmp_path / "keys.txt")), global_batch=2)
    assert list(read_all(data.source)) == ["1_000", "3_001"]


def test_indices_outlive_the_shards(tmp_path, server):
    keys = write_shards(tmp_path / "shards", [2, 2, 2, 2])
    one_shard = (tmp_path / "shards" / "00.tar").stat().st_size / 1e9
    settings = options(server, tmp_path, cache_max_gb=2.5 * one_shard)
    assert len(open_data(**settings)) == 8 and cached(tmp_path) == ["02.tar", "03.tar"]
    server.served.clear()
    source = open_data(**settings).source
    assert "00.tar" not in server.served
    assert list(read_all(source)) == keys and len(cached(tmp_path)) == 2


def test_wrong_counts_are_bad_samples(tmp_path, server):
    write_shards(tmp_path / "shards", [3, 3])
    write_counts(tmp_path, [3, 5])
    data = open_data(**options(server, tmp_path, "{00..01}.tar"), global_batch=8)
    (batch,) = take(data, 1)
    assert data.skips.by_shard() == {"01.tar": 2} and data.skips.by_kind() == {"miscounted shard": 2}
    assert "3 of 5 counted samples can be used" in batch.skips[0].detail


def test_counts_in_both_formats():
    own = {"a.tar": 3, "deep/b.tar": 4}
    wids = {"wids_version": 1, "shardlist": [{"url": "a.tar", "nsamples": 3}, {"url": "s3://x/b.tar", "nsamples": 4}]}
    assert dict(parse_counts("x", own)) == dict(parse_counts("x", wids)) == {"a.tar": 3, "b.tar": 4}
    for content in ([], {"a.tar": "3"}, {"a.tar": -1}, {"shardlist": [{"url": "a"}]}, {"shardlist": [3]}):
        with pytest.raises(DataError, match=r"x: expected \{\"shard\.tar\": number of samples"):
            list(parse_counts("x", content))


def test_a_command_gives_a_shard(tmp_path):
    keys = write_shards(tmp_path / "shards", [2, 3])
    path = f"pipe:cat {tmp_path}/shards/{{00..01}}.tar"
    source = open_data(path, cache_dir=str(tmp_path / "cache")).source
    assert list(read_all(source)) == keys


def test_other_schemes_go_through_fsspec(tmp_path):
    keys = write_shards(tmp_path / "shards", [2])
    source = open_data(f"file://{tmp_path}/shards/00.tar", cache_dir=str(tmp_path / "cache")).source
    assert list(read_all(source)) == keys
    with pytest.raises(DataError, match="no-such-scheme"):
        open_data("no-such-scheme://h/a.tar", cache_dir=str(tmp_path / "cache"))


# --- faults of the other side ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [503, 429, "truncate", "drop", "hang", "crawl"])
def test_a_fault_now_and_then_is_tried_again(tmp_path, server, fault):
    keys = write_shards(tmp_path / "shards", [2, 2])
    server.faults["00.tar"] = [fault, fault]
    source = open_data(**options(server, tmp_path, "{00..01}.tar")).source
    assert list(read_all(source)) == keys and server.served.count("00.tar") == 3
    assert sha256_of(next((tmp_path / "cache").rglob("00.tar"))) == sha256_of(tmp_path / "shards" / "00.tar")


def test_a_shard_that_is_not_there_is_asked_for_once(tmp_path, server):
    write_shards(tmp_path / "shards", [2, 2])
    with pytest.raises(DataError, match=r"1 of 3 shards are missing.* 02\.tar: missing shard \(.*HTTP 404"):
        open_data(**options(server, tmp_path, "{00..02}.tar"))
    assert server.served.count("02.tar") == 1
    data = open_data(**options(server, tmp_path, "{00..02}.tar", max_skip_fraction=0.4))
    assert "Left out: 1 x missing shard: 02.tar (1)" in data.describe()


@pytest.mark.parametrize("fault", [500, "truncate", "hang"])
def test_a_shard_that_cannot_be_had_stays_missing_for_the_run_that_resumes(tmp_path, server, fault, caplog):
    write_shards(tmp_path / "shards", [2, 2])
    server.always["01.tar"] = fault
    settings = options(server, tmp_path, "{00..01}.tar", max_skip_fraction=0.5)
    first = open_data(**settings).fingerprint()
    assert server.served.count("01.tar") == 3
    server.always.clear()
    assert open_data(**settings).fingerprint() == first
    (remembered,) = (tmp_path / "cache" / "index").rglob("01.tar.json")
    assert f"01.tar is left out; delete {remembered} to ask for it again." in caplog.text


@pytest.mark.parametrize("workers", [0, 1])
def test_a_counted_shard_that_is_missing_is_skipped_by_kind_and_shard(tmp_path, server, workers):
    write_shards(tmp_path / "shards", [4, 4, 4, 4])
    write_counts(tmp_path, [4, 4, 4, 4])
    server.always["02.tar"] = 500
    data = open_data(**options(server, tmp_path, workers=workers))
    batches = take(data, 4)
    assert data.skips.by_kind() == {"missing shard": 4} and data.skips.by_shard() == {"02.tar": 4}
    assert len(set(keys_of(batches))) == 12
    assert server.served.count("02.tar") == 3  # all samples of the shard share one answer


def test_counts_that_do_not_arrive_are_an_error(tmp_path, server):
    write_shards(tmp_path / "shards", [2])
    server.always["sizes.json"] = 503
    with pytest.raises(DataError, match=r"sizes\.json: HTTP 503"):
        open_data(**options(server, tmp_path, "00.tar"))


def test_a_shard_that_changed_since_it_was_indexed_is_bad(tmp_path, server):
    write_shards(tmp_path / "shards", [2, 2])
    data = open_data(**options(server, tmp_path, "{00..01}.tar"))
    for path in (tmp_path / "cache" / "shards").rglob("01.tar"):
        path.unlink()
    write_tar(tmp_path / "shards" / "01.tar", [*sample("1_000", 5), *sample("1_001", 5)])
    take(data, 1)
    assert data.skips.by_kind() == {"changed shard": 2} and data.skips.by_shard() == {"01.tar": 2}


def test_a_silent_command_and_one_that_fails_are_given_up(tmp_path):
    start = time.monotonic()
    with pytest.raises(NotDownloaded, match=r"no output in 0\.3 s"):
        download("pipe:sleep 60", tmp_path / "x", DownloadLimits(1, 0.3))
    with pytest.raises(NotDownloaded, match="exit code 3"):
        download("pipe:echo half; exit 3", tmp_path / "x", IMPATIENT)
    assert time.monotonic() - start < 5


def test_pauses_between_attempts_double(tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr(download_module, "_LONGEST_PAUSE_S", 30.0)
    monkeypatch.setattr(download_module, "time", SimpleNamespace(sleep=pauses.append, monotonic=time.monotonic))
    with pytest.raises(NotDownloaded, match="exit code 1"):
        download("pipe:exit 1", tmp_path / "x", DownloadLimits(8, 1))
    assert pauses == [1, 2, 4, 8, 16, 30, 30]


# --- the cache -------------------------------------------------------------------------------------------------------


def test_the_least_recently_used_shard_goes_first_and_the_bound_holds(tmp_path, server):
    for name in "abcd":
        (tmp_path / "shards" / f"{name}.tar").write_bytes(name.encode() * 1000)
    cache = ShardCache(tmp_path / "cache" / "shards", 3000, IMPATIENT)

    def use(name: str) -> None:
        with open(cache.open(f"{server.url}/{name}.tar"), "rb") as file:
            assert file.read() == name.encode() * 1000
        time.sleep(0.01)

    for name in "abcabd":
        use(name)
    assert cached(tmp_path) == ["a.tar", "b.tar", "d.tar"]
    assert server.served == ["a.tar", "b.tar", "c.tar", "d.tar"]
    assert [path.name for path in (tmp_path / "cache").rglob(".partial")] == []


def test_an_evicted_shard_can_be_read_to_the_end(tmp_path, server):
    for name in "ab":
        (tmp_path / "shards" / f"{name}.tar").write_bytes(name.encode() * 1000)
    cache = ShardCache(tmp_path / "cache" / "shards", 1500, IMPATIENT)
    descriptor = cache.open(f"{server.url}/a.tar")
    os.close(cache.open(f"{server.url}/b.tar"))
    assert cached(tmp_path) == ["b.tar"] and os.pread(descriptor, 2000, 0) == b"a" * 1000
    os.close(descriptor)


def test_what_does_not_fit_or_cannot_be_written_is_an_error(tmp_path, server):
    (tmp_path / "shards" / "a.tar").write_bytes(b"a" * 1000)
    with pytest.raises(DataError, match=r"data\.cache_max_gb: a shard of 1e-06 GB does not fit into 9e-07 GB"):
        ShardCache(tmp_path / "cache", 900, IMPATIENT).open(f"{server.url}/a.tar")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"data\.cache_dir: .* cannot be used \(Not a directory\)"):
        ShardCache(tmp_path / "file", 900, IMPATIENT).open(f"{server.url}/a.tar")


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path, server, monkeypatch):
    (tmp_path / "shards" / "a.tar").write_bytes(b"a" * 1000)
    cache = ShardCache(tmp_path / "cache" / "shards", 10_000, IMPATIENT)
    cache.path(f"{server.url}/a.tar").parent.mkdir(parents=True)
    cache.path(f"{server.url}/a.tar").with_name(".partial").symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"cannot be written \(No space left on device\)"):
        cache.open(f"{server.url}/a.tar")
    assert cached(tmp_path) == [] and server.served == ["a.tar"]


def test_a_failure_is_remembered_for_a_while(tmp_path, server, monkeypatch):
    cache = ShardCache(tmp_path / "cache", 1000, IMPATIENT)
    for _ in range(3):
        with pytest.raises(BadSample, match="missing shard"):
            cache.open(f"{server.url}/a.tar")
    assert server.served == ["a.tar"]
    monkeypatch.setattr(shard_cache, "RETRY_AFTER_S", 0.0)
    (tmp_path / "shards" / "a.tar").write_bytes(b"a")
    os.close(cache.open(f"{server.url}/a.tar"))


def test_threads_and_processes_download_a_shard_once(tmp_path, server):
    (tmp_path / "shards" / "a.tar").write_bytes(b"a" * 1000)
    url = f"{server.url}/a.tar"
    script = (
        "import os, sys; from pathlib import Path; from data.shard_cache import ShardCache; "
        "from data.download import DownloadLimits; "
        "cache = ShardCache(Path(sys.argv[2]), 10_000, DownloadLimits(3, 5.0)); "
        "print(len(os.read(cache.open(sys.argv[1]), 2000)))"
    )
    command = [sys.executable, "-c", script, url, str(tmp_path / "cache" / "shards")]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    cache = ShardCache(tmp_path / "cache" / "shards", 10_000, DownloadLimits(3, 5.0))
    threads = [threading.Thread(target=cache.fetch, args=(url,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.communicate(timeout=30)[0] for process in processes] == ["1000\n"] * 3
    assert server.served == ["a.tar"]


def test_a_download_that_was_killed_leaves_no_whole_shard_and_no_lock(tmp_path, server):
    (tmp_path / "shards" / "a.tar").write_bytes(b"a" * 1000)
    server.faults["a.tar"] = ["crawl"]
    cache = ShardCache(tmp_path / "cache" / "shards", 10_000, DownloadLimits(3, 5.0))
    url = f"{server.url}/a.tar"
    child = os.fork()
    if child == 0:
        cache.fetch(url)
        os._exit(0)
    wait_for(lambda: server.served)
    assert cache.path(url).with_name(".partial").exists()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert cached(tmp_path) == []
    assert cache.fetch(url) == Downloaded(1000, sha256_of(tmp_path / "shards" / "a.tar"))
    assert cached(tmp_path) == ["a.tar"]


def test_workers_fetch_the_next_window_ahead(tmp_path, server):
    write_shards(tmp_path / "shards", [4] * 8)
    write_counts(tmp_path, [4] * 8)
    settings = options(server, tmp_path, "{00..07}.tar", shuffle_window_shards=2, workers=1, prefetch_batches=1)
    batches = open_data(**settings).micro_batches()
    next(batches)
    wait_for(lambda: len(cached(tmp_path)) == 4)  # the window of the first batches, and the one after it
    list(islice(batches, 3))
    wait_for(lambda: len(cached(tmp_path)) == 6)
    batches.close()


def test_fetching_ahead_never_evicts_what_is_needed_first(tmp_path, server):
    for name in "abc":
        (tmp_path / "shards" / f"{name}.tar").write_bytes(name.encode() * 1000)
    cache = ShardCache(tmp_path / "cache" / "shards", 2500, IMPATIENT)
    urls = [f"{server.url}/{name}.tar" for name in "abc"]
    assert [cache.fetch_ahead(url, None, urls) for url in urls] == [True, True, False]
    assert cached(tmp_path) == ["a.tar", "b.tar"]


# --- many ranks ------------------------------------------------------------------------------------------------------


def test_ranks_share_the_scan_and_then_the_ranks_of_each_machine(tmp_path, server, monkeypatch):
    keys = write_shards(tmp_path / "shards", [1] * 5)
    monkeypatch.setattr("common.distributed.world_size", lambda: 4)
    monkeypatch.setattr("common.distributed.rank", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    rounds = []
    monkeypatch.setattr("common.distributed.raise_together", lambda error: rounds.append(list(server.served)))
    monkeypatch.setattr("common.distributed.on_rank_0", lambda work: work())
    source = build_source(open_config(server, tmp_path), 0)
    shards = [[name for name in served if name.endswith(".tar")] for served in rounds]
    assert shards == [["01.tar"], ["01.tar", "03.tar"]]
    assert list(read_all(source)) == keys


def open_config(server: ShardServer, tmp_path: Path):
    from data.config import DataConfig

    return DataConfig(**options(server, tmp_path, "{00..04}.tar"))


def test_ranks_that_found_different_data_stop(tmp_path, monkeypatch):
    write_shards(tmp_path, [2, 2])
    mine = []

    def gathered(facts):
        mine.append(facts)
        return [facts, ("other", 3, 2)]

    monkeypatch.setattr("data.pipeline.all_gather_objects", gathered)
    with pytest.raises(DataError, match="rank 0 found 4 samples in 2 shards, rank 1 3 in 2"):
        open_data(tmp_path)
