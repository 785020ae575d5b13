"""Checks of the files in docker/ and of the commands in docs/cluster.md that need no container engine."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import ROOT
from tune_sparsity.tuner.cli import main
from tune_sparsity.tuner.commands.search import search_parser

DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
CLAIM, JOB = yaml.safe_load_all((DOCKER / "rayjob.yaml").read_text(encoding="utf-8"))
GUIDE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
TEXTS = [
    GUIDE,
    *((DOCKER / name).read_text(encoding="utf-8") for name in ("Dockerfile", "compose.yaml", "rayjob.yaml")),
]


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions with their arguments. Lines that end with a backslash are joined with the
    next."""
    lines = [line for line in DOCKERFILE.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]  # type: ignore[misc]


def arguments_of(name: str) -> list[str]:
    return [rest for instruction, rest in instructions() if instruction == name]


def copied() -> list[str]:
    """Return the paths that the Dockerfile copies from the repository. Files from another stage are not included."""
    ours = [rest for rest in arguments_of("COPY") if not rest.startswith("--from=")]
    return [source for rest in ours for source in rest.split()[:-1]]


# The Dockerfile


def test_everything_that_the_image_copies_is_there() -> None:
    assert set(copied()) >= {"pyproject.toml", "constraints.txt"}
    for source in copied():
        assert (ROOT / source).exists(), source
        assert (ROOT / source).is_dir() == source.endswith("/"), source


def test_the_image_has_all_of_our_packages_and_what_their_build_reads() -> None:
    assert PROJECT["tool"]["setuptools"]["packages"]["find"]["where"] == ["src"]
    links = {link.name for link in (ROOT / "src" / "tune_sparsity").iterdir() if link.is_symlink()}
    assert {source.rstrip("/") for source in copied() if source.endswith("/")} == {"src", *links}
    assert {PROJECT["project"]["readme"], *PROJECT["project"]["license-files"], "setup.py"} <= set(copied())


def test_a_file_copied_from_another_stage_is_made_in_that_stage() -> None:
    stages = {rest.split()[2] for rest in arguments_of("FROM") if " AS " in rest}
    for rest in arguments_of("COPY"):
        if rest.startswith("--from="):
            stage, made = rest.removeprefix("--from=").split()[:2]
            assert stage in stages
            assert any(made.rstrip("/") in command for command in arguments_of("RUN"))


def test_the_builder_gets_only_the_files_that_the_image_copies() -> None:
    kept = (DOCKER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in kept if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert "**/*.so" in rules  # what was compiled for this machine's Python
    assert {rule[1:] for rule in rules if rule.startswith("!")} == {source.rstrip("/") for source in copied()}


def test_cpu_or_cuda_is_chosen_by_a_build_argument() -> None:
    assert "DEVICE=cpu" in arguments_of("ARG")
    stages = [rest.split() for rest in arguments_of("FROM")]
    assert {stage[2] for stage in stages if len(stage) == 3} == {"cpu", "cuda", "wheel"}
    assert stages[-1] == ["${DEVICE}"]


def test_the_container_does_not_run_as_root() -> None:
    last = instructions().index(("USER", arguments_of("USER")[-1]))
    assert arguments_of("USER")[-1].isdecimal()
    assert int(arguments_of("USER")[-1]) > 0
    assert not [rest for name, rest in instructions()[last:] if name == "RUN"]
    assert f"--uid {arguments_of('USER')[-1]} " in DOCKERFILE


def test_the_image_installs_tested_versions_and_only_existing_extras() -> None:
    installs = [command for rest in arguments_of("RUN") for command in rest.split("&&") if "pip install" in command]
    assert len(installs) == 2
    assert all("--constraint constraints.txt" in command for command in installs)
    (extras,) = re.findall(r"\.whl\)\[([\w,]+)\]", DOCKERFILE)
    assert set(extras.split(",")) <= set(PROJECT["project"]["optional-dependencies"])
    (python,) = {rest.split()[0] for rest in arguments_of("FROM")} - {"${DEVICE}"}
    assert re.fullmatch(r"python:3\.1\d-slim", python)


def test_the_dockerfile_follows_simple_rules_of_a_clean_image() -> None:
    known = {"FROM", "ARG", "ENV", "RUN", "COPY", "WORKDIR", "USER", "EXPOSE", "CMD"}
    assert {name for name, _ in instructions()} <= known
    for rest in arguments_of("WORKDIR"):
        assert rest.startswith("/")
    for rest in arguments_of("RUN"):
        if "apt-get install" in rest:
            assert "apt-get update" in rest
            assert "--no-install-recommends" in rest
            assert "rm -rf /var/lib/apt/lists/*" in rest
        assert "sudo" not in rest
    assert not re.search(r"(?i)(password|token|secret)=[^\s$]*\d", DOCKERFILE)


def test_hadolint_finds_nothing() -> None:
    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    if (hadolint := shutil.which("hadolint", path=beside)) is None:
        pytest.skip("no hadolint: make install")
    done = subprocess.run([hadolint, str(DOCKER / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


# compose.yaml

SERVICE = {
    "image", "build", "command", "environment", "secrets", "volumes", "ports", "depends_on", "healthcheck", "init",
    "restart", "shm_size",
}  # fmt: skip


def test_compose_defines_every_secret_and_volume_that_a_service_uses() -> None:
    services: dict[str, dict[str, Any]] = COMPOSE["services"]
    assert {"head", "worker", "mlflow", "db"} == set(services)
    for name, service in services.items():
        assert set(service) <= SERVICE, name
        for needed, how in service.get("depends_on", {}).items():
            assert how["condition"] != "service_healthy" or "healthcheck" in services[needed]
        assert set(service.get("secrets", ())) <= set(COMPOSE["secrets"])
        assert {volume.partition(":")[0] for volume in service.get("volumes", ())} <= set(COMPOSE["volumes"])
        read = set(re.findall(r"/run/secrets/(\w+)", yaml.safe_dump(service)))
        assert read <= set(service.get("secrets", ()))


def test_compose_builds_the_dockerfile() -> None:
    build = COMPOSE["services"]["head"]["build"]
    assert (DOCKER / build["context"] / build["dockerfile"]).resolve() == DOCKER / "Dockerfile"
    assert set(build["args"]) <= {argument.partition("=")[0] for argument in arguments_of("ARG")}
    images = {service["image"] for name, service in COMPOSE["services"].items() if name != "db"}
    assert images == {COMPOSE["services"]["head"]["image"]}


def test_compose_opens_no_port_to_other_machines_and_holds_no_secret() -> None:
    for service in COMPOSE["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    environments = [service.get("environment", {}) for service in COMPOSE["services"].values()]
    for name, value in ((name, value) for environment in environments for name, value in environment.items()):
        assert not re.search("PASSWORD|TOKEN", name) or value.startswith("/run/secrets/")
    nodes = [COMPOSE["services"][name]["environment"] for name in ("head", "worker")]
    assert all(node["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN_PATH" in node for node in nodes)
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert "docker/secrets/" in ignored


def test_all_nodes_share_the_storage_that_the_commands_name() -> None:
    for name in ("head", "worker"):
        assert "studies:/studies" in COMPOSE["services"][name]["volumes"]
    assert "/studies" in "".join(arguments_of("RUN"))  # a new volume has the owner that the folder has in the image


# rayjob.yaml


def pods() -> list[dict[str, Any]]:
    cluster = JOB["spec"]["rayClusterSpec"]
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def test_the_kuberay_job_has_the_tested_ray_version_and_token_authentication() -> None:
    assert (JOB["apiVersion"], JOB["kind"]) == ("ray.io/v1", "RayJob")
    cluster = JOB["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == version("ray")
    assert f"ray=={cluster['rayVersion']}" in (ROOT / "constraints.txt").read_text()
    assert cluster["authOptions"] == {"mode": "token"}
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", group["groupName"])


def test_every_pod_mounts_the_volume_claim_and_runs_the_image_as_non_root() -> None:
    assert len(pods()) >= 2
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert str(pod["securityContext"]["runAsUser"]) == arguments_of("USER")[-1]
        (volume,) = pod["volumes"]
        assert volume["persistentVolumeClaim"]["claimName"] == CLAIM["metadata"]["name"]
        (container,) = pod["containers"]
        assert container["image"] == COMPOSE["services"]["head"]["image"]
        (mount,) = container["volumeMounts"]
        assert mount["name"] == volume["name"]
        assert f"--storage {mount['mountPath']}" in JOB["spec"]["entrypoint"]
    assert CLAIM["spec"]["accessModes"] == ["ReadWriteMany"]


# Commands


def commands(program: str) -> list[list[str]]:
    """Return the arguments of each call of `program` in docker/ and docs/cluster.md. A call may have several lines."""
    texts = [re.sub(r"\\\n", " ", text) for text in TEXTS]
    written = [JOB["spec"]["entrypoint"], COMPOSE["services"]["mlflow"]["command"][-1]]
    lines = [line for text in texts for line in text.splitlines()] + written
    found = []
    for line in lines:
        for match in re.finditer(rf"(?:^|exec (?:head )?|[-#$&|`]\s+|`)({program} [^`#&|]*)", line):
            found.append(shlex.split(match[1].rstrip(" .,:;"))[1:])
    return found


def test_every_tune_sparsity_command_would_be_understood(capsys: pytest.CaptureFixture[str]) -> None:
    shown = [command for command in commands("tune-sparsity") if command]
    assert len(shown) >= 6
    assert any(command[0] == "doctor" for command in shown)
    for arguments in shown:
        if arguments[0].startswith("-"):
            search_parser().parse_args(arguments)
            continue
        with pytest.raises(SystemExit) as ended:
            main([arguments[0], "--help"])
        assert ended.value.code == 0
        options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
        assert {word for word in arguments if word.startswith("--")} <= options


def options_of(command: Any) -> set[str]:
    return {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}


def test_every_option_given_to_ray_or_mlflow_exists() -> None:
    from mlflow.cli import cli as mlflow
    from ray.scripts.scripts import cli as ray

    listed = [COMPOSE["services"][name]["command"][1:] for name in ("head", "worker")]
    listed.append(COMPOSE["services"]["head"]["healthcheck"]["test"][2:])
    used = {("ray", command[0], option) for command in [*listed, *commands("ray")] for option in command[1:]}
    used |= {("mlflow", command[0], option) for command in commands("mlflow") for option in command[1:]}
    assert {"start", "health-check"} <= {command for _, command, _ in used}
    assert "server" in {command for program, command, _ in used if program == "mlflow"}
    for program, command, option in used:
        if option.startswith("-") and command != "job":
            known = options_of({"ray": ray, "mlflow": mlflow}[program].commands[command])
            assert option.partition("=")[0] in known, f"{program} {command} {option}"
        elif command == "job":
            pytest.importorskip("ray.dashboard.modules.job.cli")


def test_the_guide_names_files_that_are_there() -> None:
    for path in re.findall(r"docker/[\w.]+", "\n".join(TEXTS)):
        assert path == "docker/secrets" or (ROOT / path).exists(), path
    for link in re.findall(r"\]\(([^)#]+)\)", GUIDE):
        assert "://" in link or (ROOT / "docs" / link).exists(), link
