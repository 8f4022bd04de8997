"""What a Job and its pods say about a job: the states of Kubernetes as ours.

Objects are plain data as the API's reference describes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from enginehouse.jobs.base import JobState, JobStatus

INDEX = "batch.kubernetes.io/job-completion-index"
_INTERRUPTIONS = ("DeadlineExceeded", "DisruptionTarget", "Evicted", "NodeLost", "Preempted")


def job_status(job: Mapping[str, Any] | None, pods: Sequence[Mapping[str, Any]]) -> JobStatus:
    """The state of a job, from its Job and its pods."""
    if job is None:
        return JobStatus(state=JobState.CANCELLED, reason="its Job was deleted")
    conditions = {
        one["type"]: one
        for one in job.get("status", {}).get("conditions", [])
        if one["status"] == "True"
    }
    if "Complete" in conditions:
        return JobStatus(state=JobState.COMPLETE, exit_code=0)
    if "Failed" in conditions:
        return _failure(conditions["Failed"], pods)
    command = [pod for pod in pods if pod_index(pod) == 0]
    if any(phase(pod) == "Running" for pod in command):
        return JobStatus(state=JobState.RUNNING)
    if command and phase(command[-1]) in ("Succeeded", "Failed"):
        return JobStatus(state=JobState.RUNNING, reason="its pod has ended")
    reason = next((reason for pod in command if (reason := waiting(pod))), None)
    return JobStatus(state=JobState.PENDING, reason=reason)


def _failure(condition: Mapping[str, Any], pods: Sequence[Mapping[str, Any]]) -> JobStatus:
    """Why a Job failed: its own reason, or that of the container that ended it."""
    reason = condition.get("reason")
    if reason in _INTERRUPTIONS:
        return JobStatus(state=JobState.INTERRUPTED, reason=reason)
    for pod in sorted(pods, key=pod_index, reverse=True):  # a companion's end is the cause
        status = pod.get("status", {})
        if status.get("reason") in _INTERRUPTIONS:
            return JobStatus(state=JobState.INTERRUPTED, reason=status["reason"])
        for container in status.get("containerStatuses", []):
            end = container.get("state", {}).get("terminated")
            if end is None or end["exitCode"] == 0 or "deletionTimestamp" in pod["metadata"]:
                continue
            word = end.get("reason") if end.get("reason") not in (None, "Error") else None
            if index := pod_index(pod):
                word = f"the companion in pod {index} ended"
            return JobStatus(state=JobState.FAILED, reason=word, exit_code=end["exitCode"])
    return JobStatus(state=JobState.FAILED, reason=reason)


def waiting(pod: Mapping[str, Any]) -> str | None:
    """Why a pod does not run yet."""
    status = pod.get("status", {})
    for container in status.get("containerStatuses", []):
        if state := container.get("state", {}).get("waiting"):
            return ": ".join(filter(None, (state.get("reason"), state.get("message"))))
    for condition in status.get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return ": ".join(filter(None, (condition.get("reason"), condition.get("message"))))
    return None


def is_final(reason: str) -> bool:
    """Whether a pod that waits for that reason would wait for ever."""
    return reason.startswith(("ErrImage", "ImagePull", "InvalidImage", "CreateContainer"))


def ended(job: Mapping[str, Any]) -> bool:
    """Whether a Job is complete or has failed, and all of its pods have ended."""
    conditions = job.get("status", {}).get("conditions", [])
    return any(
        one["type"] in ("Complete", "Failed") and one["status"] == "True" for one in conditions
    )


def phase(pod: Mapping[str, Any]) -> str:
    """Pending, Running, Succeeded or Failed."""
    return str(pod.get("status", {}).get("phase", "Pending"))


def has_output(pod: Mapping[str, Any]) -> bool:
    """Whether a pod's container has started."""
    states = [one.get("state", {}) for one in pod.get("status", {}).get("containerStatuses", [])]
    return any("running" in state or "terminated" in state for state in states)


def pod_index(pod: Mapping[str, Any]) -> int:
    """The pod's number in its Job; that of the command is 0."""
    return int(pod["metadata"].get("annotations", {}).get(INDEX, 0))


def owners(item: Mapping[str, Any]) -> set[str]:
    """The uids of the objects that an object is deleted with."""
    return {one["uid"] for one in item["metadata"].get("ownerReferences", [])}


def pods_of(uid: str, pods: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The pods of one submission, oldest first."""
    own = [pod for pod in pods if uid in owners(pod)]
    return sorted(own, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))
