// Command barque-containerd is containerd's daemon with the plugins that Barque needs and no
// others. The server starts it as a process of its own, with a configuration and a data
// directory of its own, so that containers go on while the server restarts or is upgraded.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/containerd/containerd/v2/cmd/containerd/command"
)

func main() {
	if err := command.App().Run(context.Background(), os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "barque-containerd:", err)
		os.Exit(1)
	}
}
