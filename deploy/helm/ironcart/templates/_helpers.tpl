{{- define "ironcart.fullname" -}}
{{ .Values.fullnameOverride | default .Release.Name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- /* The services as the code declares them, by name. */}}
{{- define "ironcart.services" -}}
{{ (.Files.Get "files/facts.yaml" | fromYaml).services | toYaml }}
{{- end }}

{{- /* What this installation says of one service: the defaults, and its own values over them.
       Takes (dict "root" $ "name" NAME). */}}
{{- define "ironcart.own" -}}
{{ mergeOverwrite (deepCopy .root.Values.defaults) (deepCopy (index .root.Values.services .name)) | toYaml }}
{{- end }}

{{- /* Labels that every pod of a release shares. */}}
{{- define "ironcart.selector" -}}
app.kubernetes.io/name: "ironcart"
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- /* All labels of one component: (dict "root" $ "name" NAME). */}}
{{- define "ironcart.labels" -}}
{{ include "ironcart.selector" .root }}
app.kubernetes.io/component: {{ .name | quote }}
app.kubernetes.io/part-of: "ironcart"
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | quote }}
{{- end }}

{{- define "ironcart.image" -}}
{{- $image := .Values.image }}
{{- if $image.digest -}}
{{ printf "%s@%s" $image.repository $image.digest }}
{{- else -}}
{{ printf "%s:%s" $image.repository ($image.tag | default .Chart.AppVersion) }}
{{- end }}
{{- end }}

{{- /* What every pod has in common, hooks and tests included. */}}
{{- define "ironcart.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
volumes:
  - name: tmp
    emptyDir:
      sizeLimit: 64Mi
  {{- with .Values.caBundle.configMap }}
  - name: ca
    configMap:
      name: {{ . | quote }}
  {{- end }}
{{- end }}

{{- /* What every container has in common. */}}
{{- define "ironcart.container" -}}
image: {{ include "ironcart.image" . | quote }}
imagePullPolicy: IfNotPresent
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
volumeMounts:
  - name: tmp
    mountPath: /tmp
  {{- if .Values.caBundle.configMap }}
  - name: ca
    mountPath: /etc/ironcart/ca
    readOnly: true
  {{- end }}
{{- end }}

{{- /* One page of each node: the answer of whichever is up counts. */}}
{{- define "ironcart.monitorUrls" -}}
{{- $urls := list }}
{{- range .Values.nats.pods }}
{{- $urls = append $urls (printf "http://%s.%s:%v" . $.Values.nats.headless $.Values.nats.monitorPort) }}
{{- end }}
{{- join "," $urls }}
{{- end }}

{{- /* The environment: (dict "root" $ "plain" MAP "secretName" NAME "required" LIST "optional" LIST). */}}
{{- define "ironcart.env" -}}
{{- range $name, $value := .plain }}
- name: {{ $name }}
  value: {{ $value | toString | quote }}
{{- end }}
{{- if .root.Values.caBundle.configMap }}
- name: SSL_CERT_FILE
  value: {{ printf "/etc/ironcart/ca/%s" .root.Values.caBundle.key | quote }}
{{- end }}
{{- range .required }}
- name: {{ . }}
  valueFrom:
    secretKeyRef:
      name: {{ $.secretName | quote }}
      key: {{ . }}
{{- end }}
{{- range .optional }}
- name: {{ . }}
  valueFrom:
    secretKeyRef:
      name: {{ $.secretName | quote }}
      key: {{ . }}
      optional: true
{{- end }}
{{- end }}

{{- /* Names of the services that somebody outside may call. */}}
{{- define "ironcart.exposed" -}}
{{- $names := list }}
{{- if or .Values.ingress.enabled .Values.httpRoute.enabled }}
{{- range .Values.routes }}
{{- $names = append $names .service }}
{{- end }}
{{- end }}
{{- $names | uniq | toJson }}
{{- end }}
