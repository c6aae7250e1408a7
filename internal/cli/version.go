package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"barque.dev/internal/node"
)

func newVersion(s Streams) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the versions of Barque and of the API it serves",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			barque, kubernetes := node.Versions()
			_, err := fmt.Fprintf(s.Out, "barque %s\nKubernetes API %s\n", barque, kubernetes)
			return err
		},
	}
}
