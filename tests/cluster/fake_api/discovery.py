"""API discovery of the fake cluster: kinds, groups and resources."""

from typing import Any

from cluster.fake_api.store import Problem

CORE = [("Pod", "pods"), ("Secret", "secrets"), ("ServiceAccount", "serviceaccounts"), ("Event", "events"),
        ("ConfigMap", "configmaps"), ("ResourceQuota", "resourcequotas"),
        ("PersistentVolumeClaim", "persistentvolumeclaims"), ("Service", "services")]  # fmt: skip
KINDS = [
    *(("v1", kind, plural, True) for kind, plural in CORE),
    ("v1", "Node", "nodes", False),
    ("apps/v1", "Deployment", "deployments", True),
    ("authorization.k8s.io/v1", "SelfSubjectAccessReview", "selfsubjectaccessreviews", False),
    ("serving.kserve.io/v1beta1", "InferenceService", "inferenceservices", True),
    ("serving.kserve.io/v1alpha1", "ServingRuntime", "servingruntimes", True),
    ("serving.kserve.io/v1alpha1", "ClusterServingRuntime", "clusterservingruntimes", False),
    ("serving.knative.dev/v1", "Service", "services", True),
    ("serving.knative.dev/v1", "Revision", "revisions", True),
    ("gateway.networking.k8s.io/v1", "HTTPRoute", "httproutes", True),
    ("karpenter.sh/v1", "NodePool", "nodepools", False),
]
VERBS = ["get", "list", "watch", "create", "update", "patch", "delete"]


def known(hidden: set[str]) -> list[tuple[str, str, str, bool]]:
    """Returns apiVersion, kind, plural and whether it is namespaced, without the hidden groups."""
    return [entry for entry in KINDS if entry[0].rpartition("/")[0] not in hidden]


def groups(hidden: set[str]) -> dict[str, Any]:
    versions_of: dict[str, list[str]] = {}
    for version, *_ in known(hidden):
        if "/" in version and version not in versions_of.setdefault(version.split("/")[0], []):
            versions_of[version.split("/")[0]].append(version)
    listed = []
    for name, versions in versions_of.items():
        listed_versions = [{"groupVersion": v, "version": v.split("/")[1]} for v in versions]
        listed.append({"name": name, "versions": listed_versions, "preferredVersion": listed_versions[0]})
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}


def resources(version: str, hidden: set[str]) -> dict[str, Any]:
    listed = [
        {"name": plural, "singularName": kind.lower(), "namespaced": spaced, "kind": kind, "verbs": VERBS}
        for v, kind, plural, spaced in known(hidden)
        if v == version
    ]
    if not listed:
        raise Problem(404, "NotFound", "the server could not find the requested resource")
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": listed}
