package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"barque.dev/internal/node"
	"barque.dev/internal/pki/expiry"
)

// certsTimeout bounds the question to all servers and the look at all nodes.
const certsTimeout = 30 * time.Second

func newCerts(s Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "certs",
		Short: "Show which certificate expires when; the exit code is not 0 when one wants attention",
		Long: `Certs lists the certificates of the cluster: the authorities, those of every server and every node, and the one in the
kubeconfig that it uses.

Machines renew their own when a third of their life is left. So the exit code is 1 when one has expired, when less than a sixth of its
life and less than 30 days is left (--within sets another bound, for all), when one can't be read, and when a machine did not tell.`,
		Example: `  barque certs
  barque certs --within 720h                            # what expires within 30 days, whoever renews it
  barque certs -o json
  sudo barque certs --data-dir /var/lib/barque-server   # by the server's socket, or, when it does not run, its files`,
		Args: noArgs,
	}
	var a access
	var dir, output string
	var within time.Duration
	a.flags(cmd.Flags())
	cmd.Flags().StringVar(&dir, "data-dir", "", "`DIR` of a server or agent on this machine, to be asked by its socket")
	cmd.Flags().DurationVar(&within, "within", 0, "how long before its end a certificate wants attention; by default a sixth of its life, and at most 30 days")
	cmd.Flags().StringVarP(&output, "output", "o", "table", "`format`: table or json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		switch {
		case within < 0:
			return errUsage{fmt.Errorf("--within %v: give a positive time such as 720h", within)}
		case output != "table" && output != "json":
			return errUsage{fmt.Errorf("--output %q: choose table or json", output)}
		case dir != "" && a.kubeconfig != "":
			return errUsage{errors.New("--data-dir and --kubeconfig are two ways to ask: give one of them")}
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), certsTimeout)
		defer cancel()
		report, err := certificates(ctx, s, a, dir)
		if err != nil {
			return err
		}
		now := time.Now()
		count := report.Judge(now, within)
		if output == "json" {
			encoder := json.NewEncoder(s.Out)
			encoder.SetIndent("", "  ")
			err = encoder.Encode(report)
		} else {
			err = printCerts(s.Out, report, now)
		}
		if err != nil {
			return err
		}
		return wantsAttention(report, count)
	}
	return cmd
}

// certificates asks for them: by the socket of a machine with a data directory, or the cluster of a kubeconfig.
func certificates(ctx context.Context, s Streams, a access, dir string) (report expiry.Report, err error) {
	if dir != "" {
		if dir, err = ownDir(dir); err != nil {
			return report, err
		}
		report, running, err := node.Certificates(ctx, dir)
		if err == nil && !running {
			_, _ = fmt.Fprintf(s.Err, "no barque runs with %s: these are its files\n", dir)
		}
		return report, err
	}
	path, err := a.path()
	if err != nil {
		return report, err
	}
	_, config, err := a.client()
	if err != nil {
		return report, err
	}
	mine, ok := expiry.FromKubeconfig("this kubeconfig", path, path)
	if ok && mine.Problem == "" && time.Now().After(mine.NotAfter) {
		return report, fmt.Errorf("the certificate in %s expired at %s: take a new kubeconfig from a server, with `sudo barque kubeconfig` there",
			path, mine.NotAfter.Local().Format(time.DateTime))
	}
	if err := askSnapshots(ctx, config, http.MethodGet, expiry.Path, certsTimeout, &report); err != nil {
		return report, err
	}
	if ok {
		report = expiry.Combine(report, expiry.Report{Certificates: []expiry.Certificate{mine}})
	}
	return report, nil
}

func printCerts(w io.Writer, r expiry.Report, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 4, 3, ' ', 0)
	_, _ = fmt.Fprintln(t, "MACHINE\tCERTIFICATE\tEXPIRES\tLEFT\tRENEWED\tATTENTION")
	for _, c := range r.Certificates {
		expires, left, renewed := "-", "-", "by hand"
		if c.Problem == "" || !c.NotAfter.IsZero() {
			expires, left = c.NotAfter.Local().Format(time.DateTime), span(c.NotAfter.Sub(now))
		}
		if c.Renewed {
			renewed = "by itself"
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", c.Machine, c.Name, expires, left, renewed, c.Attention)
	}
	return t.Flush()
}

// span is a time that is left, in its two largest units; "none" if nothing is.
func span(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d <= 0:
		return "none"
	case d >= 2*day:
		return fmt.Sprintf("%dd%dh", d/day, d%day/time.Hour)
	case d >= time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
}

// wantsAttention is the error when something does.
func wantsAttention(r expiry.Report, count int) error {
	var said []string
	switch count {
	case 0:
	case 1:
		said = append(said, "one certificate wants attention")
	default:
		said = append(said, fmt.Sprintf("%d certificates want attention", count))
	}
	if len(r.Silent) > 0 {
		said = append(said, fmt.Sprintf("not all is known of the certificates of %s, which did not answer", strings.Join(r.Silent, ", ")))
	}
	if len(said) == 0 {
		return nil
	}
	return errors.New(strings.Join(said, "; ") + ": see \"Certificates\" in docs/operate.md")
}
