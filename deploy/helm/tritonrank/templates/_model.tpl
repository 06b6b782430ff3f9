{{/* Where the model lies in a pod: an artifact's folder, or in the server's image a repository. */}}
{{- define "tritonrank.modelFolder" -}}
{{- if .Values.model.url -}}/models/live
{{- else if .Values.model.claim -}}{{ printf "/models/%s" (trimAll "/" .Values.model.claimPath) | trimSuffix "/" }}
{{- else -}}/models
{{- end -}}
{{- end -}}

{{/* Whether pods other than Triton's have the model. */}}
{{- define "tritonrank.hasFolder" -}}
{{- if or .Values.model.url .Values.model.claim }}yes{{ end -}}
{{- end -}}

{{/* Before the programs start: fetch, resume, compare every file with its hash. The gateway's image has what that
takes. On a claim that outlives pods, what is there already is kept where the store does not answer. */}}
{{- define "tritonrank.pull" -}}
{{- if .Values.model.url }}
initContainers:
  - name: model
    image: {{ include "tritonrank.image" (dict "root" . "name" "gateway") }}
    imagePullPolicy: {{ .Values.images.gateway.pullPolicy }}
    args:
      - tritonrank
      - pull
      - {{ .Values.model.url | quote }}
      - {{ include "tritonrank.modelFolder" . }}
      {{- if .Values.model.cacheClaim }}
      - --or-keep
      {{- end }}
    {{- include "tritonrank.containerSecurity" . | nindent 4 }}
    env:
      - {name: HOME, value: /tmp}
      {{- include "tritonrank.storeEnv" . | nindent 6 }}
    {{- include "tritonrank.storeFrom" . | nindent 4 }}
    resources:
      requests: {cpu: 250m, memory: 512Mi}
      limits: {memory: 512Mi}
    volumeMounts:
      - {name: models, mountPath: /models}
      - {name: tmp, mountPath: /tmp}
      {{- if .Values.store.trustedKeys }}
      - {name: trusted, mountPath: /etc/tritonrank/trusted, readOnly: true}
      {{- end }}
{{- end }}
{{- end -}}

{{- define "tritonrank.storeEnv" -}}
{{- if .Values.store.trustedKeys }}
- {name: TRITONRANK_TRUSTED_KEYS, value: /etc/tritonrank/trusted}
{{- end }}
{{- include "tritonrank.env" .Values.store.env }}
{{- end -}}

{{- define "tritonrank.modelVolumes" -}}
{{- if .Values.model.url }}
- name: models
  {{- if .Values.model.cacheClaim }}
  persistentVolumeClaim: {claimName: {{ .Values.model.cacheClaim }}}
  {{- else }}
  emptyDir: {sizeLimit: {{ .Values.model.size }}}
  {{- end }}
{{- with .Values.store.trustedKeys }}
- name: trusted
  configMap: {name: {{ . }}}
{{- end }}
{{- else if .Values.model.claim }}
- name: models
  persistentVolumeClaim: {claimName: {{ .Values.model.claim }}, readOnly: true}
{{- end }}
{{- end -}}

{{- define "tritonrank.modelMount" -}}
{{- if include "tritonrank.hasFolder" . }}
- {name: models, mountPath: /models, readOnly: true}
{{- end }}
{{- end -}}
