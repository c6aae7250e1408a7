package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	kubectl "k8s.io/kubectl/pkg/cmd"

	"barque.dev/internal/local"
)

// access is how a command finds the cluster it speaks to.
type access struct {
	kubeconfig string
}

func (a *access) flags(f *pflag.FlagSet) {
	f.StringVar(&a.kubeconfig, "kubeconfig", "", "kubeconfig `FILE`; by default $KUBECONFIG, or the one that `barque up` or a server here wrote")
}

// path finds the kubeconfig file.
func (a *access) path() (string, error) {
	candidates := []string{a.kubeconfig}
	if a.kubeconfig == "" {
		candidates = filepath.SplitList(os.Getenv("KUBECONFIG"))
	}
	if len(candidates) == 0 {
		candidates = []string{
			filepath.Join(local.DefaultDir, "kubeconfig"),
			filepath.Join(local.DefaultDir+"-server", "kubeconfig"),
		}
	}
	for _, c := range candidates {
		if _, err := os.Stat(c); err == nil {
			return c, nil
		}
	}
	return "", fmt.Errorf("no cluster found (looked for %q): start one with `barque up`, or name its kubeconfig with --kubeconfig", candidates)
}

// client speaks to the cluster.
func (a *access) client() (kubernetes.Interface, *rest.Config, error) {
	path, err := a.path()
	if err != nil {
		return nil, nil, err
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return nil, nil, fmt.Errorf("read kubeconfig %s: %w", path, err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, nil, fmt.Errorf("use kubeconfig %s: %w", path, err)
	}
	return client, config, nil
}

func newKubeconfig(s Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "kubeconfig",
		Short: "Print the administrator's kubeconfig, or merge it into yours",
		Args:  noArgs,
	}
	var a access
	var merge bool
	var name string
	a.flags(cmd.Flags())
	cmd.Flags().BoolVar(&merge, "merge", false, "add the cluster to your own kubeconfig ($KUBECONFIG, or ~/.kube/config) and make it the current one")
	cmd.Flags().StringVar(&name, "name", "barque", "`name` of the cluster, user and context when merging")
	cmd.RunE = func(*cobra.Command, []string) error {
		if merge {
			return mergeKubeconfig(s, a, name)
		}
		path, err := a.path()
		if err != nil {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("read the kubeconfig: %w", err)
		}
		_, err = s.Out.Write(data)
		return err
	}
	return cmd
}

// mergeKubeconfig adds one cluster to the user's own file, replacing what has its name.
func mergeKubeconfig(s Streams, a access, name string) error {
	if a.kubeconfig == "" {
		// $KUBECONFIG is the target of a merge, not its source.
		for _, dir := range []string{local.DefaultDir, local.DefaultDir + "-server"} {
			if p := filepath.Join(dir, "kubeconfig"); a.kubeconfig == "" && exists(p) {
				a.kubeconfig = p
			}
		}
	}
	if a.kubeconfig == "" {
		return errors.New("no cluster found here: name the kubeconfig to merge with --kubeconfig")
	}
	from, err := clientcmd.LoadFromFile(a.kubeconfig)
	if err != nil {
		return fmt.Errorf("read kubeconfig %s: %w", a.kubeconfig, err)
	}
	current, ok := from.Contexts[from.CurrentContext]
	if !ok {
		return fmt.Errorf("kubeconfig %s has no current context", a.kubeconfig)
	}
	rules := clientcmd.NewDefaultPathOptions()
	to, err := rules.GetStartingConfig()
	if err != nil {
		return fmt.Errorf("read your kubeconfig: %w", err)
	}
	to.Clusters[name] = from.Clusters[current.Cluster]
	to.AuthInfos[name] = from.AuthInfos[current.AuthInfo]
	context := current.DeepCopy()
	context.Cluster, context.AuthInfo = name, name
	to.Contexts[name] = context
	to.CurrentContext = name
	if err := clientcmd.ModifyConfig(rules, *to, true); err != nil {
		return fmt.Errorf("write your kubeconfig: %w", err)
	}
	_, err = fmt.Fprintf(s.Out, "context %q is now the current one in %s\n", name, rules.GetDefaultFilename())
	return err
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// newKubectl is kubectl itself, pointed at the cluster of this machine unless told otherwise.
func newKubectl(s Streams) *cobra.Command {
	return &cobra.Command{
		Use:                "kubectl …",
		Short:              "kubectl, pointed at the cluster of this machine",
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			config := genericclioptions.NewConfigFlags(true).WithDeprecatedPasswordFlag().WithDiscoveryBurst(300).WithDiscoveryQPS(50)
			if os.Getenv("KUBECONFIG") == "" {
				if path, err := (&access{}).path(); err == nil {
					*config.KubeConfig = path
				}
			}
			k := kubectl.NewDefaultKubectlCommandWithArgs(kubectl.KubectlOptions{
				PluginHandler: kubectl.NewDefaultPluginHandler([]string{"kubectl"}),
				Arguments:     append([]string{"kubectl"}, args...),
				ConfigFlags:   config,
				IOStreams:     genericiooptions.IOStreams{In: s.In, Out: s.Out, ErrOut: s.Err},
			})
			k.SetArgs(args)
			k.SilenceErrors, k.SilenceUsage = true, true
			return k.ExecuteContext(cmd.Context())
		},
	}
}
