package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"barque.dev/internal/agent/podspec"
)

const (
	defaultMode        = 0o644
	defaultTokenExpiry = 3600 // seconds
)

// payload collects a volume's files.
func (m *Manager) payload(ctx context.Context, pod *corev1.Pod, v *corev1.Volume, facts podspec.Facts) (Payload, time.Time, error) {
	out := Payload{}
	switch {
	case v.ConfigMap != nil:
		return out, time.Time{}, m.configMap(out, pod, v.ConfigMap.Name, v.ConfigMap.Items, mode(v.ConfigMap.DefaultMode), v.ConfigMap.Optional)
	case v.Secret != nil:
		return out, time.Time{}, m.secret(out, pod, v.Secret.SecretName, v.Secret.Items, mode(v.Secret.DefaultMode), v.Secret.Optional)
	case v.DownwardAPI != nil:
		return out, time.Time{}, downward(out, pod, v.DownwardAPI.Items, mode(v.DownwardAPI.DefaultMode), facts)
	default:
		next, err := m.projected(ctx, out, pod, v, facts)
		return out, next, err
	}
}

func mode(m *int32) fs.FileMode {
	if m == nil {
		return defaultMode
	}
	return fs.FileMode(*m)
}

func (m *Manager) projected(ctx context.Context, out Payload, pod *corev1.Pod, v *corev1.Volume, facts podspec.Facts) (next time.Time, err error) {
	var failures []error
	p := v.Projected
	for i := range p.Sources {
		s := &p.Sources[i]
		var renew time.Time
		var err error
		switch {
		case s.ConfigMap != nil:
			err = m.configMap(out, pod, s.ConfigMap.Name, s.ConfigMap.Items, mode(p.DefaultMode), s.ConfigMap.Optional)
		case s.Secret != nil:
			err = m.secret(out, pod, s.Secret.Name, s.Secret.Items, mode(p.DefaultMode), s.Secret.Optional)
		case s.DownwardAPI != nil:
			err = downward(out, pod, s.DownwardAPI.Items, mode(p.DefaultMode), facts)
		case s.ServiceAccountToken != nil:
			renew, err = m.token(ctx, out, pod, s.ServiceAccountToken, mode(p.DefaultMode))
		case s.ClusterTrustBundle != nil:
			err = m.trustBundle(ctx, out, pod, s.ClusterTrustBundle, mode(p.DefaultMode))
		case s.PodCertificate != nil:
			renew, err = m.certificate(ctx, out, pod, v.Name, i, s.PodCertificate, mode(p.DefaultMode))
		default:
			err = fmt.Errorf("projected source: %w", ErrUnsupported)
		}
		if next.IsZero() || !renew.IsZero() && renew.Before(next) {
			next = renew
		}
		failures = append(failures, err)
	}
	return next, errors.Join(failures...)
}

func (m *Manager) configMap(out Payload, pod *corev1.Pod, name string, items []corev1.KeyToPath, mode fs.FileMode, optional *bool) error {
	cm, err := m.Sources.ConfigMap(pod.Namespace, name)
	if apierrors.IsNotFound(err) && optional != nil && *optional {
		return nil
	} else if err != nil {
		return err
	}
	data := make(map[string][]byte, len(cm.Data)+len(cm.BinaryData))
	for k, v := range cm.Data {
		data[k] = []byte(v)
	}
	for k, v := range cm.BinaryData {
		data[k] = v
	}
	return pick(out, data, items, mode, optional, "configmap", name)
}

func (m *Manager) secret(out Payload, pod *corev1.Pod, name string, items []corev1.KeyToPath, mode fs.FileMode, optional *bool) error {
	secret, err := m.Sources.Secret(pod.Namespace, name)
	if apierrors.IsNotFound(err) && optional != nil && *optional {
		return nil
	} else if err != nil {
		return err
	}
	return pick(out, secret.Data, items, mode, optional, "secret", name)
}

// pick chooses keys and their paths; without items, all under their own names.
func pick(out Payload, data map[string][]byte, items []corev1.KeyToPath, mode fs.FileMode, optional *bool, kind, name string) error {
	if len(items) == 0 {
		for k, v := range data {
			out[k] = File{Data: v, Mode: mode}
		}
		return nil
	}
	for _, item := range items {
		v, ok := data[item.Key]
		if !ok {
			if optional != nil && *optional {
				continue
			}
			return fmt.Errorf("%s %q references non-existent key: %s", kind, name, item.Key)
		}
		f := File{Data: v, Mode: mode}
		if item.Mode != nil {
			f.Mode = fs.FileMode(*item.Mode)
		}
		out[item.Path] = f
	}
	return nil
}

func downward(out Payload, pod *corev1.Pod, items []corev1.DownwardAPIVolumeFile, mode fs.FileMode, facts podspec.Facts) error {
	for _, item := range items {
		f := File{Mode: mode}
		if item.Mode != nil {
			f.Mode = fs.FileMode(*item.Mode)
		}
		var value string
		var err error
		switch {
		case item.FieldRef != nil:
			value, err = podspec.Field(pod, item.FieldRef.FieldPath, facts)
		case item.ResourceFieldRef != nil:
			c := podspec.Container(pod, item.ResourceFieldRef.ContainerName)
			if c == nil {
				return fmt.Errorf("container %q not found", item.ResourceFieldRef.ContainerName)
			}
			value, err = podspec.ResourceField(c, item.ResourceFieldRef, facts.Allocatable)
		default:
			err = errors.New("downward API item refers to nothing")
		}
		if err != nil {
			return err
		}
		f.Data = []byte(value)
		out[item.Path] = f
	}
	return nil
}

// trustBundle adds the certificates of cluster trust bundles.
func (m *Manager) trustBundle(ctx context.Context, out Payload, pod *corev1.Pod, p *corev1.ClusterTrustBundleProjection, mode fs.FileMode) error {
	if m.Bundles == nil {
		return fmt.Errorf("projected source: %w", ErrUnsupported)
	}
	all, err := m.Bundles.TrustBundles(ctx)
	if err != nil {
		return err
	}
	data, err := anchors(p, all)
	if err != nil {
		return err
	}
	out[p.Path] = own(pod, data, mode)
	return nil
}

// own returns a file that only the pod may read, as far as that can be said: the pod's group if it
// has one, else its only user, else everybody.
func own(pod *corev1.Pod, data []byte, mode fs.FileMode) File {
	f := File{Data: data, Mode: mode}
	if fsGroup(pod) != nil {
		f.Mode = 0o600
	} else if uid := onlyUser(pod); uid != nil {
		f.Mode, f.UID = 0o600, uid
	}
	return f
}

// token adds a service account token.
func (m *Manager) token(ctx context.Context, out Payload, pod *corev1.Pod, p *corev1.ServiceAccountTokenProjection, mode fs.FileMode) (time.Time, error) {
	seconds := int64(defaultTokenExpiry)
	if p.ExpirationSeconds != nil {
		seconds = *p.ExpirationSeconds
	}
	t, err := m.Tokens.Token(ctx, pod, p.Audience, seconds)
	if err != nil {
		return time.Time{}, fmt.Errorf("token of service account %s/%s: %w", pod.Namespace, pod.Spec.ServiceAccountName, err)
	}
	out[p.Path] = own(pod, []byte(t.Value), mode)
	return t.Renew, nil
}

// certificate adds a key and its chain of certificates: in one file, which cannot be read half renewed,
// or in two.
func (m *Manager) certificate(ctx context.Context, out Payload, pod *corev1.Pod, volume string, source int, p *corev1.PodCertificateProjection, mode fs.FileMode) (time.Time, error) {
	if m.Certificates == nil {
		return time.Time{}, fmt.Errorf("projected source: %w", ErrUnsupported)
	}
	c, err := m.Certificates.Certificate(ctx, pod, volume, source, p)
	if err != nil {
		return time.Time{}, fmt.Errorf("certificate: %w", err)
	}
	for path, data := range map[string][]byte{p.CredentialBundlePath: slices.Concat(c.Key, c.Chain), p.KeyPath: c.Key, p.CertificateChainPath: c.Chain} {
		if path != "" {
			out[path] = own(pod, data, mode)
		}
	}
	return c.Renew, nil
}

// onlyUser returns the user that every container of the pod is set to run as, if there is one.
func onlyUser(pod *corev1.Pod) *int64 {
	var base, user *int64
	if s := pod.Spec.SecurityContext; s != nil {
		base = s.RunAsUser
	}
	one := true
	podspec.EachContainer(pod, func(c *corev1.Container) bool {
		uid := base
		if c.SecurityContext != nil && c.SecurityContext.RunAsUser != nil {
			uid = c.SecurityContext.RunAsUser
		}
		switch {
		case uid == nil || user != nil && *user != *uid:
			one = false
		default:
			user = uid
		}
		return one
	})
	if !one {
		return nil
	}
	return user
}
