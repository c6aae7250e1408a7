package cli

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	kubectl "k8s.io/kubectl/pkg/cmd"
	cmdutil "k8s.io/kubectl/pkg/cmd/util"
)

// kubectlEnd carries the end of a kubectl command up to its caller: kubectl itself would end the
// process.
type kubectlEnd struct{ err error }

// newKubectl is kubectl itself, pointed at the cluster of this machine unless told otherwise.
func newKubectl(s Streams) *cobra.Command {
	return &cobra.Command{
		Use:   "kubectl …",
		Short: "kubectl, pointed at the cluster of this machine",
		Example: `  barque kubectl get nodes
  barque kubectl apply -f app.yaml`,
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			defer func() {
				switch end := recover().(type) {
				case nil:
				case kubectlEnd:
					err = end.err
				default:
					panic(end)
				}
			}()
			cmdutil.BehaviorOnFatal(func(message string, code int) {
				if message != "" {
					_, _ = fmt.Fprintln(s.Err, strings.TrimRight(message, "\n"))
				}
				panic(kubectlEnd{errExit(code)})
			})
			k := kubectl.NewDefaultKubectlCommandWithArgs(kubectl.KubectlOptions{
				PluginHandler: kubectl.NewDefaultPluginHandler([]string{"kubectl"}),
				Arguments:     append([]string{"kubectl"}, args...),
				ConfigFlags:   kubectlConfig(),
				IOStreams:     genericiooptions.IOStreams{In: s.In, Out: s.Out, ErrOut: s.Err},
			})
			k.SetArgs(args)
			k.SetIn(s.In)
			k.SetOut(s.Out)
			k.SetErr(s.Err)
			k.SilenceErrors, k.SilenceUsage = true, true
			return k.ExecuteContext(cmd.Context())
		},
	}
}

// kubectlConfig finds the cluster: as kubectl does, or else the one of this machine.
func kubectlConfig() *genericclioptions.ConfigFlags {
	config := genericclioptions.NewConfigFlags(true).WithDeprecatedPasswordFlag().WithDiscoveryBurst(300).WithDiscoveryQPS(50)
	own := os.Getenv(clientcmd.RecommendedConfigPathEnvVar) != ""
	path, err := (&access{}).path()
	switch {
	case err == nil && own:
		return config
	case err == nil:
		*config.KubeConfig = path
		return config
	case !own && exists(clientcmd.RecommendedHomeFile):
		return config
	}
	// kubectl would try a server on localhost, whose port is not that of any server of ours.
	return config.WithWrapConfigFn(func(c *rest.Config) *rest.Config {
		if *config.KubeConfig == "" && *config.APIServer == "" && c.Host == "http://localhost:8080" {
			panic(kubectlEnd{err})
		}
		return c
	})
}
