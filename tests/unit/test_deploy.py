"""What is shipped in the image, Compose and Kubernetes files keeps the promises made about it."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
USER = 65532
DRAIN_BUDGET_S = 10

Object = dict[str, Any]
Stage = list[tuple[str, str]]


@pytest.fixture(scope="module")
def rendered() -> list[Object]:
    """Everything `kubectl apply -k deploy/kubernetes` would send."""
    if shutil.which("kubectl"):
        command = ["kubectl", "kustomize", str(KUBERNETES)]
    elif shutil.which("kustomize"):
        command = ["kustomize", "build", str(KUBERNETES)]
    else:
        pytest.skip("neither kubectl nor kustomize is installed: manifests cannot be rendered")
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="module")
def compose() -> Object:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


@pytest.fixture(scope="module")
def stages() -> list[Stage]:
    """The Dockerfile's stages, each a list of (instruction, arguments)."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    instructions = [(word, rest.strip()) for word, _, rest in (x.partition(" ") for x in lines if x)]
    starts = [i for i, (word, _) in enumerate(instructions) if word == "FROM"]
    ends = [*starts[1:], len(instructions)]
    return [instructions[start:end] for start, end in zip(starts, ends, strict=True)]


def of_kind(rendered: list[Object], kind: str) -> list[Object]:
    return [each for each in rendered if each["kind"] == kind]


def the(rendered: list[Object], kind: str) -> Object:
    (only,) = of_kind(rendered, kind)
    return only


def pods(rendered: list[Object]) -> list[Object]:
    """The pod specifications of everything that runs."""
    found = [each["spec"]["template"]["spec"] for each in rendered if "template" in each.get("spec", {})]
    assert len(found) == 2, "the StatefulSet and the topics Job"
    return found


def files_named_in(config: Any) -> list[str]:
    """The values of every `…_file` setting."""
    if isinstance(config, list):
        return [file for each in config for file in files_named_in(each)]
    if not isinstance(config, dict):
        return []
    own = [value for key, value in config.items() if key.endswith("_file")]
    return own + files_named_in(list(config.values()))


# --- Kubernetes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [*sorted((ROOT / "deploy").rglob("*.yaml")), ROOT / "docker-compose.yml"],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_every_yaml_file_parses(path):
    assert all(isinstance(each, dict) for each in yaml.safe_load_all(path.read_text()))


def test_every_manifest_is_rendered(rendered):
    """A file that no kustomization names would be forgotten in silence."""
    written = {
        (each["kind"], each["metadata"]["name"])
        for path in KUBERNETES.rglob("*.yaml")
        for each in yaml.safe_load_all(path.read_text())
        if each.get("kind") not in {None, "Kustomization", "Component"}
    }
    assert written <= {(each["kind"], each["metadata"]["name"]) for each in rendered}


def test_pods_keep_the_restricted_profile(rendered):
    for pod in pods(rendered):
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] == security["runAsGroup"] == USER
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC", "initContainers"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
        assert all(volume.keys() & {"configMap", "secret"} for volume in pod["volumes"])


def test_the_namespace_enforces_the_restricted_profile(rendered):
    namespace = the(rendered, "Namespace")["metadata"]
    assert namespace["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    inside = [each for each in rendered if each["kind"] != "Namespace"]
    assert {each["metadata"]["namespace"] for each in inside} == {namespace["name"]}


def test_pods_hold_no_token_and_no_rights(rendered):
    assert all(pod["automountServiceAccountToken"] is False for pod in pods(rendered))
    assert not [each["kind"] for each in rendered if "Role" in each["kind"]]


def test_service_links_cannot_pose_as_settings(rendered):
    """A Service named connector would set CONNECTOR_PORT in every pod beside it."""
    assert all(pod["enableServiceLinks"] is False for pod in pods(rendered))


def test_probes_ask_the_ops_port(rendered):
    (container,) = the(rendered, "StatefulSet")["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for probe, path in {"startup": "/livez", "liveness": "/livez", "readiness": "/readyz"}.items():
        asked = container[f"{probe}Probe"]["httpGet"]
        assert (asked["path"], ports[asked["port"]]) == (path, 8080)


def test_the_ops_port_is_the_configured_one_everywhere(rendered):
    config = yaml.safe_load(the(rendered, "ConfigMap")["data"]["connector.yaml"])
    assert config["ops"] == {"host": "0.0.0.0", "port": 8080}
    template = the(rendered, "StatefulSet")["spec"]["template"]
    assert template["metadata"]["annotations"]["prometheus.io/port"] == "8080"
    (rule,) = the(rendered, "NetworkPolicy")["spec"]["ingress"]
    assert [port["port"] for port in rule["ports"]] == [8080]


def test_the_replica_is_named_after_its_pod(rendered):
    """Two replicas of one name would fence each other for ever."""
    stateful = the(rendered, "StatefulSet")["spec"]
    (container,) = stateful["template"]["spec"]["containers"]
    names = [each["valueFrom"] for each in container["env"] if each["name"] == "CONNECTOR_REPLICA"]
    assert names == [{"fieldRef": {"fieldPath": "metadata.name"}}]
    assert "replica" not in yaml.safe_load(the(rendered, "ConfigMap")["data"]["connector.yaml"])


def test_a_pod_has_time_to_drain(rendered):
    pod = the(rendered, "StatefulSet")["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > DRAIN_BUDGET_S


def test_selectors_choose_the_connector_and_not_the_job(rendered):
    stateful = the(rendered, "StatefulSet")
    own = stateful["spec"]["template"]["metadata"]["labels"].items()
    job = the(rendered, "Job")["spec"]["template"]["metadata"]["labels"].items()
    selectors = [
        stateful["spec"]["selector"]["matchLabels"],
        the(rendered, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        the(rendered, "Service")["spec"]["selector"],
    ]
    for selector in selectors:
        assert selector.items() <= own
        assert not selector.items() <= job
    assert stateful["spec"]["serviceName"] == the(rendered, "Service")["metadata"]["name"]


def test_secrets_are_referred_to_and_never_shipped(rendered):
    assert of_kind(rendered, "Secret") == []
    for pod in pods(rendered):
        secrets = [volume["secret"] for volume in pod["volumes"] if "secret" in volume]
        assert [(each["secretName"], each["optional"]) for each in secrets] == [("connector-secrets", False)]
    config = the(rendered, "ConfigMap")["data"]["connector.yaml"]
    assert not re.search(r"\b(password|token|secret)\s*:", config)


def test_every_mount_has_a_volume_and_every_config_map_exists(rendered):
    shipped = {each["metadata"]["name"] for each in of_kind(rendered, "ConfigMap")}
    for pod in pods(rendered):
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounted = {mount["name"] for each in pod["containers"] for mount in each["volumeMounts"]}
        assert mounted == volumes.keys()
        assert {each["configMap"]["name"] for each in volumes.values() if "configMap" in each} <= shipped


def test_the_configuration_and_its_secret_files_are_where_the_command_looks(rendered):
    data = the(rendered, "ConfigMap")["data"]
    for pod in pods(rendered):
        sources = {volume["name"]: volume for volume in pod["volumes"]}
        (container,) = pod["containers"]
        mounts = {mount["mountPath"]: sources[mount["name"]] for mount in container["volumeMounts"]}
        path = PurePosixPath(container["args"][container["args"].index("--config") + 1])
        assert "configMap" in mounts[str(path.parent)]
        secret_files = files_named_in(yaml.safe_load(data[path.name]))
        assert secret_files
        assert all("secret" in mounts[str(PurePosixPath(each).parent)] for each in secret_files)


# --- Compose ------------------------------------------------------------------------------------


def test_compose_starts_things_in_order(compose):
    services = compose["services"]
    assert services.keys() == {"kafka", "upstream", "topics", "connector"}
    assert services["topics"]["depends_on"] == {"kafka": {"condition": "service_healthy"}}
    assert services["connector"]["depends_on"] == {
        "kafka": {"condition": "service_healthy"},
        "topics": {"condition": "service_completed_successfully"},
        "upstream": {"condition": "service_started"},
    }
    assert services["kafka"]["healthcheck"]["test"]


def test_compose_mounts_the_configuration_where_the_command_looks(compose):
    for name, arguments in {
        "topics": compose["services"]["topics"]["command"],
        "connector": ["run", "--config", "/etc/connector/connector.yaml"],  # the image's own
    }.items():
        (mount,) = compose["services"][name]["volumes"]
        source, target, mode = mount.split(":")
        assert (ROOT / source).is_file()
        assert (target, mode) == (arguments[arguments.index("--config") + 1], "ro")


def test_compose_gives_the_connector_time_to_drain(compose):
    patience = compose["services"]["connector"]["stop_grace_period"]
    assert int(patience.removesuffix("s")) > DRAIN_BUDGET_S


def test_the_compose_configuration_names_the_services(compose):
    config = yaml.safe_load((ROOT / "deploy" / "connector.yaml").read_text())
    bootstrap = config["kafka"]["bootstrap_servers"]
    advertised = compose["services"]["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert f"INTERNAL://{bootstrap}" in advertised.split(",")

    command = compose["services"]["upstream"]["command"]
    sample = dict(zip(command[::2], command[1::2], strict=True))
    stream = config["streams"]["tech"]
    assert stream["url"].startswith(f"http://upstream:{sample['--port']}/")
    assert stream["auth"]["username"] == sample["--user"]
    assert stream["auth"]["password"] == sample["--password"]


# --- Image --------------------------------------------------------------------------------------


def test_the_image_runs_the_connector_as_a_numeric_user_that_is_not_root(stages):
    final = dict(stages[-1])
    assert final["USER"] == f"{USER}:{USER}"
    assert final["ENTRYPOINT"] == '["connector"]'
    assert final["CMD"] == '["run", "--config", "/etc/connector/connector.yaml"]'
    assert (final["EXPOSE"], final["STOPSIGNAL"]) == ("8080", "SIGTERM")


def test_the_final_stage_only_copies_what_earlier_stages_built(stages):
    """So no compiler, no build tool and no cache can get into it."""
    assert "RUN" not in [word for word, _ in stages[-1]]
    assert [rest for word, rest in stages[-1] if word == "COPY"] == [
        "--from=venv /opt/connector/ /opt/connector/"
    ]


def test_everything_installed_is_locked(stages):
    """Third-party packages come with hashes; our own wheel comes without looking anything up."""
    commands = [rest for stage in stages for word, rest in stage if word == "RUN" and "pip" in rest]
    assert commands
    for command in commands:
        assert "&&" not in command, "one pip command a line, or this test reads it wrongly"
        if re.search(r"\bpip\b.* wheel ", command):
            assert "--no-deps --no-build-isolation" in command
        elif " install " in command:
            locked = re.search(r"--require-hashes -r \S*(requirements/\w+\.txt)$", command)
            ours = command.endswith("--no-index --no-deps /tmp/dist/*.whl")
            assert ours or (locked and (ROOT / locked[1]).is_file()), command
        else:
            assert command.startswith("python -m venv --without-pip "), command


def test_the_build_context_holds_what_the_wheel_is_made_of(stages):
    copied = {
        source.rstrip("/")
        for stage in stages
        for word, rest in stage
        if word == "COPY" and "--from" not in rest
        for source in rest.split()[:-1]
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    assert needed | {*wheel["packages"], *wheel["force-include"]} <= copied

    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    let_through = [line.removeprefix("!") for line in ignore if line.startswith("!")]
    assert "*" in ignore
    for source in copied:
        assert (ROOT / source).exists()
        assert any(PurePosixPath(source).match(pattern) for pattern in let_through), source
