"""Hosts on this machine whose network can be cut: Linux namespaces on a bridge.

Needs root and iproute2.
"""

import ctypes
import dataclasses
import itertools
import os
import pathlib
import shutil
import socket
import subprocess
from typing import Self

_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWNET = 0x20000, 0x4000000, 0x40000000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_numbers = itertools.count()


@dataclasses.dataclass(frozen=True)
class VirtualHost:
    """A network namespace with a host name; a process enters it before its work.

    Attributes:
      name: host name, and name of the namespace.
      names: file in the form of /etc/hosts.
    """

    name: str
    names: pathlib.Path

    def enter(self) -> None:
        """Moves this process, which has one thread, to the host."""
        with open(f"/var/run/netns/{self.name}") as place:
            _call("setns", place.fileno(), _CLONE_NEWNET)
        _call("unshare", _CLONE_NEWNS | _CLONE_NEWUTS)
        _call("mount", b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
        _call("mount", str(self.names).encode(), b"/etc/hosts", None, _MS_BIND, None)
        socket.sethostname(self.name)


class VirtualHosts:
    """Hosts that reach each other until they are cut off.

    Args:
      count: number of hosts.
      work: scratch directory.
    """

    def __init__(self, count: int, work: pathlib.Path):
        prefix = f"d{os.getpid() % 100_000}x{next(_numbers)}"
        self._bridge = f"{prefix}b"
        names = work / f"{prefix}.hosts"
        self.hosts = [VirtualHost(f"{prefix}n{n}", names) for n in range(count)]
        lines = ["127.0.0.1 localhost"]
        lines += [f"{self.address(n)} {host.name}" for n, host in enumerate(self.hosts)]
        names.write_text("\n".join(lines) + "\n")

    def address(self, number: int) -> str:
        """IP address of a host."""
        return f"10.77.0.{number + 1}"

    def cut(self, number: int) -> None:
        """Cuts a host off: from now on its packets vanish."""
        _ip(f"link set {self._cable(number)} down")

    def __enter__(self) -> Self:
        _ip(f"link add {self._bridge} type bridge")
        _ip(f"link set {self._bridge} up")
        for number, host in enumerate(self.hosts):
            cable = self._cable(number)
            _ip(f"netns add {host.name}")
            _ip(f"link add {cable} type veth peer name eth0 netns {host.name}")
            _ip(f"link set {cable} master {self._bridge} up")
            _ip(f"-n {host.name} addr add {self.address(number)}/24 dev eth0")
            _ip(f"-n {host.name} link set eth0 up")
            _ip(f"-n {host.name} link set lo up")
        return self

    def __exit__(self, *exception: object) -> None:
        for number, host in enumerate(self.hosts):
            _ip(f"link del {self._cable(number)}")
            _ip(f"netns del {host.name}")
        _ip(f"link del {self._bridge}")

    def _cable(self, number: int) -> str:
        return f"{self._bridge}{number}"


def are_possible() -> bool:
    """Whether this machine allows them."""
    return os.geteuid() == 0 and shutil.which("ip") is not None


def _ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True, capture_output=True)


def _call(name: str, *arguments: object) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments):
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")
