"""Operations of bronze itself: streams and runs that begin, die, stop, and come back too late."""

from __future__ import annotations

import signal

from bronze import failpoint
from tests.soak.checker.world import World


def begin(world: World, table: str) -> str:
    """A stream begins, if there is none."""
    if world.stream and world.stream.running:
        return "there is one"
    world.start()
    world.pause(world.dice.uniform(0, 3))
    return ""


def kill(world: World, table: str) -> str:
    """The stream is killed at any moment, and is started again or not."""
    if not world.stream or not world.stream.running:
        return "there is none"
    world.pause(world.dice.uniform(0, 0.5))
    world.say("-- the stream is killed")
    world.stream.kill()
    if world.dice.random() < 0.7:
        world.start()
    return ""


def stop(world: World, table: str) -> str:
    """The stream is stopped, and is started again or not."""
    if not world.stream or not world.stream.running:
        return "there is none"
    world.say("-- the stream is stopped")
    world.stream.terminate()
    if world.dice.random() < 0.7:
        world.start()
    return ""


def die(world: World, table: str) -> str:
    """A stream, run or maintenance is to die at a failpoint; another one takes its place."""
    point = world.dice.choice([p for p in failpoint.POINTS if p not in ("expiring", "expired")])
    at = f"{point}:{world.dice.choice([1, 1, 2, 3])}"
    what = world.dice.choice(["stream", "stream", "run", "maintain"])
    if what != "stream":
        world.running.append(world.begin(what, failpoint=at))
        world.pause(world.dice.uniform(0, 2))
        return ""
    if world.stream and world.stream.running:
        world.say("-- the stream is killed")
        world.stream.kill()
    world.stream = world.begin("stream", failpoint=at)
    world.pause(world.dice.uniform(0, 2))
    return ""


def run(world: World, table: str) -> str:
    """A run begins, beside others that may be there."""
    world.running.append(world.begin("run"))
    world.pause(world.dice.uniform(0, 1))
    return ""


def run_killed(world: World, table: str) -> str:
    """A run begins, and is killed some time later."""
    process = world.begin("run")
    world.pause(world.dice.uniform(0.1, 2))
    world.say("-- the run is killed")
    process.kill()
    return ""


def maintain(world: World, table: str) -> str:
    """Maintenance begins, beside all others."""
    world.running.append(world.begin("maintain"))
    return ""


def second(world: World, table: str) -> str:
    """A second stream begins while the first one is there: it is refused, or takes over."""
    if not world.stream or not world.stream.running:
        return "there is none"
    world.running.append(world.begin("stream", "--until-caught-up"))
    world.pause(world.dice.uniform(0, 1))
    return ""


def zombie(world: World, table: str) -> str:
    """The stream is frozen, its sessions are ended, another one begins; then it wakes."""
    first = world.stream
    if not first or not first.running:
        return "there is none"
    world.pause(world.dice.uniform(0, 1))
    world.say("-- the stream is frozen, and its sessions are ended")
    first.signal(signal.SIGSTOP)
    world.ask(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name LIKE 'bronze stream%' AND datname = current_database()"
    )
    world.stream = world.begin("stream")
    world.pause(world.dice.uniform(0.5, 3))
    world.say("-- the first stream wakes")
    first.ended = "frozen"
    first.signal(signal.SIGCONT)
    world.pause(world.dice.uniform(0, 1))
    # One of them has the slot; nobody can say which one.
    world.running.append(first)
    return ""


def frozen_run(world: World, table: str) -> str:
    """A run is frozen while another one goes on, and wakes afterwards."""
    process = world.begin("run")
    world.pause(world.dice.uniform(0.2, 1.5))
    world.say("-- the run is frozen")
    process.signal(signal.SIGSTOP)
    other = world.begin("run")
    other.popen.wait(60)
    world.say("-- the run wakes")
    process.signal(signal.SIGCONT)
    process.ended = "frozen"
    world.running.append(process)
    return ""


def wait(world: World, table: str) -> str:
    """Nothing happens for a moment."""
    world.pause(world.dice.uniform(0, 1.5))
    return ""
