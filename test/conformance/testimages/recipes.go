package testimages

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"barque.dev/internal/runtime/images"
)

// recipe is how an image is made. Its parts are laid over each other in the order of the fields.
type recipe struct {
	// debian are packages, above those of every recipe that names any.
	debian []string
	// programs are Go packages to build, by where their programs go.
	programs map[string]string
	// setuid says that the programs belong to root and run as root.
	setuid bool
	// upstream are files of Kubernetes' module, by where they go.
	upstream map[string]string
	// files are made here.
	files  images.Layer
	config ocispec.ImageConfig
}

// base are the packages of every image that has a Debian in it.
var base = []string{
	"base-files", "bash", "coreutils", "dash", "diffutils", "findutils", "grep", "gzip", "hostname", "libc-bin", "mawk",
	"procps", "sed", "tar", "usr-is-merged", "util-linux",
}

// recipes are by the image's name without registry and tag.
func recipes() map[string]recipe {
	all := map[string]recipe{
		"agnhost":           agnhost(nil),
		"nautilus":          pictures("nautilus"),
		"kitten":            pictures("kitten"),
		"busybox":           busybox(),
		"nginx":             nginx(),
		"perl":              {debian: []string{"perl"}, files: etc(), config: ocispec.ImageConfig{Cmd: []string{"perl", "-de0"}}},
		"nonroot":           {debian: base, files: etc(), config: ocispec.ImageConfig{User: "1234", Cmd: []string{"bash"}}},
		"ipc-utils":         {debian: base, files: etc(), config: ocispec.ImageConfig{Cmd: []string{"sh"}}},
		"glibc-dns-testing": {debian: []string{"bind9-dnsutils"}, files: etc(), config: ocispec.ImageConfig{Cmd: []string{"bash"}}},
		"nonewprivs": {
			debian: base, files: etc(), setuid: true,
			programs: map[string]string{"usr/local/bin/nnp": upstreamImages + "nonewprivs"},
			config:   ocispec.ImageConfig{Cmd: []string{"nnp"}},
		},
		"regression-issue-74839": {
			programs: map[string]string{"regression-issue-74839": upstreamImages + "regression-issue-74839"},
			config:   ocispec.ImageConfig{Entrypoint: []string{"/regression-issue-74839"}},
		},
		"sample-apiserver": {
			debian: base, files: etc(),
			programs: map[string]string{"sample-apiserver": "k8s.io/sample-apiserver"},
			config:   ocispec.ImageConfig{Entrypoint: []string{"/sample-apiserver"}},
		},
		"etcd": {
			debian: base, files: etc(),
			programs: map[string]string{"usr/local/bin/etcd": "go.etcd.io/etcd/server/v3"},
		},
	}
	for name, r := range all {
		if len(r.debian) > 0 || name == "busybox" {
			r.config.Env = append(r.config.Env, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
			all[name] = r
		}
	}
	return all
}

// upstreamImages is where the programs of upstream's test images are.
const upstreamImages = "k8s.io/kubernetes/test/images/"

// agnhost is the program that most specs run, with the tools that they call.
func agnhost(more map[string]string) recipe {
	files := map[string]string{
		"localhost.crt": "test/images/agnhost/porter/localhost.crt",
		"localhost.key": "test/images/agnhost/porter/localhost.key",
	}
	for to, from := range more {
		files[to] = from
	}
	return recipe{
		debian:   []string{"bind9-dnsutils", "ca-certificates", "curl", "iperf", "iproute2", "netcat-openbsd", "socat"},
		programs: map[string]string{"agnhost": upstreamImages + "agnhost"},
		upstream: files,
		files: append(etc(
			// A spec asks for the groups that the image itself gives to a user.
			"user-defined-in-image:x:1000:1000::/nonexistent:/bin/sh",
			"user-defined-in-image:x:1000:", "group-defined-in-image:x:50000:user-defined-in-image"),
			images.File{Path: "uploads", Mode: fs.ModeDir | 0o755},
			images.File{Path: "agnhost-2", Mode: fs.ModeSymlink | 0o777, Target: "agnhost"},
			// Debian chooses among several nc when a package is installed.
			images.File{Path: "usr/bin/nc", Mode: fs.ModeSymlink | 0o777, Target: "nc.openbsd"},
			images.File{Path: "usr/local/bin/iperf", Mode: fs.ModeSymlink | 0o777, Target: "/usr/bin/iperf"},
		),
		config: ocispec.ImageConfig{
			Entrypoint: []string{"/agnhost"}, Cmd: []string{"pause"},
			ExposedPorts: map[string]struct{}{"80/tcp": {}, "8080/tcp": {}, "8081/tcp": {}, "9376/tcp": {}, "5000/tcp": {}},
		},
	}
}

// pictures is agnhost serving a picture.
func pictures(name string) recipe {
	r := agnhost(map[string]string{
		name + ".jpg": "test/images/" + name + "/html/" + name + ".jpg",
		"data.json":   "test/images/" + name + "/html/data.json",
	})
	r.config.Cmd = []string{"test-webserver"}
	return r
}

// etc are the files that Debian's maintainer scripts would write. Of more, the first is a user's
// line and the others are groups'.
func etc(more ...string) images.Layer {
	passwd := "root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n" +
		"www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
	group := "root:x:0:\ndaemon:x:1:\nwww-data:x:33:\nnogroup:x:65534:\n"
	for i, line := range more {
		if i == 0 {
			passwd += line + "\n"
		} else {
			group += line + "\n"
		}
	}
	return images.Layer{
		{Path: "etc/passwd", Mode: 0o644, Data: []byte(passwd)},
		{Path: "etc/group", Mode: 0o644, Data: []byte(group)},
		{Path: "etc/nsswitch.conf", Mode: 0o644, Data: []byte("hosts: files dns\n")},
		{Path: "usr/bin/sh", Mode: fs.ModeSymlink | 0o777, Target: "dash"},
		{Path: "usr/bin/awk", Mode: fs.ModeSymlink | 0o777, Target: "mawk"},
		{Path: "root", Mode: fs.ModeDir | 0o700},
		{Path: "tmp", Mode: fs.ModeDir | fs.ModeSticky | 0o777},
	}
}

// nginx is Debian's, set up as its official image is: in the foreground, its pages in the place that
// specs know.
func nginx() recipe {
	const config = `user www-data;
worker_processes 1;
error_log /dev/stderr notice;
pid /run/nginx.pid;
events { worker_connections 1024; }
http {
	include /etc/nginx/mime.types;
	access_log /dev/stdout;
	server {
		listen 80;
		listen [::]:80;
		location / { root /usr/share/nginx/html; index index.html; }
	}
}
`
	return recipe{
		debian: []string{"nginx-light", "curl"},
		files:  append(etc(), images.File{Path: "etc/nginx/nginx.conf", Mode: 0o644, Data: []byte(config)}),
		config: ocispec.ImageConfig{Cmd: []string{"nginx", "-g", "daemon off;"}, ExposedPorts: map[string]struct{}{"80/tcp": {}}, StopSignal: "SIGQUIT"},
	}
}

// busybox is Debian's static one; its links are made when the image is.
func busybox() recipe {
	return recipe{
		programs: map[string]string{"bin/sh": "barque.dev/test/conformance/testimages/shell"},
		files: images.Layer{
			{Path: "tmp", Mode: fs.ModeDir | fs.ModeSticky | 0o777},
			{Path: "etc/passwd", Mode: 0o644, Data: []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n")},
			{Path: "etc/group", Mode: 0o644, Data: []byte("root:x:0:\nnogroup:x:65534:\n")},
			{Path: "root", Mode: fs.ModeDir | 0o700},
			{Path: "home", Mode: fs.ModeDir | 0o755},
		},
		config: ocispec.ImageConfig{Cmd: []string{"sh"}},
	}
}

// read reads files of Kubernetes' module into a layer.
func read(module string, from map[string]string) (images.Layer, error) {
	var layer images.Layer
	for _, to := range slices.Sorted(maps.Keys(from)) {
		data, err := os.ReadFile(filepath.Join(module, from[to]))
		if err != nil {
			return nil, fmt.Errorf("read upstream's file: %w", err)
		}
		layer = append(layer, images.File{Path: to, Mode: 0o644, Data: data})
	}
	return layer, nil
}
