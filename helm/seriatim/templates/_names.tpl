{{/* Names, labels, the mode, and the features of the cluster. */}}

{{- define "seriatim.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "seriatim.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains (include "seriatim.name" .) .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "seriatim.name" .) | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "seriatim.configMapName" -}}
{{- .Values.existingConfigMap | default (printf "%s-config" (include "seriatim.fullname" .)) }}
{{- end }}

{{/* "true" if the pods with Seriatim are this chart's, and not those of another one. */}}
{{- define "seriatim.createsPods" -}}
{{- if or (eq .Values.mode "gateway") .Values.agent.enabled }}true{{ end }}
{{- end }}

{{/* The account of the pods. `helm test` uses it, too: without pods of this chart, there is no account of it. */}}
{{- define "seriatim.serviceAccountName" -}}
{{- if and .Values.serviceAccount.create (not (include "seriatim.createsPods" .)) }}
{{- "default" }}
{{- else }}
{{- .Values.serviceAccount.name | default (ternary (include "seriatim.fullname" .) "default" .Values.serviceAccount.create) }}
{{- end }}
{{- end }}

{{- define "seriatim.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) }}
{{- end }}
{{- end }}

{{- define "seriatim.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/name: {{ include "seriatim.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/component: {{ ternary "gateway" "agent" (eq .Values.mode "gateway") }}
{{- end }}

{{/* The labels that select the pods. */}}
{{- define "seriatim.selectorLabels" -}}
{{- if include "seriatim.createsPods" . -}}
app.kubernetes.io/name: {{ include "seriatim.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- else -}}
{{- with .Values.selector }}
{{- toYaml . }}
{{- else }}
{{- required "selector: another chart creates the pods (agent.enabled is false): set their labels" "" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "seriatim.kubeVersion" -}}
{{- .Values.kubeVersion | default .Capabilities.KubeVersion.Version }}
{{- end }}

{{/* "native" or "container". In a gateway's pods, Seriatim is the only container. */}}
{{- define "seriatim.sidecarMode" -}}
{{- ternary "container" "native" (or (eq .Values.mode "gateway") (eq .Values.sidecar.mode "container")) }}
{{- end }}

{{/* "true" if the locks are in the memory of the pod. Then only one pod may run. */}}
{{- define "seriatim.isMemory" -}}
{{- if and (eq .Values.store.url "memory:") (not .Values.store.urlSecret.name) }}true{{ end }}
{{- end }}

{{/* "true" if something scales the pods with Seriatim. Then the Deployment has no number of replicas. */}}
{{- define "seriatim.isScaled" -}}
{{- if or .Values.autoscaling.enabled (and .Values.keda.enabled (or (eq .Values.mode "sidecar") (not .Values.keda.target.name))) }}true{{ end }}
{{- end }}

{{/* The labels of `helm test`. Not those of the pods: no Service may find the test's pod. */}}
{{- define "seriatim.testLabels" -}}
app.kubernetes.io/name: {{ printf "%s-test" (include "seriatim.name" . | trunc 58) }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}
