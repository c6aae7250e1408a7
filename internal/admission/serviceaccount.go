package admission

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/storage/names"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	defaultServiceAccount = "default"
	// tokenMountPath is where every client library looks for its credentials.
	tokenMountPath    = "/var/run/secrets/kubernetes.io/serviceaccount"
	tokenVolumePrefix = "kube-api-access-"
	// tokenSeconds is one hour and seven seconds: by it the API server knows the tokens that
	// were asked for here from those that a user asked for.
	tokenSeconds      = 3607
	enforceAnnotation = "kubernetes.io/enforce-mountable-secrets"
	rootCA            = "kube-root-ca.crt"
	accountAttempts   = 20
	accountRetryPause = 100 * time.Millisecond
)

// ServiceAccount gives each new pod a service account, "default" unless the pod names one, and
// mounts the account's credentials into its containers, as the stock plugin does (KEP-1205).
type ServiceAccount struct {
	reader client.Reader
}

var (
	_ admission.MutationInterface   = (*ServiceAccount)(nil)
	_ admission.ValidationInterface = (*ServiceAccount)(nil)
)

// NewServiceAccount makes the plugin.
func NewServiceAccount(reader client.Reader) *ServiceAccount { return &ServiceAccount{reader: reader} }

// Handles implements admission.Interface.
func (*ServiceAccount) Handles(op admission.Operation) bool {
	return op == admission.Create || op == admission.Update
}

// Admit implements admission.MutationInterface.
func (s *ServiceAccount) Admit(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	pod, ok := a.GetObject().(*corev1.Pod)
	if !ok || !isPod(a) || a.GetSubresource() != "" || a.GetOperation() != admission.Create {
		return nil
	}
	if _, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]; mirror {
		return nil // Validate decides; a changed mirror pod would be deleted by its node.
	}
	if pod.Spec.ServiceAccountName == "" {
		pod.Spec.ServiceAccountName = defaultServiceAccount
	}
	pod.Spec.DeprecatedServiceAccount = pod.Spec.ServiceAccountName
	account, err := s.account(ctx, a, pod)
	if err != nil {
		return err
	}
	if automount(account, pod) {
		mountToken(pod)
	}
	if len(pod.Spec.ImagePullSecrets) == 0 {
		pod.Spec.ImagePullSecrets = slices.Clone(account.ImagePullSecrets)
	}
	return nil
}

// Validate implements admission.ValidationInterface.
func (s *ServiceAccount) Validate(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	pod, ok := a.GetObject().(*corev1.Pod)
	if !ok || !isPod(a) {
		return nil
	}
	ephemeral := a.GetOperation() == admission.Update && a.GetSubresource() == "ephemeralcontainers"
	if !ephemeral && (a.GetOperation() != admission.Create || a.GetSubresource() != "") {
		return nil
	}
	if _, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]; mirror && !ephemeral {
		if err := mirrorPod(pod); err != nil {
			return admission.NewForbidden(a, err)
		}
		return nil
	}
	if pod.Spec.ServiceAccountName == "" {
		return admission.NewForbidden(a, fmt.Errorf("no service account specified for pod %s/%s", a.GetNamespace(), pod.Name))
	}
	account, err := s.account(ctx, a, pod)
	if err != nil {
		return err
	}
	if enforce, err := strconv.ParseBool(account.Annotations[enforceAnnotation]); err == nil && enforce {
		if err := mountable(account, pod, ephemeral); err != nil {
			return admission.NewForbidden(a, err)
		}
	}
	return nil
}

// account finds the pod's service account. That of a new namespace is made by a controller:
// the pod waits for it a little.
func (s *ServiceAccount) account(ctx context.Context, a admission.Attributes, pod *corev1.Pod) (*corev1.ServiceAccount, error) {
	name := pod.Spec.ServiceAccountName
	attempts := 1
	if name == defaultServiceAccount {
		attempts = accountAttempts
	}
	var account corev1.ServiceAccount
	for i := 1; ; i++ {
		err := s.reader.Get(ctx, client.ObjectKey{Namespace: a.GetNamespace(), Name: name}, &account)
		if err == nil {
			return &account, nil
		}
		if !apierrors.IsNotFound(err) || i >= attempts {
			return nil, admission.NewForbidden(a, fmt.Errorf("error looking up service account %s/%s: %w", a.GetNamespace(), name, err))
		}
		select {
		case <-ctx.Done():
			return nil, admission.NewForbidden(a, fmt.Errorf("error looking up service account %s/%s: %w", a.GetNamespace(), name, ctx.Err()))
		case <-time.After(accountRetryPause):
		}
	}
}

// automount tells whether the account's credentials are mounted: the pod's wish counts before
// the account's.
func automount(account *corev1.ServiceAccount, pod *corev1.Pod) bool {
	switch {
	case pod.Spec.AutomountServiceAccountToken != nil:
		return *pod.Spec.AutomountServiceAccountToken
	case account.AutomountServiceAccountToken != nil:
		return *account.AutomountServiceAccountToken
	}
	return true
}

// mountToken adds the credentials' volume and mounts it in every container that has nothing
// else at its path.
func mountToken(pod *corev1.Pod) {
	volume := ""
	for i := range pod.Spec.Volumes {
		if strings.HasPrefix(pod.Spec.Volumes[i].Name, tokenVolumePrefix) {
			volume = pod.Spec.Volumes[i].Name
			break
		}
	}
	exists := volume != ""
	if !exists {
		volume = names.SimpleNameGenerator.GenerateName(tokenVolumePrefix)
	}
	needed := false
	for _, containers := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range containers {
			c := &containers[i]
			if slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == tokenMountPath }) {
				continue
			}
			c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: volume, ReadOnly: true, MountPath: tokenMountPath})
			needed = true
		}
	}
	if needed && !exists {
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: volume, VolumeSource: corev1.VolumeSource{Projected: tokenVolume()}})
	}
}

// tokenVolume holds the token, the cluster's CA and the pod's namespace.
func tokenVolume() *corev1.ProjectedVolumeSource {
	mode, seconds := corev1.ProjectedVolumeSourceDefaultMode, int64(tokenSeconds)
	return &corev1.ProjectedVolumeSource{
		DefaultMode: &mode,
		Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", ExpirationSeconds: &seconds}},
			{ConfigMap: &corev1.ConfigMapProjection{
				LocalObjectReference: corev1.LocalObjectReference{Name: rootCA},
				Items:                []corev1.KeyToPath{{Key: "ca.crt", Path: "ca.crt"}},
			}},
			{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{
				{Path: "namespace", FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.namespace"}},
			}}},
		},
	}
}

// mirrorPod refuses what a node could otherwise get hold of by making a mirror pod.
func mirrorPod(pod *corev1.Pod) error {
	if pod.Spec.ServiceAccountName != "" {
		return errors.New("a mirror pod may not reference service accounts")
	}
	if len(pod.Spec.ImagePullSecrets) > 0 || len(envSecrets(&pod.Spec, true)) > 0 {
		return errors.New("a mirror pod may not reference secrets")
	}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if namesSecret(&v.VolumeSource) {
			return errors.New("a mirror pod may not reference secrets")
		}
		if v.Projected == nil {
			continue
		}
		for j := range v.Projected.Sources {
			if v.Projected.Sources[j].ServiceAccountToken != nil {
				return errors.New("a mirror pod may not use ServiceAccountToken volume projections")
			}
		}
	}
	return nil
}

// namesSecret tells whether a volume needs a secret.
func namesSecret(s *corev1.VolumeSource) bool {
	switch {
	case s.Secret != nil, s.AzureFile != nil:
		return true
	case s.Projected != nil:
		return slices.ContainsFunc(s.Projected.Sources, func(p corev1.VolumeProjection) bool { return p.Secret != nil })
	case s.CSI != nil:
		return s.CSI.NodePublishSecretRef != nil
	case s.CephFS != nil:
		return s.CephFS.SecretRef != nil
	case s.Cinder != nil:
		return s.Cinder.SecretRef != nil
	case s.FlexVolume != nil:
		return s.FlexVolume.SecretRef != nil
	case s.RBD != nil:
		return s.RBD.SecretRef != nil
	case s.ScaleIO != nil:
		return s.ScaleIO.SecretRef != nil
	case s.ISCSI != nil:
		return s.ISCSI.SecretRef != nil
	case s.StorageOS != nil:
		return s.StorageOS.SecretRef != nil
	}
	return false
}

// envSecrets lists the secrets that containers take variables from: all containers, or the
// ephemeral ones only.
func envSecrets(spec *corev1.PodSpec, all bool) []string {
	var out []string
	add := func(env []corev1.EnvVar, from []corev1.EnvFromSource) {
		for i := range env {
			if s := env[i].ValueFrom; s != nil && s.SecretKeyRef != nil {
				out = append(out, s.SecretKeyRef.Name)
			}
		}
		for i := range from {
			if from[i].SecretRef != nil {
				out = append(out, from[i].SecretRef.Name)
			}
		}
	}
	for i := range spec.EphemeralContainers {
		add(spec.EphemeralContainers[i].Env, spec.EphemeralContainers[i].EnvFrom)
	}
	if !all {
		return out
	}
	for i := range spec.InitContainers {
		add(spec.InitContainers[i].Env, spec.InitContainers[i].EnvFrom)
	}
	for i := range spec.Containers {
		add(spec.Containers[i].Env, spec.Containers[i].EnvFrom)
	}
	return out
}

// mountable refuses secrets that the account, which asks for the check, does not list.
func mountable(account *corev1.ServiceAccount, pod *corev1.Pod, ephemeral bool) error {
	listed := func(name string) bool {
		return slices.ContainsFunc(account.Secrets, func(r corev1.ObjectReference) bool { return r.Name == name })
	}
	for _, name := range envSecrets(&pod.Spec, !ephemeral) {
		if !listed(name) {
			return fmt.Errorf("a container's variables from secret %q are not allowed because service account %s does not reference that secret", name, account.Name)
		}
	}
	if ephemeral {
		return nil
	}
	for i := range pod.Spec.Volumes {
		if s := pod.Spec.Volumes[i].Secret; s != nil && !listed(s.SecretName) {
			return fmt.Errorf("volume with secret.secretName=%q is not allowed because service account %s does not reference that secret", s.SecretName, account.Name)
		}
	}
	for i, ref := range pod.Spec.ImagePullSecrets {
		if !slices.Contains(account.ImagePullSecrets, ref) {
			return fmt.Errorf("imagePullSecrets[%d].name=%q is not allowed because service account %s does not reference that imagePullSecret", i, ref.Name, account.Name)
		}
	}
	return nil
}
