// Command mkbundle builds the programs that Barque starts beside itself and packs them to be
// embedded (see package bundle). It is run by make, in the root of the repository:
//
//	go run ./internal/runtime/bundle/mkbundle
//
// Programs that did not change since are neither linked nor packed again.
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"

	"github.com/klauspost/compress/zstd"

	"barque.dev/internal/runtime/bundle"
)

// tags leave out what Barque does not use, and link runc's seccomp filters in.
const tags = "seccomp runc_nocriu no_btrfs no_zfs no_devmapper no_rdt no_systemd urfave_cli_no_docs netgo osusergo static_build"

// target is how to build one program.
type target struct {
	// name is what the program is called in the bundle; the last element of pkg is what
	// building it gives.
	name, pkg string
	// cgo is for runc, which enters namespaces in C before Go starts.
	cgo bool
}

func targets() []target {
	return []target{
		{name: bundle.Containerd, pkg: "./cmd/barque-containerd"},
		{name: bundle.Shim, pkg: "./cmd/barque-shim"},
		{name: bundle.CNI, pkg: "./cmd/barque-cni"},
		{name: bundle.Runc, pkg: "github.com/opencontainers/runc", cgo: true},
	}
}

func main() {
	build := flag.String("build", "bin/programs", "directory to build in")
	out := flag.String("out", "internal/runtime/bundle/programs", "directory to pack into")
	flag.Parse()
	if err := run(*build, *out); err != nil {
		fmt.Fprintln(os.Stderr, "mkbundle:", err)
		os.Exit(1)
	}
}

func run(buildDir, out string) error {
	buildDir, err := filepath.Abs(buildDir)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(buildDir, 0o755); err != nil {
		return err
	}
	before := packedBefore(out)
	var index bundle.Index
	for _, t := range targets() {
		if err := t.build(buildDir); err != nil {
			return fmt.Errorf("build %s: %w", t.name, err)
		}
		built := filepath.Join(buildDir, path.Base(t.pkg))
		p, err := measure(built, t.name)
		if err != nil {
			return err
		}
		if before[t.name] != p {
			if err := pack(built, filepath.Join(out, t.name+".zst")); err != nil {
				return fmt.Errorf("pack %s: %w", t.name, err)
			}
		}
		index.Programs = append(index.Programs, p)
	}
	data, err := json.MarshalIndent(index, "", "\t")
	if err != nil {
		return err
	}
	return replace(filepath.Join(out, bundle.IndexFile), append(data, '\n'))
}

// build installs the program into dir. Installing, rather than building, leaves alone what is
// up to date.
func (t target) build(dir string) error {
	ldflags := "-s -w"
	environment := append(os.Environ(), "GOBIN="+dir, "CGO_ENABLED=0")
	if t.cgo {
		ldflags += " -extldflags -static"
		environment = append(environment, "CGO_ENABLED=1")
	}
	cmd := exec.Command("go", "install", "-trimpath", "-buildvcs=false", "-tags", tags, "-ldflags", ldflags, t.pkg)
	cmd.Env = environment
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	err := cmd.Run()
	if err != nil && t.cgo {
		return fmt.Errorf("%w (it needs gcc, pkg-config and libseccomp-dev)", err)
	}
	return err
}

// packedBefore returns the programs that out holds already, by name.
func packedBefore(out string) map[string]bundle.Program {
	before := map[string]bundle.Program{}
	data, err := os.ReadFile(filepath.Join(out, bundle.IndexFile))
	if err != nil {
		return before
	}
	var index bundle.Index
	if json.Unmarshal(data, &index) != nil {
		return before
	}
	for _, p := range index.Programs {
		if _, err := os.Stat(filepath.Join(out, p.Name+".zst")); err == nil {
			before[p.Name] = p
		}
	}
	return before
}

// measure describes a program that was built.
func measure(file, name string) (bundle.Program, error) {
	f, err := os.Open(file)
	if err != nil {
		return bundle.Program{}, err
	}
	defer func() { _ = f.Close() }()
	hash := sha256.New()
	n, err := io.Copy(hash, f)
	if err != nil {
		return bundle.Program{}, err
	}
	return bundle.Program{Name: name, Size: n, SHA256: hex.EncodeToString(hash.Sum(nil))}, nil
}

// pack compresses a file.
func pack(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	var packed bytes.Buffer
	writer, err := zstd.NewWriter(&packed, zstd.WithEncoderLevel(zstd.SpeedBestCompression))
	if err != nil {
		return err
	}
	if _, err := io.Copy(writer, in); err != nil {
		return errors.Join(err, writer.Close())
	}
	if err := writer.Close(); err != nil {
		return err
	}
	return replace(to, packed.Bytes())
}

// replace writes a file as a whole or not at all.
func replace(path string, data []byte) error {
	if err := os.WriteFile(path+".new", data, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
