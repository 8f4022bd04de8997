"""Keys of a launch file that are known, and have no effect beside what else the file says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from enginehouse.core.errors import ConfigurationError
from enginehouse.engines.registry import engines_that, own_command
from enginehouse.jobs.configuration import DeploymentSettings, LaunchDocument

if TYPE_CHECKING:
    from enginehouse.engines.base import Engine

_NOT_DEPLOYED: Final = "nothing is deployed"
_ACT_ALWAYS: Final = ("type", "adapter", "pre_cmd")
_BACKEND: Final = "distributed_executor_backend"
_BY_COMMAND: Final = ("version", "python", "gpu_memory_utilization", _BACKEND)


def keys_without_effect(
    document: LaunchDocument, *, given: Callable[[str], bool]
) -> dict[str, str]:
    """Those that were given (`given` is asked by dotted path), and why they have no effect.

    Raises ConfigurationError for an adapter that nothing would load: the base would be evaluated.
    """
    reasons = dict(_of_target(document))
    reasons |= dict(_of_deployment("deployment", document.deployment))
    for name, deployment in document.auxiliary_deployments.items():
        reasons |= dict(_of_deployment(f"auxiliary_deployments.{name}", deployment))
    return {key: why for key, why in reasons.items() if given(key)}


def _of_target(document: LaunchDocument) -> Iterator[tuple[str, str]]:
    endpoint = document.target.api_endpoint
    if document.deployment.deployed:
        for key in ("model_id", "api_key_name"):
            if getattr(endpoint, key) is not None:
                yield (
                    f"target.api_endpoint.{key}",
                    "a server is deployed, and requests use its own name",
                )


def _of_deployment(place: str, deployment: DeploymentSettings) -> Iterator[tuple[str, str]]:
    if not deployment.deployed:
        others = set(DeploymentSettings.model_fields) - set(_ACT_ALWAYS)
        return _set_keys(place, deployment, dict.fromkeys(sorted(others), _NOT_DEPLOYED))
    own = own_command(deployment.type)
    if own.by_user:
        return _of_users_command(place, deployment)
    if _BACKEND not in own.flags:
        return _set_keys(place, deployment, {_BACKEND: f"{deployment.type} has no such option"})
    return iter(())


def _of_users_command(place: str, deployment: DeploymentSettings) -> Iterator[tuple[str, str]]:
    if deployment.adapter is not None:
        raise ConfigurationError(
            f"{place}.adapter is given, but a {deployment.type} server cannot load adapters",
            why="without it, the base model would be evaluated instead",
            fix="load it in the server's command and remove the key; or use an engine that loads "
            f"adapters: {', '.join(engines_that(_loads_adapters))}",
        )
    reasons = dict.fromkeys(_BY_COMMAND, "its command determines how it is served")
    words = " ".join((deployment.command or "", *deployment.extra_args))
    for key in ("checkpoint_path", "hf_model_handle"):
        if (model := getattr(deployment, key)) is not None and model not in words:
            reasons[key] = f"the command does not name it: write ${{{place}.{key}}} into it"
    return _set_keys(place, deployment, reasons)


def _loads_adapters(engine: Engine) -> bool:
    from enginehouse.engines.base import SupportsAdapters

    return isinstance(engine, SupportsAdapters)


def _set_keys(
    place: str, settings: DeploymentSettings, reasons: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Those keys that have another value than if they were left out."""
    for key in _different(settings, reasons):
        yield f"{place}.{key}", reasons[key]


def _different(settings: DeploymentSettings, keys: Iterable[str]) -> Iterator[str]:
    fields: Mapping[str, Any] = type(settings).model_fields
    for key in keys:
        default = fields[key].get_default(call_default_factory=True)
        if getattr(settings, key) != default:
            yield key
