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

{{/* Those of them that mean something to pods of another chart (agent.enabled is false). */}}
{{- define "seriatim.anotherChart" -}}
[agent.enabled, agent.port, agent.scheme, agent.lifecycle, sidecar.mode, shutdown.agentSeconds, shutdown.agentPreStop, selector]
{{- end }}

{{/* Values that contradict the mode. */}}
{{- define "seriatim.checkMode" -}}
{{- $isGateway := eq .Values.mode "gateway" }}
{{- if or $isGateway (not .Values.agent.enabled) }}
{{- $defaults := include "seriatim.sidecarOnly" . | fromYaml }}
{{- $used := ternary list (include "seriatim.anotherChart" . | fromYamlArray) $isGateway }}
{{- $why := ternary "mode is gateway, whose pods have no agent: remove it, or set it to null if a file of values has it; `upstream` names the Service of the agent" "another chart creates the pods (agent.enabled is false): remove it, and set it there" $isGateway }}
{{- $paths := keys $defaults }}
{{- range keys .Values.agent }}
{{- $paths = append $paths (printf "agent.%s" .) }}
{{- end }}
{{- range $path := sortAlpha $paths }}
{{- $value := $.Values }}
{{- range splitList "." $path }}
{{- $value = get $value . }}
{{- end }}
{{- if not (or (has $path $used) (has (toJson $value) (list (get $defaults $path | toJson) "null" "\"\"" "[]" "{}"))) }}
{{- fail (printf "%s: %s" $path $why) }}
{{- end }}
{{- end }}
{{- else if .Values.selector }}
{{- fail "selector: this chart creates the pods, and selects them by its own labels: remove it, and use podLabels for more labels; or set agent.enabled: false" }}
{{- end }}
{{- if and $isGateway (not .Values.upstream) }}
{{- fail "upstream: mode is gateway: set the URL of the Service of the agent, for example \"http://agent.chat.svc:8000\"" }}
{{- else if $isGateway }}
{{- else if .Values.upstream }}
{{- fail "upstream: mode is sidecar, and the agent is in the same pod: remove it, and set agent.port; or set mode: gateway" }}
{{- else if .Values.networkPolicy.agentSelector }}
{{- fail "networkPolicy.agentSelector: mode is sidecar, and the agent is in the same pod, which has a NetworkPolicy: remove it; or set mode: gateway" }}
{{- end }}
{{- end }}

{{/* Values of the NetworkPolicies. */}}
{{- define "seriatim.checkNetworkPolicy" -}}
{{- range $key := list "from" "extraIngress" "agentSelector" "egress" }}
{{- if and (get $.Values.networkPolicy $key) (not $.Values.networkPolicy.enabled) }}
{{- fail (printf "networkPolicy.%s: there is no NetworkPolicy: set networkPolicy.enabled: true, or remove it" $key) }}
{{- end }}
{{- end }}
{{- /* The namespace in SERVICE.NAMESPACE, SERVICE.NAMESPACE.svc, and what is longer. */}}
{{- $host := regexReplaceAll "^[a-z0-9]+://|:[0-9]+$" (.Values.upstream | default "") "" }}
{{- $namespace := regexFind "^[^.:]+\\.[^.:]+$|\\.[^.:]+\\.svc(\\.|$)" $host | trimSuffix "." | trimSuffix ".svc" | splitList "." | last }}
{{- if and .Values.networkPolicy.agentSelector $namespace (ne $namespace .Release.Namespace) }}
{{- fail (printf "networkPolicy.agentSelector: upstream is in the namespace %s, and a NetworkPolicy of this release is for pods in %s: remove it, and write a NetworkPolicy there (docs/gateway.md)" $namespace .Release.Namespace) }}
{{- end }}
{{- end }}

{{/* Values of the two autoscalers. */}}
{{- define "seriatim.checkScaling" -}}
{{- $cpu := .Values.autoscaling.targetCPUUtilizationPercentage }}
{{- range $name := list "autoscaling" "keda" }}
{{- with get $.Values $name }}
{{- if and .enabled (gt (int .minReplicas) (int .maxReplicas)) }}
{{- fail (printf "%s.minReplicas: it is %d, and maxReplicas is %d: change one of them" $name (int .minReplicas) (int .maxReplicas)) }}
{{- end }}
{{- end }}
{{- end }}
{{- if .Values.autoscaling.enabled }}
{{- $container := ternary "sidecar" "agent" (eq .Values.mode "gateway") }}
{{- if not (include "seriatim.createsPods" .) }}
{{- fail "autoscaling: another chart creates the pods (agent.enabled is false): write the HorizontalPodAutoscaler there, or use keda with keda.target" }}
{{- end }}
{{- if and $cpu (not (dig "requests" "cpu" "" ((get .Values $container).resources | default dict))) }}
{{- fail (printf "autoscaling: targetCPUUtilizationPercentage needs %s.resources.requests.cpu: set it, or set targetCPUUtilizationPercentage: null and metrics" $container) }}
{{- end }}
{{- if not (or $cpu .Values.autoscaling.metrics) }}
{{- fail "autoscaling: there is no metric to scale by: set targetCPUUtilizationPercentage or metrics" }}
{{- end }}
{{- end }}
{{- with .Values.keda }}
{{- if .enabled }}
{{- $byMetrics := or .heldPerReplica .waitersPerReplica }}
{{- if and $byMetrics (not .prometheus) }}
{{- fail "keda.prometheus: set the URL of your Prometheus, for example \"http://prometheus-operated.monitoring.svc:9090\"; or set heldPerReplica and waitersPerReplica to null, and use triggers" }}
{{- end }}
{{- if and $byMetrics (not $.Values.admin.expose) }}
{{- fail "keda: Prometheus can't reach the loopback address: set admin.expose: true; or set heldPerReplica and waitersPerReplica to null, and use triggers" }}
{{- end }}
{{- if not (or $byMetrics .triggers) }}
{{- fail "keda: there is nothing to scale by: set heldPerReplica, waitersPerReplica or triggers" }}
{{- end }}
{{- if and .prometheus (not $byMetrics) }}
{{- fail "keda.prometheus: no trigger of this chart asks it: remove it, or set heldPerReplica or waitersPerReplica; each of `triggers` has an address of its own" }}
{{- end }}
{{- if and (not .target.name) (not (include "seriatim.createsPods" $)) }}
{{- fail "keda.target: another chart creates the pods (agent.enabled is false): set the kind and the name of its workload" }}
{{- end }}
{{- if and (not .target.name) (ne .target.kind "Deployment") }}
{{- fail "keda.target: set its name, too: this chart has no workload but its Deployment" }}
{{- end }}
{{- if and .target.name (eq $.Values.mode "sidecar") $.Values.agent.enabled }}
{{- fail "keda.target: this chart creates the pods, and KEDA scales its Deployment: remove it" }}
{{- end }}
{{- if and (eq $.Values.mode "gateway") (eq .target.kind "Deployment") (eq (.target.name | default "") (include "seriatim.fullname" $)) }}
{{- fail "keda.target: it names the gateway's own Deployment: remove it, because KEDA scales the gateway without it; or name the Deployment of the agent" }}
{{- end }}
{{- if and (not .target.name) $.Values.autoscaling.enabled }}
{{- fail "keda and autoscaling: both would scale the same pods: enable one of them, or let keda.target name the Deployment of the agent behind the gateway" }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Options of config.toml and variables that other values set. */}}
{{- define "seriatim.checkConfig" -}}
{{- $own := include "seriatim.ownKeys" . | fromYaml }}
{{- $config := dict }}
{{- if not .Values.existingConfigMap }}
{{- $config = fromToml .Values.config }}
{{- with $config.Error }}
{{- fail (printf "config: it is not valid TOML: %v" .) }}
{{- end }}
{{- end }}
{{- range $path, $value := $own }}
{{- $found := $config }}
{{- range $key := splitList "." $path }}
{{- $found = kindIs "map" $found | ternary $found dict }}
{{- $found = index $found $key }}
{{- end }}
{{- if not (kindIs "invalid" $found) }}
{{- fail (printf "config: it sets %s, which the chart sets: remove it, and use %s" $path $value) }}
{{- end }}
{{- range $.Values.sidecar.env }}
{{- /* In any letter case; and a whole table, too: SERIATIM__STORE. */}}
{{- $option := trimPrefix "SERIATIM__" .name | replace "__" "." | lower }}
{{- if and (hasPrefix "SERIATIM__" .name) (or (eq $path $option) (hasPrefix (printf "%s." $option) $path)) }}
{{- fail (printf "sidecar.env: %s sets %s, which the chart sets: remove it, and use %s" .name $path $value) }}
{{- end }}
{{- end }}
{{- end }}
{{- range .Values.sidecar.env }}
{{- if has .name (list "POD_NAME" "POD_NAMESPACE") }}
{{- fail (printf "sidecar.env: the chart sets %s to that of the pod: remove it" .name) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "seriatim.check" -}}
{{- include "seriatim.checkMode" . }}
{{- include "seriatim.checkNetworkPolicy" . }}
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
{{- include "seriatim.checkConfig" . }}
{{- end }}
