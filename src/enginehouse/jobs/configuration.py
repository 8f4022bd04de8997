"""What a launch file configures: where a job runs, what is deployed, and what is evaluated.

The keys are those of the NeMo Evaluator launcher's configuration (versions 0.1 and 0.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from enginehouse.commands.kept_variables import is_kept
from enginehouse.core.errors import ConfigurationError
from enginehouse.core.strict_model import StrictModel
from enginehouse.deployment.configuration import merged
from enginehouse.engines import arguments
from enginehouse.engines.options import PositiveInt
from enginehouse.jobs.executors.base import ExecutionSettings
from enginehouse.jobs.executors.lepton.endpoint import LeptonConfig
from enginehouse.jobs.variables import Variables

Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0)]
NOTHING = "none"  # the type of a deployment that starts no server
_PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
_CONTAINER = "everything runs in the job's own environment or image, not in one for each task"
_NO_PROXY = "there is no proxy between the client and the server"
_REQUESTS = "requests consist of the task's prompt and the sampling parameters only"
_LOGGED = "every request and answer is in the run's journal"
_ONE_SERVER = "all tasks use one server: the deployed one, or that of target.api_endpoint"
_SAID_BY_TASKS = {
    "type": "each task determines whether it uses chat or completions",
    "stream": "streaming makes no difference to an answer",
}


def texts(values: Any) -> Any:
    """The values of variables as text: YAML reads `0` and `false` as something else."""
    if not isinstance(values, Mapping):
        return values
    words = {True: "true", False: "false"}
    return {
        name: words[value] if isinstance(value, bool) else str(value)
        for name, value in values.items()
        if value is not None
    }


class Section(StrictModel):
    """A part of a launch file."""

    # nothing shows these docstrings, and reading them takes a tenth of a dry run
    model_config = ConfigDict(use_attribute_docstrings=False)

    not_acted_on: ClassVar[Mapping[str, str]] = {}
    """Keys of the original launcher that are accepted and have no effect, and why."""
    others_not_acted_on: ClassVar[str | None] = None
    """Why any other key has no effect; None where an unknown key is an error."""

    @model_validator(mode="before")
    @classmethod
    def _without_empty_sections(cls, values: Any) -> Any:
        """A section of which every line is a comment is null in YAML."""
        if not isinstance(values, Mapping):
            return values
        return {key: v for key, v in values.items() if v is not None or not cls._is_section(key)}

    @classmethod
    def _is_section(cls, key: str) -> bool:
        if (known := cls.model_fields.get(key)) is None or known.is_required():
            return False
        return isinstance(known.get_default(call_default_factory=True), Mapping | Section)


class ServerEndpoints(Section):
    """The part `endpoints` of a generic deployment; null is an endpoint that the server lacks."""

    chat: str | None = "/v1/chat/completions"
    """The path for chat requests."""
    completions: str | None = "/v1/completions"
    """The path for completions requests."""
    health: str = "/health"
    """The path that answers 200 once the server is healthy."""

    @property
    def only(self) -> str | None:
        """The one endpoint of a server that lacks the other."""
        if self.chat is None:
            return "completions"
        return "chat" if self.completions is None else None

    @model_validator(mode="after")
    def _usual_paths(self) -> Self:
        if self.chat is None and self.completions is None:
            raise ValueError("a server needs one of the endpoints chat and completions")
        for name, path in (("chat", self.chat), ("completions", self.completions)):
            if path not in (None, (usual := _PATHS[name])):
                raise ValueError(
                    f"{name} requests go to {usual}, not {path}: the server must use that path; "
                    "write null if it has no such endpoint"
                )
        return self


class DeploymentSettings(Section):
    """The section `deployment`: the model under test, and its server.

    With both `hf_model_handle` and `checkpoint_path`, the handle is used if it can be found, else
    the path.
    """

    not_acted_on: ClassVar[Mapping[str, str]] = {
        "cache_path": "models are kept in the hub's cache; set HF_HOME in env_vars",
    }

    type: str
    """The engine; generic is any server started by its own command, none a server that is already
    running."""
    image: str | None = None
    """The image to run in, where the executor runs containers."""
    checkpoint_path: str | None = None
    """A checkpoint folder, on the machine where the job runs."""
    hf_model_handle: str | None = None
    """A model of the Hugging Face hub."""
    adapter: str | None = None
    """The folder of a LoRA adapter, on the machine where the job runs."""
    served_model_name: str | None = None
    """The name that requests use."""
    port: Port | None = None
    """The server's port; by default a free one."""
    tensor_parallel_size: PositiveInt = 1
    """GPUs that share each layer."""
    pipeline_parallel_size: PositiveInt = 1
    """Groups of GPUs among which the layers are divided."""
    data_parallel_size: PositiveInt = 1
    """Copies of the model."""
    data_parallel_size_local: PositiveInt | None = None
    """Copies of the model on each node of a server, if `data_parallel_size` is left out."""
    distributed_executor_backend: Literal["ray", "mp"] | None = None
    """How the engine's processes are joined: over Ray, which needs `execution: ray`, or not."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    """The fraction of a GPU's memory that the engine may take."""
    endpoints: ServerEndpoints | None = None
    """The endpoints of a generic server; an engine's are known."""
    extra_args: tuple[str, ...] = ()
    """Other flags of the engine, as one string or a list."""
    env_vars: Mapping[str, str] = Field(default_factory=dict, repr=False)
    """Variables of the server."""
    pre_cmd: str = ""
    """Lines of shell that run before the server is started."""
    command: str | None = None
    """The command that starts a generic server; an engine's own command is read for its flags."""
    version: str | None = None
    """The engine's version, for a managed environment."""
    variant: Literal["cpu", "cuda"] | None = None
    """The engine's build, for a managed environment."""
    python: str | None = None
    """The Python of an existing engine environment, on the machine where the job runs."""
    lepton_config: LeptonConfig | None = Field(None, repr=False)
    """How Lepton places the server."""

    @field_validator("env_vars", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return texts(value)

    @field_validator("extra_args", mode="before")
    @classmethod
    def _words(cls, value: Any) -> Any:
        return arguments.split(value) if isinstance(value, str) else value

    @property
    def gpus(self) -> int:
        """The GPUs of one instance, on all of its nodes: tensor x pipeline x data parallel."""
        return self.tensor_parallel_size * self.pipeline_parallel_size * self.data_parallel_size

    def with_all_copies(self, *, nodes: int) -> Self:
        """The same with `data_parallel_size`, given the nodes that one server spans.

        Raises ConfigurationError if it contradicts `data_parallel_size_local`.
        """
        if self.data_parallel_size_local is None:
            return self
        copies = self.data_parallel_size_local * nodes
        if self.data_parallel_size not in (1, copies):
            raise ConfigurationError(
                f"data_parallel_size is {self.data_parallel_size}, not {copies}: "
                f"data_parallel_size_local ({self.data_parallel_size_local}) on each of the "
                f"{nodes} nodes of a server",
                fix="remove one of the two",
            )
        return self.model_copy(update={"data_parallel_size": copies})

    @property
    def deployed(self) -> bool:
        """Whether the job starts a server."""
        return self.type != NOTHING

    @property
    def model(self) -> str | None:
        """The model as a plan takes it: the handle, or the path if there is no handle."""
        return self.hf_model_handle or self.checkpoint_path

    @property
    def fallback(self) -> str | None:
        """The path to use if the handle is not found."""
        return self.checkpoint_path if self.hf_model_handle else None

    @model_validator(mode="after")
    def _some_model(self) -> Self:
        if self.deployed and self.command is None and self.model is None:
            raise ValueError(
                "no model is given: set hf_model_handle, checkpoint_path, or both "
                "(the path is then used if the handle is not found)"
            )
        return self


class AuxiliaryDeployment(DeploymentSettings):
    """Another model beside the one under test, such as a judge, on nodes of its own."""

    not_acted_on: ClassVar[Mapping[str, str]] = {
        **DeploymentSettings.not_acted_on,
        "env_prefix": "it does not name any shell variables",
        "pre_cmd": "lines of shell run once on each node of the job: use deployment.pre_cmd",
    }

    num_nodes: PositiveInt = 1
    """Nodes of its own."""
    num_instances: PositiveInt = 1
    """Servers of its own."""


class AdapterConfig(Section):
    """How prompts and answers are changed on their way."""

    not_acted_on: ClassVar[Mapping[str, str]] = {
        "use_request_logging": _LOGGED,
        "use_response_logging": _LOGGED,
        "max_logged_requests": _LOGGED,
        "max_logged_responses": _LOGGED,
        "max_saved_requests": _LOGGED,
        "max_saved_responses": _LOGGED,
        "save_requests": _LOGGED,
        "save_responses": _LOGGED,
        "log_failed_requests": _LOGGED,
        "logging_aggregated_stats_interval": _LOGGED,
        "tracking_requests_stats": _LOGGED,
        "use_caching": "a run resumes from its journal, and no request is repeated",
        "reuse_cached_responses": "a run resumes from its journal, and no request is repeated",
        "caching_dir": "a run resumes from its journal, and no request is repeated",
        "use_progress_tracking": "see `launch status` and the run's journal for the progress",
        "progress_tracking_url": "see `launch status` and the run's journal for the progress",
        "progress_tracking_interval": "see `launch status` and the run's journal for the progress",
        "generate_html_report": "`enginehouse show RUN` shows the run",
        "html_report_size": "`enginehouse show RUN` shows the run",
        "include_json": "`enginehouse launch export` writes JSON",
        "use_nvcf": "a hosted API is used at its own address",
        "use_omni_info": "requests carry no user",
        "mode": _NO_PROXY,
        "endpoint_type": "each task determines whether it uses chat or completions",
        "local_port": _NO_PROXY,
        "discovery": _NO_PROXY,
        "interceptors": _NO_PROXY,
        "post_eval_hooks": _NO_PROXY,
        "output_dir": "results are in the job's folder, below execution.output_dir",
        "use_raise_client_errors": "a failed request never counts as an answer",
        "track_reasoning": "reasoning is always counted",
        "start_reasoning_token": "reasoning is everything up to the tag that ends it",
        "params_to_add": _REQUESTS,
        "params_to_remove": _REQUESTS,
        "params_to_rename": _REQUESTS,
        "headers_to_add": _REQUESTS,
        "headers_to_remove": _REQUESTS,
        "headers_to_rename": _REQUESTS,
    }

    use_system_prompt: bool | None = None
    """Whether `custom_system_prompt` is used, in place of a task's own system message."""
    custom_system_prompt: str | None = None
    """The system message of every conversation."""
    use_reasoning: bool | None = None
    """Whether reasoning is removed from answers before they are scored; false scores it, too."""
    process_reasoning_traces: bool | None = None
    """The same as `use_reasoning`, in newer files."""
    end_reasoning_token: str | None = None
    """The tag that ends the reasoning."""
    include_if_reasoning_not_finished: bool | None = None
    """Whether an answer whose reasoning does not end is scored as it is."""


class ApiEndpoint(Section):
    """A server that runs already, or an API."""

    not_acted_on: ClassVar[Mapping[str, str]] = {
        **_SAID_BY_TASKS,
        "adapter_config": "write it under evaluation.nemo_evaluator_config.target.api_endpoint",
    }

    url: str | None = None
    """The server's base URL, or the URL of its chat or completions endpoint."""
    model_id: str | None = None
    """The model's name there."""
    api_key_name: str | None = None
    """The environment variable on this machine that holds its API key."""


class TargetSettings(Section):
    """The section `target`: what is evaluated if nothing is deployed."""

    api_endpoint: ApiEndpoint = ApiEndpoint()
    """The server."""


class JudgeSettings(Section):
    """The model that scores answers, for tasks that name one."""

    not_acted_on: ClassVar[Mapping[str, str]] = {
        "backend": "the judge is used like any other model",
    }

    url: str | None = None
    """The judge's URL, or `auxiliary_deployments.NAME.chat_url`."""
    model_id: str | None = None
    """The judge's name in requests, or `auxiliary_deployments.NAME.model_id`."""
    api_key: str | None = None
    """The environment variable on this machine that holds its API key."""
    temperature: Annotated[float, Field(ge=0)] | None = None
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Nucleus sampling; 1 is off."""
    max_tokens: PositiveInt | None = None
    """Its longest answer, in tokens."""
    request_timeout: Seconds | None = None
    """The longest time for one request, in seconds."""
    max_retries: Annotated[int, Field(ge=0)] | None = None
    """How often a failed request is repeated."""
    parallelism: PositiveInt | None = None
    """The number of requests in flight."""


class ExtraParameters(Section):
    """Parameters that belong to single harnesses."""

    others_not_acted_on: ClassVar[str | None] = "no task that runs here has such a parameter"

    not_acted_on: ClassVar[Mapping[str, str]] = {
        "tokenizer_backend": "a harness's tokenizer is always one of Hugging Face's",
    }

    n_samples: PositiveInt | None = None
    """The number of samples per item."""
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    """The number of examples before each question, for a harness's task."""
    arguments: Mapping[str, Any] = {}
    """Other arguments of a harness's task, under the harness's names."""
    include_path: str | None = None
    """A folder with your own tasks for a harness, relative to the launch file."""
    tokenizer: str | None = None
    """The folder or hub handle of the model's tokenizer, which lm-eval's tasks need if the
    evaluation does not have the model's files: for a server elsewhere, or a generic one."""
    judge: JudgeSettings | None = None
    """The model that scores answers."""


class Parameters(Section):
    """How a task is asked. None leaves the task's own value, or the server's."""

    not_acted_on: ClassVar[Mapping[str, str]] = {
        "task": "the task is named by `name`",
    }

    limit_samples: PositiveInt | None = None
    """The number of items."""
    parallelism: PositiveInt | None = None
    """The number of requests in flight."""
    temperature: Annotated[float, Field(ge=0)] | None = None
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Nucleus sampling; 1 is off."""
    max_new_tokens: PositiveInt | None = None
    """The longest answer, in tokens."""
    request_timeout: Seconds | None = None
    """The longest time for one request, in seconds."""
    max_retries: Annotated[int, Field(ge=0)] | None = None
    """How often a failed request is repeated."""
    extra: ExtraParameters = ExtraParameters()
    """Parameters of single harnesses."""


class EvaluatorParameters(Section):
    """The part `config` of a nemo_evaluator_config."""

    not_acted_on: ClassVar[Mapping[str, str]] = {
        "output_dir": "results are in the job's folder, below execution.output_dir",
        "supported_endpoint_types": "each task determines whether it uses chat or completions",
        "type": "the task is named by `name`",
    }

    params: Parameters = Parameters()
    """How a task is asked."""


class TaskEndpoint(Section):
    """The part `api_endpoint` of a nemo_evaluator_config's `target`."""

    not_acted_on: ClassVar[Mapping[str, str]] = {
        **_SAID_BY_TASKS,
        "url": _ONE_SERVER,
        "model_id": _ONE_SERVER,
        "api_key": _ONE_SERVER,
        "api_key_name": _ONE_SERVER,
    }

    adapter_config: AdapterConfig | None = None
    """How requests and answers are changed."""


class TaskTarget(Section):
    """The part `target` of a nemo_evaluator_config."""

    api_endpoint: TaskEndpoint = TaskEndpoint()
    """How requests and answers are changed."""


class EvaluatorConfig(Section):
    """A `nemo_evaluator_config`: for all tasks, or for one."""

    config: EvaluatorParameters = EvaluatorParameters()
    """How a task is asked."""
    target: TaskTarget = TaskTarget()
    """How requests and answers are changed."""

    @property
    def params(self) -> Parameters:
        """How a task is asked."""
        return self.config.params

    @property
    def adapter(self) -> AdapterConfig:
        """How prompts and answers are changed."""
        return self.target.api_endpoint.adapter_config or AdapterConfig()


class LaunchTask(Section):
    """One task of the section `evaluation`."""

    not_acted_on: ClassVar[Mapping[str, str]] = {
        "container": _CONTAINER,
        "dataset_mount_path": _CONTAINER,
        "pre_cmd": "tasks share one process; use evaluation.pre_cmd",
        "post_cmd": "tasks share one process; run later steps separately, after the job",
    }

    name: str
    """The task, with or without its harness: `ifeval`, `lm-evaluation-harness.ifeval`."""
    endpoint_type: str | None = None
    """`chat` or `completions`, for tasks that can be asked both ways."""
    env_vars: Mapping[str, str] = Field(default_factory=dict, repr=False)
    """Environment variables that this task needs; the whole job gets them."""
    dataset_dir: str | None = None
    """The folder or file of the task's data, on the machine where the job runs."""
    nemo_evaluator_config: EvaluatorConfig = EvaluatorConfig()
    """One task's settings, which override those for all tasks."""

    @field_validator("env_vars", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return texts(value)


class EvaluationSection(Section):
    """The section `evaluation`."""

    not_acted_on: ClassVar[Mapping[str, str]] = {
        "post_cmd": "run later steps separately, after the job",
    }

    tasks: Annotated[tuple[LaunchTask, ...], Field(min_length=1)]
    """The tasks."""
    nemo_evaluator_config: EvaluatorConfig = EvaluatorConfig()
    """How all tasks are asked."""
    env_vars: Mapping[str, str] = Field(default_factory=dict, repr=False)
    """Variables of the job."""
    pre_cmd: str = ""
    """Lines of shell that run before the evaluation."""

    @field_validator("env_vars", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return texts(value)

    def settings_of(self, task: LaunchTask) -> EvaluatorConfig:
        """One task's settings; its own override those for all tasks."""
        layers = (self.nemo_evaluator_config, task.nemo_evaluator_config)
        general, own = (layer.model_dump(exclude_unset=True) for layer in layers)
        return EvaluatorConfig.model_validate(merged(general, own))


class LaunchDocument(Section):
    """A whole launch file, but for `execution`, whose keys are its executor's."""

    not_acted_on: ClassVar[Mapping[str, str]] = {
        "user_config_path": "the launcher itself adds it",
    }

    name: str | None = None
    """The job's name."""
    deployment: DeploymentSettings
    """The model under test, and its server."""
    auxiliary_deployments: Mapping[str, AuxiliaryDeployment] = Field(default_factory=dict)
    """Other models served along with it, by name."""
    target: TargetSettings = TargetSettings()
    """What is evaluated if nothing is deployed."""
    evaluation: EvaluationSection
    """The tasks, and how they are asked."""
    env_vars: Mapping[str, str] = Field(default_factory=dict, repr=False)
    """Variables of the whole job."""
    export: Mapping[str, Any] = Field(default_factory=dict)
    """Where figures are exported when the job ends: one section per exporter."""

    @field_validator("env_vars", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return texts(value)

    @model_validator(mode="after")
    def _something_answers(self) -> Self:
        endpoint = self.target.api_endpoint
        if self.deployment.deployed and endpoint.url is not None:
            raise ValueError(
                "target.api_endpoint.url is set although a server is deployed: "
                "choose deployment: none, or remove the url"
            )
        if not self.deployment.deployed and endpoint.url is None:
            raise ValueError(
                "there is nothing to evaluate: give target.api_endpoint.url, or choose a deployment"
            )
        return self


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    """A launch file, checked.

    `job_variables` are those of the evaluation, `server_variables` those of the server, and
    `auxiliary_variables` those of each auxiliary deployment. `notes` are warnings; `not_acted_on`
    has each key without effect, and why.
    """

    origin: str
    name: str
    execution: ExecutionSettings
    deployment: DeploymentSettings
    auxiliary_deployments: Mapping[str, AuxiliaryDeployment]
    target: TargetSettings
    evaluation: EvaluationSection
    export: Mapping[str, Any]
    job_variables: Variables
    server_variables: Variables
    auxiliary_variables: Mapping[str, Variables]
    notes: tuple[str, ...]
    not_acted_on: Mapping[str, str]
    values: Mapping[str, Any] = field(repr=False)
    """Everything as it was composed, for display, without the values of secrets."""

    @property
    def variables(self) -> Variables:
        """The variables of the job's main command: also those that the server gets from it."""
        passed_on = self.server_variables.by_name
        others = {name: passed_on[name] for name in self.server_names}
        return Variables(by_name=others).with_others(self.job_variables)

    def auxiliary_values(self, name: str) -> Mapping[str, str]:
        """The variables of an auxiliary deployment that may be stored with a run."""
        plain = self.auxiliary_variables[name].environment().values
        return {variable: value for variable, value in plain.items() if is_kept(variable)}

    def auxiliary_passed_on(self, name: str) -> Variables:
        """Its other variables, which it takes from the job's main command if that serves it."""
        kept = self.auxiliary_values(name)
        variables = self.auxiliary_variables[name].by_name
        return Variables(by_name={n: v for n, v in variables.items() if n not in kept})

    @property
    def server_values(self) -> Mapping[str, str]:
        """The server's variables that may be stored with a run."""
        plain = self.server_variables.environment().values
        return {name: value for name, value in plain.items() if is_kept(name)}

    @property
    def server_names(self) -> tuple[str, ...]:
        """The server's other variables, which it takes from the job's main command."""
        return tuple(sorted(self.server_variables.by_name.keys() - self.server_values.keys()))
