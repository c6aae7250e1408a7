package cli

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"barque.dev/internal/pki"
)

// newAccountKey is the rotation of the key that signs service account tokens, on one server.
func newAccountKey(s Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "service-account-key",
		Short: "Rotate the key that signs service account tokens: prepare, switch, retire",
		Long: `Rotates the key that signs service account tokens, in three steps. Each changes the files in this
server's DIR/pki, which running servers follow without a restart; copy sa.pub, sa.key and sa-next.key, where it
is there, to the same place on every other server before the next step.`,
		Example: `  sudo barque service-account-key prepare   # a new key is accepted
  sudo barque service-account-key switch    # it signs; older tokens stay good
  sudo barque service-account-key retire    # older tokens are refused: give pods an hour or more before`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return errUsage{fmt.Errorf("barque service-account-key has no subcommand %q", args[0])}
			}
			return cmd.Help()
		},
	}
	cmd.AddCommand(
		newAccountKeyStep(s, "prepare", "Make the key that is to sign next, and accept it", pki.PrepareSigningKey,
			"a new key is accepted and does not sign yet: copy sa.pub and sa-next.key to the other servers, then `barque service-account-key switch`"),
		newAccountKeyStep(s, "switch", "Sign with the prepared key", pki.SwitchSigningKey,
			"the new key signs: copy sa.pub and sa.key to the other servers and remove their sa-next.key"),
		newAccountKeyStep(s, "retire", "Refuse the tokens of all keys before", pki.RetireSigningKeys,
			"tokens of older keys are refused: copy sa.pub to the other servers"),
	)
	return cmd
}

func newAccountKeyStep(s Streams, use, short string, step func(dir string) error, done string) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: noArgs}
	var dir string
	cmd.Flags().StringVar(&dir, "data-dir", defaultServerDir, "`DIR` that holds this server's data")
	cmd.RunE = func(*cobra.Command, []string) error {
		err := step(filepath.Join(dir, "pki"))
		switch {
		case errors.Is(err, pki.ErrPrepared):
			return fmt.Errorf("%w: go on with `barque service-account-key switch`", err)
		case errors.Is(err, pki.ErrNotPrepared):
			return fmt.Errorf("%w: begin with `barque service-account-key prepare`", err)
		case err != nil:
			return err
		}
		_, err = fmt.Fprintln(s.Out, done)
		return err
	}
	return cmd
}
