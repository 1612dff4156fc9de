"""`prottrans_jax.train` with records and model_dir in a bucket: slow, supervised."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from cases import stores
from drills import resume
from prottrans_jax.data.records import shard_cache
from prottrans_jax.files import folders, paths
from prottrans_jax.training import goodput

pytestmark = pytest.mark.slow
# Longer than a wait that is logged.
DELAY_S = shard_cache._SLOW_S + 2


@pytest.fixture
def drill(bucket, tmp_path):
    """A run of 6 steps, with records in the bucket and on this machine."""
    local = resume.Drill(tmp_path, steps=6)
    local.prepare()
    root = paths.place(bucket, "bucket")
    folders.upload(tmp_path / "records", root / "records")
    return dataclasses.replace(
        local,
        records=root / "records",
        environment={
            **stores.environment(bucket.partition("://")[0]),
            "PROTTRANS_DATA_CACHE": str(tmp_path / "cache"),
        },
    )


def test_a_slow_store_shows_as_data_wait_and_changes_no_number(
    drill, bucket, faults, tmp_path
):
    local = dataclasses.replace(drill, records=None)
    local.finish(tmp_path / "local", keep=10)
    slow = faults.add(
        stores.Fault(
            lambda method, path: method == "GET" and "records/train" in path,
            times=10**6,
            delay_s=DELAY_S,
        )
    )
    slow_run = paths.place(bucket, "bucket") / "slow"
    (process,) = drill.start(slow_run, keep=10)
    assert process.wait(300) == 0, process.output()[-3000:]
    assert slow.seen > 0
    assert f"s for {bucket}/records/" in process.output()
    data_s = [_data_s(run) for run in (tmp_path / "local", slow_run)]
    print(f"{bucket[:2]}: waits for data {data_s} s")
    assert data_s[1] > shard_cache._SLOW_S
    assert resume.differences(tmp_path / "local", slow_run, drill.steps) == []


def _data_s(run):
    last = (run / "metrics.jsonl").read_text().splitlines()[-1]
    return json.loads(last)["timing/seconds/data"]


def test_a_supervised_run_in_a_bucket_is_restarted_and_accounted_for(
    drill, bucket, tmp_path
):
    run = paths.place(bucket, "bucket") / "run"
    train, local = (
        [sys.executable, "-m", "prottrans_jax.train", *drill.flags(place, keep=10)]
        for place in (run, tmp_path / "local")
    )
    # Not `finish`: its processes have other XLA flags, and so other bits.
    subprocess.run(
        local, check=True, env=os.environ | drill.environment, capture_output=True
    )
    supervisor = subprocess.Popen(
        [sys.executable, "-m", "prottrans_jax.cli", "supervise", "--", *train],
        env=os.environ | drill.environment,
        stdout=subprocess.DEVNULL,
    )
    try:
        lock, committed = run / "checkpoints" / ".lock", run / "checkpoints" / "2"
        while not (committed / "sha256.json").exists():
            assert supervisor.poll() is None
            time.sleep(0.1)
        os.kill(json.loads(lock.read_bytes())["pid"], signal.SIGKILL)
        assert supervisor.wait(300) == 0
    finally:
        supervisor.kill()
    lines = (run / f"supervisor.{socket.gethostname()}.jsonl").read_text().splitlines()
    events = [json.loads(line)["event"] for line in lines]
    assert events == ["start", "exit", "restart", "start", "exit", "done"]
    account = goodput.read(run / goodput.NAME)
    assert account.starts == 2 and account.seconds["restart"] > 0
    assert resume.differences(tmp_path / "local", run, drill.steps) == []
