// Command shell is /bin/sh of the busybox image. Upstream's busybox hands on environment variables whose names are no
// identifiers; Debian's drops them, and bash does not, but words its complaints in its own way. So it is busybox
// that runs, or bash where there are such variables.
package main

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"syscall"
)

func main() {
	program := "/bin/busybox"
	identifier := regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	for _, variable := range os.Environ() {
		if name, _, _ := strings.Cut(variable, "="); !identifier.MatchString(name) {
			program = "/bin/bash"
		}
	}
	err := syscall.Exec(program, os.Args, os.Environ())
	fmt.Fprintf(os.Stderr, "%s: run %s: %v\n", os.Args[0], program, err)
	os.Exit(126)
}
