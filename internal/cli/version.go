package cli

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"barque.dev/internal/node"
)

func newVersion(s Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the versions of Barque, of the API it serves, and of its etcd",
		Args:  noArgs,
	}
	var output string
	cmd.Flags().StringVarP(&output, "output", "o", "", "`json`, or nothing for text")
	cmd.RunE = func(*cobra.Command, []string) error {
		v := node.Version()
		switch output {
		case "":
			_, err := fmt.Fprintf(s.Out, "barque %s\nKubernetes API %s\netcd %s\n", v.Barque, v.Kubernetes, v.Etcd)
			return err
		case "json":
			return json.NewEncoder(s.Out).Encode(v)
		}
		return errUsage{fmt.Errorf("--output %q: choose json, or leave it out", output)}
	}
	return cmd
}
