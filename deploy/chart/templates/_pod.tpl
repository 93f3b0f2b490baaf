{{- define "mexma.probe" -}}
httpGet:
  path: {{ .path }}
  port: http
  scheme: {{ ternary "HTTPS" "HTTP" (ne .root.Values.tlsSecret "") }}
{{- end }}

{{- /* The pod of both modes. */ -}}
{{- define "mexma.pod" -}}
metadata:
  labels: {{- include "mexma.labels" . | nindent 4 }}
  {{- with .Values.podAnnotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ add .Values.drain.delaySeconds .Values.drain.graceSeconds }}
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 10001
    runAsGroup: 10001
    fsGroup: 10001
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile:
      type: RuntimeDefault
  containers:
    - name: mexma
      image: {{ include "mexma.image" . }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities:
          drop: ["ALL"]
      ports:
        - name: http
          containerPort: 8080
      env:
        - name: MEXMA_LOG_FORMAT
          value: json
        - name: MEXMA_DRAIN_DELAY_S
          value: {{ .Values.drain.delaySeconds | toString | quote }}
        {{- if and (eq .Values.mode "replicas") (not .Values.milvus.uri) }}
        - name: MEXMA_COLLECTIONS
          value: "false"
        {{- end }}
        {{- with .Values.milvus.uri }}
        - name: MEXMA_MILVUS_URI
          value: {{ . | quote }}
        {{- end }}
        {{- with .Values.milvus.tokenSecret }}
        - name: MEXMA_MILVUS_TOKEN
          valueFrom:
            secretKeyRef:
              name: {{ . }}
              key: token
        {{- end }}
        {{- with .Values.apiKeysSecret }}
        - name: MEXMA_API_KEYS_FILE
          value: /run/mexma/keys/keys.json
        {{- end }}
        {{- if .Values.models.existingClaim }}
        - name: MEXMA_MODELS_DIR
          value: /models
        {{- end }}
        {{- with .Values.tracing.endpoint }}
        - name: MEXMA_OTLP_ENDPOINT
          value: {{ . | quote }}
        {{- end }}
        {{- with .Values.tlsSecret }}
        - name: MEXMA_TLS_CERT
          value: /run/mexma/tls/tls.crt
        - name: MEXMA_TLS_KEY
          value: /run/mexma/tls/tls.key
        {{- end }}
        {{- range $name, $value := .Values.settings }}
        - name: {{ $name }}
          value: {{ $value | toString | quote }}
        {{- end }}
      startupProbe: # the first start fills the demo; up to ten minutes on a slow machine
        {{- include "mexma.probe" (dict "root" . "path" "/health/live") | nindent 8 }}
        periodSeconds: 2
        failureThreshold: 300
      readinessProbe:
        {{- include "mexma.probe" (dict "root" . "path" "/health/ready") | nindent 8 }}
        periodSeconds: 5
        timeoutSeconds: 6 # the probe's own test sentence has 5 s
        failureThreshold: 2
      livenessProbe:
        {{- include "mexma.probe" (dict "root" . "path" "/health/live") | nindent 8 }}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      {{- $resources := deepCopy .Values.resources }}
      {{- if .Values.gpu.enabled }}
      {{- $limits := merge (dict "nvidia.com/gpu" .Values.gpu.count) ($resources.limits | default dict) }}
      {{- $_ := set $resources "limits" $limits }}
      {{- end }}
      resources: {{- toYaml $resources | nindent 8 }}
      volumeMounts:
        - name: data
          mountPath: /data
        - name: tmp
          mountPath: /tmp
        {{- if .Values.models.existingClaim }}
        - name: models
          mountPath: /models
          readOnly: true
        {{- end }}
        {{- if .Values.apiKeysSecret }}
        - name: keys
          mountPath: /run/mexma/keys
          readOnly: true
        {{- end }}
        {{- if .Values.tlsSecret }}
        - name: tls
          mountPath: /run/mexma/tls
          readOnly: true
        {{- end }}
  volumes:
    - name: tmp # the language detector unpacks its model there, 65 MiB, at start
      emptyDir:
        sizeLimit: 256Mi
    {{- with .Values.models.existingClaim }}
    - name: models
      persistentVolumeClaim:
        claimName: {{ . }}
        readOnly: true
    {{- end }}
    {{- with .Values.apiKeysSecret }}
    - name: keys
      secret:
        secretName: {{ . }}
        defaultMode: 0440
    {{- end }}
    {{- with .Values.tlsSecret }}
    - name: tls
      secret:
        secretName: {{ . }}
        defaultMode: 0440
    {{- end }}
    {{- if eq .Values.mode "replicas" }}
    - name: data
      emptyDir:
        sizeLimit: 1Gi
    {{- else if .Values.persistence.existingClaim }}
    - name: data
      persistentVolumeClaim:
        claimName: {{ .Values.persistence.existingClaim }}
    {{- end }}
  {{- $selector := merge (dict) .Values.nodeSelector (ternary .Values.gpu.nodeSelector (dict) .Values.gpu.enabled) }}
  {{- with $selector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- $tolerations := concat .Values.tolerations (ternary .Values.gpu.tolerations (list) .Values.gpu.enabled) }}
  {{- with $tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.topologySpreadConstraints }}
  topologySpreadConstraints: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
