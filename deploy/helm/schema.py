"""values.schema.json: helm refuses a value of the wrong kind, and a name that the chart does not know.

It is made of values.yaml, whose defaults say what kind a value is; what they cannot say stands in ``RULES``. The names
of `gateway.settings` are the gateway's own, so that a setting that it does not have is refused before it is installed:
the gateway itself passes over a variable that it does not know.
"""

import json
from dataclasses import fields
from typing import Any

import yaml
from tritonrank_gateway.settings import GatewaySettings

from deploy.helm.chart import CHART

PATH = CHART / "values.schema.json"
MADE_BY_THE_CHART = {
    *("triton", "host", "port", "metrics_port", "listen_on", "ready_file", "drain_s", "keys_file", "rules"),
    *("tls_certificate", "tls_key", "tls_client_ca", "tls_metrics", "triton_tls", "triton_tls_name"),
    *("golden", "catalogue", "blend", "store", "events_log"),
}
"""Settings of the gateway that follow from other values."""

TEXT_MAP = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}
LABELS = {"type": "object", "additionalProperties": {"type": "string"}}
PEERS = {"type": "array", "items": {"type": "object"}}
QUANTITY = {
    "type": ["string", "integer", "number"],
    "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$",
}
RESOURCES = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        name: {"type": "object", "additionalProperties": QUANTITY} for name in ("requests", "limits", "claims")
    },
}
NAME = {"type": "string", "pattern": r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$", "maxLength": 253}
ROLLING = {
    "type": "object",
    "additionalProperties": False,
    "properties": {name: {"type": ["integer", "string"], "minimum": 0} for name in ("maxSurge", "maxUnavailable")},
}
STORE_URL = {"type": "string", "pattern": r"^([a-z][a-z0-9+.-]*://.+)?$"}
"""A URL with its scheme, or nothing."""

REPLICAS = {"type": "integer", "minimum": 1, "maximum": 1000}
SECONDS = {"type": "integer", "minimum": 0, "maximum": 300}
KINDS: tuple[tuple[dict[str, Any], tuple[str, ...]], ...] = (
    (RESOURCES, ("resources",)),
    (TEXT_MAP, ("env", "settings")),
    (LABELS, ("labels", "annotations", "podAnnotations", "nodeSelector", "dashboardLabels", "dashboardAnnotations")),
    ({"type": "object"}, ("affinity",)),
    (PEERS, ("tolerations", "imagePullSecrets", "egress", "callers", "monitoring", "dns")),
    (PEERS, ("gatewayEgress", "nightlyEgress")),
    (
        NAME,
        (
            "secret",
            "claim",
            "cacheClaim",
            "eventsLogClaim",
            "trustedKeys",
            "clientCa",
            "server",
            "client",
            "signingSecret",
        ),
    ),
    (QUANTITY, ("size", "sharedMemory")),
    (ROLLING, ("rollingUpdate",)),
    (REPLICAS, ("replicas", "minReplicas", "maxReplicas")),
    (SECONDS, ("preStopSeconds", "drainSeconds")),
    (STORE_URL, ("url", "pushUrl", "storeUrl")),
    ({"enum": ["Always", "IfNotPresent", "Never"]}, ("pullPolicy",)),
    ({"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"}, ("digest",)),
    ({"type": ["integer", "string"], "minimum": 1}, ("maxUnavailable",)),
    ({"type": "string", "pattern": "^https?://.+"}, ("prometheusUrl",)),
)
BY_LAST_NAME = {name: kind for kind, names in KINDS for name in names}
BY_PATH: dict[str, Any] = {
    "images.server": None,  # a part, and no Secret
    "monitoring": None,  # a part, and not the peers of that name
    "gateway.service.type": {"enum": ["ClusterIP", "LoadBalancer", "NodePort"]},
    "gateway.service.port": {"type": "integer", "minimum": 1, "maximum": 65535},
    "triton.readyTimeoutSeconds": {"type": "integer", "minimum": 30, "maximum": 7200},
    "triton.autoscaling.kind": {"enum": ["none", "hpa", "keda"]},
    "triton.autoscaling.queuedSeconds": {"type": ["string"], "pattern": r"^[0-9]+(\.[0-9]+)?$"},
    "gateway.autoscaling.cpuPercent": {"type": "integer", "minimum": 10, "maximum": 100},
    "monitoring.interval": {"type": "string", "pattern": "^[0-9]+(ms|s|m)$"},
    "valkey.appendfsync": {"enum": ["always", "everysec"]},
    "valkey.maxMemory": {"type": "string", "pattern": "^[0-9]+(kb|mb|gb)$"},
    "nightly.schedule": {"type": "string", "pattern": r"^(@[a-z]+|(\S+ ){4}\S+)$"},
    "nightly.deadlineSeconds": {"type": "integer", "minimum": 60},
}


def schema() -> dict[str, Any]:
    """The schema of the chart's values."""
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    names = sorted(one.name for one in fields(GatewaySettings) if one.name not in MADE_BY_THE_CHART)
    made = _of(values, "")
    made["properties"]["gateway"]["properties"]["settings"] = {
        "type": "object",
        "propertyNames": {"enum": names},
        "additionalProperties": {"type": ["string", "number", "boolean", "array"]},
    }
    made["properties"]["global"] = {"type": "object"}  # helm passes it to every chart
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "tritonrank", **made}


def written() -> str:
    """The file."""
    return json.dumps(schema(), indent=1) + "\n"


def _of(default: Any, path: str) -> dict[str, Any]:
    """The schema of one value, by its default."""
    name = path.rpartition(".")[2]
    found = BY_PATH.get(path, BY_LAST_NAME.get(name)) if path not in BY_PATH or BY_PATH[path] else None
    if found is not None:
        return dict(found)
    if isinstance(default, dict):
        inner = {key: _of(value, f"{path}.{key}" if path else key) for key, value in default.items()}
        return {"type": "object", "additionalProperties": False, "properties": inner}
    for kind, called in ((bool, "boolean"), (int, "integer"), (str, "string"), (list, "array")):
        if isinstance(default, kind):
            return {"type": called}
    raise TypeError(f"values.yaml: {path}: a default of {type(default).__name__}")
