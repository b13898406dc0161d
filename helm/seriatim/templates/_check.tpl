{{/* Checks that the schema can't express: values that contradict each other. Prints nothing. */}}

{{/* Options of config.toml that the chart sets, each with the value that sets it. */}}
{{- define "seriatim.ownKeys" -}}
listen: sidecar.port
upstream: {{ ternary "the chart's value upstream" "agent.port" (eq .Values.mode "gateway") }}
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

{{/* Values that mean nothing in a gateway, each with its default. Those of `agent` that are not here have an
empty default. */}}
{{- define "seriatim.sidecarOnly" -}}
agent.enabled: true
agent.imagePullPolicy: IfNotPresent
agent.port: 8000
agent.scheme: http
agent.defaultProbe: true
sidecar.mode: auto
shutdown.agentSeconds: 10
shutdown.agentPreStop: auto
selector: {}
{{- end }}

{{/* Values that contradict the mode. */}}
{{- define "seriatim.checkMode" -}}
{{- if eq .Values.mode "gateway" }}
{{- $defaults := include "seriatim.sidecarOnly" . | fromYaml }}
{{- $paths := keys $defaults }}
{{- range keys .Values.agent }}
{{- $paths = append $paths (printf "agent.%s" .) }}
{{- end }}
{{- range $path := sortAlpha $paths }}
{{- $value := $.Values }}
{{- range splitList "." $path }}
{{- $value = get $value . }}
{{- end }}
{{- if not (has (toString $value) (list (get $defaults $path | toString) "" "[]" "map[]")) }}
{{- fail (printf "%s: mode is gateway, whose pods have no agent: remove it, or set it to null if a file of values has it; `upstream` names the Service of the agent" $path) }}
{{- end }}
{{- end }}
{{- if not .Values.upstream }}
{{- fail "upstream: mode is gateway: set the URL of the Service of the agent, for example \"http://agent.chat.svc:8000\"" }}
{{- end }}
{{- if and .Values.networkPolicy.agentSelector (not .Values.networkPolicy.enabled) }}
{{- fail "networkPolicy.agentSelector: there is no NetworkPolicy: set networkPolicy.enabled: true" }}
{{- end }}
{{- else if .Values.upstream }}
{{- fail "upstream: mode is sidecar, and the agent is in the same pod: remove it, and set agent.port; or set mode: gateway" }}
{{- else if .Values.networkPolicy.agentSelector }}
{{- fail "networkPolicy.agentSelector: mode is sidecar, and the agent is in the same pod, which has a NetworkPolicy: remove it; or set mode: gateway" }}
{{- end }}
{{- end }}

{{/* Values of the two autoscalers. */}}
{{- define "seriatim.checkScaling" -}}
{{- $cpu := .Values.autoscaling.targetCPUUtilizationPercentage }}
{{- if .Values.autoscaling.enabled }}
{{- $container := ternary "sidecar" "agent" (eq .Values.mode "gateway") }}
{{- if not .Values.agent.enabled }}
{{- fail "autoscaling: another chart creates the pods (agent.enabled is false): write the HorizontalPodAutoscaler there, or use keda with keda.target" }}
{{- end }}
{{- if and $cpu (not (dig "requests" "cpu" "" (get .Values $container).resources)) }}
{{- fail (printf "autoscaling: targetCPUUtilizationPercentage needs %s.resources.requests.cpu: set it, or set targetCPUUtilizationPercentage: null and metrics" $container) }}
{{- end }}
{{- if not (or $cpu .Values.autoscaling.metrics) }}
{{- fail "autoscaling: there is no metric to scale by: set targetCPUUtilizationPercentage or metrics" }}
{{- end }}
{{- end }}
{{- with .Values.keda }}
{{- if .enabled }}
{{- if not .prometheus }}
{{- fail "keda.prometheus: set the URL of your Prometheus, for example \"http://prometheus-operated.monitoring.svc:9090\"" }}
{{- end }}
{{- if not $.Values.admin.expose }}
{{- fail "keda: Prometheus can't reach the loopback address: set admin.expose: true" }}
{{- end }}
{{- if not (or .heldPerReplica .waitersPerReplica .triggers) }}
{{- fail "keda: there is nothing to scale by: set heldPerReplica, waitersPerReplica or triggers" }}
{{- end }}
{{- if and (not .target.name) (not $.Values.agent.enabled) }}
{{- fail "keda.target: another chart creates the pods (agent.enabled is false): set the kind and the name of its workload" }}
{{- end }}
{{- if and (not .target.name) (ne .target.kind "Deployment") }}
{{- fail "keda.target: set its name, too: this chart has no workload but its Deployment" }}
{{- end }}
{{- if and .target.name (eq $.Values.mode "sidecar") $.Values.agent.enabled }}
{{- fail "keda.target: this chart creates the pods, and KEDA scales its Deployment: remove it" }}
{{- end }}
{{- if and (not .target.name) $.Values.autoscaling.enabled }}
{{- fail "keda and autoscaling: both would scale the same pods: enable one of them, or let keda.target name the Deployment of the agent behind the gateway" }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "seriatim.check" -}}
{{- include "seriatim.checkMode" . }}
{{- if include "seriatim.isMemory" . }}
{{- if or (include "seriatim.isScaled" .) (gt (int .Values.replicaCount) 1) }}
{{- fail "store.url: \"memory:\" protects one replica only: set store.url or store.urlSecret to a Redis, or set replicaCount: 1 without autoscaling and keda" }}
{{- end }}
{{- if .Values.store.passwordSecret.name }}
{{- fail "store.passwordSecret: \"memory:\" takes no password: set store.url to a Redis" }}
{{- end }}
{{- end }}
{{- include "seriatim.checkScaling" . }}
{{- if and (include "seriatim.isMemory" .) .Values.store.prefix }}
{{- fail "store.prefix: \"memory:\" has no keys in Redis: set store.url to a Redis" }}
{{- end }}
{{- if and .Values.store.urlSecret.name (ne .Values.store.url "memory:") }}
{{- fail "store.url and store.urlSecret: set only one of them" }}
{{- end }}
{{- if eq .Values.mode "gateway" }}
{{- if eq (int .Values.sidecar.port) (int .Values.admin.port) }}
{{- fail (printf "sidecar.port: admin.port is %d, too: set another port for one of them" (int .Values.sidecar.port)) }}
{{- end }}
{{- else if has (int .Values.sidecar.port) (list (int .Values.agent.port) (int .Values.admin.port)) }}
{{- fail (printf "sidecar.port: agent.port or admin.port is %d, too: the containers of a pod share its ports" (int .Values.sidecar.port)) }}
{{- else if eq (int .Values.agent.port) (int .Values.admin.port) }}
{{- fail (printf "agent.port: admin.port is %d, too: the containers of a pod share its ports" (int .Values.agent.port)) }}
{{- end }}
{{- if and .Values.serviceMonitor.enabled (not .Values.admin.expose) }}
{{- fail "serviceMonitor: Prometheus can't reach the loopback address: set admin.expose: true" }}
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
