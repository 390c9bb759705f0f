"""Machines as network namespaces, and the network between them: ``python -m
benchmarks.scale.network DELAY NAME=ADDRESS…`` routes between namespaces of these names.

Each namespace has one TUN device, and this process passes each packet on after ``DELAY`` seconds,
so that a round trip takes twice as long. TCP runs end to end, with its windows and timers: unlike
a relay, it does not acknowledge what has not arrived. Lines on standard input change the network:
``delay SECONDS``, ``cut NAME`` (packets from and to it are lost without a word), ``join NAME``.

Linux, as root. Kernels with netem could do the same by ``tc``; this needs only TUN.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MTU = 65520
DEVICE = "bench0"
_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 1, 0x1000
_QUEUE = "20000"


@dataclass
class Network:
    """A network that runs; its router is a process."""

    router: subprocess.Popen[bytes]

    def tell(self, line: str) -> None:
        """Changes the network, see the module."""
        assert self.router.stdin
        self.router.stdin.write(f"{line}\n".encode())
        self.router.stdin.flush()


def inside(name: str) -> list[str]:
    """What precedes a command to run it in a namespace."""
    return ["ip", "netns", "exec", name]


@contextmanager
def network(addresses: Mapping[str, str], delay: float) -> Iterator[Network]:
    """Namespaces with these addresses, all in one network, and its router."""
    made = []
    try:
        for name in addresses:
            subprocess.run(["ip", "netns", "add", name], check=True)
            made.append(name)
        pairs = [f"{name}={address}" for name, address in addresses.items()]
        command = [sys.executable, "-m", "benchmarks.scale.network", str(delay), *pairs]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as router:
            assert router.stdout
            assert router.stdout.readline() == b"ready\n", "the router did not start"
            try:
                yield Network(router)
            finally:
                router.kill()
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "delete", name], check=False)


def _open_device(name: str) -> int:
    """Makes the TUN device of a namespace, from inside of it; it lives as long as its file."""
    with Path("/var/run/netns", name).open("rb") as there:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(there.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter the namespace {name}")
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH", DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
    return device


def _set_up(name: str, address: str) -> None:
    for words in (
        ["addr", "add", f"{address}/24", "dev", DEVICE],
        ["link", "set", DEVICE, "mtu", str(MTU), "txqueuelen", _QUEUE, "up"],
        ["link", "set", "lo", "up"],
    ):
        subprocess.run(["ip", "-n", name, *words], check=True)


def route(delay: float, addresses: Sequence[tuple[str, str]]) -> None:
    """Passes packets on, until standard input ends."""
    devices = {}
    for name, address in addresses:
        device = _open_device(name)
        _set_up(name, address)
        devices[socket.inet_aton(address)] = device
    numbers = {name: socket.inet_aton(address) for name, address in addresses}
    cut: set[bytes] = set()
    poll = select.epoll()
    for device in devices.values():
        poll.register(device, select.EPOLLIN)
    poll.register(0, select.EPOLLIN)
    print("ready", flush=True)
    queue: list[tuple[float, int, int, bytes]] = []
    count = 0
    while True:
        wait = max(0.0, queue[0][0] - time.monotonic()) if queue else -1
        for ready, _ in poll.poll(wait):
            if ready == 0:
                line = sys.stdin.readline()
                if not line:
                    return
                word, value = line.split()
                if word == "delay":
                    delay = float(value)
                elif word == "cut":
                    cut.add(numbers[value])
                else:
                    cut.discard(numbers[value])
                continue
            due = time.monotonic() + delay
            # A few at a time, so that none of the devices waits for long.
            for _ in range(64):
                try:
                    packet = os.read(ready, MTU)
                except OSError:
                    break
                target = devices.get(packet[16:20])
                if target is not None and not cut & {packet[12:16], packet[16:20]}:
                    count += 1
                    heapq.heappush(queue, (due, count, target, packet))
        now = time.monotonic()
        while queue and queue[0][0] <= now:
            _, _, target, packet = heapq.heappop(queue)
            try:
                os.write(target, packet)
            except OSError:
                # The queue of the device is full: a packet is lost, and sent again by TCP.
                continue


if __name__ == "__main__":
    given = [tuple(pair.split("=", 1)) for pair in sys.argv[2:]]
    route(float(sys.argv[1]), [(name, address) for name, address in given])
