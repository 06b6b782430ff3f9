{{/* What a schema cannot say: values that only make sense together. Each message ends with what to set. */}}
{{- define "tritonrank.checks" -}}
{{- $model := .Values.model -}}
{{- $ways := 0 -}}
{{- range list $model.url $model.claim $model.inImage -}}{{- if . -}}{{- $ways = add1 $ways -}}{{- end -}}{{- end -}}
{{- if ne (int $ways) 1 -}}
{{- fail "model: say where the model is, in one way: --set model.url=s3://BUCKET/models@latest, or model.claim=NAME, or model.inImage=true" -}}
{{- end -}}
{{- if and (not .Values.gateway.keys.secret) (not .Values.gateway.keys.open) -}}
{{- fail "gateway.keys.secret: callers need keys. Make them (docs/gateway.md) and: --set gateway.keys.secret=NAME; or let everybody call who reaches it: --set gateway.keys.open=true" -}}
{{- end -}}
{{- if and .Values.gateway.recommend (not (include "tritonrank.hasFolder" .)) -}}
{{- fail "gateway.recommend: catalogue and blend are files of the artifact: set model.url or model.claim" -}}
{{- end -}}
{{- if and .Values.gateway.tls.clientCa (not .Values.gateway.tls.secret) -}}
{{- fail "gateway.tls.clientCa: callers show certificates over TLS only: set gateway.tls.secret, too" -}}
{{- end -}}
{{- if ne (empty .Values.tritonTls.server) (empty .Values.tritonTls.client) -}}
{{- fail "tritonTls: set both, server and client (each a Secret with tls.crt, tls.key and ca.crt), or neither" -}}
{{- end -}}
{{- if and .Values.valkey.enabled (not .Values.valkey.secret) -}}
{{- fail "valkey.secret: name the Secret with its password (key `password`): --set valkey.secret=NAME" -}}
{{- end -}}
{{- if and .Values.valkey.enabled .Values.gateway.storeUrl -}}
{{- fail "gateway.storeUrl: leave it empty with valkey.enabled, or set valkey.enabled=false" -}}
{{- end -}}
{{- if and .Values.gateway.eventsLogClaim (not (or .Values.valkey.enabled .Values.gateway.storeUrl)) -}}
{{- fail "gateway.eventsLogClaim: events come to the log through a store: set valkey.enabled=true, or gateway.storeUrl" -}}
{{- end -}}
{{- $scaling := .Values.triton.autoscaling -}}
{{- if and (ne $scaling.kind "none") $scaling.wishedReplicas (not (has (dig "adapt" "off" .Values.gateway.settings) (list "advise" "act"))) -}}
{{- fail "triton.autoscaling.wishedReplicas: the gateways forecast only with gateway.settings.adapt: advise (or act); set that, or wishedReplicas=false" -}}
{{- end -}}
{{- if gt (int $scaling.minReplicas) (int $scaling.maxReplicas) -}}
{{- fail "triton.autoscaling.minReplicas: more than maxReplicas" -}}
{{- end -}}
{{- if and .Values.rollout.enabled (not (and .Values.admin.secret .Values.model.url)) -}}
{{- fail "rollout.enabled: versions come from a store, with the admin key: set admin.secret and model.url" -}}
{{- end -}}
{{- if .Values.nightly.enabled -}}
{{- range $key := list "claim" "name" "pushUrl" "signingSecret" -}}
{{- if not (index $.Values.nightly $key) -}}{{- fail (printf "nightly.%s: the nightly build needs it (docs/helm.md)" $key) -}}{{- end -}}
{{- end -}}
{{- if not .Values.rollout.enabled -}}
{{- fail "nightly.enabled: nobody would judge what is built: set rollout.enabled=true" -}}
{{- end -}}
{{- if eq (empty .Values.nightly.recipe) (empty .Values.nightly.recipePath) -}}
{{- fail "nightly.recipe: give the recipe (--set-file nightly.recipe=shop.yaml), or nightly.recipePath, one of them" -}}
{{- end -}}
{{- end -}}
{{- end -}}
