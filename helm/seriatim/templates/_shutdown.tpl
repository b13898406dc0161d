{{/*
How a pod ends. All preStop hooks and the grace period start at the same time, also for a native sidecar:

  0                 the pod leaves its Services; the agent's hook sleeps, Seriatim's hook waits
  endpointSeconds   Seriatim's hook starts the drain: no new turns, running turns go on
  + drainSeconds    Seriatim aborts the turns that still run, releases its locks and exits;
                    the agent's hook has ended, and the agent gets its SIGTERM
  + agentSeconds    the agent has ended. Without the hook, a native sidecar would get its SIGTERM only now

A gateway's pod has no agent. It ends with its last turn.
*/}}

{{/* The seconds for which the agent's hook keeps the agent alive. */}}
{{- define "seriatim.agentPreStopSeconds" -}}
{{- add .Values.shutdown.endpointSeconds .Values.shutdown.drainSeconds }}
{{- end }}

{{/* The pod's terminationGracePeriodSeconds. */}}
{{- define "seriatim.terminationGracePeriodSeconds" -}}
{{- $s := .Values.shutdown }}
{{- $isGateway := eq .Values.mode "gateway" }}
{{- $after := ternary $s.releaseSeconds (max $s.agentSeconds $s.releaseSeconds) $isGateway }}
{{- $needed := add $s.endpointSeconds $s.drainSeconds $after }}
{{- if kindIs "invalid" .Values.terminationGracePeriodSeconds }}
{{- $needed }}
{{- else if lt (int .Values.terminationGracePeriodSeconds) (int $needed) }}
{{- fail (printf "terminationGracePeriodSeconds: %d is too short, turns would be killed: shutdown takes up to %d s (endpointSeconds %d + drainSeconds %d + %s %d)" (int .Values.terminationGracePeriodSeconds) (int $needed) (int $s.endpointSeconds) (int $s.drainSeconds) (ternary "releaseSeconds" "the larger of agentSeconds and releaseSeconds," $isGateway) (int $after)) }}
{{- else }}
{{- .Values.terminationGracePeriodSeconds }}
{{- end }}
{{- end }}

{{/* `lifecycle` of the agent's container. Empty if no hook keeps the agent alive. */}}
{{- define "seriatim.agentLifecycle" -}}
{{- $seconds := include "seriatim.agentPreStopSeconds" . | int }}
{{- $how := .Values.shutdown.agentPreStop }}
{{- if eq $how "auto" }}
{{- $how = ternary "sleep" "exec" (semverCompare ">=1.30-0" (include "seriatim.kubeVersion" .)) }}
{{- end }}
{{- if .Values.agent.lifecycle }}
{{- toYaml .Values.agent.lifecycle }}
{{- else if le $seconds 0 }}
{{- else if eq $how "sleep" -}}
preStop:
  sleep:
    seconds: {{ $seconds }}
{{- else if eq $how "exec" -}}
preStop:
  exec:
    command: ["sleep", {{ $seconds | quote }}]
{{- end }}
{{- end }}

{{/*
How pods are removed when there is less load: one at a time, each after the one before has drained, and only
after five quiet minutes. A removed pod rejects its waiting turns, and its running turns have drainSeconds.
Argument: (list scope behavior)
*/}}
{{- define "seriatim.scalingBehavior" -}}
{{- $s := (index . 0).Values.shutdown }}
{{- with index . 1 }}
{{- toYaml . }}
{{- else -}}
scaleDown:
  stabilizationWindowSeconds: 300
  policies:
    - type: Pods
      value: 1
      # At least the time in which a pod drains. Kubernetes allows up to 1800 s.
      periodSeconds: {{ min 1800 (max 60 (add $s.endpointSeconds $s.drainSeconds)) }}
{{- end }}
{{- end }}
