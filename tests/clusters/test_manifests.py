"""The manifests against the schemas and checkers of those who read them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from compose_spec import PyCompose
from ray.autoscaler._private.util import prepare_config, validate_config

from darec_search.config import StudyConfig

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
KUBERNETES = "1.33"
SECRET = re.compile(r"password|secret|token|key", re.IGNORECASE)

# The fields of `ray.io/v1` RayJob that KubeRay 1.5 and newer know.
RAY_JOB = {
    "activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy", "entrypoint", "entrypointNumCpus",
    "entrypointNumGpus", "entrypointResources", "jobId", "managedBy", "metadata", "rayClusterSpec", "runtimeEnvYAML",
    "shutdownAfterJobFinishes", "submissionMode", "submitterConfig", "submitterPodTemplate", "suspend",
    "ttlSecondsAfterFinished",
}  # fmt: skip
RAY_CLUSTER = {
    "authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headGroupSpec",
    "headServiceAnnotations", "managedBy", "rayVersion", "suspend", "workerGroupSpecs",
}  # fmt: skip
HEAD_GROUP = {"enableIngress", "headService", "labels", "rayStartParams", "resources", "serviceType", "template"}
WORKER_GROUP = {
    "groupName", "idleTimeoutSeconds", "labels", "maxReplicas", "minReplicas", "numOfHosts", "rayStartParams",
    "replicas", "resources", "scaleStrategy", "suspend", "template",
}  # fmt: skip


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((ROOT / name).read_text()))


def pinned(package: str) -> str:
    return re.search(rf"^{package}==(\S+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)[1]


# ---- ray up


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_ray_up_files_are_valid_and_bind_the_dashboard_to_localhost(cloud):
    (written,) = documents(f"clusters/{cloud}.yaml")
    config = prepare_config(written)
    validate_config(config)
    assert config["head_node_type"] == "head"
    gpu = config["available_node_types"]["gpu"]["node_config"]
    assert "SPOT" in json.dumps(gpu).upper()
    assert "SPOT" not in json.dumps(config["available_node_types"]["head"]).upper()
    head = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in head
    assert "0.0.0.0" not in json.dumps(config)
    options = " ".join(config["docker"]["run_options"])
    assert "RAY_AUTH_MODE=token" in options
    token = re.search(r"RAY_AUTH_TOKEN_PATH=(\S+)", options)[1]
    assert token in config["file_mounts"]


# ---- KubeRay


def pods() -> list[tuple[str, dict[str, Any]]]:
    """Every pod template of the folder, with a name to tell it by."""
    (job,) = documents("clusters/kuberay/rayjob.yaml")
    cluster = job["spec"]["rayClusterSpec"]
    deployment, _ = documents("clusters/kuberay/mlflow.yaml")
    return [
        ("submitter", job["spec"]["submitterPodTemplate"]),
        ("head", cluster["headGroupSpec"]["template"]),
        *((group["groupName"], group["template"]) for group in cluster["workerGroupSpecs"]),
        ("mlflow", deployment["spec"]["template"]),
    ]


@pytest.mark.parametrize("name", ["storage", "mlflow", "study"])
def test_kubernetes_objects_fit_the_api(name):
    for document in documents(f"clusters/kuberay/{name}.yaml"):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize(("name", "template"), pods())
def test_pods_fit_the_api_and_have_no_rights_to_spare(name, template):
    pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": name}, "template": template}
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    spec = template["spec"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["automountServiceAccountToken"] is False
    mounted = {volume["name"] for volume in spec.get("volumes", [])}
    for container in spec["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert "memory" in container["resources"]["limits"]
        if name != "submitter":
            assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys()
        assert {mount["name"] for mount in container.get("volumeMounts", [])} <= mounted
        assert not [entry for entry in container.get("env", []) if SECRET.search(entry["name"]) and "value" in entry]


def test_the_ray_job_has_only_fields_that_kuberay_knows():
    (job,) = documents("clusters/kuberay/rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    assert job["spec"].keys() <= RAY_JOB
    assert cluster.keys() <= RAY_CLUSTER
    assert cluster["headGroupSpec"].keys() <= HEAD_GROUP
    assert all(group.keys() <= WORKER_GROUP for group in cluster["workerGroupSpecs"])
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert all(isinstance(value, str) for group in groups for value in group["rayStartParams"].values())
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == "60"
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["rayVersion"] == pinned("ray")


def test_the_study_of_the_ray_job_fits_its_cluster_and_its_mounts():
    (config_map,) = documents("clusters/kuberay/study.yaml")
    study = StudyConfig.model_validate(yaml.safe_load(config_map["data"]["study.yaml"]))
    (job,) = documents("clusters/kuberay/rayjob.yaml")
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    room = container["resources"]["requests"]
    assert study.resources.lanes * study.resources.gpus_per_lane <= group["replicas"] * int(room["nvidia.com/gpu"])
    assert study.resources.cpus_per_lane <= int(room["cpu"])
    assert study.promotion.num_workers <= group["replicas"]
    paths = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert "/studies" in paths
    assert all(path.startswith("/studies/") for path in (str(study.folder), study.cache, study.data.path))
    assert "/config/study.yaml" in job["spec"]["entrypoint"]


# ---- compose and the image


def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker/compose.yaml").read_text())


def filled_in(text: str) -> str:
    """Variables as compose would fill them in."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
    return re.sub(r"\$\{(\w+):\?[^}]*\}", r"value-of-\1", text)


@pytest.mark.parametrize("name", ["compose.yaml", "compose.cuda.yaml"])
def test_compose_files_follow_the_specification(name):
    merged = yaml.safe_load(filled_in((ROOT / "docker" / name).read_text()))
    assert PyCompose.from_yaml(yaml.safe_dump(merged)).service_names()


def test_ports_are_published_on_this_machine_alone():
    published = [port for service in compose()["services"].values() for port in service.get("ports", [])]
    assert sorted(published) == ["127.0.0.1:5000:5000", "127.0.0.1:8265:8265"]


def test_every_secret_of_compose_comes_from_the_environment():
    example = (ROOT / "docker/.env.example").read_text()
    text = (ROOT / "docker/compose.yaml").read_text()
    demanded = set(re.findall(r"\$\{(\w+):\?", text))
    empty = set(re.findall(r"^(\w+)=$", example, re.MULTILINE))
    assert demanded == empty == {"POSTGRES_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY", "RAY_AUTH_TOKEN"}
    for name, service in compose()["services"].items():
        for variable, value in (service.get("environment") or {}).items():
            if re.search(r"PASSWORD|_KEY|_TOKEN$", variable):
                assert value.startswith("${"), (name, variable)
    assert "docker/.env" in (ROOT / ".gitignore").read_text().splitlines()


def test_services_wait_for_those_that_they_need():
    services = compose()["services"]
    for name, service in services.items():
        for needed, how in service.get("depends_on", {}).items():
            healthy = how["condition"] == "service_healthy"
            assert healthy or how["condition"] == "service_completed_successfully", (name, needed)
            # the image of our own has a health check of its own
            assert not healthy or "healthcheck" in services[needed] or "build" in services[needed]
    assert set(services["mlflow"]["depends_on"]) == {"postgres", "bucket"}
    assert set(services["worker"]["depends_on"]) == {"head"}


def test_the_image_is_pinned_small_and_nobodys_root():
    lines = (ROOT / "docker/Dockerfile").read_text().splitlines()
    stages = [line.split()[1] for line in lines if line.startswith("FROM")]
    assert len(stages) == 2
    assert all(re.fullmatch(r"python:3\.11\.\d+-slim-\w+", stage) for stage in stages)
    last = "\n".join(lines[max(i for i, line in enumerate(lines) if line.startswith("FROM")) :])
    assert "\nUSER 10001" in last
    assert "\nHEALTHCHECK" in last
    assert "pip install" not in last
    assert "--constraint requirements.lock" in "\n".join(lines)
    copied = {part for line in lines if line.startswith("COPY") and "--from" not in line for part in line.split()[1:-1]}
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == allowed


@pytest.mark.parametrize(
    ("tool", "file"),
    [
        ("hadolint", "docker/Dockerfile"),
        ("shellcheck", "clusters/slurm/darec-search.sbatch"),
        ("shellcheck", ".ci/audit"),
        ("shellcheck", ".ci/run"),
    ],
)
def test_linters_have_nothing_to_say(tool, file):
    done = subprocess.run([BIN / tool, ROOT / file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# ---- the Slurm script, with Slurm and Ray replaced by programs that write down how they were called


@pytest.fixture
def allocation(tmp_path):
    """Two nodes. `darec-search` says what SIGTERM does to it; `scontrol`, `srun`, `ray` keep a log."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()

    def program(name: str, text: str) -> None:
        (bin_ / name).write_text(f'#!/usr/bin/env bash\necho "{name} $*" >> "$LOG"\n{text}\n')
        (bin_ / name).chmod(0o755)

    program("scontrol", '[[ $1 == show ]] && printf "%s\\n" localhost other || true')
    program("srun", 'while [[ $1 == --* ]]; do shift; done\nexec "$@"')
    program("ray", "[[ $1 == start ]] || exit 0\nwhile true; do sleep 0.1; done")
    program("python", "cat > /dev/null")
    program(
        "darec-search",
        'trap "echo stopped >> $LOG; exit 3" TERM\n[[ -n ${CODE:-} ]] && exit "$CODE"\nwhile true; do sleep 0.1; done',
    )
    log = tmp_path / "log"
    log.touch()
    slurm = {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "x[1-2]",
        "SLURM_CPUS_PER_TASK": "4",
    }
    environment = {**os.environ, **slurm, "SLURM_GPUS_ON_NODE": "2", "LOG": str(log), "PATH": f"{bin_}:/usr/bin:/bin"}
    script = ["bash", str(ROOT / "clusters/slurm/darec-search.sbatch"), "study.yaml", "--set", "a.b=c"]
    return script, environment, log


def test_slurm_starts_a_head_and_workers_and_hands_on_the_exit_code(allocation):
    script, environment, log = allocation
    for code in (0, 2):
        log.write_text("")
        done = subprocess.run(
            script, env={**environment, "CODE": str(code)}, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == code, done.stderr
        said = log.read_text()
        assert "ray start --head --block --node-ip-address=127.0.0.1 --port=20007 --dashboard-host=127.0.0.1" in said
        assert "srun --nodes=1 --ntasks=1 --nodelist=localhost" in said
        assert "srun --nodes=1 --ntasks=1 --ntasks-per-node=1 --exclude=localhost" in said
        assert "ray start --block --address=127.0.0.1:20007 --num-cpus=4 --num-gpus=2" in said
        assert "darec-search run study.yaml --address 127.0.0.1:20007 --set a.b=c" in said
        assert "requeue" not in said


def test_slurm_stops_the_study_before_the_time_limit_and_queues_it_again(allocation):
    script, environment, log = allocation
    with subprocess.Popen(script, env=environment, stdout=subprocess.DEVNULL, start_new_session=True) as job:
        while "darec-search run" not in log.read_text():
            assert job.poll() is None
            time.sleep(0.1)
        job.terminate()
        assert job.wait(timeout=60) == 3
    said = log.read_text()
    assert said.index("stopped") < said.index("scontrol requeue 7")
    until = time.monotonic() + 20
    while left := subprocess.run(["ps", "-o", "args=", "-s", str(job.pid)], capture_output=True, text=True).stdout:
        assert time.monotonic() < until, left
        time.sleep(0.1)  # a stand-in's last `sleep` outlives it for a moment
