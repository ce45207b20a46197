{{- define "keydb.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "keydb.headless" -}}
{{- include "keydb.fullname" . }}-headless
{{- end -}}

{{- define "keydb.operator" -}}
{{- include "keydb.fullname" . }}-operator
{{- end -}}

{{- define "keydb.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "keydb.labels" -}}
{{ include "keydb.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "keydb.serviceAccount" -}}
{{- default (include "keydb.fullname" .) .Values.serviceAccount.name -}}
{{- end -}}

{{- define "keydb.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ default $.Chart.AppVersion .tag }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The address of the node of this number: dict "root" . "id" 0 */}}
{{- define "keydb.address" -}}
{{- $name := include "keydb.fullname" .root -}}
{{ $name }}-{{ .id }}.{{ include "keydb.headless" .root }}.{{ .root.Release.Namespace }}.svc:50051
{{- end -}}

{{/* The addresses of the first nodes: dict "root" . "count" 3 */}}
{{- define "keydb.addresses" -}}
{{- $list := list -}}
{{- range $id := until (int .count) -}}
{{- $list = append $list (include "keydb.address" (dict "root" $.root "id" $id)) -}}
{{- end -}}
{{- join "," $list -}}
{{- end -}}

{{/* What all pods have in common. */}}
{{- define "keydb.podSpec" -}}
serviceAccountName: {{ include "keydb.serviceAccount" . }}
automountServiceAccountToken: false
# Else each Service whose name begins with keydb sets KEYDB_… variables, which are no settings.
enableServiceLinks: false
securityContext: {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Where the pods of a component run: its values. */}}
{{- define "keydb.scheduling" -}}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* The port of object storage. */}}
{{- define "keydb.storagePort" -}}
{{- $url := urlParse (default "https://s3" .Values.storage.endpoint) -}}
{{- $parts := splitList ":" (get $url "host") -}}
{{- if gt (len $parts) 1 -}}
{{ last $parts }}
{{- else if eq (get $url "scheme") "http" -}}
80
{{- else -}}
443
{{- end -}}
{{- end -}}

{{/* https where there is TLS: as Kubernetes writes it for probes, and in lower case. */}}
{{- define "keydb.scheme" -}}
{{- ternary "HTTPS" "HTTP" (ne "" .Values.security.tlsSecret) -}}
{{- end -}}

{{/* Where containers listen, and what protects that. */}}
{{- define "keydb.securityEnv" -}}
{{- $security := .Values.security -}}
- name: KEYDB_BIND_ADDRESS
  value: "::"
{{- if $security.tlsSecret }}
- name: KEYDB_TLS_CERT_FILE
  value: /etc/keydb/tls/tls.crt
- name: KEYDB_TLS_KEY_FILE
  value: /etc/keydb/tls/tls.key
- name: KEYDB_TLS_CA_FILE
  value: /etc/keydb/tls/ca.crt
{{- if $security.clientCertificates }}
- name: KEYDB_TLS_CLIENT_CA_FILE
  value: /etc/keydb/tls/ca.crt
{{- end }}
{{- end }}
{{- if $security.tokensSecret }}
- name: KEYDB_ACCEPTED_TOKENS_FILE
  value: /etc/keydb/tokens/accepted
- name: KEYDB_TOKEN_FILE
  value: /etc/keydb/tokens/own
{{- end }}
{{- if not $security.tlsSecret }}
# Nothing but the network keeps others out.
- name: KEYDB_INSECURE
  value: "true"
{{- end }}
{{- end -}}

{{- define "keydb.securityMounts" -}}
{{- with .Values.security.tlsSecret }}
- name: tls
  mountPath: /etc/keydb/tls
  readOnly: true
{{- end }}
{{- with .Values.security.tokensSecret }}
- name: tokens
  mountPath: /etc/keydb/tokens
  readOnly: true
{{- end }}
{{- end -}}

{{- define "keydb.securityVolumes" -}}
{{- with .Values.security.tlsSecret }}
- name: tls
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- with .Values.security.tokensSecret }}
- name: tokens
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- end -}}

{{/* The settings that the chart makes of other values. */}}
{{- define "keydb.ownSettings" -}}
KEYDB_NODE_ID KEYDB_INIT KEYDB_NODE_ADDRESSES KEYDB_TOTAL_HASH_RANGES KEYDB_DURABILITY KEYDB_DATA_DIR KEYDB_PORT KEYDB_HTTP_PORT KEYDB_OPERATOR_PORT KEYDB_STORAGE_URL KEYDB_STORAGE_REGION KEYDB_STORAGE_ENDPOINT KEYDB_STORAGE_ACCESSKEYID KEYDB_STORAGE_ACCESSKEY KEYDB_BIND_ADDRESS KEYDB_HTTP_BIND_ADDRESS KEYDB_TLS_CERT_FILE KEYDB_TLS_KEY_FILE KEYDB_TLS_CA_FILE KEYDB_TLS_CLIENT_CA_FILE KEYDB_ACCEPTED_TOKENS_FILE KEYDB_TOKEN_FILE KEYDB_INSECURE
{{- end -}}
