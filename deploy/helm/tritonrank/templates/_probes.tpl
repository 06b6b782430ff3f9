{{/* The HEALTHCHECK of the image: the file is there, and /v2/health/ready says 200. */}}
{{- define "tritonrank.readyCommand" -}}
- python3
- -I
- -S
- -c
- open('/tmp/tritonrank-ready').close(); from http.client import HTTPConnection as C; c = C('127.0.0.1', 8000, timeout=4); c.request('GET', '/v2/health/ready'); raise SystemExit(c.getresponse().status != 200)
{{- end -}}

{{- define "tritonrank.aliveCommand" -}}
- python3
- -I
- -S
- -c
- from http.client import HTTPConnection as C; c = C('127.0.0.1', 8000, timeout=9); c.request('GET', '/v2/health/live'); raise SystemExit(c.getresponse().status != 200)
{{- end -}}

{{/* A part's PodDisruptionBudget. Pods that are not ready anyway do not hold a node back. */}}
{{- define "tritonrank.disruption" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "tritonrank.fullname" .root }}-{{ .part }}
  labels: {{- include "tritonrank.labels" . | nindent 4 }}
spec:
  maxUnavailable: {{ .root.Values.disruption.maxUnavailable }}
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels: {{- include "tritonrank.selector" . | nindent 6 }}
{{- end -}}

{{/* How an autoscaler moves: up at once, by doubling at most; down slowly, one at a time. */}}
{{- define "tritonrank.behavior" -}}
scaleUp:
  stabilizationWindowSeconds: 0
  policies:
    - {type: Percent, value: 100, periodSeconds: 60}
    - {type: Pods, value: 2, periodSeconds: 60}
scaleDown:
  stabilizationWindowSeconds: {{ .scaleDownStabilizationSeconds }}
  policies:
    - {type: Pods, value: 1, periodSeconds: 120}
{{- end -}}
