"""The project's checks. ``nox -s tests`` is the one to begin with."""

import nox

nox.options.sessions = ["tests", "lint", "types", "imports"]
nox.options.reuse_existing_virtualenvs = True

# Without kept bytecode each worker, and each process that a test starts, compiles all anew.
KEPT = {"PYTHONDONTWRITEBYTECODE": None}


@nox.session
def tests(session):
    """The tests: real PostgreSQL, real Delta tables, about two minutes on two cores."""
    session.install("-e", ".[test]")
    session.run(
        "pytest",
        "-n",
        # Tests wait for servers and processes: three keep two cores busy.
        "3",
        "--dist",
        "worksteal",
        "-m",
        "not interop and not soak",
        *session.posargs,
        env=KEPT,
    )


@nox.session
def lint(session):
    """Style and formatting."""
    session.install("ruff>=0.17")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session):
    """Static types."""
    session.install("-e", ".[types]")
    session.run("mypy")


@nox.session
def imports(session):
    """The direction of imports."""
    session.install("-e", ".", "import-linter>=2.3")
    session.run("lint-imports")


@nox.session
def interop(session):
    """The tables read back by independent engines."""
    session.install("-e", ".[interop]")
    session.run("pytest", "-m", "interop", *session.posargs)


@nox.session
def soak(session):
    """Kills, memory, long runs."""
    session.install("-e", ".[test]")
    session.run("pytest", "-m", "soak", "--timeout", "1800", *session.posargs, env=KEPT)


BENCHMARKS = (
    "load",
    "memory",
    "merge",
    "layout",
    "stream",
    "verify",
    "quality",
    "anomaly",
    "forget",
)


@nox.session
def bench(session):
    """A measurement: load, or another one by name, such as ``nox -s bench -- stream catchup``."""
    named = session.posargs[:1] and session.posargs[0] in BENCHMARKS
    name, *given = session.posargs if named else ("load", *session.posargs)
    session.install("-e", ".[bench]")
    session.run("python", "-m", f"benchmarks.{name}", *given)
