{{/*
How a pod ends. All preStop hooks begin at once, a native sidecar's too, and the grace period with them:

  0                 the pod leaves its Services; the agent's hook sleeps, Seriatim's waits
  endpointSeconds   Seriatim's hook tells it to drain: nothing new, running turns go on
  + drainSeconds    what still runs is aborted, Seriatim gives its locks back and ends;
                    the agent's hook is over, and it gets its SIGTERM
  + agentSeconds    the agent has ended. A native sidecar would get its SIGTERM only now
*/}}

{{/* How long the agent's hook keeps it alive, in seconds. */}}
{{- define "seriatim.agentPreStopSeconds" -}}
{{- add .Values.shutdown.endpointSeconds .Values.shutdown.drainSeconds }}
{{- end }}

{{/* terminationGracePeriodSeconds of the pod. */}}
{{- define "seriatim.terminationGracePeriodSeconds" -}}
{{- $s := .Values.shutdown }}
{{- $needed := add $s.endpointSeconds $s.drainSeconds (max $s.agentSeconds $s.releaseSeconds) }}
{{- if kindIs "invalid" .Values.terminationGracePeriodSeconds }}
{{- $needed }}
{{- else if lt (int .Values.terminationGracePeriodSeconds) (int $needed) }}
{{- fail (printf "terminationGracePeriodSeconds: %d is too short, turns would be killed: shutdown takes up to %d s (endpointSeconds %d + drainSeconds %d + the larger of agentSeconds %d and releaseSeconds %d)" (int .Values.terminationGracePeriodSeconds) (int $needed) (int $s.endpointSeconds) (int $s.drainSeconds) (int $s.agentSeconds) (int $s.releaseSeconds)) }}
{{- else }}
{{- .Values.terminationGracePeriodSeconds }}
{{- end }}
{{- end }}

{{/* `lifecycle` of the agent's container; nothing, if it isn't to be kept alive. */}}
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
