{{/* Checks that the schema can't express: values that contradict each other. Prints nothing. */}}

{{/* Options of config.toml that the chart sets, each with the value that sets it. */}}
{{- define "seriatim.ownKeys" -}}
listen: sidecar.port
upstream: agent.port
tls.cert_file: tls.secretName
tls.key_file: tls.secretName
store.url: store.url
store.password_file: store.passwordSecret
store.instance: no value, because it is the pod's namespace and name
store.prefix: store.prefix
store.unready_after: store.unreadyAfterSeconds
admin.listen: admin.port and admin.expose
admin.token_file: admin.tokenSecret
timeouts.drain: shutdown.drainSeconds
{{- end }}

{{- define "seriatim.check" -}}
{{- if include "seriatim.isMemory" . }}
{{- if or .Values.autoscaling.enabled (gt (int .Values.replicaCount) 1) }}
{{- fail "store.url: \"memory:\" protects one replica only: set store.url or store.urlSecret to a Redis, or set replicaCount: 1 without autoscaling" }}
{{- end }}
{{- if .Values.store.passwordSecret.name }}
{{- fail "store.passwordSecret: \"memory:\" takes no password: set store.url to a Redis" }}
{{- end }}
{{- end }}
{{- if and (include "seriatim.isMemory" .) .Values.store.prefix }}
{{- fail "store.prefix: \"memory:\" has no keys in Redis: set store.url to a Redis" }}
{{- end }}
{{- if and .Values.store.urlSecret.name (ne .Values.store.url "memory:") }}
{{- fail "store.url and store.urlSecret: set only one of them" }}
{{- end }}
{{- if has (int .Values.sidecar.port) (list (int .Values.agent.port) (int .Values.admin.port)) }}
{{- fail (printf "sidecar.port: agent.port or admin.port is %d, too: the containers of a pod share its ports" (int .Values.sidecar.port)) }}
{{- end }}
{{- if eq (int .Values.agent.port) (int .Values.admin.port) }}
{{- fail (printf "agent.port: admin.port is %d, too: the containers of a pod share its ports" (int .Values.agent.port)) }}
{{- end }}
{{- if and .Values.serviceMonitor.enabled (not .Values.admin.expose) }}
{{- fail "serviceMonitor: Prometheus can't reach the loopback address: set admin.expose: true" }}
{{- end }}
{{- if and .Values.agent.enabled .Values.autoscaling.enabled .Values.autoscaling.targetCPUUtilizationPercentage (not (dig "requests" "cpu" "" .Values.agent.resources)) }}
{{- fail "autoscaling: targetCPUUtilizationPercentage needs agent.resources.requests.cpu: set it, or set targetCPUUtilizationPercentage: null and metrics" }}
{{- end }}
{{- if and .Values.autoscaling.enabled (not .Values.autoscaling.targetCPUUtilizationPercentage) (not .Values.autoscaling.metrics) }}
{{- fail "autoscaling: there is no metric to scale by: set targetCPUUtilizationPercentage or metrics" }}
{{- end }}
{{- if and (eq .Values.sidecar.mode "native") (semverCompare "<1.28-0" (include "seriatim.kubeVersion" .)) }}
{{- fail "sidecar.mode: this cluster doesn't support native sidecars: set auto or container" }}
{{- end }}
{{- if and (eq .Values.shutdown.agentPreStop "sleep") (semverCompare "<1.30-0" (include "seriatim.kubeVersion" .)) }}
{{- fail "shutdown.agentPreStop: this cluster doesn't support the sleep action: set auto, exec or none" }}
{{- end }}
{{- $own := include "seriatim.ownKeys" . | fromYaml }}
{{- $table := "" }}
{{- range splitList "\n" (ternary "" .Values.config (ne .Values.existingConfigMap "")) }}
{{- $line := trim . }}
{{- if hasPrefix "[" $line }}
{{- $table = regexReplaceAll "^\\[+\\s*([^\\]\\s]*)\\s*\\].*$" $line "${1}." }}
{{- else }}
{{- $key := regexFind "^[A-Za-z0-9_.-]+\\s*=" $line | trimSuffix "=" | trim }}
{{- $path := printf "%s%s" $table $key }}
{{- if and $key (hasKey $own $path) }}
{{- fail (printf "config: it sets %s, which the chart sets: remove this line, and use %s" $path (get $own $path)) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
