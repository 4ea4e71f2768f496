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

{{- /* The files that a component reads, one entry for each volume: where it is mounted, what it is
       made of, and the variables that say so. Takes (dict "root" $ "name" NAME). Of TLS the test
       gets what it needs to trust the others, and no key. */}}
{{- define "ironcart.files" -}}
{{- $values := .root.Values }}
{{- $service := hasKey $values.services .name }}
{{- with $values.caBundle }}{{ if .configMap }}
- name: ca
  path: /etc/ironcart/ca
  source: {configMap: {name: {{ .configMap | quote }}}}
  env: {SSL_CERT_FILE: {{ printf "/etc/ironcart/ca/%s" .key | quote }}}
{{- end }}{{ end }}
{{- if $values.tls.enabled }}
- name: tls
  path: /etc/ironcart/tls
  {{- if eq .name "test" }}
  source:
    secret:
      secretName: {{ include "ironcart.tlsSecret" (dict "root" .root "name" "orders") | quote }}
      items: [{key: ca.crt, path: ca.crt}]
  {{- else }}
  source:
    secret:
      secretName: {{ include "ironcart.tlsSecret" . | quote }}
      defaultMode: 288
  env: {IRONCART_TLS_DIR: /etc/ironcart/tls}
  {{- end }}
{{- end }}
{{- with $values.auth.apiKeys }}{{ if and $service .secretName }}
- name: api-keys
  path: /etc/ironcart/api-keys
  source: {secret: {secretName: {{ .secretName | quote }}, defaultMode: 288}}
  env: {IRONCART_API_KEYS_FILE: {{ printf "/etc/ironcart/api-keys/%s" .key | quote }}}
{{- end }}{{ end }}
{{- if eq .name "audit" }}
{{- with $values.audit.signingKey }}{{ if .secretName }}
- name: signing-key
  path: /etc/ironcart/audit
  source: {secret: {secretName: {{ .secretName | quote }}, defaultMode: 288}}
  env: {IRONCART_AUDIT_SIGNING_KEY_FILE: {{ printf "/etc/ironcart/audit/%s" .key | quote }}}
{{- end }}{{ end }}
{{- with $values.audit.checkpoints }}{{ if .claimName }}
- name: checkpoints
  path: /var/lib/ironcart/checkpoints
  source: {persistentVolumeClaim: {claimName: {{ .claimName | quote }}}}
  writable: true
  env: {IRONCART_AUDIT_CHECKPOINTS: /var/lib/ironcart/checkpoints}
{{- end }}{{ if .headersSecretName }}
- name: checkpoints-headers
  path: /etc/ironcart/checkpoints
  source: {secret: {secretName: {{ .headersSecretName | quote }}, defaultMode: 288}}
  env: {IRONCART_AUDIT_CHECKPOINTS_HEADERS_FILE: /etc/ironcart/checkpoints/headers}
{{- end }}{{ end }}
{{- end }}
{{- end }}

{{- /* Where the certificates of a component are: (dict "root" $ "name" NAME). */}}
{{- define "ironcart.tlsSecret" -}}
{{ printf "%s%s" .root.Values.tls.secretPrefix .name }}
{{- end }}

{{- define "ironcart.scheme" -}}
{{ ternary "https" "http" .Values.tls.enabled }}
{{- end }}

{{- /* What every pod has in common, hooks and tests included: (dict "root" $ "name" NAME). */}}
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
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
volumes:
  - name: tmp
    emptyDir:
      sizeLimit: 64Mi
  {{- range include "ironcart.files" . | fromYamlArray }}
  - name: {{ .name }}
    {{- toYaml .source | nindent 4 }}
  {{- end }}
{{- end }}

{{- /* What every container has in common: (dict "root" $ "name" NAME). */}}
{{- define "ironcart.container" -}}
image: {{ include "ironcart.image" .root | quote }}
imagePullPolicy: IfNotPresent
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
volumeMounts:
  - name: tmp
    mountPath: /tmp
  {{- range include "ironcart.files" . | fromYamlArray }}
  - name: {{ .name }}
    mountPath: {{ .path }}
    readOnly: {{ not .writable }}
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

{{- /* The environment: (dict "root" $ "name" NAME "plain" MAP "secretName" NAME "required" LIST
       "optional" LIST). */}}
{{- define "ironcart.env" -}}
{{- range $name, $value := .plain }}
- name: {{ $name }}
  value: {{ $value | toString | quote }}
{{- end }}
{{- range include "ironcart.files" . | fromYamlArray }}
{{- range $name, $value := .env }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
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
