{{- define "tritonrank.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* At most 40 characters: the longest ending of ours has 18, and names of Services may have 63. */}}
{{- define "tritonrank.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "tritonrank.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "tritonrank.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "tritonrank.serviceAccount" -}}
{{- default (ternary (include "tritonrank.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end -}}

{{/* Of one part: (dict "root" $ "part" "triton"). What pods are found by; it never changes over an upgrade. */}}
{{- define "tritonrank.selector" -}}
app.kubernetes.io/name: {{ include "tritonrank.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end -}}

{{/* Of pods: nothing that another version of the chart would change, as that would restart them. */}}
{{- define "tritonrank.podLabels" -}}
{{ include "tritonrank.selector" . }}
app.kubernetes.io/part-of: tritonrank
{{- with .root.Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "tritonrank.labels" -}}
{{ include "tritonrank.selector" . }}
app.kubernetes.io/part-of: tritonrank
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- with .root.Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* (dict "root" $ "name" "server"): repository@digest, or repository:tag. */}}
{{- define "tritonrank.image" -}}
{{- $image := index .root.Values.images .name -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository $image.tag -}}
{{- end -}}
{{- end -}}
