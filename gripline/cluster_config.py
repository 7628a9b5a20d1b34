"""Schema of a profile's `cluster` section: which stages run as a RayJob, on which nodes, and for how long at most.

Imports nothing heavy. What a placement means on a node and what Kubernetes accepts: `gripline.kube`.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from gripline.section import Section

StageName = Literal["sft", "rl", "evaluate"]
LONGEST_LAUNCH_S = 9 * 86_400
"""A pipeline's steps have a time limit that no parameter can change, and which must be the last to strike."""
LABEL_VALUE = r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$"
QUALIFIED_NAME = r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
"""What Kubernetes takes as the key of a label or taint: a name, with a domain before it or without."""
EXTENDED_RESOURCE = r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$"
"""A resource with a domain before its name, such as nvidia.com/gpu; or empty."""
DNS_NAME = r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)?$"
"""A DNS-1123 subdomain, or empty: what Kubernetes takes as the name of most objects."""


class Requirement(Section):
    """One node label and the values that fit (node affinity, operator `In`)."""

    label: str = Field(pattern=QUALIFIED_NAME)
    values: tuple[Annotated[str, Field(pattern=LABEL_VALUE)], ...] = Field(min_length=1)


class Toleration(Section):
    """A taint that the pods tolerate."""

    key: str = Field(pattern=QUALIFIED_NAME)
    value: str = Field(default="", pattern=LABEL_VALUE)
    """Empty: whatever the taint's value is (operator `Exists`)."""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = "NoSchedule"


class Placement(Section):
    """On which nodes pods run, and what their containers need there. Shipped ones: `gripline/kube/placements`."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$")
    description: str = ""
    node_affinity: tuple[Requirement, ...] = ()
    """All of them must hold."""
    tolerations: tuple[Toleration, ...] = ()
    gpu_resource: str = Field(default="", pattern=EXTENDED_RESOURCE)
    """Extended resource that a GPU is asked for by, such as nvidia.com/gpu or nvidia.com/mig-1g.24gb; empty: a pool
    without GPUs."""
    rt_cores: bool = False
    """Your word that these GPUs have RT cores, where `gripline/kube/products.yaml` knows neither label nor GPU."""
    runtime_class: str = Field(default="", pattern=DNS_NAME)
    container_env: dict[str, str] = Field(default_factory=dict)


class PodConfig(Section):
    """One kind of pod: where it runs, which image, and how much of a node it takes."""

    placement: str | Placement = "cpu"
    """Name of a shipped placement; or one of your own: its mapping, or in a profile file the path of its .yaml."""
    image: str = ""
    """Empty: the pipeline's own step image."""
    cpus: float = Field(default=2.0, gt=0)
    memory_gb: float = Field(default=4.0, gt=0)
    """GiB, requested and limited alike."""
    shm_gb: float = Field(default=1.0, gt=0)
    """GiB of /dev/shm, where Ray's object store lives; counts as memory, so less than `memory_gb`."""
    container_env: dict[str, str] = Field(default_factory=dict)
    """Besides the placement's, such as the EULA variables of Isaac Sim, which are yours to accept. No secrets."""

    @model_validator(mode="after")
    def _shared_memory_fits(self) -> Self:
        if self.shm_gb >= self.memory_gb:
            raise ValueError(
                f"shm_gb {self.shm_gb:g} must be smaller than memory_gb {self.memory_gb:g}, which holds it"
            )
        return self


class PolicyGroup(PodConfig):
    """Pods with the learner and the policy servers."""

    replicas: int = Field(default=1, ge=1, le=1024)
    """Pods."""
    gpus: int = Field(default=0, ge=0, le=16)
    """Of one pod."""
    servers_per_pod: int = Field(default=1, ge=1, le=64)
    """Policy servers that a pod takes."""
    learner_gpus: float = Field(default=0.0, ge=0)
    """Of a pod's GPUs, what the learner takes; the servers share the rest."""

    @model_validator(mode="after")
    def _learner_fits(self) -> Self:
        if self.learner_gpus > self.gpus:
            raise ValueError(f"learner_gpus {self.learner_gpus:g} exceeds the {self.gpus} gpus of a pod")
        if self.gpus and self.learner_gpus == self.gpus:
            raise ValueError(
                f"learner_gpus {self.learner_gpus:g} leaves no GPU to the policy servers; give them a part"
            )
        return self


class EnvGroup(PodConfig):
    """Pods with simulators."""

    replicas: int = Field(default=2, ge=1, le=4096)
    """Pods."""
    gpus: int = Field(default=0, ge=0, le=16)
    """Of one pod."""
    workers_per_pod: int = Field(default=1, ge=1, le=256)
    """Simulator processes that a pod takes."""
    rendering: Literal["cpu", "egl", "rtx"] = "cpu"
    """'cpu': software, on any node. 'egl': OpenGL on a GPU that has graphics. 'rtx': ray tracing (Isaac Sim), which
    needs RT cores, and a GPU of its own."""

    @model_validator(mode="after")
    def _rendering_has_a_gpu(self) -> Self:
        if self.rendering != "cpu" and not self.gpus:
            raise ValueError(f"rendering {self.rendering!r} needs a GPU: set gpus to 1 or more, or rendering to cpu")
        return self


class ClusterConfig(Section):
    """Where and how stages run on Kubernetes. Without `stages`, all run in their pipeline step, as on a laptop."""

    stages: tuple[StageName, ...] = ()
    """Stages that run as a RayJob with the pods below, such as [rl] or [sft, rl, evaluate]."""
    namespace: str = Field(default="", pattern=r"^([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)?$")
    """Of the RayJobs. Empty: the launcher's own, which is the only one in which the pipeline's run can own them."""
    service_account: str = Field(default="", pattern=DNS_NAME)
    """Of the Ray pods, which need no rights. Empty: the namespace's default."""
    head: PodConfig = PodConfig()
    """The driver's pod; it takes no GPU and no simulators."""
    policy: PolicyGroup = PolicyGroup()
    env: EnvGroup = EnvGroup()
    secrets: tuple[str, ...] = ()
    """Names of Secrets whose keys become environment variables of every pod: credentials of the store and of MLflow."""
    pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()
    run_as_user: int = Field(default=1000, ge=1)
    """Every pod's user and group; never root."""
    cache_claim: str = Field(default="", pattern=DNS_NAME)
    """A PersistentVolumeClaim for the simulators' caches, mounted into env pods below /cache; a folder per pod."""

    queue: str = Field(default="", pattern=DNS_NAME)
    """Kueue LocalQueue; empty: no Kueue."""
    priority_class: str = Field(default="", pattern=DNS_NAME)
    """PriorityClass of the pods. Kueue orders its queue by it as well, as long as it is given no other."""
    retries: int = Field(default=2, ge=0, le=20)
    """Further attempts, each on a new Ray cluster, after the driver failed; each continues from the last checkpoint."""
    overall_timeout_s: int = Field(default=86_400, ge=60, le=LONGEST_LAUNCH_S)
    """From the launch to the end, over all attempts and queueing. The launcher keeps it."""
    attempt_timeout_s: int = Field(default=43_200, ge=60)
    """Of one attempt, waiting for GPUs included. KubeRay keeps it, also when no launcher lives."""
    start_timeout_s: int = Field(default=1_800, ge=30)
    """Of one attempt until the driver runs: scheduling, image pulls, Ray's start."""
    queue_timeout_s: int = Field(default=86_400, ge=0)
    """Time that Kueue may keep the job waiting."""
    ttl_after_finished_s: int = Field(default=300, ge=0)
    """Until KubeRay removes the pods of a finished job that no launcher removed."""
    heartbeat_every_s: float = Field(default=20.0, gt=0)
    orphan_after_s: float = Field(default=600.0, gt=0)
    """A driver that saw no new heartbeat for so long, while it could read the store, has no launcher any more: it
    writes a checkpoint and ends. Longer than an outage of the store and a pod's restart together."""

    @model_validator(mode="after")
    def _times_are_in_order(self) -> Self:
        if self.orphan_after_s < 5 * self.heartbeat_every_s:
            raise ValueError(
                f"orphan_after_s {self.orphan_after_s:g} must be at least five times heartbeat_every_s "
                f"{self.heartbeat_every_s:g}, or one slow write ends the job"
            )
        if self.start_timeout_s >= self.attempt_timeout_s:
            raise ValueError(
                f"start_timeout_s {self.start_timeout_s} must be below attempt_timeout_s {self.attempt_timeout_s}"
            )
        if self.attempt_timeout_s > self.overall_timeout_s:
            raise ValueError(
                f"attempt_timeout_s {self.attempt_timeout_s} must not exceed overall_timeout_s {self.overall_timeout_s}"
            )
        return self
