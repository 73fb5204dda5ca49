"""JSON Schemas of the Kubernetes objects in `infra/kubernetes`: of each kind what these files use, and nothing else.

Facts from the reference of Kubernetes 1.32 (core/v1) and the custom resource definitions of KubeRay 1.7.0
(ray.io/v1) and of the Prometheus operator 0.80 (monitoring.coreos.com/v1). Where a name is misspelt, the API server
drops the field without a word, unless it is told to be strict; here it is an error.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def closed(required: tuple[str, ...] = (), /, **properties: Schema) -> Schema:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(required),
        "properties": properties,
    }


def of(items: Schema) -> Schema:
    return {"type": "array", "items": items}


TEXT, FLAG, COUNT, PORT = (
    {"type": "string"},
    {"type": "boolean"},
    {"type": "integer", "minimum": 0},
    {"type": "integer", "minimum": 1, "maximum": 65535},
)
LABEL = {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"}
"""RFC 1123: what objects, containers and volumes may be called."""
PORT_NAME = {"type": "string", "pattern": r"^(?=.*[a-z])[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?$"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
QUANTITY = {"type": ["string", "integer"], "pattern": r"^\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"}
QUANTITIES = {"type": "object", "additionalProperties": QUANTITY}
METADATA = closed(("name",), name=LABEL, annotations=TEXTS, labels=TEXTS)

CONTAINER = closed(
    ("name", "image"),
    name=LABEL,
    image={"type": "string", "pattern": r"^[a-z0-9.-]+(/[a-z0-9._-]+)+(:[A-Za-z0-9._-]+|@sha256:[0-9a-f]{64})$"},
    securityContext=closed(
        (), allowPrivilegeEscalation=FLAG, capabilities=closed((), drop=of(TEXT)), readOnlyRootFilesystem=FLAG
    ),
    env=of(
        closed(
            ("name",),
            name={"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]*$"},
            value=TEXT,
            valueFrom=closed((), secretKeyRef=closed(("key",), name=LABEL, key=TEXT, optional=FLAG)),
        )
    ),
    ports=of(closed(("containerPort",), name=PORT_NAME, containerPort=PORT)),
    resources=closed((), requests=QUANTITIES, limits=QUANTITIES),
    volumeMounts=of(
        closed(("name", "mountPath"), name=LABEL, mountPath={"type": "string", "pattern": "^/"}, readOnly=FLAG)
    ),
)
POD_TEMPLATE = closed(
    ("spec",),
    spec=closed(
        ("containers",),
        containers={**of(CONTAINER), "minItems": 1},
        serviceAccountName=LABEL,
        securityContext=closed(
            (),
            runAsNonRoot=FLAG,
            runAsUser=COUNT,
            runAsGroup=COUNT,
            fsGroup=COUNT,
            seccompProfile=closed(("type",), type={"enum": ["RuntimeDefault", "Localhost", "Unconfined"]}),
        ),
        terminationGracePeriodSeconds=COUNT,
        tolerations=of(
            closed(
                (),
                key=TEXT,
                operator={"enum": ["Exists", "Equal"]},
                value=TEXT,
                effect={"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]},
            )
        ),
        volumes=of(
            closed(("name",), name=LABEL, configMap=closed((), name=LABEL), emptyDir=closed((), sizeLimit=QUANTITY))
        ),
    ),
)
RAY_CLUSTER = closed(
    ("headGroupSpec",),
    rayVersion=TEXT,
    enableInTreeAutoscaling=FLAG,
    authOptions=closed((), mode={"enum": ["disabled", "token"]}, secretName=LABEL),
    autoscalerOptions=closed(
        (),
        version={"enum": ["v1", "v2"]},
        idleTimeoutSeconds=COUNT,
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
    ),
    headGroupSpec=closed(("template",), rayStartParams=TEXTS, template=POD_TEMPLATE),
    workerGroupSpecs=of(
        closed(
            ("groupName", "maxReplicas", "minReplicas", "template"),
            groupName=LABEL,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            rayStartParams=TEXTS,
            template=POD_TEMPLATE,
        )
    ),
)
RAY_JOB = closed(
    (),
    entrypoint=TEXT,
    backoffLimit=COUNT,
    shutdownAfterJobFinishes=FLAG,
    ttlSecondsAfterFinished=COUNT,
    activeDeadlineSeconds=COUNT,
    rayClusterSpec=RAY_CLUSTER,
)


def kind(api: str, name: str, /, **more: Schema) -> Schema:
    required = ("apiVersion", "kind", "metadata")
    return closed(required, apiVersion={"const": api}, kind={"const": name}, metadata=METADATA, **more)


SCHEMAS: dict[str, Schema] = {
    "ServiceAccount": kind("v1", "ServiceAccount"),
    "ConfigMap": kind("v1", "ConfigMap", data=TEXTS),
    "RayCluster": kind("ray.io/v1", "RayCluster", spec=RAY_CLUSTER),
    "RayJob": kind("ray.io/v1", "RayJob", spec=RAY_JOB),
    "PodMonitor": kind(
        "monitoring.coreos.com/v1",
        "PodMonitor",
        spec=closed(
            ("selector", "podMetricsEndpoints"),
            selector=closed((), matchLabels=TEXTS),
            podMetricsEndpoints=of(closed((), port=TEXT, path=TEXT, interval=TEXT)),
        ),
    ),
}
"""By `kind`."""
