{{/*
The parts of a pod that belong to Seriatim. Another chart can include them in its own pod, with this
chart's scope (`.Subcharts.seriatim`). examples/own-chart is an example.

  seriatim.initContainers                  the sidecar if it is native, otherwise empty
  seriatim.containers                      the sidecar if it is a plain container, otherwise empty
  seriatim.volumes                         the sidecar's volumes
  seriatim.agentLifecycle                  `lifecycle` of the agent's container
  seriatim.terminationGracePeriodSeconds   the grace period of the pod

All ports are numbers: some versions of Kubernetes don't find a named port in a native sidecar.
*/}}

{{- define "seriatim.initContainers" -}}
{{- if eq (include "seriatim.sidecarMode" .) "native" -}}
- {{ include "seriatim.container" . | nindent 2 | trim }}
  # Makes this a native sidecar: it starts before the agent and ends after it.
  restartPolicy: Always
{{- end }}
{{- end }}

{{- define "seriatim.containers" -}}
{{- if eq (include "seriatim.sidecarMode" .) "container" -}}
- {{ include "seriatim.container" . | nindent 2 | trim }}
{{- end }}
{{- end }}

{{/* Seriatim's container, in both modes. */}}
{{- define "seriatim.container" -}}
name: seriatim
image: {{ include "seriatim.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args: ["run", "--config", "/etc/seriatim/config.toml"]
env:
  # Options that describe the pod. They override config.toml.
  - name: SERIATIM__LISTEN
    value: {{ printf "%s:%d" .Values.sidecar.address (int .Values.sidecar.port) | quote }}
  - name: SERIATIM__UPSTREAM
    {{- if eq .Values.mode "gateway" }}
    value: {{ .Values.upstream | quote }}
    {{- else }}
    value: {{ printf "%s://127.0.0.1:%d" .Values.agent.scheme (int .Values.agent.port) | quote }}
    {{- end }}
  - name: SERIATIM__ADMIN__LISTEN
    value: {{ printf "%s:%d" (ternary .Values.sidecar.address "127.0.0.1" .Values.admin.expose) (int .Values.admin.port) | quote }}
  {{- if .Values.admin.tokenSecret.name }}
  - name: SERIATIM__ADMIN__TOKEN_FILE
    value: /run/secrets/seriatim/admin/token
  {{- end }}
  {{- if .Values.tls.secretName }}
  - name: SERIATIM__TLS__CERT_FILE
    value: /run/secrets/seriatim/tls/tls.crt
  - name: SERIATIM__TLS__KEY_FILE
    value: /run/secrets/seriatim/tls/tls.key
  {{- end }}
  - name: SERIATIM__STORE__URL
    {{- if .Values.store.urlSecret.name }}
    valueFrom:
      secretKeyRef:
        name: {{ .Values.store.urlSecret.name }}
        key: {{ .Values.store.urlSecret.key }}
    {{- else }}
    value: {{ .Values.store.url | quote }}
    {{- end }}
  {{- if .Values.store.passwordSecret.name }}
  - name: SERIATIM__STORE__PASSWORD_FILE
    value: /run/secrets/seriatim/store/password
  {{- end }}
  - name: POD_NAMESPACE
    valueFrom:
      fieldRef:
        fieldPath: metadata.namespace
  - name: POD_NAME
    valueFrom:
      fieldRef:
        fieldPath: metadata.name
  # The same name after a restart of the container: the new process releases the locks of the old one. The
  # namespace is part of it, because pods of other namespaces may have the same name and use the same Redis.
  - name: SERIATIM__STORE__INSTANCE
    value: "$(POD_NAMESPACE).$(POD_NAME)"
  {{- if not (include "seriatim.isMemory" .) }}
  {{- with .Values.store.prefix }}
  - name: SERIATIM__STORE__PREFIX
    value: {{ . | quote }}
  {{- end }}
  - name: SERIATIM__STORE__UNREADY_AFTER
    value: {{ printf "%ds" (int .Values.store.unreadyAfterSeconds) | quote }}
  {{- end }}
  - name: SERIATIM__TIMEOUTS__DRAIN
    value: {{ printf "%ds" (int .Values.shutdown.drainSeconds) | quote }}
  {{- with .Values.sidecar.env }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
ports:
  - name: seriatim
    containerPort: {{ .Values.sidecar.port }}
    protocol: TCP
  {{- if .Values.admin.expose }}
  - name: seriatim-admin
    containerPort: {{ .Values.admin.port }}
    protocol: TCP
  {{- end }}
# Seriatim has 60 s to start. This probe ignores Redis: {{ ternary "a restart doesn't repair it." "otherwise the agent couldn't start without it." (eq .Values.mode "gateway") }}
startupProbe:
  {{- include "seriatim.probe" (list . "live") | nindent 2 }}
  periodSeconds: 1
  failureThreshold: 60
livenessProbe:
  {{- include "seriatim.probe" (list . "live") | nindent 2 }}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
# An outage of Redis makes a ready pod fail this probe after store.unreadyAfterSeconds, and not before.
readinessProbe:
  {{- include "seriatim.probe" (list . "ready") | nindent 2 }}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 2
lifecycle:
  preStop:
    exec:
      # {{ ternary "Drains after the clients have noticed that the pod ends." "Drains while the agent still runs. The SIGTERM of a native sidecar comes too late for this." (eq .Values.mode "gateway") }}
      command: ["/seriatim", "drain", "--after", {{ printf "%ds" (int .Values.shutdown.endpointSeconds) | quote }}]
{{- with .Values.sidecar.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- include "seriatim.securityContext" . | nindent 2 }}
volumeMounts:
  # The folder, not the file: a file that is mounted alone never changes.
  - name: seriatim-config
    mountPath: /etc/seriatim
    readOnly: true
  {{- if .Values.store.passwordSecret.name }}
  - name: seriatim-store
    mountPath: /run/secrets/seriatim/store
    readOnly: true
  {{- end }}
  {{- if .Values.admin.tokenSecret.name }}
  - name: seriatim-admin
    mountPath: /run/secrets/seriatim/admin
    readOnly: true
  {{- end }}
  {{- if .Values.tls.secretName }}
  - name: seriatim-tls
    mountPath: /run/secrets/seriatim/tls
    readOnly: true
  {{- end }}
  {{- with .Values.sidecar.volumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* What the program may do: nothing but run. */}}
{{- define "seriatim.securityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
readOnlyRootFilesystem: true
allowPrivilegeEscalation: false
capabilities:
  drop: ["ALL"]
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* The action of a probe. Arguments: (list scope "live") or (list scope "ready") */}}
{{- define "seriatim.probe" -}}
{{- $what := index . 1 }}
{{- with index . 0 }}
{{- if .Values.admin.expose -}}
httpGet:
  path: {{ ternary "/livez" "/readyz" (eq $what "live") }}
  port: {{ .Values.admin.port }}
{{- else -}}
exec:
  command: ["/seriatim", "health", "--{{ $what }}"]
{{- end }}
{{- end }}
{{- end }}

{{- define "seriatim.volumes" -}}
- name: seriatim-config
  configMap:
    name: {{ include "seriatim.configMapName" . }}
{{- with .Values.store.passwordSecret }}
{{- if .name }}
- name: seriatim-store
  secret:
    secretName: {{ .name }}
    items:
      - key: {{ .key }}
        path: password
{{- end }}
{{- end }}
{{- with .Values.admin.tokenSecret }}
{{- if .name }}
- name: seriatim-admin
  secret:
    secretName: {{ .name }}
    items:
      - key: {{ .key }}
        path: token
{{- end }}
{{- end }}
{{- with .Values.tls.secretName }}
- name: seriatim-tls
  secret:
    secretName: {{ . }}
{{- end }}
{{- end }}
