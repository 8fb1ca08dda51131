{{- define "standalone.selector" -}}
app.kubernetes.io/name: outbox-relay
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "standalone.metadata" -}}
name: {{ printf "%s-outbox-relay" .Release.Name | trunc 63 | trimSuffix "-" }}
labels:
  {{- include "standalone.selector" . | nindent 2 }}
  app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
  app.kubernetes.io/managed-by: {{ .Release.Service }}
  helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}
