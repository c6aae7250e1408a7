// Package volume makes a pod's volumes: folders, tmpfs mounts and the files of config maps,
// secrets, the downward API, service account tokens and certificates, which stay up to date while the pod runs.
//
// Everything of a pod lives below <root>/pods/<uid>, in the layout of the stock kubelet:
//
//	volumes/kubernetes.io~<kind>/<volume>    one folder or mount for each volume
//	volume-subpaths/<volume>/<container>/<n> bind mounts of sub-paths
//	containers/<container>/                  termination messages
//	etc-hosts                                the pod's hosts file
//
// Contents are replaced as a whole and atomically: a reader sees either all of the old files or all
// of the new ones.
package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"barque.dev/internal/agent/podspec"
)

// Token is a service account token and its life time.
type Token struct {
	Value string
	// Renew is when it should be replaced.
	Renew time.Time
}

// Tokens issues tokens bound to a pod. Implementations keep them until they have to be renewed.
type Tokens interface {
	Token(ctx context.Context, pod *corev1.Pod, audience string, seconds int64) (Token, error)
}

// Certificate is a key and the chain of certificates that a signer issued for it, both as PEM.
type Certificate struct {
	Key, Chain []byte
	// Renew is when to look for a newer one.
	Renew time.Time
}

// Certificates gets certificates for a pod from their signers, one for each source of a projected
// volume. Implementations keep them until they have to be renewed.
type Certificates interface {
	Certificate(ctx context.Context, pod *corev1.Pod, volume string, source int, p *corev1.PodCertificateProjection) (Certificate, error)
}

// Claims resolves persistent volume claims of a pod's namespace to the volumes they are bound to. The claim of an
// ephemeral volume has to be the pod's own.
type Claims interface {
	PersistentVolume(ctx context.Context, pod *corev1.Pod, claim string, ephemeral bool) (*corev1.PersistentVolume, error)
}

// Bundles knows the cluster's trust bundles.
type Bundles interface {
	TrustBundles(ctx context.Context) ([]*certificatesv1.ClusterTrustBundle, error)
}

// Manager makes, refreshes and removes volumes. It is safe for concurrent use for different pods;
// calls for one pod must not overlap.
type Manager struct {
	// Root is the agent's folder.
	Root    string
	Sources podspec.Sources
	Tokens  Tokens
	Claims  Claims
	Bundles Bundles
	// Certificates may be nil: then pods can't have any.
	Certificates Certificates
	Log          *slog.Logger
}

// PodDir is the folder of everything of one pod.
func (m *Manager) PodDir(uid types.UID) string { return filepath.Join(m.Root, "pods", string(uid)) }

// path is where a volume of that kind is.
func (m *Manager) path(uid types.UID, kind, name string) string {
	return filepath.Join(m.PodDir(uid), "volumes", "kubernetes.io~"+kind, name)
}

// ErrUnsupported is why a volume of a kind that this node does not have cannot be made.
var ErrUnsupported = errors.New("volume kind is not supported on this node")

// Prepare makes the volumes the pod's containers mount. It can be repeated: what is there stays,
// and contents are brought up to date. next is when contents have to be refreshed without any
// change of the objects they come from; zero for never.
func (m *Manager) Prepare(ctx context.Context, pod *corev1.Pod, facts podspec.Facts) (next time.Time, err error) {
	if err := os.MkdirAll(m.PodDir(pod.UID), 0o750); err != nil {
		return next, fmt.Errorf("make folder of pod %s: %w", podspec.FullName(pod), err)
	}
	var failures []error
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		at, err := m.prepare(ctx, pod, v, facts)
		if err != nil {
			failures = append(failures, fmt.Errorf("MountVolume.SetUp failed for volume %q: %w", v.Name, err))
		}
		if !at.IsZero() && (next.IsZero() || at.Before(next)) {
			next = at
		}
	}
	return next, errors.Join(failures...)
}

func (m *Manager) prepare(ctx context.Context, pod *corev1.Pod, v *corev1.Volume, facts podspec.Facts) (time.Time, error) {
	switch {
	case v.HostPath != nil:
		return time.Time{}, checkHostPath(v.HostPath)
	case v.EmptyDir != nil:
		return time.Time{}, m.emptyDir(pod, v, facts)
	case v.PersistentVolumeClaim != nil || v.Ephemeral != nil:
		_, err := m.claimed(ctx, pod, v)
		return time.Time{}, err
	case v.Image != nil:
		return time.Time{}, nil // the runtime mounts it
	}
	kind, memory, ok := contentKind(v)
	if !ok {
		return time.Time{}, ErrUnsupported
	}
	payload, next, err := m.payload(ctx, pod, v, facts)
	if err != nil {
		return next, err
	}
	dir := m.path(pod.UID, kind, v.Name)
	if err := makeDir(dir, 0o755); err != nil {
		return next, err
	}
	if memory {
		if err := ensureTmpfs(dir, 0); err != nil {
			return next, err
		}
	}
	return next, WriteAtomic(dir, payload, fsGroup(pod))
}

// contentKind returns the folder name of volumes whose contents come from the API. Those that hold
// secrets are kept in memory.
func contentKind(v *corev1.Volume) (kind string, memory, ok bool) {
	switch {
	case v.ConfigMap != nil:
		return "configmap", false, true
	case v.Secret != nil:
		return "secret", true, true
	case v.DownwardAPI != nil:
		return "downward-api", false, true
	case v.Projected != nil:
		return "projected", true, true
	}
	return "", false, false
}

// HostPath returns where on the node a volume of the pod is.
func (m *Manager) HostPath(ctx context.Context, pod *corev1.Pod, v *corev1.Volume) (string, error) {
	switch {
	case v.HostPath != nil:
		return v.HostPath.Path, nil
	case v.EmptyDir != nil:
		return m.path(pod.UID, "empty-dir", v.Name), nil
	case v.PersistentVolumeClaim != nil || v.Ephemeral != nil:
		return m.claimed(ctx, pod, v)
	}
	kind, _, ok := contentKind(v)
	if !ok {
		return "", ErrUnsupported
	}
	return m.path(pod.UID, kind, v.Name), nil
}

// claimed returns the folder of a claim that is bound to a volume on this node.
func (m *Manager) claimed(ctx context.Context, pod *corev1.Pod, v *corev1.Volume) (string, error) {
	name := pod.Name + "-" + v.Name // of a generic ephemeral volume (KEP-1698)
	if v.PersistentVolumeClaim != nil {
		name = v.PersistentVolumeClaim.ClaimName
	}
	if m.Claims == nil {
		return "", ErrUnsupported
	}
	pv, err := m.Claims.PersistentVolume(ctx, pod, name, v.PersistentVolumeClaim == nil)
	if err != nil {
		return "", err
	}
	switch {
	case pv.Spec.HostPath != nil:
		return pv.Spec.HostPath.Path, checkHostPath(pv.Spec.HostPath)
	case pv.Spec.Local != nil:
		if _, err := os.Stat(pv.Spec.Local.Path); err != nil {
			return "", fmt.Errorf("local volume %s: %w", pv.Name, err)
		}
		return pv.Spec.Local.Path, nil
	default:
		return "", fmt.Errorf("persistent volume %s: %w", pv.Name, ErrUnsupported)
	}
}

func fsGroup(pod *corev1.Pod) *int64 {
	if pod.Spec.SecurityContext == nil {
		return nil
	}
	return pod.Spec.SecurityContext.FSGroup
}

// Remove unmounts and removes everything of a pod. It can be repeated.
func (m *Manager) Remove(uid types.UID) error {
	dir := m.PodDir(uid)
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := unmountBelow(dir); err != nil {
		return fmt.Errorf("unmount volumes of pod %s: %w", uid, err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove folder of pod %s: %w", uid, err)
	}
	return nil
}

// Pods returns the pods that have a folder.
func (m *Manager) Pods() ([]types.UID, error) {
	entries, err := os.ReadDir(filepath.Join(m.Root, "pods"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("list folders of pods: %w", err)
	}
	var out []types.UID
	for _, e := range entries {
		if e.IsDir() && !strings.HasPrefix(e.Name(), ".") {
			out = append(out, types.UID(e.Name()))
		}
	}
	return out, nil
}
