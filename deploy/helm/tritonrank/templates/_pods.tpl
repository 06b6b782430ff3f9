{{/* What every pod has: no rights, no token, user 1000, the kernel's default filter of calls. */}}
{{- define "tritonrank.podSecurity" -}}
serviceAccountName: {{ include "tritonrank.serviceAccount" . }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 1000
  runAsGroup: 1000
  fsGroup: 1000
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "tritonrank.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end -}}

{{/* (dict "root" $ "part" "triton" "values" .Values.triton): where pods go. Spreading is a wish, so that a cluster of
one node or one zone takes them, too. */}}
{{- define "tritonrank.placement" -}}
topologySpreadConstraints:
  {{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - topologyKey: {{ $key }}
    maxSkew: 1
    whenUnsatisfiable: ScheduleAnyway
    nodeTaintsPolicy: Honor
    matchLabelKeys: [pod-template-hash]
    labelSelector:
      matchLabels: {{- include "tritonrank.selector" $ | nindent 8 }}
  {{- end }}
{{- with .values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* (map of names to values): as a container's variables. */}}
{{- define "tritonrank.env" -}}
{{- range $name, $value := . }}
- name: {{ $name }}
  value: {{ $value | toString | quote }}
{{- end }}
{{- end -}}

{{/* The key that changes versions and levels; only where there is one. */}}
{{- define "tritonrank.adminKey" -}}
{{- with .Values.admin.secret }}
- name: TRITONRANK_ADMIN_KEY
  valueFrom: {secretKeyRef: {name: {{ . }}, key: admin-key}}
{{- end }}
{{- end -}}

{{/* How a container reaches the model store. */}}
{{- define "tritonrank.storeFrom" -}}
{{- with .Values.store.secret }}
envFrom:
  - secretRef: {name: {{ . }}}
{{- end }}
{{- end -}}
