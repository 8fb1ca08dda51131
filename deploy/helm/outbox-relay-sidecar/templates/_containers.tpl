{{/*
The values of the alias are the argument of each template.
*/}}

{{/* A native sidecar, an item of `initContainers`: starts before the application, is stopped behind it. */}}
{{- define "outbox-relay.sidecar" -}}
{{- include "outbox-relay.head" . }}
  restartPolicy: Always
{{- include "outbox-relay.rest" . }}
{{- end }}

{{/* A plain container, an item of `containers`. */}}
{{- define "outbox-relay.container" -}}
{{- include "outbox-relay.head" . }}
{{- include "outbox-relay.rest" . }}
{{- end }}

{{/* The only container of a pod. Beside an application there is no readiness probe: the relay's readiness would be the
pod's, and an outage of the broker would take the application out of its Service. */}}
{{- define "outbox-relay.standalone" -}}
{{- include "outbox-relay.container" . }}
  readinessProbe:
    httpGet: { path: /readyz, port: relay-admin }
    periodSeconds: 5
    timeoutSeconds: 3
{{- end }}

{{/* One command instead of `run`, which ends: `check`, `migrate`. */}}
{{- define "outbox-relay.command" -}}
{{- include "outbox-relay.head" .values }}
  args: [{{ .command }}]
{{- include "outbox-relay.settings" .values }}
{{- end }}

{{/* An item of `volumes`. */}}
{{- define "outbox-relay.volume" -}}
- name: outbox-relay
  secret:
    secretName: {{ .secret.name }}
    items:
      - { key: {{ .secret.databaseUrlKey }}, path: database-url }
      - { key: {{ .secret.amqpUrlKey }}, path: amqp-url }
{{- end }}

{{- define "outbox-relay.head" -}}
- name: outbox-relay
  image: {{ printf "%s:%s" .image.repository .image.tag | quote }}
  imagePullPolicy: {{ .image.pullPolicy }}
{{- end }}

{{- define "outbox-relay.rest" }}
  ports:
    - { name: relay-admin, containerPort: 9464 }
  # Needs neither database nor broker.
  startupProbe:
    httpGet: { path: /startupz, port: relay-admin }
    periodSeconds: 1
    failureThreshold: 30
  # Fails only when the relay itself is stuck; restarting does not mend an outage.
  livenessProbe:
    httpGet: { path: /livez, port: relay-admin }
    periodSeconds: 10
    timeoutSeconds: 3
    failureThreshold: 3
{{- include "outbox-relay.settings" . }}
{{- end }}

{{- define "outbox-relay.settings" }}
  env:
    - { name: RELAY_DATABASE_URL_FILE, value: /etc/outbox-relay/database-url }
    - { name: RELAY_AMQP_URL_FILE, value: /etc/outbox-relay/amqp-url }
    {{- if .drain }}
    - { name: RELAY_SHUTDOWN_DRAIN, value: "true" }
    {{- if not (hasKey .env "RELAY_SHUTDOWN_GRACE") }}
    - { name: RELAY_SHUTDOWN_GRACE, value: {{ .drainGrace }} }
    {{- end }}
    {{- end }}
    {{- range $name, $value := .env }}
    - { name: {{ $name }}, value: {{ $value | quote }} }
    {{- end }}
  resources:
    {{- toYaml .resources | nindent 4 }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    allowPrivilegeEscalation: false
    readOnlyRootFilesystem: true
    capabilities: { drop: [ALL] }
    seccompProfile: { type: RuntimeDefault }
  volumeMounts:
    - { name: outbox-relay, mountPath: /etc/outbox-relay, readOnly: true }
{{- end }}
