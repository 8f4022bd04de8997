"""A Kubernetes cluster, faked: the API server's HTTP API, the Job controller, and one node.

Pods are processes of this machine; there are no images and no containers. `pod_process` is used
with a real API server too (tests/support/kubernetes_node.py).
"""

from enginehouse.testing.fake_kubernetes.cluster import FakeKubernetes, running_fake_kubernetes
from enginehouse.testing.fake_kubernetes.pod_process import PodProcess

__all__ = ["FakeKubernetes", "PodProcess", "running_fake_kubernetes"]
