package volume_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"pgregory.net/rapid"

	"barque.dev/internal/agent/podspec"
	"barque.dev/internal/agent/volume"
)

// sources has objects in memory.
type sources struct {
	configMaps map[string]*corev1.ConfigMap
	secrets    map[string]*corev1.Secret
}

func (s sources) ConfigMap(_, name string) (*corev1.ConfigMap, error) {
	if cm := s.configMaps[name]; cm != nil {
		return cm, nil
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "configmaps"}, name)
}

func (s sources) Secret(_, name string) (*corev1.Secret, error) {
	if v := s.secrets[name]; v != nil {
		return v, nil
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "secrets"}, name)
}

type tokens struct{ renew time.Time }

func (t tokens) Token(_ context.Context, pod *corev1.Pod, audience string, seconds int64) (volume.Token, error) {
	return volume.Token{Value: fmt.Sprintf("%s/%s/%d", pod.Name, audience, seconds), Renew: t.renew}, nil
}

func manager(t *testing.T, s sources) *volume.Manager {
	t.Helper()
	m := &volume.Manager{Root: t.TempDir(), Sources: s, Tokens: tokens{renew: time.Unix(5000, 0)}}
	t.Cleanup(func() {
		uids, err := m.Pods()
		if err != nil {
			t.Error(err)
		}
		for _, uid := range uids {
			if err := m.Remove(uid); err != nil {
				t.Error(err)
			}
		}
	})
	return m
}

func podWith(volumes ...corev1.Volume) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "n", UID: "u", Labels: map[string]string{"app": "web"}}}
	p.Spec.Volumes = volumes
	c := corev1.Container{Name: "c"}
	for _, v := range volumes {
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: v.Name, MountPath: "/" + v.Name})
	}
	p.Spec.Containers = []corev1.Container{c}
	return p
}

func prepare(t *testing.T, m *volume.Manager, p *corev1.Pod) time.Time {
	t.Helper()
	next, err := m.Prepare(t.Context(), p, podspec.Facts{})
	if err != nil {
		t.Fatal(err)
	}
	return next
}

// dir is where a volume of the pod is.
func dir(t *testing.T, m *volume.Manager, p *corev1.Pod, name string) string {
	t.Helper()
	for i := range p.Spec.Volumes {
		if p.Spec.Volumes[i].Name == name {
			d, err := m.HostPath(t.Context(), p, &p.Spec.Volumes[i])
			if err != nil {
				t.Fatal(err)
			}
			return d
		}
	}
	t.Fatalf("no volume %s", name)
	return ""
}

func content(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestContents(t *testing.T) {
	m := manager(t, sources{
		configMaps: map[string]*corev1.ConfigMap{"cm": {Data: map[string]string{"a": "1", "b": "2"}, BinaryData: map[string][]byte{"bin": {0, 1}}}},
		secrets:    map[string]*corev1.Secret{"s": {Data: map[string][]byte{"key": []byte("secret")}}},
	})
	yes, mode := true, int32(0o400)
	p := podWith(
		corev1.Volume{Name: "all", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "cm"}}}},
		corev1.Volume{Name: "some", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
			LocalObjectReference: corev1.LocalObjectReference{Name: "cm"}, Items: []corev1.KeyToPath{{Key: "a", Path: "deep/er/file", Mode: &mode}}}}},
		corev1.Volume{Name: "none", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "missing"}, Optional: &yes}}},
		corev1.Volume{Name: "secret", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "s", DefaultMode: &mode}}},
		corev1.Volume{Name: "down", VolumeSource: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: []corev1.DownwardAPIVolumeFile{
			{Path: "labels", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels"}}}}}},
		corev1.Volume{Name: "proj", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Audience: "api", Path: "token"}},
			{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "cm"}, Items: []corev1.KeyToPath{{Key: "b", Path: "b"}}}}}}}},
	)
	next := prepare(t, m, p)
	if !next.Equal(time.Unix(5000, 0)) {
		t.Errorf("refresh at %s", next)
	}
	for path, want := range map[string]string{"all/a": "1", "all/bin": "\x00\x01", "some/deep/er/file": "1", "secret/key": "secret", "down/labels": `app="web"`, "proj/token": "p/api/3600", "proj/b": "2"} {
		name, file := filepath.Dir(path), filepath.Base(path)
		if path == "some/deep/er/file" {
			name, file = "some", "deep/er/file"
		}
		if got := content(t, filepath.Join(dir(t, m, p, name), file)); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	for path, want := range map[string]fs.FileMode{"some/deep/er/file": 0o400, "secret/key": 0o400} {
		name := "some"
		if path[:2] == "se" {
			name = "secret"
		}
		info, err := os.Stat(filepath.Join(dir(t, m, p, name), path[len(name)+1:]))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: mode %v, %v", path, info.Mode(), err)
		}
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir(t, m, p, "secret"), &st); err != nil || st.Type != 0x01021994 {
		t.Errorf("secrets are not in memory: type %x, %v", st.Type, err)
	}
	if _, err := os.Stat(filepath.Join(dir(t, m, p, "some"), "a")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a key that is not among the items: %v", err)
	}
}

func TestMissingIsAnError(t *testing.T) {
	m := manager(t, sources{configMaps: map[string]*corev1.ConfigMap{"cm": {}}})
	for _, v := range []corev1.VolumeSource{
		{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "no"}}},
		{Secret: &corev1.SecretVolumeSource{SecretName: "no"}},
		{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "cm"}, Items: []corev1.KeyToPath{{Key: "no", Path: "x"}}}},
		{NFS: &corev1.NFSVolumeSource{Server: "x", Path: "/"}},
	} {
		if _, err := m.Prepare(t.Context(), podWith(corev1.Volume{Name: "v", VolumeSource: v}), podspec.Facts{}); err == nil {
			t.Errorf("no error for %+v", v)
		}
	}
}

func TestEmptyDirAndFSGroup(t *testing.T) {
	m := manager(t, sources{configMaps: map[string]*corev1.ConfigMap{"cm": {Data: map[string]string{"a": "1"}}}})
	limit := resource.MustParse("1Mi")
	p := podWith(
		corev1.Volume{Name: "disk", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: &limit}}},
		corev1.Volume{Name: "mem", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory, SizeLimit: &limit}}},
		corev1.Volume{Name: "cm", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "cm"}}}},
	)
	group := int64(4242)
	p.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: &group}
	prepare(t, m, p)
	for _, path := range []string{dir(t, m, p, "disk"), dir(t, m, p, "mem"), filepath.Join(dir(t, m, p, "cm"), "a")} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if gid := info.Sys().(*syscall.Stat_t).Gid; int64(gid) != group {
			t.Errorf("%s belongs to group %d", path, gid)
		}
		if info.IsDir() && (info.Mode()&fs.ModeSetgid == 0 || info.Mode().Perm()&0o070 != 0o070) {
			t.Errorf("%s: mode %v", path, info.Mode())
		}
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir(t, m, p, "mem"), &st); err != nil || int64(st.Blocks)*st.Bsize != limit.Value() {
		t.Errorf("size of the memory volume: %d, %v", int64(st.Blocks)*st.Bsize, err)
	}
	kept := filepath.Join(dir(t, m, p, "mem"), "kept")
	if err := os.WriteFile(kept, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	prepare(t, m, p) // again: what is there stays
	content(t, kept)
	if s := m.Oversized(p); s != "" {
		t.Errorf("oversized: %s", s)
	}
	if err := os.WriteFile(filepath.Join(dir(t, m, p, "disk"), "big"), bytes.Repeat([]byte("x"), 2<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	if s := m.Oversized(p); s != `Usage of EmptyDir volume "disk" exceeds the limit "1Mi". ` {
		t.Errorf("oversized: %q", s)
	}
	if err := m.Remove(p.UID); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(m.PodDir(p.UID)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Remove: %v", err)
	}
}

func TestHostPathTypes(t *testing.T) {
	root := t.TempDir()
	file, folder, socket := filepath.Join(root, "file"), filepath.Join(root, "folder"), filepath.Join(root, "socket")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	none := filepath.Join(root, "none")
	tests := []struct {
		kind corev1.HostPathType
		path string
		ok   bool
	}{
		{corev1.HostPathUnset, none, true},
		{corev1.HostPathDirectory, folder, true}, {corev1.HostPathDirectory, file, false}, {corev1.HostPathDirectory, none, false},
		{corev1.HostPathFile, file, true}, {corev1.HostPathFile, folder, false}, {corev1.HostPathFile, none, false},
		{corev1.HostPathSocket, socket, true}, {corev1.HostPathSocket, file, false},
		{corev1.HostPathCharDev, "/dev/null", true}, {corev1.HostPathCharDev, file, false}, {corev1.HostPathBlockDev, "/dev/null", false},
		{corev1.HostPathFileOrCreate, filepath.Join(root, "new-file"), true}, {corev1.HostPathDirectoryOrCreate, filepath.Join(root, "new/folder"), true},
		{corev1.HostPathDirectoryOrCreate, file, false},
	}
	m := manager(t, sources{})
	for _, tt := range tests {
		p := podWith(corev1.Volume{Name: "v", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: tt.path, Type: &tt.kind}}})
		if _, err := m.Prepare(t.Context(), p, podspec.Facts{}); (err == nil) != tt.ok {
			t.Errorf("%q at %s: %v", tt.kind, filepath.Base(tt.path), err)
		}
	}
}

func TestSubPaths(t *testing.T) {
	m := manager(t, sources{configMaps: map[string]*corev1.ConfigMap{"cm": {Data: map[string]string{"a": "1"}}}})
	p := podWith(
		corev1.Volume{Name: "d", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
		corev1.Volume{Name: "cm", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "cm"}}}},
	)
	bidirectional := corev1.MountPropagationBidirectional
	c := &p.Spec.Containers[0]
	c.VolumeMounts = []corev1.VolumeMount{
		{Name: "d", MountPath: "/x", SubPath: "new/folder", MountPropagation: &bidirectional},
		{Name: "cm", MountPath: "/y", SubPath: "a"},
		{Name: "d", MountPath: "/z", SubPathExpr: "$(WHO)", ReadOnly: true},
	}
	prepare(t, m, p)
	mounts, err := m.Mounts(t.Context(), p, c, []podspec.Var{{Name: "WHO", Value: "me"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(mounts) != 3 || mounts[0].GetPropagation() != runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL || !mounts[1].GetReadonly() || !mounts[2].GetReadonly() || mounts[0].GetReadonly() {
		t.Errorf("mounts %+v", mounts)
	}
	if got := content(t, mounts[1].GetHostPath()); got != "1" {
		t.Errorf("sub-path of a config map: %q", got)
	}
	if err := os.WriteFile(filepath.Join(mounts[0].GetHostPath(), "f"), []byte("in"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := content(t, filepath.Join(dir(t, m, p, "d"), "new/folder/f")); got != "in" {
		t.Errorf("through the sub-path: %q", got)
	}
	if _, err := os.Stat(filepath.Join(dir(t, m, p, "d"), "me")); err != nil {
		t.Error(err)
	}
	if _, err := m.Mounts(t.Context(), p, c, nil, nil); err == nil {
		t.Error("a variable that is not set must be an error")
	}
	// A link that leads out of the volume is not followed.
	if err := os.Symlink("/etc", filepath.Join(dir(t, m, p, "d"), "out")); err != nil {
		t.Fatal(err)
	}
	for _, evil := range []string{"out", "out/passwd", "../../.."} {
		c.VolumeMounts = []corev1.VolumeMount{{Name: "d", MountPath: "/x", SubPath: evil}}
		if mounts, err := m.Mounts(t.Context(), p, c, nil, nil); err == nil {
			t.Errorf("sub-path %q was taken: %v", evil, mounts)
		}
	}
}

// TestRootThroughLink: what is mounted is found again when the agent's folder is reached through a
// link; a sub-path that is mounted anew loses nothing.
func TestRootThroughLink(t *testing.T) {
	m := manager(t, sources{secrets: map[string]*corev1.Secret{"s": {Data: map[string][]byte{"a": []byte("1")}}}})
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(m.Root, link); err != nil {
		t.Fatal(err)
	}
	m.Root = link
	p := podWith(
		corev1.Volume{Name: "d", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
		corev1.Volume{Name: "m", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}},
		corev1.Volume{Name: "s", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "s"}}},
	)
	c := &p.Spec.Containers[0]
	c.VolumeMounts = []corev1.VolumeMount{{Name: "d", MountPath: "/x", SubPath: "sub"}}
	kept := map[string]string{}
	for try := range 2 {
		prepare(t, m, p)
		mounts, err := m.Mounts(t.Context(), p, c, nil, nil)
		if err != nil {
			t.Fatalf("attempt %d: %v", try, err)
		}
		for _, at := range []string{mounts[0].GetHostPath(), dir(t, m, p, "m")} {
			path := filepath.Join(at, "f")
			if try == 0 {
				if err := os.WriteFile(path, []byte(at), 0o644); err != nil {
					t.Fatal(err)
				}
				kept[path] = at
			}
		}
		for path, want := range kept {
			if got := content(t, path); got != want {
				t.Errorf("attempt %d: %s holds %q", try, path, got)
			}
		}
		if got := content(t, filepath.Join(dir(t, m, p, "s"), "a")); got != "1" {
			t.Errorf("attempt %d: secret %q", try, got)
		}
	}
}

// TestAtomicWriter: after any row of payloads the folder holds exactly the last one.
func TestAtomicWriter(t *testing.T) {
	base := t.TempDir()
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		d := filepath.Join(base, fmt.Sprint(n))
		if err := os.Mkdir(d, 0o755); err != nil {
			rt.Fatal(err)
		}
		names := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", "c/d", "c/e", "f/g/h", ".hidden"}), 0, 6, rapid.ID[string])
		for range rapid.IntRange(1, 4).Draw(rt, "writes") {
			payload := volume.Payload{}
			for _, name := range names.Draw(rt, "names") {
				payload[name] = volume.File{Data: []byte(rapid.StringN(0, 8, -1).Draw(rt, "data")), Mode: 0o644}
			}
			if err := volume.WriteAtomic(d, payload, nil); err != nil {
				rt.Fatal(err)
			}
			holds(rt, d, payload)
		}
	})
}

func holds(t *rapid.T, d string, payload volume.Payload) {
	for name, f := range payload {
		data, err := os.ReadFile(filepath.Join(d, name))
		if err != nil || !bytes.Equal(data, f.Data) {
			t.Fatalf("%s: %q, %v; want %q", name, data, err, f.Data)
		}
	}
	entries, err := os.ReadDir(d)
	if err != nil {
		t.Fatal(err)
	}
	hidden, tops := 0, map[string]bool{}
	for name := range payload {
		top := name
		for i := range name {
			if name[i] == '/' {
				top = name[:i]
				break
			}
		}
		tops[top] = true
	}
	for _, e := range entries {
		if len(e.Name()) > 2 && e.Name()[:2] == ".." {
			hidden++
			continue
		}
		if !tops[e.Name()] {
			t.Fatalf("%s should not be there", e.Name())
		}
	}
	if hidden != 2 {
		t.Fatalf("%d hidden entries, want the link and its folder", hidden)
	}
}

// TestReadersSeeOneVersion: two files that change together are never seen apart through ..data.
func TestReadersSeeOneVersion(t *testing.T) {
	d := t.TempDir()
	write := func(i int) {
		v := []byte(fmt.Sprint(i))
		if err := volume.WriteAtomic(d, volume.Payload{"a": {Data: v, Mode: 0o644}, "b": {Data: v, Mode: 0o644}}, nil); err != nil {
			t.Error(err)
		}
	}
	write(0)
	var wg sync.WaitGroup
	done := make(chan struct{})
	wg.Add(1)
	go func() {
		defer wg.Done()
		for {
			select {
			case <-done:
				return
			default:
			}
			target, err := os.Readlink(filepath.Join(d, "..data"))
			if err != nil {
				t.Errorf("link: %v", err)
				return
			}
			a, errA := os.ReadFile(filepath.Join(d, target, "a"))
			b, errB := os.ReadFile(filepath.Join(d, target, "b"))
			if errA == nil && errB == nil && !bytes.Equal(a, b) {
				t.Errorf("a is %q, b is %q", a, b)
				return
			}
		}
	}()
	for i := 1; i < 200; i++ {
		write(i)
	}
	close(done)
	wg.Wait()
}

func TestAtomicWriterRefusesEscapes(t *testing.T) {
	for _, name := range []string{"../x", "/x", "a/../../x", "..data", "", "a//b"} {
		if err := volume.WriteAtomic(t.TempDir(), volume.Payload{name: {}}, nil); err == nil {
			t.Errorf("%q was taken", name)
		}
	}
}
