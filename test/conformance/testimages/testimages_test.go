package testimages

import (
	"bytes"
	"io/fs"
	"slices"
	"testing"

	"barque.dev/internal/runtime/images"
)

func TestChoose(t *testing.T) {
	wanted, missing := choose([]string{
		"registry.k8s.io/e2e-test-images/agnhost:2.66.1", "registry.k8s.io/e2e-test-images/agnhost:2.55", "registry.k8s.io/pause:3.10.2",
		"gcr.io/k8s-authenticated-test/agnhost:2.6", "registry.k8s.io/sig-storage/csi-resizer:v2.2.0",
	})
	if len(wanted["agnhost"]) != 2 || len(wanted[pause]) != 1 || len(wanted) != 2 {
		t.Errorf("chosen: %v", wanted)
	}
	if !slices.Equal(missing, []string{"gcr.io/k8s-authenticated-test/agnhost:2.6", "registry.k8s.io/sig-storage/csi-resizer:v2.2.0"}) {
		t.Errorf("missing: %v", missing)
	}
}

func TestFilesOfAptsPlan(t *testing.T) {
	plan := `Reading package lists...
Inst libc6 (2.36-9 Debian:12.15/oldstable [amd64]) []
Inst netbase (6.4 Debian:12.15/oldstable [all])
Inst libattr1 (1:2.5.1-4 Debian:12.15/oldstable [amd64])
Conf libc6 (2.36-9 Debian:12.15/oldstable [amd64])
`
	files, err := debian{dir: "d"}.files([]byte(plan))
	want := []string{"d/archives/libc6_2.36-9_amd64.deb", "d/archives/netbase_6.4_all.deb", "d/archives/libattr1_1%3a2.5.1-4_amd64.deb"}
	if err != nil || !slices.Equal(files, want) {
		t.Errorf("files %v, %v", files, err)
	}
	if _, err := (debian{}).files([]byte("nothing to do")); err == nil {
		t.Error("a plan without packages was taken")
	}
}

func TestUpperLayerKeepsWhatIsBelow(t *testing.T) {
	lower := images.Layer{{Path: "usr", Mode: fs.ModeDir | 0o755}, {Path: "bin", Mode: fs.ModeSymlink}, {Path: "usr/x"}}
	upper := images.Layer{{Path: "usr", Mode: fs.ModeDir | 0o700}, {Path: "bin", Mode: fs.ModeSymlink}, {Path: "usr/x"}, {Path: "usr/new", Mode: fs.ModeDir}}
	var left []string
	for _, f := range withoutDirectories(upper, lower) {
		left = append(left, f.Path)
	}
	if !slices.Equal(left, []string{"usr/x", "usr/new"}) {
		t.Errorf("left %v", left)
	}
}

// What a recipe names must be there when an image is made from it.
func TestRecipesAreComplete(t *testing.T) {
	for name, r := range recipes() {
		if len(r.files) == 0 && len(r.programs) == 0 {
			t.Errorf("%s: an image of nothing", name)
		}
		if len(r.config.Cmd) == 0 && len(r.config.Entrypoint) == 0 && name != "etcd" {
			t.Errorf("%s: it starts nothing", name)
		}
	}
}

// Two tags of one recipe must not be one image: the node would report either for both.
func TestTagsHaveIdentities(t *testing.T) {
	made := tagged(images.Image{Names: []string{"z"}, Layers: []images.Layer{{{Path: "x"}}}}, []string{"a:1", "a:2"})
	if len(made) != 2 || !slices.Equal(made[0].Names, []string{"a:1"}) || !slices.Equal(made[1].Names, []string{"a:2"}) {
		t.Fatalf("made %+v", made)
	}
	var digests [2][]byte
	for i, image := range made {
		image.Names = []string{"same:1"}
		var b bytes.Buffer
		if err := images.WriteArchive(&b, image); err != nil {
			t.Fatal(err)
		}
		digests[i] = b.Bytes()
	}
	if bytes.Equal(digests[0], digests[1]) {
		t.Error("the two are the same image")
	}
}
